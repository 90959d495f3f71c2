"""Bad days of DNS, D1 to D17, as a pool lives through them; what it logs and tells; and how it all ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import random
from collections import Counter

import pytest

from qorb import NoBackendsError
from qorb.events import ResolverFailed, ResolverQueryDone, ResolverQueryFailed, ResolverQueryStart, ResolverUpdated
from qorb.testing import FakeConnector, assert_nothing_left, at_every_await, run, settle
from tests.pools import hold, now, opened
from tests.resolvers.dns.fakes import (
    MALFORMED,
    NODATA,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    SERVICE,
    SILENCE,
    SRV,
    FakeServer,
    Net,
    Seen,
    srv,
    watching,
)

THREE = {f"t{number}.example.com": [f"10.1.0.{number}"] for number in (1, 2, 3)}
FAILURES = [SERVFAIL, REFUSED, MALFORMED, SILENCE]


@contextlib.asynccontextmanager
async def pooled(net, *, observed=False, ready=True, **policy):
    """A pool whose backends DNS finds. It keeps all connections that it may have, so that claims change nothing."""
    resolver = net.resolver(**policy)
    quiet = {"spares_wanted": 16, "health_interval": math.inf}
    async with opened(resolver, ready=ready, observed=observed, **quiet) as watched:
        watched.net = net
        yield watched
    assert not net.open


def opened_and_closed(watched):
    """How many connections have been opened so far, and how many of them were closed."""
    calls = [call.operation for call in watched.connector.calls]
    return calls.count("connect"), calls.count("connect") - len(watched.connector.connections)


async def visits(pool, seconds, pause=0.1):
    """Claim again and again; a claim that fails fails the test."""
    until = now() + seconds
    while now() < until:
        await hold(pool, pause / 2)
        await asyncio.sleep(pause / 2)


# D1: dead at the start.


@pytest.mark.parametrize("fault", FAILURES)
def test_d1_a_dns_that_is_dead_at_the_start_is_named_by_claims_and_its_first_answer_used_within_retry_interval(fault):
    async def main():
        server = FakeServer().serves(THREE)
        server.breaks(fault)
        async with pooled(Net(ns1=server), ready=False) as watched:
            with pytest.raises(NoBackendsError) as caught:
                await watched.pool.claim(timeout=60)
            words = "no answer within" if fault is SILENCE else fault.reason
            assert words in str(caught.value)
            assert SERVICE in str(caught.value)
            server.heals()
            healed = now()
            async with watched.pool.claim(timeout=30):
                assert now() - healed <= 10 + (10 if fault is SILENCE else 0.1)

    run(main)


def test_d1_a_second_after_the_first_failure_it_is_asked_again():
    async def main():
        server = FakeServer().serves(THREE)
        server.breaks(SERVFAIL)
        async with pooled(Net(ns1=server), ready=False) as watched:
            await asyncio.sleep(0.5)
            server.heals()
            began = now()
            async with watched.pool.claim():
                assert now() - began < 0.6

    run(main)


# D2: dies later. D4: fails.


@pytest.mark.parametrize("fault", FAILURES)
def test_d2_d4_a_dns_that_is_down_for_55_minutes_closes_no_connection_and_costs_no_claim(fault):
    async def main():
        server = FakeServer().serves(THREE, ttl=10)
        async with pooled(Net(ns1=server), stale_limit=3600) as watched:
            before = opened_and_closed(watched)
            server.breaks(fault)
            asked = len(server.times())
            await visits(watched.pool, 55 * 60, pause=30)
            assert opened_and_closed(watched) == before
            assert len(server.times()) - asked < 55 * 60 / 10 + 5
            server.heals()
            server.serves({"t9.example.com": ["10.1.0.9"]})
            await asyncio.sleep(21)
            assert list(watched.pool.stats().backends) == ["t9.example.com:5432"]

    run(main)


def test_d2_at_stale_limit_what_dns_no_longer_confirms_is_given_up():
    async def main():
        server = FakeServer().serves(THREE, ttl=10)
        async with watching(Net(ns1=server), stale_limit=600) as seen:
            await asyncio.sleep(1)
            server.breaks(SERVFAIL)
            await asyncio.sleep(605)
            assert [len(hosts) for hosts in seen.all_hosts] == [3, 0]
            assert seen.times[1] == pytest.approx(600.01)
            server.heals()
            await asyncio.sleep(11)
            assert len(seen.hosts) == 3

    run(main)


@pytest.mark.parametrize("stale_limit", [0.001, 1, 2, 5, 30, 60, 90])
@pytest.mark.parametrize("latency", [0.01, 0.3])
def test_d2_no_stale_limit_costs_a_backend_while_dns_answers(stale_limit, latency):
    async def main():
        server = FakeServer(latency).serves(THREE, ttl=300)
        async with watching(Net(ns1=server), stale_limit=stale_limit) as seen:
            await asyncio.sleep(400)
            assert [len(hosts) for hosts in seen.all_hosts] == [3]
            assert min(b - a for a, b in itertools.pairwise(server.times())) >= 1

    run(main)


def test_d4_servfail_from_one_server_and_silence_from_another_lose_nothing():
    async def main():
        net = Net(ns1=FakeServer().serves(THREE, ttl=5), ns2=FakeServer().serves(THREE, ttl=5))
        async with pooled(net) as watched:
            before = opened_and_closed(watched)
            net.servers["10.0.0.1:53"].breaks(SERVFAIL)
            net.servers["10.0.0.2:53"].breaks(SILENCE)
            await visits(watched.pool, 600, pause=1)
            assert opened_and_closed(watched) == before
            assert len(watched.pool.stats().backends) == 3

    run(main)


def test_d4_a_dead_dns_is_not_asked_more_often_than_retry_interval_says():
    async def main():
        server = FakeServer()
        server.breaks(REFUSED)
        async with watching(Net(ns1=server)):
            await asyncio.sleep(600)
            assert len(server.times()) <= 63

    run(main)


# D3: empty answers.


@pytest.mark.parametrize("empty", [NXDOMAIN, NODATA])
def test_d3_backends_go_when_an_empty_answer_came_twice_in_a_row_and_claims_on_them_finish(empty):
    async def main():
        server = FakeServer().serves(THREE, ttl=5)
        async with pooled(Net(ns1=server)) as watched:
            (claim,) = await watched.claims(1)
            server.answers(SRV, empty)
            await asyncio.sleep(10)
            assert len(watched.pool.stats().backends) == 3
            await asyncio.sleep(10)
            assert list(watched.pool.stats().backends) == [claim.backend.name]
            assert not claim.connection.closed
            claim.release()
            await asyncio.sleep(0.1)
            assert not watched.pool.stats().backends
            with pytest.raises(NoBackendsError, match=f"(?s){SERVICE}.*{empty.reason}"):
                await watched.pool.claim(timeout=1)

    run(main)


def test_d3_one_empty_answer_costs_nothing():
    async def main():
        server = FakeServer().serves(THREE, ttl=5)
        async with watching(Net(ns1=server)) as seen:
            for _ in range(10):
                await asyncio.sleep(20)
                server.breaks(NXDOMAIN)
                await asyncio.sleep(5)
                server.heals()
            assert len(seen.sets) == 1

    run(main)


def test_d3_failures_between_two_empty_answers_neither_count_nor_reset():
    async def main():
        server = FakeServer().serves(THREE, ttl=5)
        async with watching(Net(ns1=server)) as seen:
            await asyncio.sleep(2)
            server.breaks(NXDOMAIN)
            await asyncio.sleep(5)
            server.breaks(SERVFAIL)
            await asyncio.sleep(600)
            assert len(seen.sets) == 1
            server.breaks(NXDOMAIN)
            await asyncio.sleep(10.1)
            assert [len(hosts) for hosts in seen.all_hosts] == [3, 0]

    run(main)


def test_d3_an_empty_service_is_published_as_empty_and_asked_about_again_after_retry_interval():
    async def main():
        server = FakeServer()
        async with watching(Net(ns1=server)) as seen:
            await asyncio.sleep(5)
            assert seen.all_hosts == [[]]
            server.serves(THREE)
            await asyncio.sleep(6)
            assert len(seen.hosts) == 3
            assert server.times() == pytest.approx([0, 10.01])

    run(main)


def test_d3_a_server_that_does_not_answer_has_no_vote():
    async def main():
        net = Net(ns1=FakeServer().serves(THREE, ttl=5), ns2=FakeServer())
        net.servers["10.0.0.2:53"].breaks(SILENCE)
        async with watching(net) as seen:
            await asyncio.sleep(2)
            net.servers["10.0.0.1:53"].breaks(NXDOMAIN)
            await asyncio.sleep(60)
            assert [len(hosts) for hosts in seen.all_hosts] == [3, 0]

    run(main)


# D5: one of several servers lies.


@pytest.mark.parametrize("fault", [NXDOMAIN, NODATA, SERVFAIL])
def test_d5_one_of_several_servers_that_says_there_is_nothing_changes_nothing(fault):
    async def main():
        net = Net(**{f"ns{number}": FakeServer(0.01 * number).serves(THREE, ttl=5) for number in (1, 2, 3)})
        async with pooled(net) as watched:
            before = opened_and_closed(watched)
            net.servers["10.0.0.1:53"].breaks(fault)
            await visits(watched.pool, 300, pause=1)
            assert opened_and_closed(watched) == before

    run(main)


# D6: the addresses of one target are not to be had.


@pytest.mark.parametrize("fault", FAILURES)
def test_d6_a_target_whose_addresses_cannot_be_looked_up_keeps_its_last_ones(fault):
    async def main():
        server = FakeServer().serves(THREE, ttl=5)
        async with pooled(Net(ns1=server)) as watched:
            before = opened_and_closed(watched)
            for kind in ("A", "AAAA"):
                server.answers(f"t1.example.com {kind}", fault)
            await visits(watched.pool, 300, pause=1)
            assert opened_and_closed(watched) == before
            assert len(watched.pool.stats().backends) == 3

    run(main)


def test_d6_the_last_addresses_of_a_target_go_at_stale_limit():
    async def main():
        server = FakeServer().serves(THREE, ttl=5)
        async with watching(Net(ns1=server), stale_limit=60) as seen:
            await asyncio.sleep(1)
            for kind in ("A", "AAAA"):
                server.answers(f"t1.example.com {kind}", SERVFAIL)
            await asyncio.sleep(100)
            assert seen.all_hosts[1:] == [["10.1.0.2", "10.1.0.3"]]
            assert seen.times[1] == pytest.approx(60.02)

    run(main)


def test_d6_a_new_target_without_addresses_costs_the_others_nothing():
    async def main():
        server = FakeServer().serves(THREE, ttl=5)
        async with watching(Net(ns1=server)) as seen:
            await asyncio.sleep(1)
            server.has(SRV, *map(srv, [*THREE, "t4.example.com"]), ttl=5)
            server.answers("t4.example.com A", SERVFAIL)
            await asyncio.sleep(60)
            assert len(seen.sets) == 1

    run(main)


@pytest.mark.parametrize("fault", [SERVFAIL, SILENCE])
def test_d6_a_move_to_a_target_whose_addresses_are_not_to_be_had_yet_loses_nothing(fault):
    async def main():
        server = FakeServer().serves(THREE, ttl=5)
        async with pooled(Net(ns1=server)) as watched:
            server.has(SRV, srv("t4.example.com"), ttl=5)
            for kind in ("A", "AAAA"):
                server.answers(f"t4.example.com {kind}", fault)
            before = opened_and_closed(watched)
            await visits(watched.pool, 120, pause=1)
            assert opened_and_closed(watched) == before
            server.has("t4.example.com A", "10.1.0.4")
            await visits(watched.pool, 25, pause=1)
            assert list(watched.pool.stats().backends) == ["t4.example.com:5432"]

    run(main)


# D7: TTLs.


@pytest.mark.parametrize("ttl", [0, 1, 2**31 - 1, 2**32 - 1])
def test_d7_whatever_the_ttl_is_it_is_asked_between_once_a_second_and_once_in_query_interval(ttl):
    async def main():
        server = FakeServer().serves(THREE, ttl=ttl)
        async with watching(Net(ns1=server)) as seen:
            await asyncio.sleep(600)
            assert len(server.times()) in ((10, 11) if ttl > 1 else (600, 601))
            assert len(seen.sets) == 1

    run(main)


def test_d7_with_a_ttl_of_a_second_and_a_query_interval_of_a_minute_no_claim_fails_and_no_backend_flaps():
    async def main():
        server = FakeServer(latency=0.03).serves(THREE, ttl=1)
        async with pooled(Net(ns1=server), query_interval=60, observed=True) as watched:
            before = opened_and_closed(watched)
            await visits(watched.pool, 300, pause=0.7)
            assert opened_and_closed(watched) == before
            assert len([event for _, event in watched.events if isinstance(event, ResolverUpdated)]) == 1

    run(main)


# D8: too much. (Parsing is not in virtual time.)


def test_d8_of_ten_thousand_records_256_backends_are_used_always_the_same():
    async def main():
        server = FakeServer()
        targets = [f"t{number}.example.com" for number in range(10_000)]
        server.has(SRV, *map(srv, targets))
        for number, target in enumerate(targets):
            server.has(f"{target} A", f"10.{number >> 8}.{number & 255}.1")
        async with watching(Net(ns1=server), query_interval=40, max_concurrency=500) as seen:
            await asyncio.sleep(20)
            random.Random(1).shuffle(targets)
            server.has(SRV, *map(srv, targets))
            await asyncio.sleep(40)
            assert len(server.times()) == 2 + 1
            assert [len(hosts) for hosts in seen.all_hosts] == [256]

    run(main)


# D13: order.


def test_d13_another_order_of_records_changes_nothing():
    async def main():
        targets = {f"t{number}.example.com": [f"10.{number}.0.{one}" for one in range(1, 6)] for number in range(5)}
        server = FakeServer().serves(targets, ttl=1)
        async with pooled(Net(ns1=server)) as watched:
            before = opened_and_closed(watched)
            chance = random.Random(1)
            for _ in range(60):
                await asyncio.sleep(1)
                for question, entry in list(server.zone.items()):
                    server.has(question, *chance.sample(entry[0], len(entry[0])), ttl=chance.choice([0, 1, 2]))
            assert opened_and_closed(watched) == before

    run(main)


# D14: one address under two names.


def test_d14_one_address_under_two_names_is_one_backend():
    async def main():
        server = FakeServer()
        server.has(SRV, srv("b.example.com", priority=1), srv("a.example.com", priority=2), srv("c.example.com", 9))
        for target in "abc":
            server.has(f"{target}.example.com A", "10.1.0.1")
        async with watching(Net(ns1=server)) as seen:
            await asyncio.sleep(1)
            assert [(one.name, one.server_name) for one in seen.latest] == [
                ("b.example.com:5432", "b.example.com"),
                ("c.example.com:9", "c.example.com"),
            ]

    run(main)


# D15: removed while claimed. D16: removed and added again.


def test_d15_a_backend_that_dns_no_longer_names_serves_its_claims_to_the_end():
    async def main():
        server = FakeServer().serves({"t1.example.com": ["10.1.0.1"]}, ttl=1)
        async with pooled(Net(ns1=server)) as watched:
            (claim,) = await watched.claims(1)
            server.serves({"t2.example.com": ["10.1.0.2"]}, ttl=1)
            await asyncio.sleep(3)
            assert {one.backend.host for one in watched.connector.connections} == {"10.1.0.1", "10.1.0.2"}
            assert not claim.connection.closed
            claim.release()
            await asyncio.sleep(0.1)
            assert {one.backend.host for one in watched.connector.connections} == {"10.1.0.2"}

    run(main)


def test_d16_a_backend_that_goes_and_comes_back_is_there_once():
    async def main():
        server = FakeServer().serves(THREE, ttl=1)
        async with pooled(Net(ns1=server)) as watched:
            claims = await watched.claims(6)
            for number in range(20):
                server.has(SRV, *(srv(target) for target in list(THREE)[number % 2 :]), ttl=1)
                await asyncio.sleep(1)
            for claim in claims:
                claim.release()
            await asyncio.sleep(1)
            assert len(watched.pool.stats().backends) in (2, 3)

    run(main)


# D17: addresses of the wrong kind.


def test_d17_addresses_of_this_machine_and_others_that_can_be_no_backend_are_refused():
    async def main():
        bad = [
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "::1",
            "fe80::1",
            "::",
            "ff02::1",
            "::ffff:127.0.0.1",
        ]
        server = FakeServer().serves({"t1.example.com": bad, "t2.example.com": ["10.1.0.2", *bad]})
        async with watching(Net(ns1=server)) as seen:
            await asyncio.sleep(100)
            assert seen.all_hosts == [["10.1.0.2"]]

    run(main)


# The same backends at other addresses.


def test_a_backend_whose_address_changes_under_its_name_is_reconnected_there():
    async def main():
        server = FakeServer().serves({"t1.example.com": ["10.1.0.1"]}, ttl=1)
        async with pooled(Net(ns1=server)) as watched:
            server.has("t1.example.com A", "10.1.0.9", ttl=1)
            await visits(watched.pool, 3)
            assert {one.backend.host for one in watched.connector.connections} == {"10.1.0.9"}
            assert list(watched.pool.stats().backends) == ["t1.example.com:5432"]

    run(main)


def test_a_change_of_weight_and_priority_reconnects_nothing():
    async def main():
        server = FakeServer().serves(THREE, ttl=1)
        async with pooled(Net(ns1=server)) as watched:
            before = opened_and_closed(watched)
            server.has(SRV, *(srv(target, priority=3, weight=7) for target in THREE), ttl=1)
            await visits(watched.pool, 3)
            assert {(one.backend.priority, one.backend.weight) for one in watched.pool.stats().backends.values()} == {
                (3, 7)
            }
            assert opened_and_closed(watched) == before

    run(main)


def test_with_one_dead_server_of_two_the_first_backends_are_there_within_100_ms():
    async def main():
        net = Net(ns1=FakeServer(), ns2=FakeServer(latency=0.02).serves(THREE))
        net.servers["10.0.0.1:53"].breaks(SILENCE)
        async with pooled(net, ready=False) as watched:
            began = now()
            async with watched.pool.claim():
                assert now() - began < 0.1

    run(main)


# What is told.


def test_queries_answers_changes_and_failures_are_events():
    async def main():
        server = FakeServer().serves({"t1.example.com": ["10.1.0.1"]}, ttl=5)
        async with pooled(Net(ns1=server), observed=True, family="ipv4") as watched:
            kinds = (ResolverQueryStart, ResolverQueryDone, ResolverUpdated)
            told = [event for _, event in watched.events if isinstance(event, kinds)]
            assert [type(event) for event in told] == [*kinds[:2], *kinds]
            assert (told[0].server, told[0].question) == ("10.0.0.1:53", SRV)
            assert (told[1].records, told[1].ttl) == (1, 5)
            server.breaks(SERVFAIL)
            watched.events.clear()
            await asyncio.sleep(5)
            failed = [event for _, event in watched.events if isinstance(event, ResolverQueryFailed)]
            assert [event.reason for event in failed] == [SERVFAIL.reason] * len(failed)
            assert failed
            assert [event for _, event in watched.events if isinstance(event, ResolverFailed)]

    run(main)


def test_a_failure_is_logged_once_a_minute_with_how_often_it_came(caplog):
    async def main():
        server = FakeServer()
        server.breaks(SERVFAIL)
        async with watching(Net(ns1=server)):
            await asyncio.sleep(300)

    with caplog.at_level(logging.INFO, "qorb.dns"):
        run(main)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert 4 <= len(lines) <= 6
    assert SERVFAIL.reason in lines[0]
    assert "10.0.0.1:53" in lines[0]
    assert "times since the last line" in lines[-1]


async def come_and_go(server):
    """A failure every other second, with a TTL of a second."""
    while True:
        server.breaks(SERVFAIL)
        await asyncio.sleep(1.2)
        server.heals()
        await asyncio.sleep(1.2)


async def come_by_turns(server):
    """Another failure at every round."""
    while True:
        for fault in (SERVFAIL, REFUSED):
            server.breaks(fault)
            await asyncio.sleep(10)


@pytest.mark.parametrize("failures", [come_and_go, come_by_turns])
def test_failures_that_come_and_go_are_logged_once_a_minute_each(failures, caplog):
    async def main():
        server = FakeServer().serves(THREE, ttl=1)
        async with watching(Net(ns1=server)):
            await asyncio.sleep(0.5)
            going = asyncio.create_task(failures(server))
            await asyncio.sleep(290)
            going.cancel()
            await asyncio.wait([going])

    with caplog.at_level(logging.WARNING, "qorb.dns"):
        run(main)
    lines = Counter(record.getMessage().partition(" (and")[0] for record in caplog.records)
    assert len(lines) <= 3
    assert 4 <= max(lines.values()) <= 5


def test_servers_that_fail_in_another_order_are_not_another_failure(caplog):
    async def main():
        net = Net(ns1=FakeServer(latency=0.01), ns2=FakeServer(latency=0.02))
        first, second = net.servers.values()
        for server in (first, second):
            server.breaks(SERVFAIL)
        async with watching(net):
            for _ in range(29):
                await asyncio.sleep(10)
                first.latency, second.latency = second.latency, first.latency

    with caplog.at_level(logging.WARNING, "qorb.dns"):
        run(main)
    lines = [record.getMessage().partition(" (and")[0] for record in caplog.records]
    assert 4 <= len(lines) <= 6
    assert len(set(lines)) == 1


def test_changes_are_logged(caplog):
    async def main():
        server = FakeServer().serves(THREE, ttl=5)
        async with watching(Net(ns1=server)):
            await asyncio.sleep(1)
            server.serves({"t1.example.com": ["10.1.0.9"], "t4.example.com": ["10.1.0.4"]}, ttl=5)
            await asyncio.sleep(10)

    with caplog.at_level(logging.INFO, "qorb.dns"):
        run(main)
    assert [record.getMessage() for record in caplog.records] == [
        f"{SERVICE}: 3 backends; new t1.example.com:5432, t2.example.com:5432, t3.example.com:5432",
        (
            f"{SERVICE}: 2 backends; new t4.example.com:5432; gone t2.example.com:5432, t3.example.com:5432; "
            "changed t1.example.com:5432"
        ),
    ]


# The end.


@pytest.mark.parametrize("moment", [0, 0.005, 0.015, 0.06, 5, 9.9, 10.5])
@pytest.mark.parametrize("fault", [None, SILENCE, SERVFAIL])
def test_terminate_never_waits_for_a_query_and_leaves_nothing(moment, fault):
    async def main():
        server = FakeServer().serves(THREE)
        server.answers("t1.example.com AAAA", SILENCE)
        if fault is not None or moment == 0:
            server.breaks(fault)
        net = Net(ns1=server)
        async with opened(net.resolver(), FakeConnector(latency=0.0001), ready=False) as watched:
            await asyncio.sleep(moment)
            began = now()
            await watched.pool.terminate()
            assert now() - began < 0.01
            assert_nothing_left(watched.pool)
            assert not net.open
            asked = len(net.asked)
            await asyncio.sleep(100)
            assert len(net.asked) == asked

    run(main)


def test_a_monitor_ends_at_once_while_a_query_is_under_way():
    async def main():
        net = Net(ns1=FakeServer(latency=1).serves(THREE))
        async with net.resolver().monitor() as monitor:
            await asyncio.sleep(0.5)
            assert net.open
            began = now()
        assert now() == began
        assert not net.open
        await monitor.terminate()

    run(main)


def test_a_monitor_sees_the_backends_of_dns_come_and_change():
    async def main():
        server = FakeServer().serves(THREE, ttl=1)
        async with Net(ns1=server).resolver().monitor() as monitor:
            assert len(await monitor.changed()) == 3
            server.has(SRV, srv("t1.example.com"), ttl=1)
            assert list(await monitor.changed()) == ["t1.example.com:5432"]

    run(main)


async def one_after_another(attempt):
    """Watch a service that changes, fails and is denied, until cancelled."""
    server, other = FakeServer().serves(THREE, ttl=2), FakeServer(latency=0.02).serves(THREE, ttl=2)
    server.answers("t1.example.com AAAA", SILENCE)
    net = Net(ns1=server, ns2=other)
    seen = Seen()

    async def change():
        for fault in (None, SERVFAIL, SILENCE, NXDOMAIN):
            if fault is not None:
                server.breaks(fault)
                other.breaks(fault)
            await asyncio.sleep(2.5)

    async def watch():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(9):
                await net.resolver(query_timeout=2, stale_limit=6, retry_interval=2).watch(seen)

    changing = asyncio.create_task(change())
    with contextlib.suppress(asyncio.CancelledError):
        await attempt.cancel(watch())
    assert not net.open
    published, asked = len(seen.sets), len(net.asked)
    changing.cancel()
    await settle()
    await asyncio.sleep(30)
    assert (len(seen.sets), len(net.asked)) == (published, asked)
    assert len(asyncio.all_tasks()) == 1


def test_watch_that_is_cancelled_at_any_await_leaves_no_client_open():
    report = at_every_await(one_after_another, at_least=20)
    assert any(tried.in_time for tried in report.tried)
