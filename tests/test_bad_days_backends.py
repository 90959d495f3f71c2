"""Bad days of the backends, B1 to B9: what clients notice of them, and what the backends have to bear.

B10 to B18 are in test_bad_days_servers.py. Everything is in virtual time here; what concerns sockets is
tested with real ones besides, in tests/network.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random

import pytest

from qorb import ClaimRevokedError, ConnectError, NoBackendsOnlineError
from qorb.events import HealthCheckFailed
from qorb.testing import FakeConnector, assert_nothing_left, run, settle
from tests.pools import backends, hold, now, opened
from tests.visits import (
    LATE,
    PROBE_CAP,
    SLACK,
    Bare,
    Visit,
    arrivals,
    assert_all_served,
    busy,
    calls,
    rounds,
    shares,
    since,
    slowest,
)

# B1: all backends refuse, and return.


@pytest.mark.parametrize("timeout", [0.05, 1, 30])
def test_b1_while_all_refuse_claims_fail_at_their_deadline_with_the_last_error_as_their_cause(timeout):
    async def main():
        connector = FakeConnector()
        async with opened(backends(3), connector, claim_timeout=timeout) as watched:
            connector.refuse()
            connector.drop()
            for pause in (0, 0.003, 7, 100):
                await asyncio.sleep(pause)
                began = now()
                with pytest.raises(NoBackendsOnlineError, match="refuses connections") as caught:
                    await watched.pool.claim()
                assert timeout - SLACK <= now() - began <= timeout + LATE
                assert isinstance(caught.value.__cause__, ConnectError)
                assert isinstance(caught.value.__cause__.__cause__, ConnectionRefusedError)

    run(main)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("outage", [0.5, 20, 1000])
def test_b1_when_all_return_a_claim_is_served_within_the_probe_cap_and_all_is_connected_soon_after(outage, seed):
    async def main():
        connector = FakeConnector(latency=0.1)
        async with opened(backends(3), connector, seed=seed) as watched:
            connector.refuse()
            connector.drop()
            with pytest.raises(NoBackendsOnlineError):
                await watched.pool.claim(timeout=0.4)
            await asyncio.sleep(outage * random.Random(seed).uniform(0.9, 1))
            began = now()
            connector.heal()
            await hold(watched.pool, 0)
            assert now() - began <= PROBE_CAP + 4 * 0.1 + SLACK  # connect, on_acquire and what was under way
            first = min(
                call.ended
                for call in calls(connector, "connect")
                if call.ended and call.ended > began and not call.raised
            )
            await watched.pool.ready()
            assert now() - first <= 2 + math.ceil(8 / 8) * 0.1
            assert all(connector.peak_in_flight("connect", f"b{i}") <= 8 for i in range(3))

    run(main, seed=seed)


# B2: one of several refuses.


@pytest.mark.parametrize("seed", range(3))
def test_b2_one_that_refuses_costs_no_claim_gets_none_and_is_tried_once_a_backoff(seed):
    async def main():
        connector = FakeConnector()
        async with opened(backends(3), connector, seed=seed) as watched:
            load = asyncio.create_task(busy(watched.pool, 4, now() + 60, 1))
            await asyncio.sleep(10)
            failed = now()
            connector.refuse("b1")
            connector.drop("b1")
            visits = await load
            assert_all_served(visits)
            assert shares([visit for visit in visits if visit.came < failed])["b1"] >= 10
            assert shares(since(visits, failed))["b1"] == 0
            tries = [call for call in calls(connector, "connect", "b1") if call.ended >= failed]
            firsts = rounds(tries)
            assert 8 <= len(firsts) <= 14
            for n, (one, other) in enumerate(itertools.pairwise(firsts)):
                assert other.started - one.ended >= min(0.020 * 2**n, 30) / 2 - SLACK
            assert len(tries) <= 8 + len(firsts)  # up to eight side by side at first, then one by one

    run(main, seed=seed)


# B3: one does not answer to connects.


@pytest.mark.parametrize("when", ["from the start", "later"])
def test_b3_one_that_does_not_answer_to_connects_makes_no_claim_wait_longer(when):
    def waits(*, silent):
        async def main():
            connector = FakeConnector()
            if silent and when == "from the start":
                connector.stall("connect", "b1")
            async with opened(backends(3), connector, ready=False, connect_timeout=4) as watched:
                await hold(watched.pool, 0)
                load = asyncio.create_task(busy(watched.pool, 5, now() + 30, 0.5))
                await asyncio.sleep(5)
                if silent and when == "later":
                    connector.stall("connect", "b1")
                    connector.drop("b1")
                visits = await load
                assert_all_served(visits)
                given_up = [call for call in calls(connector, "connect") if call.raised]
                assert bool(given_up) == silent == (not watched.stats("b1").online)
                assert all(call.backend.name == "b1" for call in given_up)
                assert all(call.ended - call.started == pytest.approx(4) for call in given_up)
            return [slowest(visits, share) for share in (0.5, 0.99)]

        return run(main)

    well, ill = waits(silent=False), waits(silent=True)
    assert all(one <= 1.05 * other for one, other in zip(ill, well, strict=True)), (ill, well)


# B4: one accepts, and never answers to a check.


def test_b4_one_that_never_answers_to_checks_loses_its_connections_in_two_rounds_and_delays_no_other_check():
    async def main():
        connector = FakeConnector()
        async with opened(backends(2), connector, observed=True, health_interval=10) as watched:
            old = [one for one in connector.connections if one.backend.name == "b0"]
            began = now()
            connector.stall("validate", "b0")
            connector.refuse("b0")
            await asyncio.sleep(100)
            # The first check takes its three seconds; then the others are checked together.
            gone = [call for call in calls(connector, "close", "b0") if call.connection in old]
            assert len(gone) == len(old) == 4
            assert max(call.started for call in gone) <= began + 10.020 + 2 * 3 + SLACK
            assert not watched.stats("b0").online
            failed = [event.reason for _, event in watched.events if isinstance(event, HealthCheckFailed)]
            assert failed == ["TimeoutError: not done within 3 s"] * 4
            checks = [call.started for call in calls(connector, "validate", "b1")]
            for one in {call.connection for call in calls(connector, "validate", "b1")}:
                times = [call.started for call in calls(connector, "validate", "b1") if call.connection is one]
                assert all(10 <= later - earlier <= 10.1 for earlier, later in itertools.pairwise(times))
            assert len(checks) >= 9 * 4

    run(main)


def test_b4_one_that_accepts_again_and_again_but_never_passes_a_check_serves_no_claim_for_long():
    async def main():
        connector = FakeConnector()
        async with opened(backends(2), connector, health_interval=10) as watched:
            connector.stall("validate", "b0")
            connector.stall("on_recycle", "b0")
            visits = await arrivals(watched.pool, 6, now() + 60, 0.5)
            assert_all_served(visits)
            assert shares(visits)["b1"] > 200
            assert shares(visits)["b0"] <= 0.03 * len(visits)
            # Each one fails after three seconds at the earliest: that is no storm.
            assert len(watched.attempts("b0")) <= 4 + 8 * 60 / 3

    run(main)


# B5: half of the backends are slow.


@pytest.mark.parametrize(("load", "count"), [(busy, 4), (busy, 8), (busy, 24), (arrivals, 50)])
def test_b5_backends_ten_times_as_slow_get_a_fifth_of_the_claims_at_most(load, count):
    async def main():
        connector = FakeConnector()
        async with opened(backends(4), connector) as watched:

            def seconds(name):
                return 1 if slow and name in ("b0", "b1") else 0.1

            slow = False
            visiting = asyncio.create_task(load(watched.pool, count, now() + 12, seconds))
            await asyncio.sleep(2)
            slow = True
            moment = now()
            for name in ("b0", "b1"):
                connector.slow(0.01, None, name)
            visits = await visiting
            assert_all_served(visits)
            before, after = shares(visits[: len(visits) // 8]), shares(since(visits, moment))
            assert (before["b0"] + before["b1"]) / before.total() == pytest.approx(0.5, abs=0.1)
            assert (after["b0"] + after["b1"]) / after.total() <= 0.2

    run(main)


# B6, B7: connections that their server ends while they are idle.


@pytest.mark.parametrize("seed", range(3))
def test_b6_connections_that_their_server_has_reset_are_never_handed_out(seed):
    async def main():
        connector = Bare()
        rng = random.Random(seed)
        reset = 0

        async with opened(backends(3), connector, seed=seed) as watched:
            visits: list[Visit] = []
            load = asyncio.create_task(arrivals(watched.pool, 40, now() + 10, 0.1, visits))
            while not load.done():
                await asyncio.sleep(rng.expovariate(10))
                await settle()
                talking = {visit.connection for visit in visits}
                checked = {call.connection for call in connector.in_flight}
                for one in connector.connections:
                    if one not in talking | checked and rng.random() < 0.5:
                        one.closed = True
                        reset += 1
            assert_all_served(visits)
            assert not any(visit.broken for visit in visits)
            assert reset > 100

    run(main, seed=seed)


def test_b7_connections_that_their_server_has_closed_are_replaced_within_a_tenth_of_a_second_of_the_next_claim():
    async def main():
        connector = FakeConnector(latency=0.02)
        async with opened(backends(1), connector, health_interval=math.inf) as watched:
            for _ in range(20):
                lost = connector.drop()
                assert lost >= 8
                await asyncio.sleep(1)
                claimed = now()
                async with watched.pool.claim() as connection:
                    await connection.request()
                await asyncio.sleep(max(claimed + 0.1 - now(), 0))
                assert len(connector.connections) >= lost
                assert len(connector.unclosed) == len(connector.connections)
                await asyncio.sleep(1)
            assert watched.stats().failures == 0

    run(main)


# B8, B9: a peer that vanishes.


def vanish(connector, backend):
    """Let nothing that is asked of a backend be answered any more."""
    connector.stall(None, backend)


@pytest.mark.parametrize("seed", range(3))
def test_b8_a_peer_that_vanishes_while_idle_is_noticed_by_the_checks(seed):
    async def main():
        connector = FakeConnector()
        async with opened(backends(2), connector, seed=seed) as watched:
            await asyncio.sleep(random.Random(seed).uniform(0, 100))
            began = now()
            vanish(connector, "b0")
            # The interval and its random part, the check that fails, and the one of all others together.
            await asyncio.sleep(30 + 0.020 + 2 * 3 + 0.1)
            assert not watched.stats("b0").online
            assert "TimeoutError: not done within" in watched.stats("b0").last_error
            visits = await busy(watched.pool, 3, now() + 5, 0.1)
            assert_all_served(visits)
            assert shares(visits)["b0"] == 0
            connector.heal()
            await asyncio.sleep(30)
            assert watched.stats("b0").online
            assert now() - began < 100

    run(main, seed=seed)


@pytest.mark.parametrize("grace", [0, 5])
def test_b9_terminating_does_not_wait_longer_than_its_grace_for_a_peer_that_vanished_in_use(grace):
    async def main():
        connector = FakeConnector()
        ended = []

        async def talk(pool):
            claim = await pool.claim()
            with claim:
                connection = claim.connection
                await asyncio.sleep(100_000)  # the answer never comes
                with pytest.raises(ClaimRevokedError):
                    assert claim.connection
            ended.append(connection)

        async with opened(backends(2), connector) as watched:
            users = [asyncio.create_task(talk(watched.pool)) for _ in range(5)]
            await asyncio.sleep(1)
            for name in ("b0", "b1"):
                vanish(connector, name)
            began = now()
            await watched.pool.terminate(grace=grace)
            assert grace - SLACK <= now() - began <= grace + 0.05
            assert_nothing_left(watched.pool)
            connector.forbid()
        await asyncio.wait(users)
        assert len(ended) == 5
        assert all(connection.closed for connection in ended)

    run(main)


def test_b9_a_user_who_gives_up_on_a_peer_that_vanished_leaves_nothing_and_nobody_waits_for_the_goodbye():
    async def main():
        connector = FakeConnector()
        async with opened(backends(2), connector, spares_wanted=2, max_slots=2) as watched:
            claim = await watched.pool.claim()
            connection, name = claim.connection, claim.backend.name
            vanish(connector, name)
            with pytest.raises(TimeoutError), claim:
                await asyncio.wait_for(asyncio.get_running_loop().create_future(), 30)
            began = now()
            visits = await busy(watched.pool, 3, now() + 9, 0.1)
            assert_all_served(visits)
            assert shares(visits)[name] == 0
            (goodbye,) = [call for call in calls(connector, "close", name) if call.connection is connection]
            assert goodbye.started - began == pytest.approx(3)  # on_recycle, for a connection that is to be closed
            assert goodbye.ended - goodbye.started == pytest.approx(5)  # then it is aborted
            assert connection.closed

    run(main)
