"""What users and their code do that nobody should: the pool says so, clearly, and takes no harm."""

from __future__ import annotations

import asyncio
import threading

import pytest

from qorb import Connector, Policy, Pool, PoolError, PoolTerminatedError, WrongLoopError
from qorb.resolvers import FixedResolver, ManualResolver
from qorb.testing import FakeConnector, assert_nothing_left, run, settle

TWO = ["10.0.0.1:1", "10.0.0.2:1"]
ELSEWHERE = ["10.0.0.9:1"]


# A connector whose plain functions call the pool.


class Meddler(FakeConnector):
    """In one of its plain functions it makes a call of its own, as long as it is armed; `quick`: it saves recycling."""

    def __init__(self, hook: str, quick: bool = True) -> None:
        super().__init__()
        self.hook = hook
        self.quick = quick
        self.armed = 0
        self.action = lambda: None

    def meddle(self, hook):
        if hook == self.hook and self.armed:
            self.armed -= 1
            self.action()

    def is_closed(self, connection):
        self.meddle("is_closed")
        return super().is_closed(connection)

    def needs_recycle(self, connection, outcome):
        self.meddle("needs_recycle")
        return not self.quick or super().needs_recycle(connection, outcome)

    def abort(self, connection):
        self.meddle("abort")
        super().abort(connection)


class InStep(Meddler):
    """Of this one a release may take the short cut: it never recycles, and only is_closed() is its own."""

    on_recycle = Connector.on_recycle
    validate = Connector.validate
    needs_recycle = Connector.needs_recycle


def books(pool):
    """Count the slots by state, of every backend; what the pool's books say must be what its slots are."""
    engine = pool._engine
    for slots in engine.sets.values():
        states = [slot.state.name for slot in slots.slots]
        assert states.count("UNCLAIMED") == len(slots.idle) == len(set(slots.idle))
        assert states.count("CLAIMED") == slots.claimed
        assert states.count("CONNECTING") == slots.connecting
    current = [engine.sets[name] for name in engine.backends]
    assert engine.desk.claimed == sum(slots.claimed for slots in current)


ACTIONS = {
    "abort": lambda world: world.pool.abort(),
    "release": lambda world: world.claims and world.claims.pop().release(),
    "discard": lambda world: world.claims and world.claims.pop().discard(),
    "set": lambda world: world.resolver.set(ELSEWHERE),
    "set back": lambda world: (world.resolver.set(ELSEWHERE), world.resolver.set(TWO)),
    "look": lambda world: (world.pool.stats(), world.pool.ledger()),
}


class World:
    """A pool of four connections, of which claims hold three; the connector may meddle."""

    def __init__(self, connector, action, observed):
        self.connector = connector
        self.resolver = ManualResolver(TWO)
        self.claims = []
        policy = Policy(spares_wanted=4, max_slots=4, claim_timeout=2)
        observer = (lambda _: None) if observed else None
        self.pool = Pool("main", self.resolver, connector, policy, observer=observer)
        connector.action = lambda: ACTIONS[action](self)


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("kind", [Meddler, InStep])
@pytest.mark.parametrize("hook", ["is_closed", "needs_recycle", "abort"])
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("times", [1, 3])
def test_a_connector_may_call_the_pool_in_the_midst_of_a_claim_or_release(times, action, hook, kind, observed):
    async def main():
        connector = kind(hook)
        world = World(connector, action, observed)
        pool = world.pool
        errors = []

        async def client(number):
            for turn in range(4):
                connector.armed = times
                try:
                    async with pool.claim():
                        await asyncio.sleep(0.01 * (number + turn))
                        connector.armed = times
                        if turn == 2:
                            raise KeyError
                except (KeyError, PoolTerminatedError) as error:
                    errors.append(type(error))
                books(pool)

        async with pool:
            await pool.ready()
            await settle()
            world.claims += [await pool.claim() for _ in range(3)]
            clients = [asyncio.create_task(client(number)) for number in range(3)]
            for one in clients:
                await one
            for claim in world.claims:
                claim.discard()
            connector.armed = 0
            await asyncio.sleep(1)
            if action != "abort":
                assert PoolTerminatedError not in errors
                assert sum(backend.unclaimed_slots for backend in pool.stats().backends.values()) == 4
        connector.check()
        assert_nothing_left(pool)

    run(main)


@pytest.mark.parametrize("observed", [False, True])
def test_a_claim_in_the_midst_of_which_is_closed_ends_the_pool_gets_pool_terminated_error(observed):
    async def main():
        connector = Meddler("is_closed")
        pool = World(connector, "abort", observed).pool
        async with pool:
            await pool.ready()
            connector.armed = 1
            with pytest.raises(PoolTerminatedError):
                await pool.claim()
        assert_nothing_left(pool)

    run(main)


@pytest.mark.parametrize("hook", ["is_closed", "needs_recycle"])
@pytest.mark.parametrize("kind", [Meddler, InStep])
def test_a_release_in_the_midst_of_which_the_pool_ends_raises_nothing(kind, hook):
    async def main():
        connector = kind(hook)
        pool = World(connector, "abort", observed=False).pool
        async with pool:
            await pool.ready()
            claim = await pool.claim()
            async with pool.claim():
                connector.armed = 1
                claim.release()
                connector.armed = 1
        assert_nothing_left(pool)

    run(main)


def test_a_check_in_the_midst_of_which_is_closed_ends_the_pool_harms_nothing():
    async def main():
        connector = Meddler("is_closed")
        pool = World(connector, "abort", observed=False).pool
        async with pool:
            await pool.ready()
            connector.armed = 1
            await asyncio.sleep(100)
            assert not connector.armed
        assert_nothing_left(pool)

    run(main)


# The end of a block in another thread.


def in_a_thread(function):
    """Call the function in another thread; return what it raised."""
    raised = []

    def call():
        try:
            function()
        except PoolError as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return raised


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("kind", [Meddler, InStep])
def test_a_block_that_ends_in_another_thread_is_told_and_may_end_in_its_own(run_real, kind, waiting):
    async def main():
        pool = Pool("main", FixedResolver(TWO[:1]), kind("", quick=False), Policy(spares_wanted=1, max_slots=1))
        async with pool:
            request = pool.claim()
            await request.__aenter__()
            waiter = asyncio.ensure_future(pool.claim()) if waiting else None
            await asyncio.sleep(0)
            if waiting or kind is Meddler:
                (error,) = in_a_thread(lambda: request.__aexit__(None, None, None))
                assert isinstance(error, WrongLoopError)
                assert "call_soon_threadsafe" in str(error)
                assert pool.stats().backends[TWO[0]].claimed_slots == 1
            await request.__aexit__(None, None, None)
            if waiter is not None:
                (await waiter).release()
        assert_nothing_left(pool)

    run_real(main)


def test_a_block_that_the_garbage_collector_ends_in_another_thread_gives_its_connection_back(run_real):
    async def main():
        class Unprepared(Meddler):
            on_acquire = Connector.on_acquire

        connector = Unprepared("needs_recycle")
        pool = Pool("main", FixedResolver(TWO[:1]), connector, Policy(spares_wanted=1, max_slots=1))
        threads = []
        connector.action = lambda: threads.append(threading.get_ident())
        connector.armed = 1

        async def block():
            async with pool.claim():
                await asyncio.get_running_loop().create_future()

        async with pool:
            await pool.ready()
            left = block()
            left.send(None)  # no task, which would be missed
            assert pool.stats().backends[TWO[0]].claimed_slots == 1
            assert not in_a_thread(left.close)
            async with pool.claim(timeout=5):
                assert threads == [threading.get_ident()]  # nothing was touched in the other one
        assert_nothing_left(pool)

    run_real(main)
