"""FallbackResolver and MergeResolver, and watch_all(), on which they are built."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from qorb import Backend, NoBackendsError, Pool, PoolState, PoolTerminatedError, ResolveError, Resolver, events
from qorb.publishing import Publisher, publisher_of
from qorb.resolvers import FallbackResolver, FixedResolver, ManualResolver, MergeResolver
from qorb.testing import FakeConnector, assert_nothing_left, at_every_await, run, settle
from qorb.watching import watch_all
from tests.phases import PHASES, POLICY, Stage
from tests.pools import Scripted, backends, now, opened

A, B, C, D = backends(4)
KINDS = [FallbackResolver, MergeResolver]
Publish = Callable[[Iterable[Backend]], None]


def forever() -> Any:
    return asyncio.get_running_loop().create_future()


def says_nothing(_publish: Publish) -> Any:
    return forever()


def says(*known: Backend, after: float = 0.0) -> Callable[[Publish], Any]:
    """Publish, perhaps later, and wait."""

    async def does(publish: Publish) -> None:
        if after:
            await asyncio.sleep(after)
        publish(known)
        await forever()

    return does


def fails(error: BaseException, *known: Backend) -> Callable[[Publish], Any]:
    def does(publish: Publish) -> Any:
        if known:
            publish(known)
        raise error

    return does


def names(monitor: Any) -> list[str]:
    return list(monitor.backends)


class Heard(Publisher):
    """Notes what it is told, and when."""

    def __init__(self) -> None:
        self.sets: list[tuple[float, list[str]]] = []
        self.told: list[tuple[Any, ...]] = []
        self.errors: list[ResolveError] = []
        self.made_at = now()
        super().__init__(self._note)

    def _note(self, known: Iterable[Backend]) -> None:
        self.sets.append((round(now() - self.made_at, 6), [one.name for one in known]))

    def failed(self, error: ResolveError) -> None:
        self.errors.append(error)

    def query_started(self, *what: Any) -> None:
        self.told.append(("started", *what))

    def query_done(self, *what: Any) -> None:
        self.told.append(("done", *what))

    def query_failed(self, *what: Any) -> None:
        self.told.append(("failed", *what))


@contextlib.asynccontextmanager
async def watched_by(resolver: Resolver, heard: Heard) -> Any:
    """Run watch() as a pool would; at the end nothing but the task of the test may be left."""
    task = asyncio.create_task(resolver.watch(heard))
    await settle()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert_no_task_and_no_timer_is_left()


def assert_no_task_and_no_timer_is_left() -> None:
    loop: Any = asyncio.get_running_loop()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


# Which set it is.


def test_a_fallback_publishes_the_set_of_the_first_that_has_any_backend():
    async def main():
        first, second, third = ManualResolver(), ManualResolver(), ManualResolver([C])
        async with FallbackResolver([first, second, third]).monitor() as monitor:
            await settle()
            for resolver, known, expected in (
                (second, [B, D], ["b1", "b3"]),
                (third, [], ["b1", "b3"]),
                (first, [A], ["b0"]),
                (second, [], ["b0"]),
                (third, [C], ["b0"]),
                (first, [], ["b2"]),
                (second, [D], ["b3"]),
                (second, [], ["b2"]),
                (third, [], []),
                (third, [C], ["b2"]),
            ):
                resolver.set(known)
                assert names(monitor) == expected

    run(main)


def test_a_pool_goes_over_to_the_fallback_and_back_in_the_same_turn():
    async def main():
        first, second = ManualResolver([A]), ManualResolver([B])
        async with opened(FallbackResolver([first, second]), spares_wanted=2, observed=True) as watched:
            assert list(watched.pool.stats().backends) == ["b0"]
            for known, expected in (([], "b1"), ([A], "b0")):
                first.set(known)
                await asyncio.sleep(1)
                assert list(watched.pool.stats().backends) == [expected]
                async with watched.pool.claim() as connection:
                    assert connection.backend.name == expected
            updates = [event for _, event in watched.events if isinstance(event, events.ResolverUpdated)]
            assert [(one.added, one.removed) for one in updates] == [
                (("b0",), ()),
                (("b1",), ("b0",)),
                (("b0",), ("b1",)),
            ]

    run(main)


def test_a_merge_publishes_the_union_and_the_earlier_one_wins_under_the_same_name():
    async def main():
        a2, other = Backend("b0", "10.9.9.9", 9), Backend("b0", "10.8.8.8", 8)
        first, second, third = ManualResolver([B]), ManualResolver([a2, C]), ManualResolver([other])
        async with MergeResolver([first, second, third]).monitor() as monitor:
            await settle()
            assert dict(monitor.backends) == {"b1": B, "b0": a2, "b2": C}
            first.set([A])
            assert dict(monitor.backends) == {"b0": A, "b2": C}
            first.set([])
            second.set([])
            assert dict(monitor.backends) == {"b0": other}
            third.set([])
            assert dict(monitor.backends) == {}

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_nothing_is_not_published_again(kind):
    async def main():
        first, second, heard = ManualResolver([A]), ManualResolver([A]), Heard()
        async with watched_by(kind([first, second]), heard):
            first.set([A])
            second.set([A])
            await asyncio.sleep(10)
        assert heard.sets == [(0, ["b0"])]

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_all_sets_that_come_in_the_first_turn_make_one_first_set(kind):
    async def main():
        heard = Heard()
        async with watched_by(kind([FixedResolver([A]), FixedResolver([B]), FixedResolver([C])]), heard):
            pass
        return heard.sets

    expected = {FallbackResolver: ["b0"], MergeResolver: ["b0", "b1", "b2"]}
    assert run(main) == [(0, expected[kind])]


@pytest.mark.parametrize("kind", KINDS)
def test_a_composite_of_one_is_that_one(kind):
    async def main():
        manual = ManualResolver()
        async with kind([manual]).monitor() as monitor:
            await settle()
            manual.set([A])
            assert names(monitor) == ["b0"]
            manual.set([])
            assert names(monitor) == []

    run(main)


def test_composites_of_composites_know_what_these_know():
    async def main():
        one, two, three, last = (ManualResolver([known]) for known in (A, B, C, D))
        nested = FallbackResolver([MergeResolver([FallbackResolver([one, two]), three]), MergeResolver([last])])
        async with nested.monitor() as monitor:
            await asyncio.sleep(1)
            assert names(monitor) == ["b0", "b2"]
            one.set([])
            assert names(monitor) == ["b1", "b2"]
            two.set([])
            three.set([])
            assert names(monitor) == ["b3"]
            one.set([A])
            assert names(monitor) == ["b0"]
        assert_no_task_and_no_timer_is_left()

    run(main)


# Patience at the start.


def test_a_fallback_waits_a_little_for_an_earlier_one_that_has_said_nothing_yet():
    async def main():
        heard = Heard()
        async with watched_by(FallbackResolver([Scripted(says(A, after=0.1)), FixedResolver([B])]), heard):
            await asyncio.sleep(10)
        assert heard.sets == [(0.1, ["b0"])]

    run(main)


@pytest.mark.parametrize(("patience", "moment"), [({}, 0.5), ({"patience": 2}, 2), ({"patience": 0}, 0)])
def test_a_fallback_does_not_wait_longer_than_its_patience(patience, moment):
    async def main():
        heard = Heard()
        slow = Scripted(says(A, after=7))
        async with watched_by(FallbackResolver([slow, FixedResolver([B])], **patience), heard):
            await asyncio.sleep(10)
        assert heard.sets == [(moment, ["b1"]), (7, ["b0"])]

    run(main)


def test_a_fallback_does_not_wait_for_one_that_has_nothing_or_fails(caplog):
    caplog.set_level(logging.CRITICAL, "qorb")

    async def main():
        heard = Heard()
        firsts = [
            FixedResolver([]),
            Scripted(fails(OSError("DNS is gone"))),
            FixedResolver([B]),
            Scripted(says_nothing),
        ]
        async with watched_by(FallbackResolver(firsts), heard):
            await asyncio.sleep(10)
        assert heard.sets[0] == (0, ["b1"])
        assert {tuple(known) for _, known in heard.sets} == {("b1",)}

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_patience_ends_when_the_one_that_is_waited_for_fails(kind, caplog):
    caplog.set_level(logging.CRITICAL, "qorb")

    async def main():
        async def fails_later(_publish: Publish) -> None:
            await asyncio.sleep(0.1)
            raise OSError("no")

        heard = Heard()
        async with watched_by(kind([Scripted(fails_later), FixedResolver([B])]), heard):
            await asyncio.sleep(10)
        assert heard.sets == [(0.1, ["b1"])]

    run(main)


def test_the_first_set_of_a_merge_is_complete_when_all_answer_within_its_patience():
    async def main():
        heard = Heard()
        async with watched_by(MergeResolver([Scripted(says(A, after=0.3)), FixedResolver([B])]), heard):
            await asyncio.sleep(10)
        assert heard.sets == [(0.3, ["b0", "b1"])]

    run(main)


def test_a_merge_does_not_wait_longer_than_its_patience():
    async def main():
        heard = Heard()
        async with watched_by(MergeResolver([Scripted(says(A, after=7)), FixedResolver([B])]), heard):
            await asyncio.sleep(10)
        assert heard.sets == [(0.5, ["b1"]), (7, ["b0", "b1"])]

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_published_while_none_has_said_what_it_knows(kind, caplog):
    caplog.set_level(logging.CRITICAL, "qorb")

    async def main():
        heard = Heard()
        async with watched_by(kind([Scripted(says_nothing), Scripted(fails(OSError("no")))]), heard):
            await asyncio.sleep(100)
        assert heard.sets == []
        assert "no" in str(heard.errors[0])

    run(main)


# Resolvers that fail, and what is passed on.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("does", [fails(OSError("DNS is gone"), A), lambda publish: publish([A])])
def test_one_that_ends_keeps_its_part_and_is_started_again_after_growing_pauses(kind, does, caplog):
    caplog.set_level(logging.CRITICAL, "qorb")

    async def main():
        bad, good, heard = Scripted(does), ManualResolver([B]), Heard()
        async with watched_by(kind([bad, good]), heard):
            await asyncio.sleep(300)
            good.set([C])
        pauses = [later - earlier for earlier, later in zip(bad.began, bad.began[1:], strict=False)]
        assert len(pauses) >= 10
        for n, pause in enumerate(pauses):
            step = min(2.0**n, 30)
            assert step / 2 <= pause <= step + 0.020 + 1e-9
        assert len(heard.errors) == len(bad.began)
        assert all("b0" in known for _, known in heard.sets)

    run(main)


def test_an_error_of_one_is_logged_under_the_name_of_the_pool_and_told_to_its_observer(caplog):
    async def main():
        bad = Scripted(fails(OSError("DNS is gone, password=hunter2")))
        async with opened(FallbackResolver([bad, FixedResolver([B])]), spares_wanted=1, observed=True) as watched:
            failed = [event for _, event in watched.events if isinstance(event, events.ResolverFailed)]
            assert "DNS is gone" in failed[0].reason
            assert "hunter2" not in failed[0].reason

    run(main)
    record = next(record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.getMessage().startswith("qorb main resolver 1 of 2 (Scripted): watch() failed: OSError: DNS is gone")


@pytest.mark.parametrize("kind", KINDS)
def test_when_none_has_a_backend_a_claim_says_why(kind, caplog):
    caplog.set_level(logging.CRITICAL, "qorb")

    async def main():
        late = ManualResolver()
        resolver = kind([Scripted(fails(OSError("DNS is gone"))), late])
        async with opened(resolver, ready=False) as watched:
            late.set([])
            with pytest.raises(NoBackendsError, match="DNS is gone") as caught:
                await watched.pool.claim(timeout=0.1)
            assert isinstance(caught.value.__cause__, ResolveError)
            late.set([A])
            late.set([])
            with pytest.raises(NoBackendsError, match="DNS is gone"):
                await watched.pool.claim(timeout=0.1)

    run(main)


def test_a_pool_forgets_the_error_of_one_that_is_well_again(caplog):
    caplog.set_level(logging.CRITICAL, "qorb")

    async def main():
        resolver = Scripted(fails(OSError("DNS is gone")), says())
        async with opened(FallbackResolver([resolver]), ready=False) as watched:
            await asyncio.sleep(5)
            with pytest.raises(NoBackendsError) as caught:
                await watched.pool.claim(timeout=1)
            assert "DNS is gone" not in str(caught.value)

    run(main)


def test_the_same_set_again_after_an_error_tells_the_pool_that_the_error_is_over(caplog):
    caplog.set_level(logging.CRITICAL, "qorb")

    async def main():
        heard = Heard()
        resolver = Scripted(fails(OSError("no"), A), says(A))
        async with watched_by(FallbackResolver([resolver]), heard):
            await asyncio.sleep(10)
        assert [known for _, known in heard.sets] == [["b0"], ["b0"]]

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_queries_and_errors_of_the_inner_ones_are_passed_on_through_any_depth(kind):
    async def main():
        error = ResolveError("no server answers", "_pg._tcp.example.com")

        def asks(publish: Publish) -> Any:
            publisher = publisher_of(publish)
            publisher.query_started("10.0.0.53:53", "db A")
            publisher.query_done("10.0.0.53:53", "db A", 3, 60.0)
            publisher.query_failed("10.0.0.53:53", "db AAAA", "timeout")
            publisher.failed(error)
            return forever()

        heard = Heard()
        async with watched_by(kind([FixedResolver([]), kind([Scripted(asks)])]), heard):
            assert heard.told == [
                ("started", "10.0.0.53:53", "db A"),
                ("done", "10.0.0.53:53", "db A", 3, 60.0),
                ("failed", "10.0.0.53:53", "db AAAA", "timeout"),
            ]
            assert heard.errors
            assert all(one is error for one in heard.errors)

    run(main)


def test_a_set_that_cannot_be_used_is_ignored_and_the_inner_ones_name_is_in_the_log(caplog):
    async def main():
        def twice(publish: Publish) -> Any:
            publish([A])
            publish([B, B])
            return forever()

        heard = Heard()
        async with watched_by(MergeResolver([FixedResolver([C]), Scripted(twice)]), heard):
            await asyncio.sleep(1)
        assert [known for _, known in heard.sets] == [["b2", "b0"]]

    run(main)
    assert "2 of 2 (Scripted)" in caplog.text
    assert "b1" in caplog.text


def test_a_plain_function_may_be_given_to_watch():
    async def main():
        published: list[list[Backend]] = []
        task = asyncio.create_task(MergeResolver([FixedResolver([A])]).watch(lambda known: published.append([*known])))
        await settle()
        task.cancel()
        await asyncio.wait([task])
        assert published == [[A]]

    run(main)


# Misuse.


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_list_of_resolvers_is_refused_at_once(kind):
    one = FixedResolver([A])
    for wrong, error, words in (
        ([], ValueError, "at least one resolver"),
        ([one, "10.0.0.1:1"], TypeError, "is none"),
        ([FixedResolver], TypeError, "is none"),
        (one, TypeError, "list of resolvers"),
        (None, TypeError, "list of resolvers"),
        ([one, FixedResolver([A]), one], ValueError, "same resolver twice"),
    ):
        with pytest.raises(error, match=words):
            kind(wrong)
    for patience, error in ((-1, ValueError), (float("nan"), ValueError), (1e9, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="patience"):
            kind([one], patience=patience)


def test_resolvers_may_come_from_a_generator():
    async def main():
        async with MergeResolver(FixedResolver([one]) for one in (A, B)).monitor() as monitor:
            assert list(await monitor.changed()) == ["b0", "b1"]

    run(main)


def test_watch_all_wants_one_publisher_for_each_resolver():
    async def main():
        for resolvers, publishers in (([], []), ([FixedResolver([A])], [])):
            with pytest.raises(ValueError, match="give one for each"):
                await watch_all(resolvers, publishers)

    run(main)


# The end.


class SlowToEnd(Resolver):
    """A resolver that does some work at its end, and does not begin to end before it is told so often."""

    def __init__(self, seconds: float = 0.0, deaf: int = 0) -> None:
        self.seconds = seconds
        self.deaf = deaf
        self.alive = 0

    async def watch(self, publish: Publish) -> None:
        self.alive += 1
        publish([A])
        try:
            for _ in range(self.deaf):
                with contextlib.suppress(asyncio.CancelledError):
                    await forever()
            await forever()
        finally:
            await asyncio.sleep(self.seconds)
            self.alive -= 1


def cancel_the_operation() -> None:
    next(task for task in asyncio.all_tasks() if task.get_name() == "operation").cancel()


@pytest.mark.parametrize("by", ["cancel", "timeout", "anyio"])
@pytest.mark.parametrize("kind", KINDS)
def test_watch_that_is_cancelled_at_any_await_leaves_nothing_behind(kind, by, caplog):
    caplog.set_level(logging.CRITICAL, "qorb")

    async def scene(attempt):
        inner = [
            Scripted(fails(OSError("no")), lambda publish: publish([B]), says(C, after=0.1)),
            Scripted(says(A, after=0.2)),
            SlowToEnd(),
        ]
        nested = MergeResolver([Scripted(says(B)), FallbackResolver([inner[1]])])
        composite = kind([inner[0], nested, inner[2]])

        end = asyncio.get_running_loop().call_later(20, cancel_the_operation)
        await attempt.cancel(composite.watch(lambda _: None))
        end.cancel()
        assert [one.alive for one in inner] == [0, 0, 0]
        assert_no_task_and_no_timer_is_left()

    at_every_await(scene, by=by, at_least=4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_and_a_third_cancellation_do_not_make_watch_leave_before_the_inner_ones(kind):
    async def main():
        slow = SlowToEnd(0.5)
        task = asyncio.create_task(kind([FixedResolver([B]), slow]).watch(lambda _: None))
        await settle()
        began = now()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.1)
            assert not task.done()
            assert slow.alive == 1
        await asyncio.wait([task])
        assert (round(now() - began, 6), task.cancelled(), slow.alive) == (0.5, True, 0)
        assert_no_task_and_no_timer_is_left()

    run(main)


def test_one_that_does_not_listen_is_told_again_every_second():
    async def main():
        deaf = SlowToEnd(deaf=2)
        async with FallbackResolver([deaf]).monitor() as monitor:
            await monitor.changed()
            began = now()
        assert (round(now() - began, 6), deaf.alive) == (2, 0)
        assert_no_task_and_no_timer_is_left()

    run(main)


def test_all_are_told_to_end_at_the_same_time():
    async def main():
        slow = [SlowToEnd(0.5) for _ in range(10)]
        async with MergeResolver(slow).monitor() as monitor:
            await monitor.changed()
            began = now()
        assert round(now() - began, 6) == 0.5
        assert not any(one.alive for one in slow)

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_an_inner_task_that_somebody_else_cancels_ends_the_others_and_watch_is_started_again(kind, caplog):
    async def main():
        second = Scripted(says(B))
        async with opened(kind([FixedResolver([A]), second]), spares_wanted=1) as watched:
            task = next(task for task in asyncio.all_tasks() if "1 of 2" in task.get_name())
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(10)
            assert watched.pool.state is PoolState.RUNNING
            assert len(second.began) == 2
            assert second.alive == 1
            assert "b0" in watched.pool.stats().backends

    run(main)
    assert "was cancelled, although not by its owner" in caplog.text


def test_an_inner_task_that_is_cancelled_in_its_pause_leaves_no_timer(caplog):
    caplog.set_level(logging.CRITICAL, "qorb")

    async def main():
        watch = FallbackResolver([Scripted(fails(OSError("no"))), FixedResolver([A])]).watch(lambda _: None)
        task = asyncio.create_task(watch)
        await asyncio.sleep(0.1)
        next(task for task in asyncio.all_tasks() if "1 of 2" in task.get_name()).cancel()
        await asyncio.wait([task])
        assert isinstance(task.exception(), ResolveError)
        assert_no_task_and_no_timer_is_left()

    run(main)


def test_a_base_exception_of_an_inner_one_is_a_failure_like_others():
    class Odd(BaseException):
        pass

    contexts: list[dict[str, Any]] = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
        async with FallbackResolver([Scripted(fails(Odd()), says(A))]).monitor() as monitor:
            assert list(await monitor.changed()) == ["b0"]

    run(main)
    assert [type(context["exception"]) for context in contexts] == [Odd]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_an_inner_one_gets_out_and_nothing_complains(error, recwarn):
    async def main():
        async with FallbackResolver([FixedResolver([A]), Scripted(fails(error()))]).monitor():
            await asyncio.sleep(1)

    with pytest.raises(error):
        asyncio.run(main())
    gc.collect()
    assert not [str(one.message) for one in recwarn]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES.keys())
def test_a_pool_over_a_composite_ends_in_every_phase_without_a_trace(kind, phase):
    for grace in (1, 0):

        async def main(grace: int = grace) -> None:
            stage = Stage()
            booked = stage.resolver
            stage.pool = Pool("main", kind([booked, FallbackResolver([ManualResolver()])]), stage.connector, POLICY)
            try:
                await phase(stage)
                await stage.pool.terminate(grace=grace)
                await stage.assert_over()
            finally:
                await stage.clear()

        run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_termination_from_inside_an_inner_resolver_begins_and_ends_the_resolver(kind):
    async def main():
        pools: list[Pool[Any]] = []
        after: list[str] = []

        async def ends_it(publish: Publish) -> None:
            publish([A])
            await asyncio.sleep(1)
            await pools[0].terminate()
            after.append("went on")

        pools.append(Pool("main", kind([Scripted(ends_it), FixedResolver([B])]), FakeConnector()))
        await pools[0].start()
        await asyncio.sleep(2)
        await pools[0].terminate()
        assert pools[0].state is PoolState.TERMINATED
        assert after == []
        with pytest.raises(PoolTerminatedError):
            await pools[0].claim()
        assert_nothing_left(pools[0])
        assert_no_task_and_no_timer_is_left()

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_that_is_aborted_or_dropped_takes_the_inner_resolvers_with_it(kind):
    async def main():
        inner = [Scripted(says(A)), Scripted(says(B))]
        pool = Pool("main", kind(inner), FakeConnector())
        await pool.start()
        await pool.ready()
        pool.abort()
        await settle()
        assert [one.alive for one in inner] == [0, 0]
        pool = Pool("other", kind(inner), FakeConnector())
        await pool.start()
        await pool.ready()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del pool
            gc.collect()
            await settle()
        assert [one.category for one in caught] == [ResourceWarning]
        assert [one.alive for one in inner] == [0, 0]
        assert_no_task_and_no_timer_is_left()

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_whose_loop_was_closed_leaves_no_complaint_of_the_inner_tasks(kind, caplog):
    inner = [Scripted(says(A)), Scripted(says(B))]
    loop = asyncio.new_event_loop()
    pool = Pool("main", kind(inner), FakeConnector())
    loop.run_until_complete(pool.start())
    loop.run_until_complete(pool.ready())
    loop.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del pool
        gc.collect()
    assert [one.category for one in caught] == [ResourceWarning]
    assert [one.alive for one in inner] == [0, 0]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("kind", KINDS)
def test_two_pools_on_one_composite_do_not_disturb_each_other(kind):
    async def main():
        manual = ManualResolver([A])
        composite = kind([manual, Scripted(says())])
        async with opened(composite, spares_wanted=1) as first:
            async with opened(composite, name="second", spares_wanted=1):
                pass
            manual.set([B])
            await asyncio.sleep(1)
            assert list(first.pool.stats().backends) == ["b1"]
        assert not manual._watchers

    run(main)
