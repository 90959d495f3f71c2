"""What servers do wrong, and what networks do to packets. See faults.py for who does what."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from pathlib import Path

import pytest

from qorb.resolvers import DnsPolicy, DnsResolver
from qorb.resolvers.dns._aiodns import AiodnsClient
from qorb.resolvers.dns._servers import read_servers
from qorb.resolvers.dns._sifting import Sieve
from qorb.resolvers.dns._values import Failed, NoRecords, Question
from tests.conftest import RunReal
from tests.resolvers.dns.real import wire
from tests.resolvers.dns.real.faults import TARGETS
from tests.resolvers.dns.real.scripted import ScriptedServer
from tests.resolvers.dns.real.seeing import Found, watching


def found_in(domain: str) -> Found:
    return {f"{target}.{domain}:5432": f"{address}:5432" for target, address in TARGETS.items()}


@pytest.mark.parametrize(
    "fault",
    [
        "good",
        "truncated",
        "in-pieces",
        "closed-half-way",
        "without-edns",
        "wrong-id",
        "wrong-name",
        "wrong-kind",
        "wrong-sender",
        "chain-8",
        "target-is-alias",
        "records-of-others",
        "shouting",
    ],
)
def test_the_backends_are_found_in_spite_of(faulty: ScriptedServer, run_real: RunReal, fault: str) -> None:
    domain = f"{fault}.test"

    async def main() -> None:
        async with watching(DnsResolver(f"_pg._tcp.{domain}", [faulty.address])) as seen:
            await seen.until_published(found_in(domain))
            assert seen.sets[-1:] == [found_in(domain)]
            assert not [one for found in seen.sets for one in found if "evil" in one]

    run_real(main)


def test_what_is_truncated_is_asked_for_again_over_tcp(faulty: ScriptedServer, run_real: RunReal) -> None:
    domain = "truncated.test"

    async def main() -> None:
        async with watching(DnsResolver(f"_pg._tcp.{domain}", [faulty.address])) as seen:
            await seen.until_published(found_in(domain))

    run_real(main)
    for kind in (wire.SRV, wire.A):
        ways = [tcp for _, asked, tcp, _ in faulty.log(domain).entries if asked == kind]
        assert set(ways) == {False, True}


def test_queries_say_by_edns0_that_1232_octets_may_come(faulty: ScriptedServer, run_real: RunReal) -> None:
    async def main() -> None:
        async with watching(DnsResolver("_pg._tcp.good.test", [faulty.address])) as seen:
            await seen.until_published(found_in("good.test"))

    run_real(main)
    assert {payload for _, _, tcp, payload in faulty.log("good.test").entries if not tcp} == {1232}


def test_a_lost_packet_is_sent_again_in_the_same_round(faulty: ScriptedServer, run_real: RunReal) -> None:
    """The server hears each question twice, and no question has failed."""

    async def main() -> None:
        domain = "first-lost.test"
        async with watching(DnsResolver(f"_pg._tcp.{domain}", [faulty.address])) as seen:
            await seen.until(lambda: seen.rounds == 1)
            assert seen.latest == found_in(domain)
            assert not [reply for _, reply in seen.replies if isinstance(reply, Failed)]

    run_real(main)
    asked = [(name, kind) for name, kind, _, _ in faulty.log("first-lost.test").entries]
    assert all(asked.count(one) == 2 for one in asked), asked


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("silent", "no answer within"),
        ("servfail", "SERVFAIL"),
        ("refused", "REFUSED"),
        ("notimp", "NOTIMP"),
        ("formerr", "FORMERR"),
        ("truncated-in-mid-record", "malformed answer"),  # RFC 2181, 9: a record is sent as a whole or not at all
        ("no-question", "malformed answer"),
        ("chain-9", "more than 8 CNAMEs"),
        ("chain-100", "more than 8 CNAMEs"),
        ("loop-1", "more than 8 CNAMEs"),
        ("loop-2", "more than 8 CNAMEs"),
        ("loop-20", "more than 8 CNAMEs"),
    ],
)
def test_it_is_said_why_nothing_is_known_when_the_server_is(
    faulty: ScriptedServer, run_real: RunReal, fault: str, words: str
) -> None:
    async def main() -> None:
        policy = DnsPolicy(query_timeout=0.5)
        async with watching(DnsResolver(f"_pg._tcp.{fault}.test", [faulty.address], policy)) as seen:
            await seen.until(lambda: seen.rounds == 1)
            assert words in seen.errors[0]
            assert seen.sets == []  # that there is nothing is not known, either

    run_real(main)


def test_that_there_is_no_such_name_is_published_when_nothing_was_known(
    faulty: ScriptedServer, run_real: RunReal
) -> None:
    async def main() -> None:
        async with watching(DnsResolver("_pg._tcp.nxdomain.test", [faulty.address])) as seen:
            await seen.until_published({})
            assert isinstance(seen.replies[0][1], NoRecords)
            await seen.until(lambda: seen.rounds == 1)
            assert "NXDOMAIN" in seen.errors[0]

    run_real(main)


def test_a_target_whose_addresses_fail_does_not_cost_the_other(faulty: ScriptedServer, run_real: RunReal) -> None:
    async def main() -> None:
        async with watching(DnsResolver("_pg._tcp.one-target-fails.test", [faulty.address])) as seen:
            await seen.until(lambda: seen.rounds == 1)
            assert seen.latest == {"a.one-target-fails.test:5432": f"{TARGETS['a']}:5432"}
            assert "b.one-target-fails.test" in seen.errors[0]

    run_real(main)


def test_a_plain_name_has_its_addresses_looked_up(faulty: ScriptedServer, run_real: RunReal) -> None:
    async def main() -> None:
        async with watching(DnsResolver("A.Good.Test.", [faulty.address], default_port=6379)) as seen:
            await seen.until_published({"a.good.test:6379": f"{TARGETS['a']}:6379"})

    run_real(main)


def link_local_address() -> str | None:
    """One of this machine, with its interface."""
    path = Path("/proc/net/if_inet6")
    for line in path.read_text().splitlines() if path.exists() else ():
        digits, _, _, scope, _, interface = line.split()
        if scope == "20":
            return f"{ipaddress.IPv6Address(bytes.fromhex(digits))}%{interface}"
    return None


def test_a_link_local_server_is_asked_through_the_interface_that_is_named(run_real: RunReal) -> None:
    address = link_local_address()
    if address is None:
        pytest.skip("this machine has no link-local address")
    host, _, interface = address.partition("%")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
            server.setblocking(False)
            server.bind((host, 0, 0, socket.if_nametoindex(interface)))
            place = f"[{address}]:{server.getsockname()[1]}"
            async with watching(DnsResolver("_pg._tcp.example.test", [place])):
                assert b"example" in await loop.sock_recv(server, 512)

    run_real(main)


def test_a_server_on_an_interface_that_there_is_not_is_told_and_costs_the_others_nothing(
    faulty: ScriptedServer, run_real: RunReal
) -> None:
    async def main() -> None:
        nameservers = ["fe80::1%absent0", faulty.address]
        async with watching(DnsResolver("_pg._tcp.good.test", nameservers)) as seen:
            await seen.until_published(found_in("good.test"))
        client = AiodnsClient(read_servers(nameservers)[0], Sieve(b"", 1))
        question = Question("good.test", "A")
        asked = client.ask(question)
        await asyncio.wait([asked])
        assert await client.read(question, asked) == Failed("there is no such network interface")
        await client.close()

    run_real(main)
