"""What users and their code do that nobody should: the pool says so, clearly, and takes no harm."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import logging
import math
import pickle
import random
import threading

import pytest

from qorb import (
    Backend,
    Connector,
    NoBackendsError,
    NoBackendsOnlineError,
    Policy,
    Pool,
    PoolError,
    PoolState,
    PoolTerminatedError,
    Resolver,
    WrongLoopError,
)
from qorb.errors import describe, masked
from qorb.resolvers import FixedResolver, ManualResolver
from qorb.testing import FakeConnector, assert_nothing_left, at_every_await, run, settle

TWO = ["10.0.0.1:1", "10.0.0.2:1"]
ELSEWHERE = ["10.0.0.9:1"]


# Arguments that are not what they should be.


async def asynchronous(event):
    """Stand for an observer that nobody would await."""


async def generating(event):
    """Do so, too."""
    yield event


class Calls:
    """An observer whose call is a coroutine."""

    async def __call__(self, event):
        """Be awaited by nobody."""


@pytest.mark.parametrize("rng", [5, "x", random.Random, 0, ""])
def test_a_source_of_chance_that_is_none_is_refused(rng):
    with pytest.raises(TypeError, match=r"^rng must be a Random, not an? (int|str|type)$"):
        Pool("main", FixedResolver(TWO), FakeConnector(), rng=rng)


@pytest.mark.parametrize("observer", [asynchronous, functools.partial(asynchronous), generating, Calls()])
def test_an_observer_that_nobody_would_await_is_refused(observer):
    with pytest.raises(TypeError, match=r"^observer must be a plain function, not an async one"):
        Pool("main", FixedResolver(TWO), FakeConnector(), observer=observer)


@pytest.mark.parametrize("observer", [5, "x", [], 0])
def test_an_observer_that_cannot_be_called_is_refused(observer):
    with pytest.raises(TypeError, match=r"^observer must be callable, not an? (int|str|list)$"):
        Pool("main", FixedResolver(TWO), FakeConnector(), observer=observer)


@pytest.mark.parametrize("seconds", [True, False])
def test_truth_values_are_no_durations(seconds):
    async def main():
        pool = Pool("main", FixedResolver(TWO), FakeConnector())
        async with pool:
            with pytest.raises(ValueError, match=f"^timeout must be a number of seconds, .* not {seconds}$"):
                pool.claim(timeout=seconds)
            with pytest.raises(ValueError, match=r"^timeout must be a number of seconds"):
                await pool.ready(timeout=seconds)
            with pytest.raises(ValueError, match=r"^grace must be a number of seconds"):
                await pool.terminate(grace=seconds)
            with pytest.raises(ValueError, match=r"^timeout must be a number of seconds"):
                await pool.terminate(timeout=seconds)
            (await pool.claim()).release()
        assert_nothing_left(pool)

    run(main)


# The tools for tests.


@pytest.mark.parametrize("latency", [-1, "x", math.nan, None, True])
def test_a_fake_connector_refuses_a_latency_that_is_none(latency):
    with pytest.raises(ValueError, match=f"^latency must be a number of seconds, 0 or more, not {latency!r}$"):
        FakeConnector(latency=latency)


@pytest.mark.parametrize("seconds", [-1, "x", math.nan, None, True])
@pytest.mark.parametrize("verb", ["slow", "deafen"])
def test_a_fake_connector_refuses_seconds_that_are_none(verb, seconds):
    with pytest.raises(ValueError, match=f"^seconds must be a number of seconds, 0 or more, not {seconds!r}$"):
        getattr(FakeConnector(), verb)(seconds)


@pytest.mark.parametrize("backend", [Backend("n", "h", 1), 5, ["n"]])
@pytest.mark.parametrize(
    "verb",
    [
        lambda connector, backend: connector.refuse(backend),
        lambda connector, backend: connector.stall("connect", backend),
        lambda connector, backend: connector.invalidate(backend),
        lambda connector, backend: connector.slow(1, "connect", backend),
        lambda connector, backend: connector.fail("connect", OSError, backend),
        lambda connector, backend: connector.during("connect", print, backend),
        lambda connector, backend: connector.deafen(1, "connect", backend),
        lambda connector, backend: connector.return_none(backend),
        lambda connector, backend: connector.return_same(backend),
        lambda connector, backend: connector.drop(backend),
        lambda connector, backend: connector.heal(backend),
    ],
)
def test_a_fake_connector_refuses_a_backend_that_is_no_name(verb, backend):
    with pytest.raises(TypeError, match=r"^backend must be the name of one, or None for all of them, not "):
        verb(FakeConnector(), backend)


def test_a_fake_connector_refuses_what_it_cannot_call():
    with pytest.raises(TypeError, match=r"^error must be a function, not OSError\(\)$"):
        FakeConnector().fail("connect", OSError())
    with pytest.raises(TypeError, match=r"^action must be a function, not None$"):
        FakeConnector().during("connect", None)


@pytest.mark.parametrize("seed", [None, "x", 1.0, True])
def test_a_run_refuses_a_seed_that_is_no_number(seed):
    with pytest.raises(TypeError, match=f"^seed must be a whole number, not {seed!r}$"):
        run(settle, seed=seed)


@pytest.mark.parametrize("pool", [None, 5, Pool])
def test_only_of_a_pool_nothing_can_be_left(pool):
    with pytest.raises(TypeError, match=r"^assert_nothing_left\(\) takes a Pool, not "):
        assert_nothing_left(pool)


def test_a_scene_must_be_a_coroutine_function():
    with pytest.raises(TypeError, match=r"^at_every_await\(\) takes a coroutine function, not 5$"):
        at_every_await(5)
    with pytest.raises(TypeError, match=r"^at_every_await\(\) takes the coroutine function itself"):
        at_every_await(settle())


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


# Copies.


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_what_owns_connections_or_tasks_is_neither_copied_nor_pickled_and_goes_on(copied):
    async def main():
        resolver = FixedResolver(TWO)
        pool = Pool("main", resolver, FakeConnector())
        monitor = resolver.monitor()
        for unstarted in (pool, monitor):
            with pytest.raises(TypeError, match=r"^a (Pool|Monitor) cannot be copied or pickled: "):
                copied(unstarted)
        async with pool, monitor:
            claim = await pool.claim()
            request = pool.claim()
            for one in (pool, claim, request, monitor):
                with pytest.raises(TypeError, match=rf"^a {type(one).__name__} cannot be copied or pickled: its "):
                    copied(one)
                gc.collect()
            async with request:
                await settle()
                claim.release()
            assert pool.state is PoolState.RUNNING
            assert set(monitor.backends) == set(TWO)
        assert_nothing_left(pool)

    run(main)


def test_what_cannot_be_copied_still_has_no_dictionary():
    pool = Pool("main", FixedResolver(TWO), FakeConnector())
    for one in (pool, pool.claim(), FixedResolver(TWO).monitor()):
        assert not hasattr(one, "__dict__")


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


async def enter(pool):
    """Claim a connection that nobody will ever give back."""
    await pool.claim().__aenter__()


class Unprepared(Meddler):
    on_acquire = Connector.on_acquire


class Preparing(FakeConnector):
    """Prepares connections for ever, once it is told to."""

    for_ever = False

    async def on_acquire(self, connection):
        if self.for_ever:
            await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("kind", [Meddler, Unprepared])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("served", [False, True])
def test_a_claim_that_the_garbage_collector_ends_in_line_in_another_thread_leaves_it_in_the_pools_own(
    run_real, served, first, kind, observed
):
    async def main():
        threads = set()
        observer = (lambda _: threads.add(threading.get_ident())) if observed else None
        policy = Policy(spares_wanted=1, max_slots=1)
        async with Pool("main", FixedResolver(TWO[:1]), kind(""), policy, observer=observer) as pool:
            holder = await pool.claim(timeout=5)
            before = None if first else asyncio.ensure_future(pool.claim(timeout=5))
            await asyncio.sleep(0)
            left = enter(pool)
            left.send(None)
            if before is not None:
                before.cancel()
                await asyncio.wait([before])
            if served:
                holder.discard()
                async with asyncio.timeout(5):
                    while pool.stats().waiting:  # noqa: ASYNC110 - nothing tells of it
                        await asyncio.sleep(0)
            seen = pool.stats()
            assert (seen.waiting, seen.backends[TWO[0]].claimed_slots) == (0 if served else 1, 1)

            assert not in_a_thread(left.close)
            assert pool.stats() == seen  # nothing was touched in the other one

            await asyncio.sleep(0)
            assert pool.stats().waiting == 0
            holder.release()
            (await pool.claim(timeout=5)).release()
        assert_nothing_left(pool)
        assert threads <= {threading.get_ident()}

    run_real(main)


@pytest.mark.parametrize("ending", [False, True])
@pytest.mark.parametrize("observed", [False, True])
def test_a_claim_that_the_garbage_collector_ends_in_on_acquire_in_another_thread_gives_back_in_the_pools_own(
    run_real, observed, ending
):
    async def main():
        threads = set()
        observer = (lambda _: threads.add(threading.get_ident())) if observed else None
        connector = Preparing()
        policy = Policy(spares_wanted=1, max_slots=1)
        async with Pool("main", FixedResolver(TWO[:1]), connector, policy, observer=observer) as pool:
            await pool.ready(timeout=5)
            connector.for_ever = True
            left = enter(pool)
            left.send(None)
            ended = asyncio.ensure_future(pool.terminate()) if ending else None
            seen = pool.stats()
            assert seen.backends[TWO[0]].claimed_slots == 1

            assert not in_a_thread(left.close)
            assert pool.stats() == seen  # nothing was touched in the other one

            connector.for_ever = False
            if ended is not None:
                await ended
            else:
                (await pool.claim(timeout=5)).release()
        assert_nothing_left(pool)
        assert threads <= {threading.get_ident()}

    run_real(main)


@pytest.mark.parametrize("kind", [Meddler, Unprepared])
def test_a_claim_that_the_garbage_collector_ends_after_its_event_loop_is_closed_raises_nothing(run_real, kind):
    async def main():
        async with Pool("main", FixedResolver(TWO[:1]), kind(""), Policy(spares_wanted=1, max_slots=1)) as pool:
            holder = await pool.claim(timeout=5)
            left = enter(pool)
            left.send(None)
            holder.release()
        assert_nothing_left(pool)
        return left

    assert not in_a_thread(run_real(main).close)


# Secrets where an address should be.

SECRET = "hunter2"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Backend.parse(f"host=h password={SECRET}"),
        lambda: Backend.parse(f"u:{SECRET}@h:1"),
        lambda: Backend.parse(f"postgres://u:{SECRET}@h/db"),
        lambda: Backend.parse(f"postgres://u:a {SECRET}@h/db"),
        lambda: Backend.parse(f"h:1/db?password={SECRET}"),
        lambda: Backend.parse(f"u:{SECRET}@h:1".encode()),
        lambda: Backend("n", f"postgres://u:{SECRET}@h/db", 5432),
        lambda: Backend("n", f"u:{SECRET}@h", 5432),
        lambda: Backend("n", f"h password={SECRET}", 5432),
        lambda: Backend(f"postgres://u:{SECRET}@h/db", "a b", 5432),
        lambda: FixedResolver(f"u:{SECRET}@h:1"),
        lambda: FixedResolver([f"u:{SECRET}@h:1"]),
        lambda: FixedResolver([(f"u:{SECRET}@h", 1)]),
        lambda: FixedResolver([("h", f"u:{SECRET}@x")]),
        lambda: FixedResolver([(f"u:{SECRET}@h", 1, 2)]),
        lambda: FixedResolver([f"u:{SECRET}@h:1".encode()]),
        lambda: FixedResolver(f"u:{SECRET}@h:1".encode()),
        lambda: ManualResolver().set([(f"u:{SECRET}@h", 1)]),
    ],
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(make):
    with pytest.raises(ValueError, match=r"host|address|\bport\b") as caught:
        make()

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("published", [[(f"u:{SECRET}@h", 1)], f"u:{SECRET}@h:1", [f"u:{SECRET}@h:1"], "h:1"])
def test_what_a_resolver_publishes_instead_of_backends_is_not_repeated_and_the_remedy_is_named(published, caplog):
    class Wrong(Resolver):
        async def watch(self, publish):
            publish(published)
            await asyncio.get_running_loop().create_future()

    async def main():
        async with Pool("main", Wrong(), FakeConnector()) as pool:
            with pytest.raises(NoBackendsError) as caught:
                await pool.claim(timeout=1)
            return str(caught.value)

    with caplog.at_level(logging.DEBUG):
        text = run(main)
    assert SECRET not in caplog.text + text
    for one in (caplog.text, text):
        assert "is no Backend; publish" in one
        assert "Backend.parse(" in one


@pytest.mark.parametrize(
    "text",
    [
        f"sslpassword={SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"Authorization: Basic {SECRET}",
        f"{{'Authorization': 'Bearer {SECRET}'}}",
        f"refused with bearer {SECRET}{SECRET}{SECRET}",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"secret_key: {SECRET}",
        f"AccountKey={SECRET}==",
    ],
)
def test_the_usual_places_of_secrets_are_masked(text):
    assert SECRET not in masked(f"no: {text}, giving up")
    assert "giving up" in masked(f"no: {text}, giving up")
    assert masked(masked(text)) == masked(text)


def test_words_that_only_sound_secret_are_left_alone():
    text = "bearer token expired; the key=value pairs of the monkey=7 and the primary key (id)=(1) stay"
    assert masked(text) == text


# Names that would write to terminals, and to the lines of logs.

ESCAPES = ["e\x1b[2J", "a\nFAKE LINE", "a\rb", "a\x9b31m", "a\u202eb", "a\ud800", "a\x00"]
NO_NAMES = [*ESCAPES, "", " a", "a ", " ", "x" * 513]


def refusal(make):
    with pytest.raises(ValueError, match=r"name|host|address") as caught:
        make()
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 300


@pytest.mark.parametrize("text", NO_NAMES)
def test_names_and_hosts_that_are_none_are_refused_in_words_that_can_be_printed(text):
    resolver, connector = FixedResolver(TWO), FakeConnector()

    refusal(lambda: Pool(text, resolver, connector))
    refusal(lambda: Backend(text, "h", 1))
    refusal(lambda: Backend("n", text, 1))
    refusal(lambda: FixedResolver([(text, 1)]))
    refusal(lambda: Backend.parse(f"{text}:1"))


@pytest.mark.parametrize("name", ["", 5, b"h", True])
def test_a_server_name_is_a_text_or_none(name):
    with pytest.raises(ValueError, match="the server_name of backend n must be None or a text"):
        Backend("n", "h", 1, name)


@pytest.mark.parametrize("name", ["ö", "orders (eu-west)", "x" * 512, "unix:/run/x", "a@b"])
def test_other_names_are_accepted(name):
    assert Pool(name, FixedResolver([Backend(name, "h", 1)]), FakeConnector()).name == name


@pytest.mark.parametrize("text", ESCAPES)
def test_what_a_driver_says_cannot_write_to_terminals_and_log_lines(text, caplog):
    async def main():
        connector = FakeConnector()
        connector.fail("connect", lambda: OSError(text))
        async with Pool("main", FixedResolver(TWO), connector) as pool:
            with pytest.raises(NoBackendsOnlineError) as caught:
                await pool.claim(timeout=1)
            assert isinstance(caught.value.__cause__.__cause__, OSError)
            return [str(caught.value), *(backend.last_error for backend in pool.stats().backends.values())]

    with caplog.at_level(logging.DEBUG, "qorb"):
        texts = run(main)
    texts += [record.getMessage() for record in caplog.records]
    assert all(one.isprintable() for one in texts)
    assert describe(OSError("a\nb")) == "OSError: a\\nb"
