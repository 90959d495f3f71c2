"""Who is asked when, and which answer counts: several servers, families, truncated patience, the pace of rounds."""

from __future__ import annotations

import asyncio
import itertools
import math

import pytest

from qorb.testing import run
from tests.resolvers.dns.fakes import (
    MALFORMED,
    NODATA,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    SILENCE,
    SRV,
    FakeServer,
    Net,
    srv,
    watching,
)

OLD = {"t1.example.com": ["10.1.0.1"]}
NEW = {"t1.example.com": ["10.1.0.2"]}


def gaps(times):
    return [later - earlier for earlier, later in itertools.pairwise(times)]


# Several servers.


def test_the_first_good_answer_is_used_at_once_without_waiting_for_a_slow_or_a_dead_server():
    async def main():
        net = Net(ns1=FakeServer(), ns2=FakeServer(latency=3).serves(OLD), ns3=FakeServer(latency=0.01).serves(OLD))
        net.servers["10.0.0.1:53"].breaks(SILENCE)
        async with watching(net) as seen:
            await asyncio.sleep(0.1)
            assert seen.hosts == ["10.1.0.1"]
            await asyncio.sleep(1)
            assert not net.open

    run(main)


@pytest.mark.parametrize("fault", [SERVFAIL, REFUSED, MALFORMED, NXDOMAIN, NODATA, SILENCE])
def test_a_server_with_records_wins_over_one_that_has_none_or_does_not_answer(fault):
    async def main():
        net = Net(ns1=FakeServer(latency=0.001), ns2=FakeServer(latency=0.02).serves(OLD))
        net.servers["10.0.0.1:53"].breaks(fault)
        async with watching(net) as seen:
            await asyncio.sleep(300)
            assert seen.times == [0.04]
            assert seen.hosts == ["10.1.0.1"]

    run(main)


def test_five_dead_servers_cost_a_good_one_a_second():
    async def main():
        dead = {f"ns{number}": FakeServer() for number in range(1, 6)}
        net = Net(**dead, ns6=FakeServer().serves(OLD))
        for name in net.nameservers[:5]:
            net.servers[name].breaks(SILENCE)
        async with watching(net) as seen:
            await asyncio.sleep(1.1)
            assert seen.times == [1.02]

    run(main)


def test_no_more_queries_are_in_flight_than_max_concurrency_but_one_that_waits_a_second_does_not_count():
    async def main():
        targets = {f"t{number}.example.com": [f"10.1.0.{number}"] for number in range(1, 21)}
        server = FakeServer(latency=0.5).serves(targets)
        async with watching(Net(ns1=server), max_concurrency=3, query_timeout=60, family="ipv4"):
            await asyncio.sleep(5)
            times = [moment for moment, _ in server.asked]
            assert times == pytest.approx([0, *(0.5 + number // 3 * 0.5 for number in range(20))])
        server = FakeServer().serves(targets)
        for target in targets:
            server.answers(f"{target} A", SILENCE)
        async with watching(Net(ns1=server), max_concurrency=3, query_timeout=60, family="ipv4"):
            await asyncio.sleep(9)
            times = [moment for moment, _ in server.asked]
            assert times == pytest.approx([0, *(0.01 + number // 3 for number in range(20))])

    run(main)


def test_the_server_whose_answer_was_used_is_preferred_and_asked_first():
    async def main():
        net = Net(ns1=FakeServer(latency=0.02).serves(NEW), ns2=FakeServer(latency=0.01).serves(OLD))
        async with watching(net, max_concurrency=1, query_interval=5) as seen:
            await asyncio.sleep(20)
            assert seen.all_hosts == [["10.1.0.2"]]
            net.servers["10.0.0.1:53"].breaks(SILENCE)
            await asyncio.sleep(20)
            assert seen.hosts == ["10.1.0.1"]
            net.servers["10.0.0.1:53"].heals()
            net.asked.clear()
            await asyncio.sleep(30)
            assert seen.hosts == ["10.1.0.1"]
            assert {server for _, server, _ in net.asked} == {"10.0.0.2:53"}

    run(main)


def test_a_differing_answer_waits_until_the_preferred_server_has_been_silent_for_300_ms():
    async def main():
        preferred, other = FakeServer(latency=0.001).serves(OLD), FakeServer(latency=0.01).serves(OLD)
        async with watching(Net(ns1=preferred, ns2=other), query_interval=10) as seen:
            await asyncio.sleep(5)
            other.serves(NEW)
            preferred.breaks(SILENCE)
            await asyncio.sleep(10)
            # The SRV records are the same and used at once; the address comes 10 ms later and waits from then.
            began = other.times("t1.example.com A")[-1]
            assert seen.hosts == ["10.1.0.2"]
            assert seen.times[-1] == pytest.approx(began + 0.3)

    run(main)


def test_a_differing_answer_is_used_at_once_when_the_preferred_server_fails_at_once():
    async def main():
        preferred, other = FakeServer(latency=0.001).serves(OLD), FakeServer(latency=0.02).serves(NEW)
        async with watching(Net(ns1=preferred, ns2=other), query_interval=10) as seen:
            await asyncio.sleep(5)
            assert seen.hosts == ["10.1.0.1"]
            preferred.breaks(SERVFAIL)
            await asyncio.sleep(10)
            assert seen.hosts == ["10.1.0.2"]
            assert seen.times[-1] - other.times()[-1] < 0.1

    run(main)


@pytest.mark.parametrize("latencies", [(0.01, 0.02), (0.02, 0.01), (0.25, 0.01)])
def test_servers_that_disagree_do_not_make_the_set_flap(latencies):
    async def main():
        first, second = (FakeServer(latency) for latency in latencies)
        first.serves(OLD, ttl=2)
        second.serves(NEW, ttl=2)
        async with watching(Net(ns1=first, ns2=second)) as seen:
            for number in range(200):
                await asyncio.sleep(1)
                first.latency = latencies[number % 2]
                second.latency = latencies[1 - number % 2]
            assert len(seen.sets) == 1

    run(main)


def test_a_family_that_the_preferred_server_has_is_not_lost_when_a_quicker_one_has_none_of_it():
    async def main():
        preferred = FakeServer(latency=0.001).serves({"t1.example.com": ["10.1.0.1", "2001:db8::1"]}, ttl=5)
        other = FakeServer(latency=0.01).serves(OLD, ttl=5)
        async with watching(Net(ns1=preferred, ns2=other)) as seen:
            await asyncio.sleep(3)
            preferred.latency = 0.1
            await asyncio.sleep(60)
            assert seen.all_hosts == [["10.1.0.1", "2001:db8::1"]]
            preferred.breaks(SILENCE)
            await asyncio.sleep(10)
            assert seen.all_hosts == [["10.1.0.1", "2001:db8::1"], ["10.1.0.1"]]

    run(main)


def test_disagreement_about_there_being_a_service_keeps_it():
    async def main():
        first, second = FakeServer().serves(OLD, ttl=5), FakeServer(latency=0.02).serves(OLD, ttl=5)
        async with watching(Net(ns1=first, ns2=second)) as seen:
            await asyncio.sleep(10)
            first.breaks(NXDOMAIN)
            await asyncio.sleep(300)
            assert len(seen.sets) == 1

    run(main)


def test_when_the_preferred_server_dies_the_other_takes_over_and_nothing_changes():
    async def main():
        first, second = FakeServer().serves(OLD, ttl=5), FakeServer(latency=0.02).serves(OLD, ttl=5)
        async with watching(Net(ns1=first, ns2=second)) as seen:
            await asyncio.sleep(10)
            first.breaks(SILENCE)
            await asyncio.sleep(20)
            second.serves(NEW, ttl=5)
            await asyncio.sleep(6)
            assert seen.all_hosts == [["10.1.0.1"], ["10.1.0.2"]]
            # The dead one is no longer waited for.
            assert seen.times[-1] - second.times()[-1] < 0.1

    run(main)


def test_a_fresh_client_asks_in_every_round_and_is_closed_at_its_end():
    async def main():
        net = Net(ns1=FakeServer().serves(OLD), ns2=FakeServer())
        net.servers["10.0.0.2:53"].breaks(SILENCE)
        async with watching(net, query_interval=10):
            await asyncio.sleep(0.015)
            assert len(net.open) == 2
            await asyncio.sleep(10)
            assert (net.opened, len(net.open)) == (4, 2)
            await asyncio.sleep(5)
            assert not net.open

    run(main)


# Families.


def test_what_has_come_is_published_when_nothing_more_came_for_50_ms():
    async def main():
        server = FakeServer().serves({"t1.example.com": ["10.1.0.1", "2001:db8::1"]})
        server.delays["t1.example.com AAAA"] = 2
        async with watching(Net(ns1=server)) as seen:
            await asyncio.sleep(5)
            assert seen.times == [0.07, 2.01]
            assert seen.all_hosts == [["10.1.0.1"], ["10.1.0.1", "2001:db8::1"]]

    run(main)


def test_answers_that_come_less_than_50_ms_apart_are_published_together():
    async def main():
        targets = {f"t{number}.example.com": [f"10.1.0.{number}"] for number in range(1, 5)}
        server = FakeServer().serves(targets)
        for number in range(1, 5):
            server.delays[f"t{number}.example.com A"] = 0.04 * number
        async with watching(Net(ns1=server), family="ipv4") as seen:
            await asyncio.sleep(5)
            assert seen.times == [0.17]

    run(main)


@pytest.mark.parametrize(("silent", "host"), [("AAAA", "10.1.0.1"), ("A", "2001:db8::1")])
def test_a_family_that_never_answers_does_not_cost_the_other(silent, host):
    async def main():
        server = FakeServer().serves({"t1.example.com": ["10.1.0.1", "2001:db8::1"]})
        server.answers(f"t1.example.com {silent}", SILENCE)
        async with watching(Net(ns1=server)) as seen:
            await asyncio.sleep(300)
            assert seen.all_hosts == [[host]]
            assert seen.times == [0.07]

    run(main)


def test_a_family_that_never_answers_does_not_keep_the_other_from_being_refreshed():
    async def main():
        server = FakeServer().serves({"t1.example.com": ["10.1.0.1", "2001:db8::1"]}, ttl=1)
        server.answers("t1.example.com AAAA", SILENCE)
        async with watching(Net(ns1=server)):
            await asyncio.sleep(300)
            assert max(gaps(server.times())) <= 3.1

    run(main)


def test_no_records_of_one_family_from_a_server_that_has_the_other_is_an_answer_and_nobody_else_is_waited_for():
    async def main():
        net = Net(ns1=FakeServer().serves(OLD), ns2=FakeServer())
        net.servers["10.0.0.2:53"].breaks(SILENCE)
        async with watching(net, query_interval=20) as seen:
            await asyncio.sleep(0.1)
            assert seen.times == [0.02]
            assert not net.open
            await asyncio.sleep(105)
            # That there is no AAAA record is no empty answer, which would be asked about again after 10 s.
            assert gaps(net.servers["10.0.0.1:53"].times()) == pytest.approx([20.01] * 5, abs=0.011)

    run(main)


def test_that_a_server_has_one_family_only_counts_whoever_was_first_with_that_family():
    async def main():
        slow, quick = FakeServer().serves(OLD), FakeServer(latency=0.02).serves(OLD)
        slow.delays["t1.example.com A"] = 0.1
        quick.answers("t1.example.com AAAA", SILENCE)
        net = Net(ns1=slow, ns2=quick)
        async with watching(net) as seen:
            await asyncio.sleep(0.4)
            assert seen.hosts == ["10.1.0.1"]
            assert not net.open

    run(main)


@pytest.mark.parametrize(("family", "kinds"), [("any", ["A", "AAAA"]), ("ipv4", ["A"]), ("ipv6", ["AAAA"])])
def test_the_policy_says_which_families_are_asked_for(family, kinds):
    async def main():
        server = FakeServer().serves({"t1.example.com": ["10.1.0.1", "2001:db8::1"]})
        async with watching(Net(ns1=server), family=family) as seen:
            await asyncio.sleep(1)
            assert [question for _, question in server.asked] == [SRV, *(f"t1.example.com {kind}" for kind in kinds)]
            assert seen.hosts == [host for kind, host in (("A", "10.1.0.1"), ("AAAA", "2001:db8::1")) if kind in kinds]

    run(main)


# The pace of rounds.


def test_after_a_failed_round_the_next_comes_in_a_second_doubling_up_to_retry_interval():
    async def main():
        server = FakeServer()
        server.breaks(SERVFAIL)
        async with watching(Net(ns1=server), retry_interval=10) as seen:
            await asyncio.sleep(60)
            assert [round(gap, 6) for gap in gaps(server.times())][:6] == [1.01, 2.01, 4.01, 8.01, 10.01, 10.01]
            server.serves(OLD)
            server.heals()
            await asyncio.sleep(10.1)
            assert seen.hosts == ["10.1.0.1"]
            server.breaks(SERVFAIL)
            failed = len(server.times())
            await asyncio.sleep(60)
            # The count starts anew. A round takes longer now, because the addresses of what is known are asked for.
            assert gaps(server.times()[failed:])[:3] == pytest.approx([1.02, 2.02, 4.02])

    run(main)


def test_a_round_that_nobody_answers_ends_at_query_timeout():
    async def main():
        server = FakeServer()
        server.breaks(SILENCE)
        async with watching(Net(ns1=server), query_timeout=4):
            await asyncio.sleep(20)
            assert gaps(server.times()) == pytest.approx([5, 6, 8])

    run(main)


@pytest.mark.parametrize(
    ("ttl", "policy", "pace"),
    [
        (30, {}, 29),
        (5, {}, 4.5),
        (1, {}, 1),
        (0, {}, 1),
        (0, {"min_ttl": 5}, 4.5),
        (2**31 - 1, {"query_interval": 1e6}, 3599),
        (2**32 - 1, {"query_interval": 1e6, "max_ttl": 100}, 99),
        (2**32 - 1, {}, 60),
        (30, {"query_interval": 7}, 7),
        (30, {"ttl_override": 3}, 2.7),
        (1, {"ttl_override": math.inf, "query_interval": 20}, 20),
        (30, {"ttl_override": 0.1}, 1),
        (30, {"query_interval": 0.01}, 1),
        (0, {"min_ttl": 0.001, "query_interval": 0.001, "retry_interval": 0.001}, 1),
    ],
)
def test_what_is_known_is_asked_for_again_before_its_ttl_has_passed_but_not_twice_a_second(ttl, policy, pace):
    async def main():
        server = FakeServer(latency=0).serves(OLD, ttl=ttl)
        async with watching(Net(ns1=server), **policy) as seen:
            await asyncio.sleep(10 * pace)
            found = gaps(server.times())
            assert found == pytest.approx([pace] * len(found))
            assert len(found) >= 9
            assert len(seen.sets) == 1

    run(main)


def test_the_shortest_ttl_of_all_that_was_used_counts():
    async def main():
        server = FakeServer().serves({"t1.example.com": ["10.1.0.1"], "t2.example.com": ["10.1.0.2"]}, ttl=50)
        server.has("t2.example.com A", "10.1.0.2", ttl=5)
        async with watching(Net(ns1=server)):
            await asyncio.sleep(60)
            assert gaps(server.times()) == pytest.approx([4.52] * 13)

    run(main)


def test_what_fails_for_one_target_does_not_keep_the_others_from_being_refreshed():
    async def main():
        server = FakeServer().serves({"t1.example.com": ["10.1.0.1"], "t2.example.com": ["10.1.0.2"]}, ttl=3)
        server.answers("t2.example.com A", SERVFAIL)
        server.answers("t2.example.com AAAA", SERVFAIL)
        async with watching(Net(ns1=server)):
            await asyncio.sleep(300)
            assert max(gaps(server.times())) < 3

    run(main)


@pytest.mark.parametrize("fault", [None, SERVFAIL, NXDOMAIN])
def test_two_rounds_never_start_less_than_a_second_apart(fault):
    async def main():
        server = FakeServer(latency=0.001).serves(OLD, ttl=0)
        async with watching(
            Net(ns1=server), min_ttl=0.001, retry_interval=0.001, query_interval=0.001, ttl_override=0.001
        ):
            await asyncio.sleep(5)
            if fault is not None:
                server.breaks(fault)
            await asyncio.sleep(20)
            assert min(gaps(server.times())) == pytest.approx(1)
            assert len(server.times()) in (25, 26)

    run(main)


def test_when_a_round_is_too_short_for_all_targets_they_take_turns():
    async def main():
        targets = {f"t{number}.example.com": [f"10.1.0.{number}"] for number in range(1, 41)}
        server = FakeServer(latency=0.9).serves(targets, ttl=1)
        for number in range(1, 4):
            server.answers(f"t{number}.example.com A", SILENCE)
        async with watching(Net(ns1=server), family="ipv4", max_concurrency=1) as seen:
            await asyncio.sleep(60)
            assert len(seen.hosts) == 37
            server.asked.clear()
            await asyncio.sleep(60)
            assert {question for _, question in server.asked} == {SRV, *(f"{target} A" for target in targets)}

    run(main)


def test_with_all_intervals_infinite_it_asks_once_and_stays():
    async def main():
        server = FakeServer().serves(OLD)
        policy = {"query_interval": math.inf, "ttl_override": math.inf, "retry_interval": math.inf}
        async with watching(Net(ns1=server), **policy, query_timeout=math.inf) as seen:
            await asyncio.sleep(1e6)
            assert len(server.times()) == len(seen.sets) == 1

    run(main)


def test_several_watches_of_one_resolver_do_not_disturb_each_other():
    async def main():
        net = Net(ns1=FakeServer().serves(OLD))
        resolver = net.resolver()
        async with watching(net, resolver) as first, watching(net, resolver) as second:
            await asyncio.sleep(100)
            assert first.all_hosts == second.all_hosts == [["10.1.0.1"]]

    run(main)


def test_a_target_with_several_records_is_asked_for_once():
    async def main():
        server = FakeServer()
        server.has(SRV, srv("t1.example.com", 1), srv("t1.example.com", 2), srv("t1.example.com", 1))
        server.has("t1.example.com A", "10.1.0.1")
        async with watching(Net(ns1=server)) as seen:
            await asyncio.sleep(1)
            assert [question for _, question in server.asked] == [SRV, "t1.example.com A", "t1.example.com AAAA"]
            assert seen.names == ["t1.example.com:1", "t1.example.com:2"]

    run(main)
