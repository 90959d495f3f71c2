"""at_every_await: interrupt an operation at each of its suspension points, in every way that timing allows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qorb.testing._clock import virtual_loop
from qorb.testing._interrupt import Attempt, TaskCanceller, Timing
from qorb.testing._run import check_coroutine_function, run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from qorb.testing._interrupt import Way


@dataclass(frozen=True, slots=True)
class Tried:
    """One attempt that has reached its step."""

    step: int
    timing: Timing
    place: str
    """The task that was interrupted, and the lines where it waited when the step came."""
    in_time: bool
    """Whether the interruption came while there was still something to interrupt."""


@dataclass(frozen=True, slots=True)
class Report:
    """What at_every_await has done."""

    scene: str
    points: int
    """How many suspension points there are."""
    tried: tuple[Tried, ...]

    def __str__(self) -> str:
        """Count in words."""
        in_time = sum(one.in_time for one in self.tried)
        return (
            f"{self.scene}: {self.points} points, {in_time} interruptions in time, {len(self.tried) - in_time} too late"
        )


def at_every_await(
    scene: Callable[[Attempt], Awaitable[object]],
    *,
    timings: Iterable[Timing | str] = Timing,
    by: Way = "cancel",
    tasks: str | None = None,
    seed: int = 0,
    at_least: int = 1,
    only: tuple[int, Timing | str] | None = None,
    patience: int = 100_000,
) -> Report:
    """Run a scene again and again, and interrupt it at another suspension point each time.

    A scene is a coroutine function that builds up a world, awaits one operation by `attempt.cancel(operation)`, and
    then asserts what must be true however that ended. It is given to run(), with the seed and the patience, in a
    new world for each suspension point and each timing, until a run ends before its point comes: it was undisturbed.

    `by` is how the operation is interrupted: "cancel" is Task.cancel(), "timeout" an asyncio.timeout() round it that
    expires, "anyio" an anyio.CancelScope() round it that is cancelled. A function is given the operation and puts it
    into something with a time limit of math.inf, such as `lambda operation: asyncio.wait_for(operation, math.inf)`; the
    first timer that this makes fires when the time has come.

    With `tasks`, a pattern such as "qorb main slot *", no operation but every task whose name fits is cancelled, one at
    a time; their suspension points are counted through in the order in which they come, the moment before a task's
    first step included. The scene then awaits its operations itself.

    Raises what the scene raises, with a note that says how to replay it: with `only`, a step and a timing, nothing but
    that attempt is made. Raises AssertionError when there are fewer than `at_least` suspension points: what never waits
    cannot be interrupted, and the scene would show nothing. Raises TypeError when the scene cannot be called.
    """
    check_coroutine_function("at_every_await", scene)
    if only is not None:
        attempts: Iterable[Attempt] = [Attempt(only[0], Timing(only[1]), by, tasks)]
    else:
        attempts = _attempts([Timing(timing) for timing in timings], by, tasks)
    tried: list[Tried] = []
    for attempt in attempts:
        _play(scene, attempt, seed, patience)
        if attempt.reached:
            tried.append(Tried(attempt.step, attempt.timing, attempt.place, attempt.in_time))
        else:
            _check_that_all_came(scene, attempt, tried)
            break
    points = tried[-1].step if tried else 0
    wanted = at_least if only is None else only[0]
    if points < wanted:
        raise AssertionError(f"{_name(scene)} has {points} suspension points where at least {wanted} were expected")
    return Report(_name(scene), points, tuple(tried))


def _attempts(timings: Sequence[Timing], by: Way, tasks: str | None) -> Iterator[Attempt]:
    for step in itertools.count(1):
        for timing in timings:
            yield Attempt(step, timing, by, tasks)


def _check_that_all_came(scene: Callable[[Attempt], object], attempt: Attempt, tried: Sequence[Tried]) -> None:
    """Up to its step an attempt is undisturbed: a step that came with one timing comes with every other."""
    if tried and tried[-1].step == attempt.step:
        raise AssertionError(
            f"{_name(scene)} is no function of its seed: step {attempt.step} came with timing "
            f"{tried[-1].timing.value!r}, but not with {attempt.timing.value!r}"
        )


def _play(scene: Callable[[Attempt], Awaitable[object]], attempt: Attempt, seed: int, patience: int) -> None:
    async def main() -> None:
        if attempt.tasks is not None:
            loop = virtual_loop("at_every_await()")
            loop.watcher = TaskCanceller(loop, attempt, attempt.tasks)
        await scene(attempt)

    try:
        run(main, seed=seed, patience=patience)
    except BaseException as error:
        tasks = "" if attempt.tasks is None else f", tasks={attempt.tasks!r}"
        error.add_note(
            (
                f"interrupted ({attempt.timing.value}):\n{attempt.place}\n"
                if attempt.reached
                else "not interrupted yet\n"
            )
            + f"replay: at_every_await({_name(scene)}, by={_by(attempt)}{tasks}, seed={seed}, "
            f"only=({attempt.step}, {attempt.timing.value!r}))"
        )
        raise


def _by(attempt: Attempt) -> str:
    return repr(attempt.by) if isinstance(attempt.by, str) else _name(attempt.by)


def _name(function: Callable[..., object]) -> str:
    name: str = getattr(function, "__qualname__", repr(function))
    return name.rpartition("<locals>.")[2]
