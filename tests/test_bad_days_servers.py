"""Bad days of the servers behind the backends, B10 to B18: restarts, failovers, refusals, late answers, a hog.

B1 to B9 are in test_bad_days_backends.py.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import traceback
from collections import Counter
from dataclasses import replace

import pytest

from qorb import AllClaimsUsedError, BackendUnfitError, ConnectError, Connector, NoBackendsOnlineError, Outcome
from qorb.events import HealthCheckFailed, RebalanceStart, SlotSetOffline
from qorb.resolvers import ManualResolver
from qorb.testing import FakeConnection, FakeConnector, run, settle
from tests.pools import backends, hold, now, opened
from tests.visits import (
    LATE,
    PROBE_CAP,
    SLACK,
    Bare,
    arrivals,
    assert_all_served,
    busy,
    calls,
    rounds,
    shares,
    since,
)

# B10: the server restarts under load.


@pytest.mark.parametrize(("rate", "outage", "recovery"), [(1000, 0.4, 2), (20, 20, PROBE_CAP + 0.01)])
def test_b10_a_restart_under_load_costs_the_claims_in_use_and_no_others_and_makes_no_storm(rate, outage, recovery):
    async def main():
        connector = Bare()
        async with opened(backends(1), connector) as watched:
            visits = []
            load = asyncio.create_task(
                arrivals(watched.pool, rate, now() + outage + 300 / rate + 0.1, 5 / rate, visits)
            )
            await asyncio.sleep(0.1 + 0.0005)
            await settle()
            in_use = [visit for visit in visits if visit.connection is not None]
            connector.refuse()
            connector.drop()
            failed = now()
            await asyncio.sleep(outage)
            connector.heal()
            healed = now()
            await load
            assert_all_served(visits)
            assert [visit for visit in visits if visit.broken] == in_use
            assert in_use
            served = [visit.came + visit.wait for visit in visits]
            assert not [moment for moment in served if failed < moment < healed]
            assert min(moment for moment in served if moment >= healed) <= healed + recovery
            assert connector.peak_in_flight("connect") <= 8
            tries = [one for one in watched.attempts() if failed <= one < healed]
            # Up to eight side by side, then one by one, with pauses of 10 ms at least that double.
            assert len(tries) <= 8 + math.log2(outage / 0.01 + 1) + outage / 2.5
            assert len([one for one in watched.attempts() if one >= healed]) <= watched.pool.policy.max_slots

    run(main)


# B11: a primary becomes a replica, at the same address.


def demote(connector, backend, *operations):
    """Let a server find at these occasions that it must not be written to."""
    for operation in operations:
        connector.fail(operation, lambda: ConnectError("the server is read-only", backend), backend)


def test_b11_a_demoted_primary_serves_no_claim_once_a_check_has_found_out():
    async def main():
        connector = FakeConnector()
        primary, replica = backends(2)
        async with opened([primary, replace(replica, priority=1)], connector, observed=True) as watched:
            demote(connector, "b0", "connect", "validate", "on_recycle")
            demoted = now()
            await asyncio.sleep(30.020 + 0.01)
            found = [moment for moment, event in watched.events if isinstance(event, HealthCheckFailed)]
            assert len(found) == 4
            # The first, and all the others together as soon as it is over.
            assert demoted < found[0] < found[1] == found[3] <= found[0] + 0.002
            visits = await busy(watched.pool, 3, now() + 10, 0.1)
            assert_all_served(visits)
            assert set(shares(visits)) == {"b1"}
            assert "read-only" in watched.stats("b0").last_error

    run(main)


def test_b11_a_primary_that_is_demoted_under_load_serves_at_most_one_more_claim_on_each_connection():
    async def main():
        connector = FakeConnector()
        primary, replica = backends(2)
        async with opened([primary, replace(replica, priority=1)], connector) as watched:
            load = asyncio.create_task(arrivals(watched.pool, 20, now() + 10, 0.1))
            await asyncio.sleep(1)
            demote(connector, "b0", "connect", "validate", "on_recycle")
            demoted = now()
            connections = [one for one in connector.connections if one.backend.name == "b0"]
            visits = await load
            assert_all_served(visits)
            assert set(shares(visits[:10])) == {"b0"}
            assert shares(since(visits, demoted))["b0"] <= len(connections)

    run(main)


def test_b11_a_primary_whose_role_is_asked_at_each_claim_serves_none_from_the_moment_of_its_demotion():
    async def main():
        connector = FakeConnector()
        primary, replica = backends(2)
        async with opened([primary, replace(replica, priority=1)], connector) as watched:
            load = asyncio.create_task(arrivals(watched.pool, 20, now() + 10, 0.1))
            await asyncio.sleep(1.005)
            demote(connector, "b0", "on_acquire")
            demoted = now()
            visits = await load
            assert_all_served(visits)
            assert shares(since(visits, demoted)) == {"b1": len(since(visits, demoted))}
            # It goes on being asked, with a pause after each round.
            asked = [call for call in calls(connector, "on_acquire", "b0") if call.started >= demoted]
            assert len(asked) <= 16 * 10

    run(main)


# B12: another server under the same name.


@pytest.mark.parametrize("old_is", ["alive", "dead"])
def test_b12_a_name_that_means_another_address_is_followed_at_once_and_claims_finish(old_is):
    async def main():
        connector = Bare()
        (old,) = backends(1)
        new = replace(old, host="10.9.9.9")
        resolver = ManualResolver([old])
        async with opened(resolver, connector) as watched:
            visits = []
            load = asyncio.create_task(arrivals(watched.pool, 20, now() + 5, 0.2, visits))
            await asyncio.sleep(2.01)
            await settle()
            in_use = [visit for visit in visits if visit.connection is not None]
            if old_is == "dead":
                connector.drop()
            resolver.set([new])
            await settle()
            before = {one for one in connector.connections if one.backend == old}
            changed = now()
            await asyncio.sleep(0.5)
            assert not any(one.backend == old for one in connector.connections)
            assert all(one.closed for one in before)
            await load
            assert_all_served(visits)
            assert in_use
            assert [visit for visit in visits if visit.broken] == (in_use if old_is == "dead" else [])
            connects = [call for call in calls(connector, "connect") if call.started >= changed]
            assert {call.backend for call in connects} == {new}
            assert len(connects) <= 16

    run(main)


# B13: the server has too many connections.


class Crowded(FakeConnector):
    """A connector to backends that allow only so many connections each."""

    def __init__(self, limits):
        super().__init__()
        self.limits = limits
        self.opening = Counter()
        self.turned_away = []
        """When attempts were refused."""

    async def connect(self, backend):
        name = backend.name
        there = sum(one.backend.name == name for one in self.connections) + self.opening[name]
        if there >= self.limits.get(name, math.inf):
            await asyncio.sleep(self.latency)
            self.turned_away.append(now())
            raise ConnectError("FATAL: sorry, too many clients already", name)
        self.opening[name] += 1
        try:
            return await super().connect(backend)
        finally:
            self.opening[name] -= 1


def test_b13_a_server_with_too_many_connections_is_asked_for_more_with_backoff_only():
    async def main():
        connector = Crowded({"b0": 5})
        async with opened(backends(1), connector, ready=False, claim_timeout=5) as watched:
            await asyncio.sleep(1)
            visits = await busy(watched.pool, 12, now() + 60, 1)
            assert_all_served(visits)
            assert connector.peak == 5
            assert watched.stats().last_error == "ConnectError: FATAL: sorry, too many clients already"
            assert 5 <= len(connector.turned_away) <= 8 + 15

    run(main)


def test_b13_other_backends_take_over_what_a_crowded_one_does_not_accept():
    async def main():
        connector = Crowded({"b0": 2})
        async with opened(backends(2), connector, ready=False) as watched:
            await asyncio.sleep(5)
            visits = await busy(watched.pool, 10, now() + 20, 0.5)
            assert_all_served(visits)
            settled = [visit for visit in visits if visit.came >= now() - 15]
            assert max(visit.wait for visit in settled) <= 0.1
            assert connector.peak_of_backend["b0"] == 2
            assert connector.peak_of_backend["b1"] >= 8
            assert len(connector.turned_away) <= 8 + 15

    run(main)


# B14: the server does not accept the password.

CANARY = "s3cr3t-canary"


class InvalidPasswordError(Exception):
    """What a driver raises."""


def locked_out():
    return InvalidPasswordError(
        f'password authentication failed for user "app" (connecting to postgres://app:{CANARY}@db:5432/app)'
    )


def test_b14_a_wrong_password_is_named_without_being_shown_and_not_tried_in_a_hurry(caplog):
    async def main():
        connector = FakeConnector()
        connector.fail("connect", locked_out)
        async with opened(backends(2), connector, ready=False, observed=True, max_connection_backoff=60) as watched:
            with pytest.raises(NoBackendsOnlineError, match="InvalidPasswordError: password authentication") as caught:
                await watched.pool.claim()
            await asyncio.sleep(300)
            shown = "".join(traceback.format_exception(caught.value))
            assert shown.count("password authentication failed") >= 2  # the text, and what it is chained from
            told = [watched.pool.stats(), watched.pool.ledger(), watched.pool, watched.events, caught.value.__cause__]
            assert CANARY not in shown + repr(told)
            for name in ("b0", "b1"):
                tries = [one for one in watched.attempts(name) if one > now() - 250]
                assert len(tries) >= 250 / PROBE_CAP - 1
                assert all(later - earlier >= 2.5 for earlier, later in itertools.pairwise(tries))

    with caplog.at_level(logging.DEBUG):
        run(main)
    assert CANARY not in caplog.text


def test_b14_a_wrong_password_for_one_backend_is_tried_ever_more_seldom_while_another_serves():
    async def main():
        connector = FakeConnector()
        connector.fail("connect", locked_out, "b0")
        async with opened(backends(2), connector, ready=False, max_connection_backoff=60) as watched:
            visits = await busy(watched.pool, 2, now() + 300, 3)
            assert_all_served(visits)
            assert set(shares(visits)) == {"b1"}
            assert "password authentication failed" in watched.stats("b0").last_error
            tries = [one for one in watched.attempts("b0") if one > now() - 200]
            assert all(later - earlier >= 30 for earlier, later in itertools.pairwise(tries))

    run(main)


def test_b14_a_connector_that_knows_a_password_was_refused_asks_for_a_pause_and_gets_it():
    async def main():
        connector = FakeConnector()
        connector.fail("connect", lambda: ConnectError("authentication failed", min_backoff=5.0), "b0")
        async with opened(backends(2), connector, ready=False) as watched:
            await asyncio.sleep(100)
            tries = sorted(set(watched.attempts("b0")))  # the first ones were made side by side
            assert len(tries) >= 5
            assert all(later - earlier >= 5.0 for earlier, later in itertools.pairwise(tries))

    run(main)


# B11: a backend that answers, and is not what is wanted.


def test_b11_a_backend_that_is_looked_at_often_until_it_is_fit_serves_as_soon_as_it_is():
    async def main():
        connector = FakeConnector()
        connector.fail("connect", lambda: BackendUnfitError("a replica", max_backoff=0.5), "b0")
        async with opened(backends(2), connector, ready=False, min_connection_backoff=0.1) as watched:
            await asyncio.sleep(300)
            tries = watched.attempts("b0")[10:]
            assert all(later - earlier <= 0.6 for earlier, later in itertools.pairwise(tries))
            connector.heal("b0")
            await asyncio.sleep(0.6)
            assert watched.stats("b0").online

    run(main)


class FindsOut(FakeConnector):
    """Finds something out when it prepares a connection, or makes one fit: once."""

    def __init__(self, operation, error):
        super().__init__()
        self.error = error
        setattr(self, operation, self.find_out)

    async def find_out(self, connection, outcome=None):
        error, self.error = self.error, None
        if error is not None:
            raise error


@pytest.mark.parametrize("operation", ["on_recycle", "on_acquire"])
@pytest.mark.parametrize(("error", "checked"), [(BackendUnfitError, 7), (ConnectError, 0)])
def test_b11_when_one_connection_finds_the_backend_unfit_the_other_idle_ones_are_checked(operation, error, checked):
    async def main():
        connector = FindsOut(operation, error("a replica now"))
        async with opened(backends(1), connector, spares_wanted=8, max_slots=8, health_interval=1000) as watched:
            async with watched.pool.claim(timeout=1):
                pass
            await asyncio.sleep(0.1)
            assert len(calls(connector, "validate")) == checked

    run(main)


# B15: one comes and goes.


@pytest.mark.parametrize("seed", range(2))
def test_b15_one_that_comes_and_goes_is_served_last_and_does_not_disturb_the_others(seed):
    async def main():
        connector = FakeConnector()
        async with opened(backends(3), connector, seed=seed, observed=True, health_interval=0.5) as watched:
            load = asyncio.create_task(arrivals(watched.pool, 10, now() + 30, 0.25))
            began = now()
            others = {one for one in connector.connections if one.backend.name != "b1"}
            for _ in range(15):
                connector.refuse("b1")
                connector.drop("b1")
                await asyncio.sleep(1)
                connector.heal("b1")
                await asyncio.sleep(1)
            visits = await load
            assert_all_served(visits)
            assert shares(since(visits, began + 10))["b1"] <= 0.02 * len(visits)
            assert others <= set(connector.connections)
            assert len(watched.attempts("b0")) + len(watched.attempts("b2")) <= 16
            plans = [moment for moment, event in watched.events if isinstance(event, RebalanceStart)]
            assert len(plans) <= 30
            turns = [moment for moment, event in watched.events if isinstance(event, SlotSetOffline)]
            assert 3 <= len(turns) <= 15  # when attempts have hit upon refusals for some time there are fewer
            # In each second of refusals: eight side by side, then one by one as pauses of 10 ms at least double.
            assert len([one for one in watched.attempts("b1") if one > began]) <= 15 * (8 + math.log2(1 / 0.01) + 8)

    run(main)


# B16: a handshake that goes wrong, or never ends.


async def drip(_backend):
    """A byte a second."""
    for _ in range(1000):
        await asyncio.sleep(1)


def test_b16_a_handshake_that_gets_on_ever_so_slowly_ends_at_the_timeout_for_all_of_it():
    async def main():
        connector = FakeConnector()
        connector.during("connect", drip, "b0")
        async with opened(backends(2), connector, ready=False, connect_timeout=7.5) as watched:
            visits = await busy(watched.pool, 3, now() + 100, 1)
            assert_all_served(visits)
            assert set(shares(visits)) == {"b1"}
            tries = [call for call in calls(connector, "connect", "b0") if call.ended]
            assert all(call.ended - call.started == pytest.approx(7.5) for call in tries)
            assert watched.stats("b0").last_error == "TimeoutError: not done within 7.5 s"
            assert 5 <= len(rounds(tries)) <= 12
            assert not [one for one in connector.unclosed if one.backend.name == "b0"]

    run(main)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the server says '\\x00\\xff' instead of its greeting"),
        EOFError("the server hung up in the midst of its greeting"),
        asyncio.IncompleteReadError(b"RE", 6),
        RecursionError("maximum recursion depth exceeded"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_b16_a_greeting_that_makes_no_sense_is_a_failure_like_any_other(error):
    async def main():
        connector = FakeConnector()
        connector.fail("connect", lambda: type(error)(*error.args) if error.args[1:] else error, "b0")
        async with opened(backends(2), connector, ready=False) as watched:
            visits = await busy(watched.pool, 3, now() + 60, 1)
            assert_all_served(visits)
            assert set(shares(visits)) == {"b1"}
            assert type(error).__name__ in watched.stats("b0").last_error
            assert 8 <= len(rounds(calls(connector, "connect", "b0"))) <= 16
            connector.heal()
            await asyncio.sleep(31)
            assert watched.stats("b0").online

    run(main)


# B17: the answer to a query that was given up comes after the release.


class Stream(FakeConnection):
    """A connection on which answers come in the order of the questions, sooner or later, whoever reads them."""

    def __init__(self, number, backend):
        super().__init__(number, backend)
        self.answers = asyncio.Queue()
        self.owed = 0

    def ask(self, text, after):
        self.owed += 1
        asyncio.get_running_loop().call_later(after, self.answers.put_nowait, text)

    async def read(self):
        answer = await self.answers.get()
        self.owed -= 1
        return answer


class Strict(FakeConnector):
    """Says of every claim that the connection must be recycled, and keeps it after a clean one."""

    def new_connection(self, number, backend):
        return Stream(number, backend)


class Plain(Strict):
    """Leaves all that to what a connector does by default."""

    validate = Connector.validate
    on_acquire = Connector.on_acquire
    on_recycle = Connector.on_recycle
    needs_recycle = Connector.needs_recycle


class Trusting(Strict):
    """Recycles nothing after a clean claim."""

    def needs_recycle(self, connection, outcome):
        return outcome is not Outcome.CLEAN


class Reading(Strict):
    """Sees what is owed, waits for it and keeps the connection, whatever the outcome."""

    def needs_recycle(self, connection, outcome):
        return connection.owed > 0

    async def on_recycle(self, connection, outcome):
        while connection.owed:
            await connection.read()


class Careless(Strict):
    """Does not care how a claim ended."""

    def needs_recycle(self, connection, outcome):
        return False


def talk(connector, *, discreet, tries=400, seed=1):
    """Let eight clients ask, and give up one time in two; return how often they gave up, and got another's answer.

    Clients that are `discreet` do not let the pool know that they gave up.
    """
    given_up = crossed = 0

    async def client(pool, rng, name):
        nonlocal given_up, crossed
        for number in range(tries // 8):
            question = f"{name}: {number}"
            try:
                async with pool.claim() as connection:
                    connection.ask(question, rng.uniform(0.001, 0.02))
                    if rng.random() < 0.5:
                        crossed += await connection.read() != question
                        continue
                    given_up += 1
                    how = 0 if discreet else rng.randrange(1, 4)
                    if how == 1:
                        raise EOFError
                    if how == 2:
                        async with asyncio.timeout(0.0005):
                            crossed += await connection.read() != question
                    elif how == 3:
                        asyncio.current_task().cancel()
                        await connection.read()
            except (EOFError, TimeoutError):
                pass
            except asyncio.CancelledError:
                asyncio.current_task().uncancel()

    async def main():
        async with opened(backends(2), connector, spares_wanted=4, max_slots=4) as watched:
            clients = [client(watched.pool, random.Random(seed + i), f"client {i}") for i in range(8)]
            await asyncio.wait([asyncio.create_task(one) for one in clients])
            return given_up, crossed, connector.count["connect"]

    return run(main, seed=seed)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("connector", [Plain, Strict, Trusting, Reading])
def test_b17_an_answer_that_comes_late_never_reaches_another_claimer(connector, seed):
    given_up, crossed, opened_in_all = talk(connector(), discreet=False, seed=seed)
    assert crossed == 0
    assert given_up > 150
    if connector is Reading:
        assert opened_in_all == 4  # it has seen to it itself
    else:
        assert opened_in_all == pytest.approx(4 + given_up, abs=4)


def test_b17_a_driver_that_sees_what_is_owed_is_safe_from_clients_that_say_nothing():
    given_up, crossed, _ = talk(Reading(), discreet=True)
    assert crossed == 0
    assert given_up > 150


def test_b17_the_pool_asks_the_driver_and_one_that_does_not_care_mixes_answers_up():
    _, crossed, _ = talk(Careless(), discreet=False)
    assert crossed > 30


# B18: one task has claimed everything.


def test_b18_who_finds_everything_claimed_by_one_task_is_told_at_the_deadline_who_and_since_when():
    async def main():
        async with opened(backends(2)) as watched:

            async def hoard():
                claims = []
                for _ in range(16):
                    claims.append(await watched.pool.claim())
                    await asyncio.sleep(1)
                await asyncio.sleep(100)
                for claim in claims:
                    claim.release()

            hog = asyncio.create_task(hoard(), name="the hog")
            await asyncio.sleep(20)
            began = now()
            with pytest.raises(AllClaimsUsedError) as caught:
                await watched.pool.claim(timeout=2.5)
            assert 2.5 - SLACK <= now() - began <= 2.5 + LATE
            text = str(caught.value)
            assert "16 of at most 16 connections are in use" in text
            assert "held longest: 22.5 s, 21.5 s, 20.5 s by task 'the hog', which holds 16 of them" in text
            assert "This task itself" not in text
            await hog
            await hold(watched.pool, 0)

    run(main)


def test_b18_a_hog_is_logged_while_it_hogs_and_does_not_keep_others_from_what_it_leaves(caplog):
    async def main():
        async with opened(backends(1), max_slots=4) as watched:

            async def hoard():
                claims = await watched.claims(3)
                await asyncio.sleep(100)
                for claim in claims:
                    claim.release()

            hog = asyncio.create_task(hoard(), name="the hog")
            await asyncio.sleep(1)
            visits = await busy(watched.pool, 4, now() + 60, 1)
            assert_all_served(visits)
            await hog

    run(main)
    logged = [record.getMessage() for record in caplog.records if "is claimed for" in record.getMessage()]
    assert len(logged) == 3
    assert all("by task 'the hog'" in text for text in logged)
