"""FixedResolver, ManualResolver, Monitor, and how a pool lives with a resolver that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from qorb import (
    Backend,
    Monitor,
    NoBackendsError,
    PoolForkedError,
    PoolNotStartedError,
    PoolTerminatedError,
    ResolveError,
    Resolver,
    WrongLoopError,
)
from qorb.resolvers import FixedResolver, ManualResolver
from qorb.testing import Attempt, at_every_await, run, settle
from tests.pools import Scripted, backends, now, opened

A, B, C = backends(3)
Publish = Callable[[Iterable[Backend]], None]


def says(*known: Backend) -> Callable[[Publish], Any]:
    """Publish and wait."""

    def does(publish: Publish) -> Any:
        publish(known)
        return asyncio.get_running_loop().create_future()

    return does


def says_and_returns(*known: Backend) -> Callable[[Publish], Any]:
    return lambda publish: publish(known)


def fails(error: BaseException, *known: Backend) -> Callable[[Publish], Any]:
    def does(publish: Publish) -> Any:
        if known:
            publish(known)
        raise error

    return does


def known(watched: Any) -> list[str]:
    return list(watched.pool.stats().backends)


# Fixed and manual.


def test_a_fixed_set_is_published_once_and_stays():
    async def main():
        resolver = FixedResolver(["10.0.0.1:1", ("10.0.0.2", 2), A])
        async with opened(resolver, spares_wanted=3) as watched:
            assert known(watched) == ["10.0.0.1:1", "10.0.0.2:2", "b0"]
            await asyncio.sleep(100)
            assert known(watched) == ["10.0.0.1:1", "10.0.0.2:2", "b0"]

    run(main)


@pytest.mark.parametrize("kind", [FixedResolver, ManualResolver])
@pytest.mark.parametrize("what", [["10.0.0.1"], ["a:1", "a:1"], "a:1", [None]])
def test_addresses_that_are_none_are_refused_at_once(kind, what):
    with pytest.raises(ValueError, match=r"."):
        kind(what)


def test_a_fixed_set_that_is_empty_is_no_backends():
    async def main():
        async with opened(FixedResolver([]), ready=False) as watched:
            with pytest.raises(NoBackendsError, match="FixedResolver knows no backend"):
                await watched.pool.claim(timeout=1)

    run(main)


def test_a_set_that_is_pushed_is_taken_over_in_the_same_turn():
    async def main():
        resolver = ManualResolver([A])
        async with opened(resolver, spares_wanted=2) as watched:
            resolver.set([B, C])
            assert [name for name in known(watched) if name != "b0"] == ["b1", "b2"]
            await asyncio.sleep(1)
            assert known(watched) == ["b1", "b2"]

    run(main)


def test_a_set_that_is_refused_leaves_the_last_one():
    async def main():
        resolver = ManualResolver([A])
        async with opened(resolver, spares_wanted=2) as watched:
            with pytest.raises(ValueError, match="unique"):
                resolver.set([B, B])
            assert known(watched) == ["b0"]
            async with resolver.monitor() as monitor:
                await settle()
                assert list(monitor.backends) == ["b0"]

    run(main)


def test_two_pools_on_one_manual_resolver_both_hear_of_every_set_and_one_may_end_first():
    async def main():
        resolver = ManualResolver([A])
        async with opened(resolver, spares_wanted=1) as first:
            async with opened(resolver, name="second", spares_wanted=1) as second:
                resolver.set([B])
                await asyncio.sleep(1)
                assert known(first) == known(second) == ["b1"]
            resolver.set([C])
            await asyncio.sleep(1)
            assert known(first) == ["b2"]
        resolver.set([A])

    run(main)


def test_the_same_set_again_changes_nothing():
    async def main():
        resolver = ManualResolver([A, B])
        async with opened(resolver, spares_wanted=4, observed=True) as watched:
            watched.connector.forbid(allow=["is_closed"])
            del watched.events[:]
            resolver.set([B, A])
            resolver.set([Backend("b1", "10.0.0.2", 5432), A])
            await asyncio.sleep(1)
            assert watched.events == []
            watched.connector.heal()

    run(main)


# A watch() that misbehaves.


def pauses_between(moments: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(moments)]


@pytest.mark.parametrize("does", [fails(OSError("DNS is gone")), says_and_returns(A)])
def test_a_watch_that_ends_is_started_again_after_growing_pauses(does, caplog):
    async def main():
        resolver = Scripted(does)
        async with opened(resolver, ready=False, min_connection_backoff=1, max_connection_backoff=30, spread=0.5):
            await asyncio.sleep(300)
        return pauses_between(resolver.began)

    with caplog.at_level(logging.CRITICAL, "qorb"):
        pauses = run(main)
    assert len(pauses) >= 9
    for n, pause in enumerate(pauses):
        step = min(2.0**n, 30)
        assert step / 2 <= pause <= step + 0.5 + 1e-9


@pytest.mark.parametrize("does", [fails(OSError("DNS is gone")), says_and_returns(A)])
def test_a_watch_that_ends_at_once_does_not_make_a_storm_where_no_backoff_is_wanted(does, caplog):
    async def main():
        resolver = Scripted(does)
        async with opened(resolver, ready=False, min_connection_backoff=0, spread=0):
            await asyncio.sleep(0.1)
        return len(resolver.began)

    with caplog.at_level(logging.CRITICAL, "qorb"):
        assert 1 < run(main, patience=1000) <= 101


def test_a_watch_that_fails_after_a_long_good_time_starts_over_with_a_short_pause():
    async def main():
        async def works_for_long(publish: Publish) -> None:
            publish([A])
            await asyncio.sleep(1000)
            raise OSError

        resolver = Scripted(*[fails(OSError())] * 8, works_for_long, fails(OSError()))
        async with opened(resolver, ready=False, min_connection_backoff=1, spread=0):
            await asyncio.sleep(1300)
            return pauses_between(resolver.began)

    pauses = run(main)
    assert pauses[7] >= 15
    assert pauses[8] <= 1001


@pytest.mark.parametrize("error", [OSError("DNS is gone"), RuntimeError("a bug")])
def test_when_watch_raises_the_last_set_stays_and_the_error_is_logged(error, caplog):
    async def main():
        resolver = Scripted(fails(error, A))
        async with opened(resolver, spares_wanted=2) as watched:
            await asyncio.sleep(60)
            assert known(watched) == ["b0"]
            assert watched.connector.count["connect"] == 2
            async with watched.pool.claim():
                pass

    run(main)
    record = caplog.records[0]
    assert record.levelno == logging.ERROR
    assert str(error) in record.message


def test_a_base_exception_of_watch_is_a_failure_like_others():
    class Odd(BaseException):
        pass

    contexts: list[dict[str, Any]] = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
        resolver = Scripted(fails(Odd()), says(A))
        async with opened(resolver, ready=False) as watched, watched.pool.claim():
            pass

    run(main)
    assert [type(context["exception"]) for context in contexts] == [Odd]


def test_when_watch_returns_that_is_said_and_the_last_set_stays(caplog):
    async def main():
        async with opened(Scripted(says_and_returns(A)), spares_wanted=1) as watched:
            await asyncio.sleep(10)
            assert known(watched) == ["b0"]

    run(main)
    assert "watch() returned" in caplog.records[0].message


@pytest.mark.parametrize(
    ("nonsense", "words"),
    [
        ([B, C, B], "b1"),
        ([B, "10.0.0.9:1"], "is no Backend"),
        (None, "not iterable"),
        ([None], "is no Backend"),
        (17, "not iterable"),
    ],
)
def test_a_set_that_cannot_be_used_is_ignored_and_logged_and_the_last_one_stays(nonsense, words, caplog):
    async def main():
        def does(publish: Any) -> Any:
            publish([A])
            publish(nonsense)
            return asyncio.get_running_loop().create_future()

        resolver = Scripted(does)
        async with opened(resolver, spares_wanted=1) as watched:
            assert known(watched) == ["b0"]
            await asyncio.sleep(10)
            assert known(watched) == ["b0"]
            assert len(resolver.began) == 1

    run(main)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert words in caplog.records[0].message


def test_an_iterable_that_raises_in_the_midst_is_a_set_that_cannot_be_used(caplog):
    async def main():
        def half() -> Iterable[Backend]:
            yield B
            raise OSError("half way")

        def does(publish: Publish) -> Any:
            publish([A])
            publish(half())
            return asyncio.get_running_loop().create_future()

        async with opened(Scripted(does), spares_wanted=1) as watched:
            assert known(watched) == ["b0"]

    run(main)
    assert "half way" in caplog.text


def test_a_set_may_come_from_a_generator():
    async def main():
        async with opened(
            Scripted(lambda publish: says(*())(lambda _: publish(b for b in (A, B)))), spares_wanted=2
        ) as w:
            assert known(w) == ["b0", "b1"]

    run(main)


def test_the_error_of_a_claim_says_and_is_chained_to_what_went_wrong_with_the_resolver():
    async def main():
        resolver = Scripted(fails(OSError("no route to the name server, password=hunter2")))
        async with opened(resolver, ready=False) as watched:
            with pytest.raises(NoBackendsError, match="no route to the name server") as caught:
                await watched.pool.claim(timeout=1)
            assert isinstance(caught.value.__cause__, ResolveError)
            assert "hunter2" not in repr(caught.value) + repr(caught.value.__cause__)

    run(main)


def test_before_the_first_set_a_claim_waits_and_says_so():
    async def main():
        async with opened(Scripted(lambda _: asyncio.get_running_loop().create_future()), ready=False) as watched:
            moment = now()
            with pytest.raises(NoBackendsError, match="knows no backend yet"):
                await watched.pool.claim(timeout=3)
            assert 0 <= now() - moment - 3 <= 0.005
            with pytest.raises(NoBackendsError):
                await watched.pool.ready(timeout=3)

    run(main)


def test_a_claim_that_waits_is_served_when_the_first_set_comes():
    async def main():
        async def late(publish: Publish) -> None:
            await asyncio.sleep(5)
            publish([A])
            await asyncio.get_running_loop().create_future()

        async with opened(Scripted(late), ready=False) as watched:
            moment = now()
            async with watched.pool.claim():
                assert now() - moment == pytest.approx(5.002)  # connect and on_acquire

    run(main)


def test_publishing_from_another_thread_is_refused():
    async def main():
        caught: list[BaseException] = []

        def does(publish: Publish) -> Any:
            def elsewhere() -> None:
                try:
                    publish([A])
                except WrongLoopError as error:
                    caught.append(error)

            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            return asyncio.get_running_loop().create_future()

        async with opened(Scripted(does), ready=False) as watched:
            await settle()
            assert known(watched) == []
        assert "call_soon_threadsafe" in str(caught[0])

    run(main)


def test_what_is_published_after_the_end_is_dropped():
    async def main():
        kept: list[Publish] = []

        def does(publish: Publish) -> Any:
            kept.append(publish)
            return says(A)(publish)

        async with opened(Scripted(does), spares_wanted=1) as watched:
            pass
        kept[0]([B])
        assert dict(watched.pool.stats().backends) == {}

    run(main)


# Monitor.


def test_a_monitor_does_not_wait_for_a_set_and_shows_each_one_as_it_comes():
    async def main():
        resolver = ManualResolver()
        async with resolver.monitor() as monitor:
            assert dict(monitor.backends) == {}
            change = asyncio.create_task(monitor.changed())
            await settle()
            resolver.set([A, B])
            assert dict(await change) == dict(monitor.backends) == {"b0": A, "b1": B}
            with pytest.raises(TypeError):
                monitor.backends["b2"] = C  # type: ignore[index]

    run(main)


def test_changed_waits_for_a_set_that_differs_from_the_one_at_its_call():
    async def main():
        resolver = ManualResolver([A])
        async with resolver.monitor() as monitor:
            await monitor.changed()
            change = asyncio.create_task(monitor.changed())
            await settle()
            resolver.set([Backend("b0", "10.0.0.1", 5432)])
            await settle()
            assert not change.done()
            resolver.set([Backend("b0", "10.0.0.1", 5432, weight=2)])
            assert (await change)["b0"].weight == 2

    run(main)


def test_there_and_back_again_in_one_turn_is_no_change():
    async def main():
        resolver = ManualResolver([A])
        async with resolver.monitor() as monitor:
            await monitor.changed()
            change = asyncio.create_task(monitor.changed())
            await settle()
            resolver.set([B])
            resolver.set([A])
            await settle()
            assert not change.done()
            change.cancel()
            await settle()

    run(main)


def test_whoever_waits_for_a_change_hears_of_the_end_and_so_does_whoever_comes_later():
    async def main():
        monitor = ManualResolver([A]).monitor()
        with pytest.raises(PoolNotStartedError):
            await monitor.changed()
        async with monitor:
            await monitor.changed()
            change = asyncio.create_task(monitor.changed())
            await settle()
        with pytest.raises(PoolTerminatedError):
            await change
        with pytest.raises(PoolTerminatedError):
            await monitor.changed()
        with pytest.raises(PoolTerminatedError):
            await monitor.__aenter__()
        await monitor.terminate()

    run(main)


def test_a_monitor_that_never_began_ends_at_once():
    async def main():
        monitor = ManualResolver([A]).monitor()
        await monitor.terminate()
        with pytest.raises(PoolTerminatedError):
            await monitor.changed()

    run(main)


def test_after_the_end_of_a_monitor_nothing_of_it_runs_and_its_end_may_be_waited_for_by_many():
    async def main():
        async def slow_to_end(publish: Publish) -> None:
            publish([A])
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.sleep(0.5)

        resolver = Scripted(slow_to_end)
        async with resolver.monitor() as monitor:
            await monitor.changed()
            moment = now()
            waits = [asyncio.create_task(monitor.terminate()) for _ in range(3)]
            waits[0].cancel()
            await asyncio.wait(waits)
            assert (now() - moment, resolver.alive) == (0.5, 0)
            assert [task.cancelled() for task in waits] == [True, False, False]
        loop: Any = asyncio.get_running_loop()
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []

    run(main)


def test_a_monitor_starts_a_watch_that_ends_again_and_keeps_the_last_set():
    async def main():
        resolver = Scripted(fails(OSError(), A))
        async with resolver.monitor() as monitor:
            await monitor.changed()
            await asyncio.sleep(100)
            assert dict(monitor.backends) == {"b0": A}
            return pauses_between(resolver.began)

    pauses = run(main)
    assert len(pauses) >= 5
    assert 0.5 <= pauses[0] <= 1.1
    assert all(pause <= 30.1 for pause in pauses)


def test_two_monitors_of_one_resolver_do_not_disturb_each_other():
    async def main():
        resolver = ManualResolver([A])
        async with resolver.monitor() as first:
            async with resolver.monitor() as second:
                await first.changed()
                await settle()
                assert dict(first.backends) == dict(second.backends)
            resolver.set([B])
            await settle()
            assert dict(first.backends) == {"b1": B}
            assert dict(second.backends) == {"b0": A}

    run(main)


def test_a_resolver_outlives_the_pools_that_watched_it_without_holding_on_to_them():
    async def main():
        resolver = ManualResolver([A])
        async with opened(resolver, spares_wanted=1):
            pass
        assert not resolver._watchers

    run(main)
    gc.collect()


# The end of a monitor.


class Reluctant(Resolver):
    """A resolver whose watch() takes its time to end, and one more interruption."""

    def __init__(self) -> None:
        self.alive = 0

    async def watch(self, publish: Publish) -> None:
        self.alive += 1
        try:
            publish([A])
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(50)
            await asyncio.sleep(50)
        finally:
            try:
                await asyncio.sleep(0.1)
            finally:
                self.alive -= 1


def assert_monitor_over(resolver: Any) -> None:
    """Assert that nothing of a monitor runs any more."""
    assert resolver.alive == 0
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("qorb ")] == []


async def lives_and_ends(resolver: Resolver, monitors: list[Any]) -> None:
    """Use a monitor as people do, and end it."""
    monitor = resolver.monitor()
    monitors.append(monitor)
    async with monitor:
        await monitor.changed()
        await asyncio.sleep(0.01)


RESOLVERS = {
    "listens": lambda: Scripted(says(A)),
    "fails": lambda: Scripted(fails(OSError(), A)),
    "reluctant": Reluctant,
}


@pytest.mark.parametrize("make", RESOLVERS.values(), ids=RESOLVERS.keys())
def test_whoever_is_cancelled_at_any_await_of_a_monitor_leaves_nothing_behind_that_a_second_call_does_not_end(make):
    async def scene(attempt: Attempt) -> None:
        resolver, monitors = make(), []
        task = asyncio.create_task(lives_and_ends(resolver, monitors), name="user")
        await asyncio.wait([task])
        assert task.cancelled() or attempt.in_time is not True
        for monitor in monitors:
            await monitor.terminate()
            await monitor.terminate()
            with pytest.raises(PoolTerminatedError):
                await monitor.changed()
        assert_monitor_over(resolver)

    at_every_await(scene, tasks="user", at_least=2)


@pytest.mark.parametrize("make", RESOLVERS.values(), ids=RESOLVERS.keys())
def test_a_monitor_whose_task_is_cancelled_behind_its_back_at_any_await_ends_all_the_same(make):
    async def scene(attempt: Attempt) -> None:
        del attempt
        resolver, monitors = make(), []
        with contextlib.suppress(PoolTerminatedError):
            await lives_and_ends(resolver, monitors)
        await monitors[0].terminate()
        assert_monitor_over(resolver)

    at_every_await(scene, tasks="qorb monitor*", at_least=1)


@pytest.mark.parametrize("make", RESOLVERS.values(), ids=RESOLVERS.keys())
@pytest.mark.parametrize("seed", range(3))
def test_concurrent_callers_of_a_monitors_end_return_together_whoever_of_them_is_cancelled(make, seed):
    async def main():
        resolver = make()
        monitor = resolver.monitor()
        async with monitor:
            await monitor.changed()
            ends: list[float] = []

            async def end() -> None:
                await monitor.terminate()
                assert_monitor_over(resolver)
                ends.append(now())

            callers = [asyncio.create_task(end()) for _ in range(5)]
            await asyncio.sleep(0)
            callers[seed].cancel()
            await asyncio.wait(callers)
            assert [caller.cancelled() for caller in callers].count(True) <= 1
            assert len(set(ends)) == 1
            moment = now()
            await monitor.terminate()
            assert now() == moment
        assert_monitor_over(resolver)

    run(main, seed=seed)


def test_a_monitor_ends_from_within_its_own_resolver():
    async def main():
        monitors: list[Any] = []

        async def ends_itself(publish: Publish) -> None:
            publish([A])
            await monitors[0].terminate()

        resolver = Scripted(ends_itself)
        monitors.append(resolver.monitor())
        async with monitors[0] as monitor:
            with contextlib.suppress(PoolTerminatedError):
                await monitor.changed()
            await asyncio.sleep(1)
            assert_monitor_over(resolver)
            with pytest.raises(PoolTerminatedError):
                await monitor.changed()

    run(main)


# A monitor belongs to one loop, and to whoever holds it.


def test_a_monitor_is_used_in_its_own_loop_and_thread_only():
    loop = asyncio.new_event_loop()
    monitor = FixedResolver(["a:1"]).monitor()
    loop.run_until_complete(monitor.__aenter__())

    async def elsewhere():
        for call in (monitor.changed, monitor.terminate, monitor.__aenter__):
            with pytest.raises(WrongLoopError, match="the monitor of FixedResolver belongs to another event loop"):
                await call()

    asyncio.run(elsewhere())
    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    thread.start()
    thread.join()
    loop.run_until_complete(monitor.terminate())
    asyncio.run(monitor.terminate())
    loop.close()


def test_a_monitor_whose_loop_is_closed_can_still_be_terminated():
    ended = []

    class Noting(Resolver):
        async def watch(self, publish):
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.append(True)

    async def begin():
        await monitor.__aenter__()
        await asyncio.sleep(0)

    async def end():
        with pytest.raises(WrongLoopError, match="is closed"):
            await monitor.changed()
        await monitor.terminate()
        with pytest.raises(PoolTerminatedError):
            await monitor.changed()

    loop = asyncio.new_event_loop()
    monitor = Noting().monitor()
    loop.run_until_complete(begin())
    loop.close()
    asyncio.run(end())
    assert ended == [True]


def drop(held):
    held.clear()
    gc.collect()


@pytest.mark.parametrize("cycle", [False, True])
def test_a_monitor_that_is_dropped_ends_with_a_warning(cycle):
    async def main():
        class Mine(Monitor):
            """Can be a part of a reference cycle."""

        monitor = Mine(FixedResolver(["a:1"]))
        await monitor.__aenter__()
        await settle()
        if cycle:
            monitor.itself = monitor
        held = [monitor]
        del monitor
        with pytest.warns(ResourceWarning, match="unterminated monitor of FixedResolver; use `async with`"):
            drop(held)
        await settle()
        return [task.get_name() for task in asyncio.all_tasks()]

    assert run(main) == ["main"]


def test_a_monitor_that_is_dropped_after_its_loop_was_closed_ends_with_one_warning():
    loop = asyncio.new_event_loop()
    monitor = FixedResolver(["a:1"]).monitor()
    loop.run_until_complete(monitor.__aenter__())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    held = [monitor]
    del monitor
    with pytest.warns(ResourceWarning, match="unterminated monitor") as caught:
        drop(held)
    assert len(caught) == 1


def test_a_child_gets_pool_forked_error_from_a_monitor_and_the_parent_goes_on(run_real):
    def in_the_child(monitor):
        for call in (
            lambda: monitor.backends,
            *map(first_step, (monitor.changed, monitor.terminate, monitor.__aenter__)),
        ):
            with pytest.raises(PoolForkedError, match="the monitor of ManualResolver belongs to the parent process"):
                call()

    def first_step(method):
        return lambda: method().send(None)

    async def main():
        resolver = ManualResolver(["a:1"])
        async with resolver.monitor() as monitor:
            await monitor.changed()
            child = os.fork()
            if not child:
                status = 1
                try:
                    in_the_child(monitor)
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222 - the child does not wait for this loop
            asyncio.get_running_loop().call_soon(resolver.set, ["b:1"])
            assert list(await monitor.changed()) == ["b:1"]

    run_real(main)
