"""DnsResolver, and a pool over it, against a real DNS server whose zone changes, and which dies."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from qorb import Policy, Pool
from qorb.connectors import TcpConnector, TcpStream
from qorb.resolvers import DnsPolicy, DnsResolver
from tests.conftest import RunReal
from tests.resolvers.dns.real import conftest
from tests.resolvers.dns.real.knot import DOMAIN, SERVICE, Knot
from tests.resolvers.dns.real.seeing import Found, watching

SRV = "_pg._tcp SRV"
POLICY = DnsPolicy(query_timeout=2.0, retry_interval=1.0)


def backend(host: str, port: int = 5432) -> str:
    return f"0 1 {port} {host}"


def of(addresses: dict[str, str], port: int = 5432) -> Found:
    return {f"{host}.{DOMAIN}:{port}": f"{address}:{port}" for host, address in addresses.items()}


def fill(knot: Knot, **addresses: str) -> None:
    """Add these backends."""
    knot.update(
        add={SRV: [backend(host) for host in addresses]}
        | {f"{host} {'AAAA' if ':' in address else 'A'}": [address] for host, address in addresses.items()}
    )


@pytest.mark.parametrize(("ci", "ends"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_without_knot_these_tests_are_skipped_but_fail_in_continuous_integration(
    monkeypatch: pytest.MonkeyPatch, ci: str, ends: type[BaseException]
) -> None:
    monkeypatch.setattr(conftest, "find_knotd", lambda: None)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(ends, match="make system-deps"):
        conftest.require_knot()


def test_srv_a_and_aaaa_are_found(knot: Knot, run_real: RunReal) -> None:
    fill(knot, a="192.0.2.1", b="2001:db8::2")
    knot.update(add={SRV: ["10 5 5433 c"], "c A": ["192.0.2.3"], "c AAAA": ["2001:db8::3"]})

    async def main() -> None:
        async with watching(DnsResolver(SERVICE, [knot.address])) as seen:
            await seen.until_published(
                {
                    f"a.{DOMAIN}:5432": "192.0.2.1:5432",
                    f"b.{DOMAIN}:5432": "2001:db8::2:5432",
                    "192.0.2.3:5433": "192.0.2.3:5433",
                    "[2001:db8::3]:5433": "2001:db8::3:5433",
                }
            )

    run_real(main)


def test_backends_are_added_removed_and_get_another_address(knot: Knot, run_real: RunReal) -> None:
    fill(knot, a="192.0.2.1", b="192.0.2.2")

    async def main() -> None:
        async with watching(DnsResolver(SERVICE, [knot.address], POLICY)) as seen:
            await seen.until_published(of({"a": "192.0.2.1", "b": "192.0.2.2"}))
            fill(knot, c="192.0.2.3")
            await seen.until_published(of({"a": "192.0.2.1", "b": "192.0.2.2", "c": "192.0.2.3"}))
            knot.update(remove={SRV: backend("a"), "b A": ""}, add={"b A": ["192.0.2.22"]})
            await seen.until_published(of({"b": "192.0.2.22", "c": "192.0.2.3"}))
            assert {} not in seen.sets
            knot.update(remove={SRV: ""})
            await seen.until_published({})

    run_real(main)


def test_what_a_server_said_outlives_it_and_what_it_says_when_it_is_back_counts(knot: Knot, run_real: RunReal) -> None:
    fill(knot, a="192.0.2.1", b="192.0.2.2")

    async def main() -> None:
        async with watching(DnsResolver(SERVICE, [knot.address], POLICY)) as seen:
            await seen.until_published(of({"a": "192.0.2.1", "b": "192.0.2.2"}))
            knot.kill()
            rounds = seen.rounds
            await seen.until(lambda: seen.rounds >= rounds + 2 and bool(seen.errors))
            before = len(seen.sets)
            assert seen.latest == of({"a": "192.0.2.1", "b": "192.0.2.2"})
            assert knot.start()
            knot.update(remove={SRV: backend("a")})
            await seen.until_published(of({"b": "192.0.2.2"}))
            assert len(seen.sets) == before + 1

    run_real(main)


@pytest.mark.parametrize("dead", ["silent", "closed"])
@pytest.mark.parametrize("first", [True, False], ids=["dead-one-first", "dead-one-last"])
def test_a_dead_server_beside_it_keeps_nothing_waiting(
    knot: Knot, run_real: RunReal, dead: str, *, first: bool
) -> None:
    """The backends are there before the silent server is asked anything for the second time, which is after a second.

    That it is a tenth of a second at most is shown in virtual time.
    """
    fill(knot, a="192.0.2.1", b="192.0.2.2")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.setblocking(False)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        if dead == "closed":
            silent.close()
        servers = [address, knot.address] if first else [knot.address, address]

        async def main() -> None:
            async with watching(DnsResolver(SERVICE, servers, POLICY)) as seen:
                await seen.until(lambda: bool(seen.sets))
                heard = [] if dead == "closed" else queries(silent)
                await seen.until_published(of({"a": "192.0.2.1", "b": "192.0.2.2"}))
                assert len(heard) == len(set(heard)), "asked twice"

        run_real(main)


def queries(silent: socket.socket) -> list[bytes]:
    """The questions that have come, without their ids."""
    heard = []
    with contextlib.suppress(BlockingIOError):
        while True:
            heard.append(silent.recv(1232)[2:])
    return heard


@contextlib.asynccontextmanager
async def echo(host: str, port: int = 0) -> AsyncIterator[int]:
    """A server that gives back each line, prefixed with its address."""
    writers: list[asyncio.StreamWriter] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(host.encode() + b" " + line)
        writer.close()

    server = await asyncio.start_server(talk, host, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await server.wait_closed()


async def who_answers(pool: Pool[TcpStream]) -> str:
    async with pool.claim() as stream:
        stream.writer.write(b"who\n")
        line = await stream.reader.readline()
    return line.split()[0].decode()


def test_a_pool_follows_the_zone_and_no_claim_fails(knot: Knot, run_real: RunReal) -> None:
    hosts = {"a": "127.0.0.2", "b": "127.0.0.3", "c": "127.0.0.4"}

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            port = await stack.enter_async_context(echo(hosts["a"]))
            for host in ("b", "c"):
                await stack.enter_async_context(echo(hosts[host], port))
            knot.update(
                add={SRV: [backend("a", port), backend("b", port)]}
                | {f"{host} A": [address] for host, address in hosts.items()}
            )
            resolver = DnsResolver(SERVICE, [knot.address], POLICY)
            async with Pool("pg", resolver, TcpConnector(), Policy(spares_wanted=2, max_slots=6)) as pool:
                answered = set()

                async def until_answer(wanted: set[str]) -> None:
                    """Claim until just these have answered twenty claims in a row."""
                    answered.clear()
                    while answered != wanted:
                        answered.clear()
                        for _ in range(20):
                            answered.add(await who_answers(pool))
                            await asyncio.sleep(0.005)

                await until_answer({hosts["a"], hosts["b"]})
                knot.update(add={SRV: [backend("c", port)]})
                await until_answer(set(hosts.values()))
                knot.update(remove={SRV: backend("a", port)})
                await until_answer({hosts["b"], hosts["c"]})
                knot.kill()
                for _ in range(100):
                    assert await who_answers(pool) in {hosts["b"], hosts["c"]}
                assert knot.start()
                knot.update(remove={"b A": ""}, add={"b A": [hosts["a"]]})
                await until_answer({hosts["a"], hosts["c"]})

    run_real(main)
