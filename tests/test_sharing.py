"""How many slots each backend has, seen through the pool."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from qorb import ClaimTimeoutError
from qorb.resolvers import ManualResolver
from qorb.testing import FakeConnection, FakeConnector, run, settle
from tests.pools import backends, hold, now, opened


class Quick(FakeConnector):
    """A FakeConnector whose clean connections need no recycling."""

    def needs_recycle(self, connection, outcome):
        return outcome.value != "clean"


def test_spares_are_kept_up_all_the_time_and_given_up_on_the_timer_only():
    async def main():
        async with opened(backends(2), spares_wanted=4, max_slots=16, rebalance_interval=60) as watched:
            claims = await watched.claims(4)
            await asyncio.sleep(0.1)
            assert len(watched.connector.connections) == 8
            for claim in claims:
                claim.release()
            await asyncio.sleep(10)
            assert len(watched.connector.connections) == 8
            await asyncio.sleep(60)
            assert len(watched.connector.connections) == 4
            assert watched.slots("b0") == watched.slots("b1") == 2

    run(main)


def test_shrinking_takes_the_longest_idle():
    async def main():
        connector = Quick()
        async with opened(backends(1), connector, spares_wanted=2, max_slots=8, rebalance_interval=10) as watched:
            await asyncio.sleep(1)
            claims = await watched.claims(2)
            await asyncio.sleep(0.1)
            fresh = set(connector.connections) - {claim.connection for claim in claims}
            kept = {claim.connection for claim in claims}
            for claim in claims:
                claim.release()
            await asyncio.sleep(10)
            assert set(connector.connections) == kept
            assert all(one.closed for one in fresh)

    run(main)


def test_one_live_backend_among_eight_dead_ones_serves_on():
    async def main():
        connector = FakeConnector()
        for i in range(1, 9):
            connector.refuse(f"b{i}")
        async with opened(backends(9), connector, ready=False, spares_wanted=2, max_slots=4) as watched:
            await asyncio.sleep(10)
            before = len(watched.attempts())
            for _ in range(200):
                await hold(watched.pool, 0.1)
            assert len(watched.attempts()) - before < 200

    run(main)


def test_under_full_load_no_backend_is_forgotten():
    async def main():
        connector = FakeConnector()
        for i in range(1, 4):
            connector.refuse(f"b{i}")
        policy = {"spares_wanted": 2, "max_slots": 4, "max_connection_backoff": 5}
        async with opened(backends(4), connector, ready=False, **policy) as watched:
            stop = now() + 120

            async def hog() -> None:
                while now() < stop:
                    await hold(watched.pool, 0.5)

            hogs = [asyncio.create_task(hog()) for _ in range(12)]
            await asyncio.sleep(100)
            for i in range(1, 4):
                tries = [one for one in watched.attempts(f"b{i}") if one > stop - 100]
                assert len(tries) >= 4, (i, tries)
            connector.heal()
            await asyncio.sleep(19)
            assert all(watched.stats(f"b{i}").online for i in range(4))
            await asyncio.wait(hogs)

    run(main)


def test_with_nothing_online_and_few_slots_the_backends_take_turns():
    async def main():
        connector = FakeConnector()
        connector.refuse()
        async with opened(backends(8), connector, ready=False, spares_wanted=2, max_slots=2) as watched:
            await asyncio.sleep(120)
            for i in range(8):
                assert len([one for one in watched.attempts(f"b{i}") if one > now() - 60]) >= 5

    run(main)


def test_a_backend_that_vanishes_loses_its_idle_slots_at_once_and_the_others_grow_at_once():
    async def main():
        resolver = ManualResolver(backends(2))
        async with opened(resolver, spares_wanted=8, max_slots=8) as watched:
            claim = await watched.pool.claim()
            while claim.backend.name != "b0":
                claim.release()
                claim = await watched.pool.claim()
            resolver.set(backends(2)[1:])
            await asyncio.sleep(0.1)
            assert watched.slots("b0") == 1
            assert watched.slots("b1") == 7
            assert not claim.connection.closed
            connection = claim.connection
            claim.release()
            await asyncio.sleep(0.1)
            assert connection.closed
            assert list(watched.pool.stats().backends) == ["b1"]
            assert watched.slots("b1") == 8

    run(main)


@pytest.mark.parametrize("pause", [0, 0.0005, 0.5])
def test_a_backend_that_comes_back_while_it_leaves_is_served_by_one_set(pause):
    async def main():
        resolver = ManualResolver(backends(2))
        async with opened(resolver, spares_wanted=4, max_slots=4) as watched:
            claims = await watched.claims(2)
            for _ in range(5):
                resolver.set(backends(2)[1:])
                await asyncio.sleep(pause)
                resolver.set(backends(2))
                await asyncio.sleep(pause)
            await asyncio.sleep(1)
            assert sorted(watched.pool.stats().backends) == ["b0", "b1"]
            assert len(watched.connector.connections) == 4
            assert watched.pool.stats().claims == 2
            for claim in claims:
                assert not claim.connection.closed
                claim.release()
            await asyncio.sleep(1)
            assert watched.slots("b0") + watched.slots("b1") == 4

    run(main)


@pytest.mark.parametrize("operation", ["connect", "on_acquire"])
@pytest.mark.parametrize("field", ["host", "port", "server_name"])
def test_a_backend_that_comes_back_elsewhere_while_it_leaves_waits_for_no_failure_of_its_old_address(field, operation):
    async def main():
        (old,) = backends(1)
        new = replace(old, **{field: 9 if field == "port" else "elsewhere"})
        resolver = ManualResolver([old])
        async with opened(resolver, spares_wanted=2, max_slots=2, min_connection_backoff=20) as watched:
            held = await watched.pool.claim()
            watched.connector.fail(operation, lambda: OSError("unfit"))
            watched.connector.drop()
            with pytest.raises(ClaimTimeoutError):
                await watched.pool.claim(timeout=1)
            watched.connector.heal()
            resolver.set([])
            await settle()
            resolver.set([new])
            claim = await watched.pool.claim(timeout=0.1)
            assert claim.backend == new
            claim.release()
            held.release()

    run(main)


@pytest.mark.parametrize("max_slots", [3, 16])
@pytest.mark.parametrize("field", ["host", "port", "server_name"])
def test_idle_connections_follow_an_address_one_at_a_time_and_claims_finish_undisturbed(field, max_slots):
    async def main():
        (old,) = backends(1)
        new = replace(old, **{field: 9 if field == "port" else "elsewhere"})
        resolver = ManualResolver([old])
        connector = FakeConnector(latency=0.1)
        async with opened(resolver, connector, spares_wanted=3, max_slots=max_slots) as watched:
            claim = await watched.pool.claim()
            await asyncio.sleep(1)
            total = len(connector.connections)
            resolver.set([new])
            least = total
            for _ in range(100):
                await asyncio.sleep(0.01)
                least = min(least, len(connector.connections))
            assert least >= total - 1
            assert connector.peak_in_flight("connect") <= 3
            assert {c.backend for c in connector.connections if c is not claim.connection} == {new}
            assert not claim.connection.closed
            claim.release()
            await asyncio.sleep(1)
            assert {c.backend for c in connector.connections} == {new}
            assert watched.stats().online

    run(main)


def test_a_change_of_weight_or_priority_reconnects_nothing():
    async def main():
        a, b = backends(2)
        resolver = ManualResolver([a, b])
        async with opened(resolver, spares_wanted=4) as watched:
            watched.connector.forbid(allow=["is_closed"])
            resolver.set([replace(a, weight=7), replace(b, priority=3)])
            await asyncio.sleep(10)
            watched.connector.heal()
            assert watched.stats("b0").backend.weight == 7

    run(main)


def test_the_caps_hold_while_everything_changes():
    async def main():
        resolver = ManualResolver(backends(3))
        connector = FakeConnector()
        connector.slow(0.3, "close")
        policy = {"spares_wanted": 5, "max_slots": 6, "max_slots_per_backend": 3, "rebalance_interval": 0.5}
        async with opened(resolver, connector, **policy) as watched:
            tasks = [asyncio.create_task(hold(watched.pool, 0.002 * i)) for i in range(200)]
            for i in range(40):
                some = backends(5)
                resolver.set(
                    [replace(one, port=1 + i) if j == i % 5 else one for j, one in enumerate(some) if j != i % 3]
                )
                connector.heal() if i % 4 else connector.refuse(f"b{i % 5}")
                await asyncio.sleep(0.05)
            connector.heal()
            await asyncio.wait(tasks)
            assert watched.pool.stats().waiting == 0
            failed = [task for task in tasks if task.exception() is not None]
            assert failed == []

    run(main)  # opened() compares the peaks with the caps


def test_there_is_no_state_from_which_nothing_happens_any_more():
    async def main():
        connector = FakeConnector()
        resolver = ManualResolver(backends(3))
        async with opened(resolver, connector, spares_wanted=2, max_slots=2, ready=False) as watched:
            for i in range(6):
                connector.refuse()
                connector.drop()
                with pytest.raises(ClaimTimeoutError):
                    await watched.pool.claim(timeout=7)
                resolver.set(backends(1 + i % 3))
                connector.heal()
                async with watched.pool.claim(timeout=6) as connection:
                    assert isinstance(connection, FakeConnection)
                await settle()

    run(main)


def test_claims_that_wait_are_served_elsewhere_when_a_backend_keeps_its_connections_and_refuses_more():
    async def main():
        connector = FakeConnector()
        resolver = ManualResolver(backends(1))
        async with opened(resolver, connector, spares_wanted=0, max_slots=8, rebalance_interval=5) as watched:
            claims = await watched.claims(2)
            connector.refuse("b0")
            resolver.set(backends(2))
            published = now()
            claims += [await watched.pool.claim(timeout=100) for _ in range(6)]
            assert [claim.connection.backend.name for claim in claims] == ["b0"] * 2 + ["b1"] * 6
            assert now() < published + 1

    run(main)


def test_a_backend_that_refused_more_connections_gets_its_share_when_it_accepts_again():
    async def main():
        connector = FakeConnector()
        policy = {"spares_wanted": 8, "max_slots": 8, "rebalance_interval": 60, "max_connection_backoff": 4}
        async with opened(backends(2), connector, **policy) as watched:
            connector.refuse("b0")
            for claim in await watched.claims(8):
                if claim.connection.backend.name == "b0" and watched.stats().claimed_slots > 1:
                    claim.discard()
                else:
                    claim.release()
            await asyncio.sleep(10)
            assert watched.stats().connecting_slots == 1
            assert (watched.stats().unclaimed_slots, watched.stats("b1").unclaimed_slots) == (1, 6)
            connector.heal()
            await asyncio.sleep(6)
            assert watched.slots("b0") == watched.slots("b1") == 4

    run(main)


@pytest.mark.parametrize("trouble", ["on_acquire fails", "closed at once"])
def test_claims_that_wait_are_served_elsewhere_when_the_new_connections_of_a_backend_are_of_no_use(trouble):
    async def main():
        connector = FakeConnector()
        resolver = ManualResolver(backends(1))
        policy = {"spares_wanted": 1, "max_slots": 8, "min_connection_backoff": 60, "max_connection_backoff": 60}
        async with opened(resolver, connector, **policy) as watched:
            claims = await watched.claims(3)
            await asyncio.sleep(0.1)
            if trouble == "on_acquire fails":
                connector.fail("on_acquire", ConnectionError, "b0")
            for fresh in set(connector.connections) - {claim.connection for claim in claims}:
                fresh.closed = trouble == "closed at once"
            waiting = asyncio.create_task(watched.claims(1))
            await asyncio.sleep(0.1)
            assert watched.stats().connecting_slots > 0
            resolver.set(backends(2))
            claims += [await watched.pool.claim(timeout=5) for _ in range(4)] + await waiting
            assert [claim.connection.backend.name for claim in claims] == ["b0"] * 3 + ["b1"] * 5

    run(main)


def close_from_afar(connector, backend, besides):
    """Close the connections to one backend that nobody holds, from the peer's side."""
    for connection in set(connector.connections) - {claim.connection for claim in besides}:
        connection.closed |= connection.backend.name == backend


AT_THE_CAP = {"spares_wanted": 8, "max_slots": 8, "health_interval": 5, "rebalance_interval": 600}
LONG_PAUSES = {"min_connection_backoff": 60, "max_connection_backoff": 60}


def test_what_a_backend_that_refuses_more_loses_is_made_up_for_elsewhere():
    async def main():
        connector = FakeConnector()
        policy = {"spares_wanted": 6, "max_slots": 16, "health_interval": 5, "rebalance_interval": 600}
        async with opened(backends(2), connector, **policy, **LONG_PAUSES) as watched:
            claims = await watched.claims(2)
            await asyncio.sleep(0.1)
            assert watched.slots("b0") == watched.slots("b1") == 4
            connector.refuse("b0")
            further = await watched.claims(2)
            for claim in further:
                claim.discard() if claim.connection.backend.name == "b0" else claim.release()
            await asyncio.sleep(2)
            assert watched.stats("b0").unclaimed_slots == 2
            close_from_afar(connector, "b0", claims)
            await asyncio.sleep(8)
            assert watched.stats("b0").unclaimed_slots == 0
            assert watched.stats("b1").unclaimed_slots >= 6

    run(main)


@pytest.mark.parametrize("trouble", ["on_acquire fails", "closed at once"])
def test_a_backend_gets_its_share_when_the_pause_for_connections_of_no_use_is_over(trouble):
    async def main():
        connector = FakeConnector()
        async with opened(backends(2), connector, **AT_THE_CAP, **LONG_PAUSES) as watched:
            claims = await watched.claims(2)
            if trouble == "on_acquire fails":
                connector.fail("on_acquire", ConnectionError, "b0")
            else:
                close_from_afar(connector, "b0", claims)
            for claim in await watched.claims(4):
                claim.release()
            await asyncio.sleep(20)
            assert (watched.stats().claimed_slots, watched.stats().connecting_slots) == (1, 1)
            connector.heal()
            await asyncio.sleep(60)
            assert watched.slots("b0") == watched.slots("b1") == 4
            assert len(claims) == 2

    run(main)


def test_a_backend_gets_its_share_as_soon_as_an_on_acquire_works_again():
    async def main():
        connector = FakeConnector()
        async with opened(backends(2), connector, **AT_THE_CAP, **LONG_PAUSES) as watched:
            connector.fail("on_acquire", ConnectionError, "b0")
            claims = await watched.claims(2)
            connector.heal()
            await asyncio.sleep(1)
            assert watched.slots("b0") < 4
            while not watched.stats("b0").claimed_slots:
                claims += await watched.claims(1)
            await asyncio.sleep(1)
            assert watched.slots("b0") == watched.slots("b1") == 4

    run(main)


def test_a_backend_gets_its_share_as_soon_as_one_of_its_new_connections_passes_a_check():
    async def main():
        connector = FakeConnector()
        async with opened(backends(2), connector, **AT_THE_CAP, **LONG_PAUSES) as watched:
            claims = await watched.claims(2)
            connector.slow(0.3, "connect", "b0")
            further = await watched.claims(2)
            for claim in further:
                claim.discard() if claim.connection.backend.name == "b0" else claim.release()
            await asyncio.sleep(0.1)
            close_from_afar(connector, "b0", claims)
            for claim in await watched.claims(2):
                claim.release()
            await asyncio.sleep(1)
            assert watched.slots("b0") < 4
            await asyncio.sleep(8)
            assert watched.slots("b0") == watched.slots("b1") == 4
            assert len(claims) == 2

    run(main)
