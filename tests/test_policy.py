"""Policy: what is refused at birth, and that the edge values that are allowed do what they say."""

from __future__ import annotations

import asyncio
import math
from dataclasses import FrozenInstanceError, fields
from itertools import pairwise

import pytest

from qorb import AllClaimsUsedError, NoBackendsOnlineError, Policy, PolicyError, QueueFullError
from qorb.testing import FakeConnector, run, settle
from tests.pools import backends, now, opened

COUNTS = ("spares_wanted", "max_slots", "max_slots_per_backend", "max_waiters")
FIELDS = tuple(field.name for field in fields(Policy))
DURATIONS = tuple(name for name in FIELDS if name not in COUNTS)
NEVER_ZERO = (
    "max_slots",
    "max_slots_per_backend",
    "rebalance_interval",
    "health_interval",
    "connect_timeout",
    "health_check_timeout",
    "close_timeout",
    "max_lifetime",
    "max_connection_backoff",
)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [math.nan, -1, -math.inf, -1e-9, "1", None, True, 1j])
def test_what_is_no_number_or_less_than_nothing_is_refused_by_name(field, value):
    with pytest.raises(PolicyError, match=field) as caught:
        Policy(**{field: value})
    assert caught.value.field == field
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("field", NEVER_ZERO)
def test_nothing_is_refused_by_name_where_it_makes_no_sense(field):
    with pytest.raises(PolicyError, match=field):
        Policy(**{field: 0})


@pytest.mark.parametrize("field", COUNTS)
@pytest.mark.parametrize("value", [math.inf, 1.5, 1.0])
def test_a_count_is_a_whole_number(field, value):
    with pytest.raises(PolicyError, match=field):
        Policy(**{field: value})


@pytest.mark.parametrize("field", DURATIONS)
def test_every_duration_may_be_never(field):
    assert getattr(Policy(**{field: math.inf}), field) == math.inf


@pytest.mark.parametrize("field", [name for name in FIELDS if name not in NEVER_ZERO])
def test_nothing_is_allowed_everywhere_else(field):
    assert getattr(Policy(**{field: 0}), field) == 0


def test_a_policy_cannot_be_changed_and_takes_names_only():
    with pytest.raises(FrozenInstanceError):
        Policy().max_slots = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Policy(3)  # type: ignore[misc]


def test_a_claim_timeout_of_nothing_means_what_is_at_hand():
    async def main():
        async with opened(backends(1), spares_wanted=1, max_slots=1, claim_timeout=0, ready=False) as watched:
            await settle()
            with pytest.raises(NoBackendsOnlineError):
                await watched.pool.claim()
            await asyncio.sleep(1)
            async with watched.pool.claim():
                moment = now()
                with pytest.raises(AllClaimsUsedError):
                    await watched.pool.claim()
                assert now() == moment
                assert watched.pool.stats().waiting == 0

    run(main)


def test_no_waiters_means_never_wait():
    async def main():
        async with opened(backends(1), spares_wanted=1, max_slots=1, max_waiters=0) as watched:
            async with watched.pool.claim():
                moment = now()
                with pytest.raises(QueueFullError, match="max_waiters"):
                    await watched.pool.claim()
                assert now() == moment
            await asyncio.sleep(1)
            async with watched.pool.claim():
                pass

    run(main)


def test_no_spares_keeps_one_connection_to_each_backend_and_connects_no_more_often_than_it_must():
    async def main():
        async with opened(backends(3), spares_wanted=0, max_slots=16) as watched:
            await asyncio.sleep(1)
            assert [watched.stats(f"b{i}").unclaimed_slots for i in range(3)] == [1, 1, 1]
            for _ in range(100):
                async with watched.pool.claim():
                    await asyncio.sleep(0.01)
            await asyncio.sleep(1000)
            assert watched.connector.count["connect"] <= 4

    run(main)


def test_more_spares_than_slots_is_as_many_as_there_are():
    async def main():
        async with opened(backends(2), spares_wanted=100, max_slots=5) as watched:
            assert len(watched.connector.connections) == 5
            claims = await watched.claims(5)
            with pytest.raises(AllClaimsUsedError):
                await watched.pool.claim(timeout=1)
            for claim in claims:
                claim.release()

    run(main)


def test_without_spread_and_first_backoff_a_backend_that_refuses_makes_no_storm():
    async def main():
        connector = FakeConnector()
        connector.refuse()
        policy = {"spread": 0, "min_connection_backoff": 0, "spares_wanted": 8}
        async with opened(backends(1), connector, ready=False, **policy) as watched:
            with pytest.raises(NoBackendsOnlineError):
                await watched.pool.claim(timeout=0.5)
            # The pause of 0 doubles to 0: attempts follow each other as fast as connect() answers, but one at a time.
            assert watched.connector.peak_in_flight("connect") <= 8
            assert all(later - earlier > 0.0009 for earlier, later in pairwise(watched.attempts()[8:]))

    run(main)


@pytest.mark.parametrize("operation", ["connect", "validate", "on_recycle", "close"])
def test_a_time_limit_of_never_is_kept_and_the_pool_ends_all_the_same(operation):
    async def main():
        connector = FakeConnector()
        limits = dict.fromkeys(("connect_timeout", "health_check_timeout", "close_timeout"), math.inf)
        async with opened(backends(1), connector, spares_wanted=2, health_interval=10, max_lifetime=50, **limits) as w:
            connector.stall(operation)
            async with w.pool.claim():
                pass
            await asyncio.sleep(1000)
            moment = now()
        assert now() - moment <= 0.05

    run(main)


def test_nothing_but_never_is_a_pool_that_works():
    async def main():
        connector = FakeConnector()
        durations = dict.fromkeys(DURATIONS, math.inf)
        async with opened(backends(2), connector, spares_wanted=2, max_slots=4, **durations) as watched:
            claims = await watched.claims(4)
            waiting = asyncio.create_task(watched.pool.claim().__aenter__())
            await settle()
            claims[0].release()
            assert await waiting is not None
            await asyncio.sleep(1e6)
            for claim in claims[1:]:
                claim.release()
            assert connector.count["validate"] == 0
        assert watched.pool.state.value == "terminated"

    run(main)


@pytest.mark.parametrize("field", ["min_connection_backoff", "max_connection_backoff", "spread"])
def test_a_backoff_of_never_ends_with_the_pool(field):
    async def main():
        connector = FakeConnector()
        connector.refuse()
        async with opened(backends(1), connector, ready=False, **{field: math.inf}) as watched:
            await asyncio.sleep(100)
            assert watched.connector.count["connect"] >= 1
            assert watched.pool.ledger().tasks

    run(main)


@pytest.mark.parametrize("fields", [["min_connection_backoff", "max_connection_backoff"], ["spread"], DURATIONS])
def test_a_backoff_of_never_is_capped_while_nothing_is_online(fields):
    async def main():
        connector = FakeConnector()
        connector.refuse()
        policy = dict.fromkeys(fields, math.inf)
        async with opened(backends(2), connector, ready=False, **policy) as watched:
            await asyncio.sleep(100)
            connector.heal()
            async with watched.pool.claim(timeout=5.1):
                pass

    run(main)
