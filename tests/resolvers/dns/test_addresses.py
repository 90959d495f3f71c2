"""Which addresses and targets DNS may name, and which of too many are used."""

from __future__ import annotations

import asyncio
import random

import pycares
import pytest

from qorb.resolvers import DnsResolver
from qorb.resolvers.dns._addresses import judge
from qorb.resolvers.dns._aiodns import read_records
from qorb.resolvers.dns._sifting import MAX_ADDRESSES, Sieve
from qorb.resolvers.dns._values import Failed, NoRecords, Question, Records
from qorb.testing import run
from tests.resolvers.dns.fakes import SERVICE, SRV, FakeServer, Net, srv, watching

SEED = bytes(16)


def sift(*addresses, loopback=False, seed=SEED):
    async def main():
        return await Sieve(seed, 256).addresses(Question("t", "A"), addresses, 30, 0, loopback=loopback)

    return run(main)


def choose(*records, most=256, seed=SEED):
    async def main():
        return await Sieve(seed, most).targets(records, 30, 0)

    return run(main)


# Addresses.


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "8.8.8.8",
        "100.64.0.1",
        "239.255.255.255",
        "1.0.0.0",
        "2001:db8::1",
        "fd00::1",
        "fec0::1",
        "64:ff9b::a00:1",
    ],
)
def test_private_and_public_addresses_may_be_named(address):
    reason = judge(address)[1]
    assert reason == ("multicast" if address.startswith("239.") else None)


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "0.1.2.3", "224.0.0.1", "169.254.169.254", "169.254.0.1", "240.0.0.1", "250.1.2.3", "255.255.255.255",
     "::", "ff02::1", "ff0e::1", "fe80::1", "febf::1", "fe80::1%eth0", "2001:db8::1%1",
     "::ffff:0.0.0.0", "::ffff:0.1.2.3", "::ffff:224.0.0.1", "::ffff:169.254.169.254", "::ffff:255.255.255.255",
     "::ffff:240.0.0.1", "", "x", "10.0.0", "010.0.0.1", "10.0.0.1:80", "/tmp/socket", "localhost"],
)  # fmt: skip
def test_addresses_that_can_be_no_backend_are_left_out(address):
    reply = sift(address)
    assert isinstance(reply, Failed)
    assert judge(address)[1] in reply.reason
    assert sift(address, "10.0.0.1").records == ("10.0.0.1",)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_left_out_unless_it_was_named_by_a_given_server_on_loopback(address):
    assert isinstance(sift(address), Failed)
    assert sift(address, loopback=True).records == (judge(address)[0],)


def test_an_ipv4_mapped_address_is_judged_and_used_as_ipv4():
    assert sift("::ffff:10.0.0.1", "10.0.0.1", "::ffff:a00:1").records == ("10.0.0.1",)
    assert judge("::FFFF:10.0.0.1") == ("10.0.0.1", None, False)


@pytest.mark.parametrize(
    ("nameserver", "hosts"),
    [("127.0.0.1", ["10.1.0.1", "127.0.0.1"]), ("[::1]:53", ["10.1.0.1", "127.0.0.1"]), ("10.0.0.1", ["10.1.0.1"])],
)
def test_only_the_answer_of_a_given_server_on_loopback_may_name_this_machine(nameserver, hosts):
    async def main():
        net = Net()
        net.servers = {
            name: FakeServer().serves({"t1.example.com": ["127.0.0.1", "10.1.0.1"]})
            for name in ("127.0.0.1:53", "[::1]:53", "10.0.0.1:53")
        }
        async with watching(net, net.resolver(nameservers=[nameserver])) as seen:
            await asyncio.sleep(1)
            assert seen.hosts == hosts

    run(main)


def test_a_reason_is_kept_for_what_was_left_out_but_not_for_thousands():
    reply = sift("10.0.0.1", *(f"127.{one}.0.1" for one in range(200)))
    assert 0 < len(reply.refused) <= 20
    assert "127.0.0.1: loopback" in reply.refused[0]
    assert reply.total == 201


def test_at_most_64_addresses_of_a_target_are_used_always_the_same():
    addresses = [f"10.{one >> 8}.{one & 255}.1" for one in range(1000)]
    chosen = sift(*addresses).records
    assert len(chosen) == MAX_ADDRESSES == 64
    random.Random(1).shuffle(addresses)
    assert sift(*addresses).records == chosen
    assert sift(*chosen, *addresses[:300]).records == chosen
    assert sift(*addresses, seed=b"another").records != chosen
    assert set(chosen) != {f"10.{one >> 8}.{one & 255}.1" for one in range(64)}


def test_when_one_of_too_many_goes_only_one_takes_its_place():
    addresses = [f"10.{one >> 8}.{one & 255}.1" for one in range(1000)]
    chosen = sift(*addresses).records
    addresses.remove(chosen[3])
    assert len(set(chosen) - set(sift(*addresses).records)) == 1


# Targets.


def test_equal_targets_count_once_with_the_lowest_priority_value():
    reply = choose(srv("t1", priority=5), srv("t1", priority=2), srv("t1", priority=9), srv("t1", 99))
    assert sorted((one.target, one.port, one.priority) for one in reply.records) == [("t1", 99, 0), ("t1", 5432, 2)]


@pytest.mark.parametrize(
    ("record", "alone"),
    [
        (srv(""), NoRecords),
        (srv("t1", 0), NoRecords),
        (srv("a b"), Failed),
        (srv("x" * 64), Failed),
        (srv("a..b"), Failed),
        (srv("a\x1b[2J"), Failed),
        (srv("a:1"), Failed),
    ],
)
def test_a_target_that_is_no_host_or_has_no_port_is_no_backend(record, alone):
    """Alone, it says that there is nothing, as RFC 2782 has it, or it is an answer that cannot be used."""
    assert isinstance(choose(record), alone)
    assert choose(record, srv("t2")).records == (srv("t2"),)


def test_too_many_targets_are_chosen_among_before_their_addresses_are_looked_up():
    async def main():
        server = FakeServer()
        targets = [f"t{number}.example.com" for number in range(1000)]
        server.has(SRV, *map(srv, targets))
        for number, target in enumerate(targets):
            server.has(f"{target} A", f"10.{number >> 8}.{number & 255}.1")
        async with watching(Net(ns1=server), max_backends=10, family="ipv4", query_interval=5) as seen:
            for seed in range(20):
                await asyncio.sleep(5)
                random.Random(seed).shuffle(targets)
                server.has(SRV, *map(srv, targets))
            assert len(seen.sets) == 1
            assert len(seen.hosts) == 10
            assert len({question for _, question in server.asked}) == 11

    run(main)


def test_lower_priority_values_are_chosen_first_then_by_hash_and_not_the_first_ones():
    records = [srv(f"t{number:03}", priority=number % 2) for number in range(200)]
    chosen = choose(*records, most=150).records
    assert sum(one.priority == 0 for one in chosen) == 100
    assert {one.target for one in chosen if one.priority} != {f"t{number:03}" for number in range(1, 100, 2)}
    assert choose(*records[::-1], most=150).records == chosen
    assert choose(*records, most=150, seed=b"another").records != chosen


def test_every_resolver_chooses_differently():
    seeds = {DnsResolver("db")._client.keywords["sieve"]._seed for _ in range(10)}
    assert len(seeds) == 10


def test_big_answers_are_worked_through_in_slices():
    async def main():
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await Sieve(SEED, 256).targets([srv(f"t{number}") for number in range(10_000)], 30, 0)
        await Sieve(SEED, 256).addresses(
            Question("t", "A"), [f"10.0.{one >> 8}.{one & 255}" for one in range(10_000)], 30, 0, loopback=False
        )
        counting.cancel()
        assert turns >= 200

    run(main)


# CNAMEs, and whose records they are.


def record(name, kind, *values, ttl=30):
    makes = {
        "A": (pycares.QUERY_TYPE_A, pycares.ARecordData),
        "AAAA": (pycares.QUERY_TYPE_AAAA, pycares.AAAARecordData),
        "CNAME": (pycares.QUERY_TYPE_CNAME, pycares.CNAMERecordData),
        "SRV": (pycares.QUERY_TYPE_SRV, pycares.SRVRecordData),
        "TXT": (pycares.QUERY_TYPE_TXT, pycares.TXTRecordData),
    }
    number, make = makes[kind]
    return pycares.DNSRecord(name, number, 1, ttl, make(*values))


def read(question, *records, loopback=False):
    async def main():
        return await read_records(question, records, Sieve(SEED, 256), loopback=loopback)

    return run(main)


def chain(length):
    """So many CNAMEs that lead from n0 on, and an address at their end."""
    return [record(f"n{one}", "CNAME", f"n{one + 1}", ttl=100 - one) for one in range(length)] + [
        record(f"n{length}", "A", "10.0.0.1", ttl=50)
    ]


@pytest.mark.parametrize("length", range(9))
def test_up_to_eight_cnames_are_followed_in_whatever_order_they_come(length):
    records = chain(length)
    random.Random(length).shuffle(records)
    reply = read(Question("n0", "A"), *records)
    assert reply.records == ("10.0.0.1",)
    assert reply.cnames == length


@pytest.mark.parametrize("length", [9, 10, 100])
def test_more_than_eight_cnames_are_no_answer(length):
    assert isinstance(read(Question("n0", "A"), *chain(length)), Failed)


def test_a_loop_of_cnames_is_no_answer():
    records = [record("n0", "CNAME", "n1"), record("n1", "CNAME", "n0")]
    assert isinstance(read(Question("n0", "A"), *records), Failed)
    assert isinstance(read(Question("n0", "A"), record("n0", "CNAME", "n0")), Failed)


def test_the_shortest_ttl_on_the_way_counts():
    assert read(Question("n0", "A"), *chain(3)).ttl == 50
    assert read(Question("n0", "A"), record("n0", "CNAME", "n1", ttl=7), record("n1", "A", "10.0.0.1")).ttl == 7
    assert read(Question("n0", "A"), record("n0", "A", "10.0.0.2", ttl=9), record("n0", "A", "10.0.0.1")).ttl == 9


def test_records_of_other_names_and_kinds_do_not_count():
    reply = read(
        Question("n0", "A"),
        record("other", "A", "10.0.0.9", ttl=1),
        record("n0", "AAAA", "2001:db8::1", ttl=1),
        record("n0", "TXT", b"x", ttl=1),
        record("n0", "A", "10.0.0.1"),
    )
    assert (reply.records, reply.ttl) == (("10.0.0.1",), 30)


def test_names_in_answers_compare_without_case_and_final_dot():
    reply = read(Question("n0", "A"), record("N0.", "CNAME", "N1."), record("n1", "A", "10.0.0.1"))
    assert reply.records == ("10.0.0.1",)
    reply = read(
        Question(SERVICE, "SRV"),
        record(SERVICE.upper() + ".", "SRV", 1, 2, 3, "T1.Example.COM."),
        record(SERVICE, "SRV", 1, 2, 3, "t1.example.com"),
    )
    assert reply.records == (srv("t1.example.com", 3, priority=1, weight=2),)


def test_a_service_that_is_said_not_to_exist_has_no_records():
    reply = read(Question(SERVICE, "SRV"), record(SERVICE, "SRV", 0, 0, 0, "."))
    assert isinstance(reply, NoRecords)


def test_a_cname_that_leads_nowhere_has_no_records():
    assert isinstance(read(Question("n0", "A"), record("n0", "CNAME", "n1")), NoRecords)


def test_an_answer_in_another_order_is_the_same_answer():
    records = [record("n0", "A", f"10.0.0.{one}") for one in range(1, 20)]
    first = read(Question("n0", "A"), *records)
    assert isinstance(first, Records)
    assert read(Question("n0", "A"), *records[::-1]) == first
