"""What every test may use, and what is checked after each one.

Two kinds of tests wait:

- in virtual time: `qorb.testing.run(main, seed=...)`. This is the rule. Nothing sleeps, the seed decides the order.
- on a real event loop, where sockets, signals or another loop are the point: the fixture `run_real`.

Both kinds are plain functions, not coroutines; `leak_check` looks after all of them.

The environment variable QORB_TEST_LOOP chooses the real loop: "asyncio" (the default), "uvloop", or "eager" (asyncio
with eager tasks, Python 3.12 and later; tasks in virtual time are eager then, too). "make test-matrix" runs the suite
with each. With uvloop only the tests are run that use `run_real` or have the mark "loops", which says that programs
they start heed QORB_TEST_LOOP: to the others it makes no difference.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import math
import os
import random
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest
from hypothesis import settings

from qorb.testing._loop import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import FrameType

T = TypeVar("T")

pytest_plugins = ["pytester"]

# Loops read this when they are made, those of subprocesses too.
os.environ.setdefault("PYTHONASYNCIODEBUG", "1")

# A shell starts what runs in the background with Ctrl-C ignored, and nohup has the end of the terminal ignored: the
# programs under test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# In debug mode every future and every handle notes where it was made, down to pytest's own frames: that took two thirds
# of the suite's time. The innermost frames say as much.
_walk_stack = traceback.walk_stack


def _walk_top_of_stack(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    return itertools.islice(_walk_stack(frame), 3)


traceback.walk_stack = _walk_top_of_stack

# What failed must fail again: the examples are a function of the test. --hypothesis-profile=explore looks for new ones.
settings.register_profile("check", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, print_blob=True, max_examples=2_000)
settings.load_profile("check")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With uvloop, leave out the tests that never run on it: they would be the same as with asyncio."""
    if os.environ.get("QORB_TEST_LOOP") != "uvloop":
        return
    on_uvloop = {
        item: item.get_closest_marker("loops") is not None or "run_real" in getattr(item, "fixturenames", ())
        for item in items
    }
    config.hook.pytest_deselected(items=[item for item in items if not on_uvloop[item]])
    items[:] = [item for item in items if on_uvloop[item]]


def pytest_collection_finish() -> None:
    """Set aside what the imports have made: collecting the garbage of each test then takes a hundredth of the time."""
    gc.collect()
    gc.freeze()


class RunReal(Protocol):
    """The type of the fixture `run_real`."""

    def __call__(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T: ...


class AsyncioLog(logging.Handler):
    """The warnings and errors that asyncio has logged during the test; whatever is left at its end fails it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        # "Executing <Handle ...> took 0.101 seconds" tells how busy the machine is, nothing about the library.
        if not str(record.msg).startswith("Executing %s took"):
            self.records.append(record)

    def take(self, text: str) -> logging.LogRecord:
        """Remove and return the one record with `text` in its message or traceback; fail when it is not exactly one."""
        found = [record for record in self.records if text in self._words(record)]
        assert len(found) == 1, f"{len(found)} records with {text!r} among {[self._words(r) for r in self.records]}"
        self.records.remove(found[0])
        return found[0]

    def _words(self, record: logging.LogRecord) -> str:
        return logging.Formatter().format(record)

    def __str__(self) -> str:
        return "\n".join(map(self._words, self.records))


@pytest.fixture
def asyncio_log() -> Iterator[AsyncioLog]:
    """What asyncio logs at WARNING or above. A test that provokes one takes it: `asyncio_log.take("its words")`."""
    log = AsyncioLog()
    logger = logging.getLogger("asyncio")
    logger.addHandler(log)
    yield log
    logger.removeHandler(log)


@pytest.fixture(autouse=True)
def leak_check(asyncio_log: AsyncioLog) -> Iterator[None]:
    """Fail the test when it leaves something behind.

    That is: a non-daemon thread; a warning or error logged by asyncio (a task destroyed while pending, an exception
    that nobody retrieved, a call of a loop's exception handler); and, because warnings are errors, a ResourceWarning or
    an exception in a finalizer, which pytest reports for this very test since the garbage is collected here.
    """
    threads = set(threading.enumerate())
    yield
    gc.collect()
    gc.collect()
    left = [thread.name for thread in threading.enumerate() if thread not in threads and not thread.daemon]
    assert not left, f"threads left behind: {left}"
    assert not asyncio_log.records, f"asyncio has logged:\n{asyncio_log}"


@pytest.fixture(autouse=True)
def chance_is_a_function_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that is given no `rng` makes one; what it draws is then a function of the test and of --randomly-seed."""

    class Seeded(random.Random):
        def __init__(self) -> None:
            super().__init__(random.getrandbits(64))

    for module in ("qorb.pool", "qorb.resolver"):
        monkeypatch.setattr(f"{module}.random", SimpleNamespace(Random=Seeded))


@pytest.fixture(autouse=True)
def eager_tasks_in_virtual_time(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """With QORB_TEST_LOOP=eager, `qorb.testing.run` has eager tasks as well.

    Not in the tests of `qorb.testing` itself: they say in which order it runs tasks, and of what kind.
    """
    if os.environ.get("QORB_TEST_LOOP") != "eager" or Path(__file__).parent / "testing" in request.path.parents:
        return
    make = VirtualLoop.__init__

    def make_eager(loop: VirtualLoop, **options: Any) -> None:
        make(loop, **options)
        loop.set_task_factory(asyncio.eager_task_factory)

    monkeypatch.setattr(VirtualLoop, "__init__", make_eager)


@pytest.fixture
def run_real() -> RunReal:
    """Run a coroutine function on a real event loop and return its result: `run_real(main)`.

    The loop is new, in debug mode, of the kind that QORB_TEST_LOOP names. When `main` returns, no task but its own may
    be left: what a test starts, the tasks of its servers included, it ends and waits for. `leak_check` adds the rest.

        def test_a_server_that_closes_is_noticed(run_real):
            async def main():
                async with Pool(...) as pool:
                    ...

            run_real(main)
    """
    return _run_real


def _run_real(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def main_and_check() -> T:
        # Debug mode reports slow callbacks by the clock; on a busy machine that says nothing.
        asyncio.get_running_loop().slow_callback_duration = math.inf
        result = await main()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left behind: {sorted(map(repr, left))}"
        return result

    with asyncio.Runner(debug=True, loop_factory=_loop_factory()) as runner:
        return runner.run(main_and_check())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    name = os.environ.get("QORB_TEST_LOOP", "asyncio")
    if name == "asyncio":
        return asyncio.new_event_loop
    if name == "uvloop":
        import uvloop  # noqa: PLC0415 - there is none on Windows

        return uvloop.new_event_loop
    if name == "eager" and sys.version_info >= (3, 12):
        return _new_eager_loop
    raise pytest.UsageError(f"QORB_TEST_LOOP={name} is not to be had on Python {sys.version.split()[0]}")


def _new_eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop
