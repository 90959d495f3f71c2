"""What an observer is told: every event of the list, in a sensible order."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields

import pytest

from qorb import Backend, ClaimTimeoutError, Outcome, Pool, ResolveError, events
from qorb.publishing import publisher_of
from qorb.resolvers import FixedResolver, ManualResolver
from qorb.testing import FakeConnection, FakeConnector, run, settle
from tests.phases import PHASES, Stage, play
from tests.pools import Watched, backends, hold, opened

KINDS = {
    "ClaimStart": {"claim_id"},
    "ClaimDone": {"claim_id", "slot_id", "wait"},
    "ClaimFailed": {"claim_id", "reason"},
    "ClaimAcquireFailed": {"claim_id", "slot_id", "reason"},
    "PoolClaimStart": {"claim_id"},
    "PoolClaimDone": {"claim_id", "slot_id"},
    "PoolClaimFailed": {"claim_id"},
    "SlotSetClaimStart": {"claim_id", "backend"},
    "SlotSetClaimDone": {"claim_id", "backend", "slot_id"},
    "SlotSetClaimFailed": {"claim_id", "backend", "reason"},
    "ConnectStart": {"slot_id", "backend"},
    "ConnectDone": {"slot_id", "backend"},
    "ConnectFailed": {"slot_id", "backend", "reason"},
    "SlotSetOnline": {"backend", "has_unclaimed_slots"},
    "SlotSetOffline": {"backend", "has_unclaimed_slots"},
    "SlotStateChange": {"backend", "slot_id", "old", "new", "stats"},
    "HandleClaimed": {"claim_id", "slot_id", "backend"},
    "HandleReturned": {"claim_id", "slot_id", "backend"},
    "HealthCheckStart": {"slot_id", "backend"},
    "HealthCheckDone": {"slot_id", "backend"},
    "HealthCheckFailed": {"slot_id", "backend", "reason"},
    "RecycleStart": {"slot_id", "backend"},
    "RecycleDone": {"slot_id", "backend"},
    "RecycleFailed": {"slot_id", "backend", "reason"},
    "RebalanceStart": {"plan"},
    "RebalanceDone": {"plan"},
    "ResolverUpdated": {"added", "removed", "changed"},
    "ResolverFailed": {"reason"},
    "ResolverQueryStart": {"server", "question"},
    "ResolverQueryDone": {"server", "question", "records", "ttl"},
    "ResolverQueryFailed": {"server", "question", "reason"},
    "PoolTerminateStart": {"left"},
    "PoolTerminateDone": {"left"},
}


class AskingResolver(ManualResolver):
    """Tells of a question that is answered and of one that is not, before it publishes what it was given."""

    async def watch(self, publish: Callable[[Iterable[Backend]], None]) -> None:
        told = publisher_of(publish)
        told.query_started("10.0.0.53:53", "main A")
        told.query_done("10.0.0.53:53", "main A", 2, 30.0)
        told.query_started("10.0.0.53:53", "main AAAA")
        told.query_failed("10.0.0.53:53", "main AAAA", "no answer")
        told.failed(ResolveError("no answer", "main"))
        await super().watch(publish)


def everything(seed: int = 0) -> list[events.Event]:
    """A day on which all of it happens."""

    async def main() -> list[events.Event]:
        connector = FakeConnector()
        resolver = AskingResolver(backends(2))
        policy = {"spares_wanted": 2, "max_slots": 2, "health_interval": 10, "spread": 0, "rebalance_interval": 30}
        async with opened(resolver, connector, observed=True, **policy) as watched:
            await hold(watched.pool, 0.1)
            await asyncio.sleep(15)
            connector.fail("on_acquire", lambda: OSError("unfit"))
            with pytest.raises(ClaimTimeoutError):
                await watched.pool.claim(timeout=0.5)
            connector.heal()
            await asyncio.sleep(1)
            tasks = [asyncio.create_task(hold(watched.pool, 1)) for _ in range(6)]
            await settle()
            tasks[5].cancel()
            await asyncio.wait(tasks)
            connector.invalidate()
            await asyncio.sleep(12)
            await hold(watched.pool, 0.1)
            connector.heal()
            connector.refuse("b1")
            connector.drop()
            await hold(watched.pool, 0.1)
            await asyncio.sleep(1)
            resolver.set(backends(3)[1:])
            await asyncio.sleep(1)
            resolver.set(backends(3, weight=2))
            connector.heal()
            await asyncio.sleep(40)
        return [event for _, event in watched.events]

    return run(main, seed=seed)


def test_every_event_of_the_list_appears_with_its_fields():
    seen = {type(event).__name__: event for event in everything()}

    assert set(seen) == set(KINDS)
    for name, event in seen.items():
        assert {field.name for field in fields(event)} >= KINDS[name] | {"pool"}
        assert event.pool == "main"
        with pytest.raises(AttributeError):
            event.pool = "other"  # type: ignore[misc]


def test_a_value_is_what_its_name_says():
    for event in everything():
        for field in fields(event):
            value = getattr(event, field.name)
            if field.name in ("claim_id", "slot_id"):
                assert isinstance(value, int), event
                assert 0 < value < 2**63, event
            elif field.name in ("backend", "reason", "old", "new", "left", "pool", "server", "question"):
                assert isinstance(value, str), event
                assert value, event
            elif field.name in ("wait", "records", "ttl"):
                assert value >= 0
            elif field.name == "plan":
                assert isinstance(value, Mapping)
                assert all(isinstance(count, int) and count for count in value.values())


@pytest.mark.parametrize("seed", range(4))
def test_every_claim_begins_once_and_ends_once_and_what_concerns_it_lies_between(seed):
    begun: set[int] = set()
    open_claims: set[int] = set()
    for event in everything(seed):
        claim_id = getattr(event, "claim_id", None)
        if isinstance(event, events.ClaimStart):
            assert claim_id not in begun
            begun.add(claim_id)
            open_claims.add(claim_id)
        elif isinstance(event, events.ClaimDone | events.ClaimFailed):
            open_claims.remove(claim_id)
        elif isinstance(event, events.HandleReturned):
            assert claim_id in begun
        elif claim_id is not None:
            assert claim_id in open_claims, event
    assert not open_claims


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("start", "ends", "key"),
    [
        (events.PoolClaimStart, (events.PoolClaimDone, events.PoolClaimFailed), "claim_id"),
        (events.SlotSetClaimStart, (events.SlotSetClaimDone, events.SlotSetClaimFailed), "claim_id"),
        (events.ConnectStart, (events.ConnectDone, events.ConnectFailed), "slot_id"),
        (events.RecycleStart, (events.RecycleDone, events.RecycleFailed), "slot_id"),
        (events.HandleClaimed, (events.HandleReturned,), "claim_id"),
        (events.RebalanceStart, (events.RebalanceDone,), "pool"),
        (events.ResolverQueryStart, (events.ResolverQueryDone, events.ResolverQueryFailed), "question"),
    ],
)
def test_what_starts_ends_and_nothing_ends_that_has_not_started(seed, start, ends, key):
    under_way: set[object] = set()
    for event in everything(seed):
        if isinstance(event, start):
            assert getattr(event, key) not in under_way, event
            under_way.add(getattr(event, key))
        elif isinstance(event, ends):
            assert getattr(event, key) in under_way, event
            under_way.remove(getattr(event, key))
    assert not under_way


@pytest.mark.parametrize("seed", range(4))
def test_the_transitions_of_a_slot_are_a_chain_from_connecting_to_terminated(seed):
    state: dict[int, str] = {}
    for event in everything(seed):
        if isinstance(event, events.SlotStateChange):
            assert event.old == state.get(event.slot_id, "Connecting"), event
            state[event.slot_id] = event.new
    assert set(state.values()) == {"Terminated"}


def test_a_backend_goes_online_and_offline_in_turn():
    online: dict[str, bool] = {}
    for event in everything():
        if isinstance(event, events.SlotSetOnline | events.SlotSetOffline):
            assert online.get(event.backend, False) is isinstance(event, events.SlotSetOffline)
            online[event.backend] = isinstance(event, events.SlotSetOnline)
    assert not any(online.values())


def test_the_termination_is_the_end():
    told = everything()

    assert isinstance(told[-1], events.PoolTerminateDone)
    assert sum(isinstance(event, events.PoolTerminateStart) for event in told) == 1


def test_the_difference_of_two_sets_is_told():
    updates = [e for e in everything() if isinstance(e, events.ResolverUpdated)]

    assert [(e.added, e.removed, e.changed) for e in updates] == [
        (("b0", "b1"), (), ()),
        (("b2",), ("b0",), ()),
        (("b0",), (), ("b1", "b2")),
    ]


@pytest.mark.parametrize("error", [ValueError("a bug"), type("Odd", (BaseException,), {})("odd")])
def test_an_observer_that_raises_is_reported_once_and_harms_nothing(error, caplog):
    async def main():
        def observer(event: events.Event) -> None:
            raise error

        async with Pool("p", FixedResolver(backends(2)), FakeConnector(), observer=observer) as pool:
            for _ in range(20):
                await hold(pool, 0.01)
        return pool.stats().claims

    with caplog.at_level(logging.ERROR, "qorb"):
        assert run(main) == 20
    assert ["the observer raised" in record.message for record in caplog.records] == [True]
    assert str(error) in caplog.text


def tell(observe: Callable[[events.Event], None], watched: Watched) -> None:
    """Let somebody else observe from now on."""
    assert watched.pool._engine is not None
    watched.pool._engine.observer = observe


IN_TURN = [events.PoolClaimStart, events.SlotSetClaimStart, events.SlotSetClaimDone, events.HandleClaimed]


class Unsoiled(FakeConnector):
    """A FakeConnector whose clean connections need no recycling: a release hands them on at once."""

    def needs_recycle(self, connection: FakeConnection, outcome: Outcome) -> bool:
        return outcome is not Outcome.CLEAN


@pytest.mark.parametrize("connector", [FakeConnector, Unsoiled])
@pytest.mark.parametrize("kind", IN_TURN)
def test_an_observer_may_cancel_the_claim_whose_turn_it_is_told_of(connector, kind):
    async def main() -> None:
        async with opened(backends(1), connector(), observed=True, max_slots=1, spares_wanted=1) as watched:
            held = await watched.pool.claim()
            waiting = [asyncio.create_task(hold(watched.pool, 1)) for _ in range(2)]
            await settle()

            def observe(event: events.Event) -> None:
                if isinstance(event, kind):
                    waiting[0].cancel()

            tell(observe, watched)
            held.release()
            await asyncio.wait(waiting)
            assert [task.cancelled() for task in waiting] == [True, False]
            assert watched.stats().claimed_slots == 0

    run(main)


@pytest.mark.parametrize("connector", [FakeConnector, Unsoiled])
@pytest.mark.parametrize("kind", [*IN_TURN, events.SlotStateChange])
@pytest.mark.parametrize("way", ["release", "discard"])
def test_an_observer_may_end_a_claim_when_it_is_told_of_the_turn_of_another(connector, kind, way):
    async def main() -> None:
        async with opened(backends(1), connector(), observed=True, max_slots=3, spares_wanted=3) as watched:
            held = await watched.claims(3)
            served = [asyncio.create_task(hold(watched.pool, 1)) for _ in range(3)]
            await settle()
            ends = held[1:]

            def observe(event: events.Event) -> None:
                if isinstance(event, kind) and ends:
                    getattr(ends.pop(), way)()

            tell(observe, watched)
            held[0].release()
            await asyncio.wait(served, timeout=30)
            assert [task.done() and task.exception() for task in served] == [None] * 3
            assert watched.stats().claimed_slots == 0

    run(main)


@pytest.mark.parametrize("connector", [FakeConnector, Unsoiled])
@pytest.mark.parametrize("kind", [events.ClaimStart, events.PoolClaimStart, events.PoolClaimFailed])
def test_an_observer_may_give_back_what_a_claim_that_finds_nothing_is_in_need_of(connector, kind):
    async def main() -> None:
        async with opened(backends(1), connector(), observed=True, max_slots=1, spares_wanted=1) as watched:
            kept = [await watched.pool.claim()]

            def observe(event: events.Event) -> None:
                if isinstance(event, kind) and kept:
                    kept.pop().release()

            tell(observe, watched)
            async with watched.pool.claim(timeout=0.1):
                pass

    run(main)


@pytest.mark.parametrize("held", ["revoke", "detach"])
@pytest.mark.parametrize("way", ["release", "discard"])
@pytest.mark.parametrize("kind", [events.HandleReturned, events.SlotStateChange])
def test_an_observer_may_end_the_claim_that_the_end_of_the_pool_takes_or_leaves(kind, way, held):
    async def main() -> None:
        async with opened(backends(1), observed=True, max_slots=2, spares_wanted=2) as watched:
            claims = {claim.connection.id: claim for claim in await watched.claims(2)}
            ended = []

            def observe(event: events.Event) -> None:
                if isinstance(event, kind) and claims:
                    claim = claims.pop(min(claims))
                    ended.append(claim)
                    getattr(claim, way)()

            tell(observe, watched)
            await watched.pool.terminate(grace=0, held=held)
            assert len(ended) == 2
            assert watched.pool.ledger().empty
            assert not watched.connector.unclosed

    run(main)


PAIRS = [
    (events.ClaimStart, (events.ClaimDone, events.ClaimFailed), "claim_id"),
    (events.PoolClaimStart, (events.PoolClaimDone, events.PoolClaimFailed), "claim_id"),
    (events.SlotSetClaimStart, (events.SlotSetClaimDone, events.SlotSetClaimFailed), "claim_id"),
    (events.HandleClaimed, (events.HandleReturned,), "slot_id"),
    (events.ConnectStart, (events.ConnectDone, events.ConnectFailed), "slot_id"),
    (events.HealthCheckStart, (events.HealthCheckDone, events.HealthCheckFailed), "slot_id"),
    (events.RecycleStart, (events.RecycleDone, events.RecycleFailed), "slot_id"),
    (events.RebalanceStart, (events.RebalanceDone,), "pool"),
    (events.PoolTerminateStart, (events.PoolTerminateDone,), "pool"),
]


def without_an_end(told: list[events.Event]) -> list[events.Event]:
    """Give what started and did not end; what ends without a start, or starts twice, is an error."""
    under_way: dict[tuple[int, object], events.Event] = {}
    for event in told:
        for number, (start, ends, key) in enumerate(PAIRS):
            if isinstance(event, start):
                assert under_way.setdefault((number, getattr(event, key)), event) is event, event
            elif isinstance(event, ends):
                assert under_way.pop((number, getattr(event, key)), None) is not None, event
    return list(under_way.values())


def test_a_try_of_a_backend_ends_also_when_is_closed_takes_the_connection_away_from_it():
    class Meddling(FakeConnector):
        def is_closed(self, connection: FakeConnection) -> bool:
            if moves:
                resolver.set([moves.pop()])
            return super().is_closed(connection)

    moves: list[str] = []
    resolver = ManualResolver(["10.0.0.1:5432"])

    async def main() -> list[events.Event]:
        async with opened(resolver, Meddling(), observed=True) as watched:
            moves.append("10.0.0.2:5432")
            await hold(watched.pool, 1)
        return [event for _, event in watched.events]

    assert without_an_end(run(main)) == []


async def cancel_the_tasks(stage: Stage) -> None:
    tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("qorb ")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for task in tasks:
            task.cancel()
        await settle()


async def abort(stage: Stage) -> None:
    stage.pool.abort()


async def move_and_vanish(stage: Stage) -> None:
    stage.resolver.set([Backend("a", "10.0.0.9", 1), Backend("b", "10.0.0.8", 1)])
    await asyncio.sleep(0.1)
    stage.resolver.set([])
    await asyncio.sleep(0.1)


async def nothing(stage: Stage) -> None:
    pass


@pytest.mark.parametrize("before", [nothing, cancel_the_tasks, abort, move_and_vanish])
@pytest.mark.parametrize("end", [{"grace": 0}, {"grace": 5}, {"grace": 0, "held": "detach"}], ids=str)
@pytest.mark.parametrize("phase", [phase for phase in PHASES.values() if phase is not PHASES["new"]])
def test_in_whatever_phase_and_way_a_pool_ends_what_had_started_has_ended(phase, before, end):
    async def scene(stage: Stage) -> None:
        await before(stage)
        await stage.pool.terminate(**end)
        assert without_an_end(stage.events) == []

    play(phase, scene, seeds=(0,))


@pytest.mark.parametrize("seed", range(4))
def test_of_all_that_happens_on_one_day_what_starts_ends(seed):
    assert without_an_end(everything(seed)) == []


@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_that_come_with_a_change_of_state_agree_with_each_other(seed):
    changes = [event for event in everything(seed) if isinstance(event, events.SlotStateChange)]
    assert changes
    for change in changes:
        stats = change.stats
        connected = stats.unclaimed_slots + stats.checking_slots + stats.claimed_slots
        assert stats.online == (connected > 0), change
