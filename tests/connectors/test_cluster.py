"""Three PostgreSQL servers found through DNS, under a load of claims: what each fault costs.

The scenarios are those of `make compare`; here qorb plays them alone. Each test prints its figures (pytest -s).
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from benchmarks.cluster.contestants import APPLICATION, QORB, SIZE
from benchmarks.cluster.load import PATIENCE, Load
from benchmarks.cluster.scenarios import NEW_PASSWORD, PASSWORD, READ, SCENARIOS, places, play, servers_to_harm
from tests.connectors.peers import eventually

pytestmark = pytest.mark.slow

SOON = 0.05
"""Seconds after a fault from which on no claim may fail."""


@pytest.fixture(params=QORB, ids=lambda contestant: contestant.name)
def qorb(request):
    """A pool with each of the two connectors."""
    return request.param


@pytest.fixture(scope="module")
def servers():
    """A primary and two replicas, which every scenario leaves as it has found them."""
    with servers_to_harm() as servers:
        yield servers


@pytest.fixture
def own_servers():
    """Such servers for one test, which may leave them as it likes."""
    with servers_to_harm() as servers:
        yield servers


@pytest.fixture
def outcome_of(run_real, qorb):
    """Play a scenario and give what it has cost. Whatever it is, no session and nothing of the pool may be left."""

    def outcome_of(name, servers):
        outcome = run_real(lambda: play(SCENARIOS[name], qorb, servers))
        print(f"\n{qorb.name}: {words(SCENARIOS[name], outcome)}")  # noqa: T201 - half of what these tests are for
        assert outcome.left == 0
        return outcome

    return outcome_of


def words(scenario, outcome):
    return (
        f"{scenario.title}: {len(outcome.tries)} claims; failed: {outcome.open_failed} open as it struck, "
        f"{len(outcome.meanwhile)} without a server, later {outcome.unserved} without and {outcome.broken} with a "
        f"connection; well again after {outcome.well_after} s, longest wait {outcome.longest:.3f} s, used again after "
        f"{outcome.used_after} s"
    )


def failed_later(outcome):
    """Give the errors of the claims that were begun SOON after a fault, or later, and failed."""
    return [
        one.error
        for one in outcome.late
        if not any(begun <= one.begun < done + SOON for begun, done in outcome.marks.strikes)
    ]


def is_well(outcome, seconds):
    return outcome.well_after is not None and outcome.well_after < seconds


def test_a_replica_that_is_killed_costs_no_claim_that_begins_soon_after_and_is_used_again(outcome_of, servers):
    outcome = outcome_of("kill", servers)
    assert failed_later(outcome) == []
    assert outcome.open_failed <= SIZE
    assert outcome.used_after is not None


def test_sessions_that_are_cut_cost_no_claim_that_begins_afterwards(outcome_of, servers):
    outcome = outcome_of("cut", servers)
    assert outcome.late == ()
    assert is_well(outcome, 2.0)


def test_writes_follow_the_primary_as_it_moves(outcome_of, own_servers):
    old, new, _ = own_servers
    outcome = outcome_of("move", own_servers)
    assert failed_later(outcome) == []
    assert is_well(outcome, 3.0)
    refused = min(one.ended for one in outcome.tries if one.where == old.host and "read-only" in (one.error or ""))
    assert not [one for one in outcome.tries if one.begun > refused and one.where == old.host]
    written = [one for one in outcome.tries if one.error is None and one.begun > refused]
    assert written
    assert {one.where for one in written} == {new.host}
    # The old primary has nothing that the new one has not: no write went there unseen.
    rows = {server: int(server.sql("SELECT count(*) FROM things")) for server in (old, new)}
    assert rows[new] - rows[old] >= sum(one.error is None and one.where == new.host for one in outcome.tries)


def test_writes_find_the_new_primary_when_the_old_one_is_killed(outcome_of, own_servers):
    outcome = outcome_of("lose", own_servers)
    assert failed_later(outcome) == []
    assert is_well(outcome, 3.0)


def test_servers_that_let_in_fewer_sessions_than_wanted_serve_all_claims(outcome_of, servers):
    outcome = outcome_of("limit", servers)
    assert outcome.late == ()


def test_a_password_that_is_put_right_is_used(outcome_of, servers):
    outcome = outcome_of("password", servers)
    assert is_well(outcome, 9.0)
    assert outcome.longest < 3 * PATIENCE
    said = [one.error for one in (*outcome.meanwhile, *outcome.late)]
    assert any("authentication" in error for error in said)
    assert not any(secret in error for error in said for secret in (PASSWORD, NEW_PASSWORD))


def test_each_connection_to_a_server_that_hangs_costs_one_claim_at_the_most(outcome_of, servers):
    outcome = outcome_of("hang", servers)
    assert outcome.open_failed + len(outcome.late) <= SIZE
    assert outcome.unserved == 0
    assert outcome.used_after is not None


def test_a_rolling_restart_costs_no_claim_that_begins_soon_after_a_server_stops(outcome_of, servers):
    outcome = outcome_of("rolling", servers)
    assert failed_later(outcome) == []


def test_the_end_of_the_pool_under_load_leaves_no_session(run_real, qorb, servers):
    async def main():
        async with contextlib.AsyncExitStack() as beyond_the_pool, places(servers) as place:
            async with qorb.open(place) as claim:
                load = await beyond_the_pool.enter_async_context(Load(claim, READ))
                await eventually(lambda: sum(one.ended is not None for one in load.tries) > 100)
                assert await asyncio.to_thread(sessions, servers) > 0
            errors = [one.error for one in load.tries if one.error is not None]
            assert not [error for error in errors if not error.startswith("PoolTerminatedError")]
            await eventually(lambda: sessions(servers) == 0)

    run_real(main)


def sessions(servers):
    return sum(server.sessions(APPLICATION) for server in servers)
