"""VirtualLoop: an event loop whose time is virtual and whose order is a function of a seed."""

# What BaseEventLoop has, and its type stubs lack, is declared here and initialized there.
# pyright: reportUninitializedInstanceVariable=false

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import operator
import random
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol, TypeVarTuple, Unpack

from qorb.testing._waiting import describe_tasks

if TYPE_CHECKING:
    import contextvars
    import traceback
    from collections.abc import Callable, Iterable
Ts = TypeVarTuple("Ts")

START = 1000.0
"""What the clock shows at the beginning, in seconds. Not 0: that would hide code that takes a time of 0 for none."""

MANY_CANCELLED = 100
"""With so many cancelled timers, once they are the greater part, it pays to throw them out."""

PATIENCE_WITH_THREADS = 1.0
"""How many real seconds a loop that has nothing to do waits for a thread that was started during the run."""


class Deadlock(AssertionError):  # noqa: N818 - it is one, and that is what it is called
    """Nothing can ever happen any more: no task is ready, no timer is due at any time, and main() has not ended."""


class Livelock(AssertionError):  # noqa: N818 - it is one, and that is what it is called
    """Things go on happening, but main() does not end: no time passes, or far too much."""


class Watcher(Protocol):
    """What is told about each step of each task: how `at_every_await` finds tasks that it did not start."""

    def before_step(self, task: asyncio.Task[Any]) -> None:
        """Come right before the task runs on."""

    def after_step(self, task: asyncio.Task[Any]) -> None:
        """Come right after the task has run up to its next suspension or its end."""


class _Timer(asyncio.TimerHandle):
    """A timer that knows its place among those due at the same time: the one made first runs first."""

    __slots__ = ("number",)

    if TYPE_CHECKING:
        _source_traceback: traceback.StackSummary | None

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: VirtualLoop,
        context: contextvars.Context | None,
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        self.number = next(loop.timer_numbers)
        if self._source_traceback:
            del self._source_traceback[-2:]  # where it was made is the place that called call_at()

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, _Timer):
            return NotImplemented
        return (self.when(), self.number) < (other.when(), other.number)


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop whose clock jumps to the next timer as soon as nothing else is ready.

    A callback that was due at a time finds the clock at exactly that time, unless code has blocked the loop beyond it.
    Seed 0 is asyncio's order: first come, first served; timers due at the same time in the order of their creation.
    Any other seed shuffles the tasks that are ready in the same turn, and timers that are due at the same time. A task
    is only ever put back, never moved before a callback that was ready earlier; other callbacks keep their order.

    Stands on the parts of BaseEventLoop that have not changed since Python 3.4: _ready, _scheduled, _run_once.
    """

    latest: ClassVar[weakref.ref[VirtualLoop] | None] = None
    """The one that was made last."""

    if TYPE_CHECKING:
        _ready: deque[asyncio.Handle]
        _scheduled: list[_Timer]
        _stopping: bool
        _timer_cancelled_count: int
        _current_handle: asyncio.Handle | None

        def _check_closed(self) -> None: ...
        def _check_thread(self) -> None: ...

    def __init__(self, *, seed: int, patience: int) -> None:
        """Make a loop that gives up with Livelock after `patience` turns in which nothing gets on."""
        super().__init__()
        self.timer_numbers = itertools.count()
        self.watcher: Watcher | None = None
        self.main: asyncio.Task[Any] | None = None
        """The task that is to end; what else is running does not show that it gets on."""
        self.errors: list[dict[str, Any]] = []
        """What the exception handler was told, as long as nobody has set another handler."""
        self._now = START
        self._rng = random.Random(seed) if seed else None
        self._settling: deque[asyncio.Future[None]] = deque()
        self._patience = patience
        self._turns_at_this_moment = 0
        self._turns_without_main = 0
        self._seen: weakref.WeakKeyDictionary[asyncio.Task[Any], None] = weakref.WeakKeyDictionary()
        self._nudged = threading.Event()
        self._foreign_threads = frozenset(threading.enumerate())
        VirtualLoop.latest = weakref.ref(self)
        self.set_debug(True)
        self.set_exception_handler(_note_error)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def block(self, seconds: float) -> None:
        """Let time pass while nothing else runs."""
        self._now += seconds
        self._turns_at_this_moment = 0

    def settled(self) -> asyncio.Future[None]:
        """Return a future that is done when there is nothing left to do at the present moment."""
        future: asyncio.Future[None] = self.create_future()
        self._settling.append(future)
        return future

    def tasks(self) -> list[asyncio.Task[Any]]:
        """Return the tasks that are not done, in the order in which they were created.

        Tasks that started eagerly and have never been woken come last.
        """
        pending = asyncio.all_tasks(self)
        ordered = [task for task in self._seen if task in pending]
        return ordered + sorted(pending.difference(ordered), key=lambda task: task.get_name())

    def timer_since(self, number: int) -> asyncio.TimerHandle:
        """Return the first timer that was made after that number was taken from `timer_numbers`, if it is still set."""
        return min((one for one in self._scheduled if one.number > number), key=operator.attrgetter("number"))

    def take_lost_exceptions(self) -> None:
        """Report the exceptions that nobody has retrieved, as the garbage collector would do sooner or later."""
        for task in list(self._seen):
            if task.done() and not task.cancelled() and getattr(task, "_log_traceback", False):
                error = task.exception()
                message = "Task exception was never retrieved"
                self.call_exception_handler({"message": message, "exception": error, "task": task})

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Have the callback run in the next turn."""
        handle = super().call_soon(callback, *args, context=context)
        task = woken_task(handle)
        if task is not None:
            self._seen[task] = None
            if task is self.main:
                self._turns_without_main = 0
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Have the callback run at a time, exactly. math.inf is never."""
        self._check_closed()
        self._check_thread()
        if math.isnan(when):
            raise ValueError("a timer cannot be due at NaN")
        if not callable(callback):
            raise TypeError(f"a callable object was expected by call_at(), got {callback!r}")
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]  # noqa: SLF001 - what TimerHandle.cancel() looks at
        return timer

    def run_in_executor(
        self,
        executor: object,  # noqa: ARG002 - threads are real, and this time is not
        func: Callable[[Unpack[Ts]], object],
        *args: *Ts,
    ) -> asyncio.Future[Any]:
        """Call the function in the next turn on the loop's own thread, whatever the executor: threads are real."""
        self._check_closed()
        future: asyncio.Future[Any] = self.create_future()
        self.call_soon(_call_into, future, func, args)
        return future

    def _run_once(self) -> None:
        """Run one turn: everything that is ready now; when that is nothing, go to the next moment first."""
        self._collect_due()
        if not self._ready and not self._stopping:
            self._go_on()
        if self._rng is not None and len(self._ready) > 1:
            self._shuffle(self._rng)
        self._count_turn()
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                self._run_handle(handle)

    def _run_handle(self, handle: asyncio.Handle) -> None:
        self._current_handle = handle
        task = None if self.watcher is None else woken_task(handle)
        try:
            if self.watcher is not None and task is not None:
                self.watcher.before_step(task)
            handle._run()  # noqa: SLF001 - a loop's own
            if self.watcher is not None and task is not None:
                self.watcher.after_step(task)
        finally:
            self._current_handle = None

    def _collect_due(self) -> None:
        if self._timer_cancelled_count > MANY_CANCELLED and 2 * self._timer_cancelled_count > len(self._scheduled):
            self._drop_cancelled()
        timers = self._scheduled
        due: list[_Timer] = []
        while timers and (timers[0].cancelled() or timers[0].when() <= self._now):
            timer = heapq.heappop(timers)
            timer._scheduled = False  # type: ignore[attr-defined]  # noqa: SLF001 - what TimerHandle.cancel() looks at
            if timer.cancelled():
                self._timer_cancelled_count -= 1
            else:
                due.append(timer)
        if self._rng is not None and len(due) > 1:
            due = _with_ties_shuffled(due, self._rng)
        self._ready.extend(due)

    def _drop_cancelled(self) -> None:
        self._scheduled = [timer for timer in self._scheduled if not timer.cancelled()]
        heapq.heapify(self._scheduled)
        self._timer_cancelled_count = 0

    def _go_on(self) -> None:
        """Find something to do: tell one who waits for just this moment, or go to the time of the next timer."""
        while self._settling:
            future = self._settling.popleft()
            if not future.done():
                future.set_result(None)
                return
        if self._scheduled and self._scheduled[0].when() < math.inf:
            self._jump(self._scheduled[0].when())
        elif not self._told_by_a_thread():
            raise Deadlock(
                f"nothing can happen any more at {self._now:.6f}; what waits:\n{describe_tasks(self.tasks())}"
            )

    def _jump(self, when: float) -> None:
        self._now = when
        self._turns_at_this_moment = 0
        self._collect_due()

    def _count_turn(self) -> None:
        self._turns_at_this_moment += 1
        self._turns_without_main += 1
        if self._turns_at_this_moment > self._patience:
            raise Livelock(self._complaint(f"it is still {self._now:.6f}"))
        if self._turns_without_main > self._patience:
            raise Livelock(self._complaint(f"main() has not run, although it is {self._now:.6f} by now"))

    def _complaint(self, text: str) -> str:
        self._turns_at_this_moment = self._turns_without_main = 0  # what is cleaned up after this has turns of its own
        woken = [task for handle in self._ready if (task := woken_task(handle)) is not None]
        return (
            f"{self._patience} turns of the loop, and {text}; what runs:\n{describe_tasks(woken)}\n"
            f"all tasks:\n{describe_tasks(self.tasks())}"
        )

    def _shuffle(self, rng: random.Random) -> None:
        """Put the tasks that are ready in another order, none of them before a callback that was ready earlier.

        A callback may belong to the very future that the task behind it waits for, and callbacks come in the order in
        which they were added. The other way round nothing is promised.
        """
        handles = [self._ready.popleft() for _ in range(len(self._ready))]
        order: list[asyncio.Handle] = []
        tasks: list[asyncio.Handle] = []
        for handle in handles:
            if woken_task(handle) is not None:
                tasks.append(handle)
                continue
            if tasks and rng.random() < 0.5:  # noqa: PLR2004 - as often as not
                rng.shuffle(tasks)
                order += tasks
                tasks = []
            order.append(handle)
        rng.shuffle(tasks)
        # In front of what other threads may have added meanwhile.
        self._ready.extendleft(reversed(order + tasks))

    def _told_by_a_thread(self) -> bool:
        """Wait a little for call_soon_threadsafe() when there is a thread that may call it."""
        if self._ready:
            return True
        if not any(thread.is_alive() for thread in set(threading.enumerate()) - self._foreign_threads):
            return False
        self._nudged.clear()
        return bool(self._ready) or self._nudged.wait(PATIENCE_WITH_THREADS)

    def _write_to_self(self) -> None:
        self._nudged.set()

    def _process_events(self, event_list: Iterable[object]) -> None:
        """Do nothing: there are no files to watch."""


def _note_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if isinstance(loop, VirtualLoop) and not loop.is_closed():
        loop.errors.append(context)
    else:
        loop.default_exception_handler(context)


def woken_task(handle: asyncio.Handle) -> asyncio.Task[Any] | None:
    """Return the task that goes on when the handle runs; None when the handle is something else.

    A task's own step and wake-up are bound to it and bear no public name, unlike task.cancel and its like.
    """
    callback = handle._callback  # type: ignore[attr-defined]  # noqa: SLF001 - a loop's own
    task = getattr(callback, "__self__", None)
    if not isinstance(task, asyncio.Task) or hasattr(asyncio.Task, getattr(callback, "__name__", "")):
        return None
    return task


def _with_ties_shuffled(timers: list[_Timer], rng: random.Random) -> list[_Timer]:
    """Shuffle those among sorted timers that are due at the same time."""
    shuffled: list[_Timer] = []
    for _, tied in itertools.groupby(timers, key=asyncio.TimerHandle.when):
        group = list(tied)
        rng.shuffle(group)
        shuffled += group
    return shuffled


def _call_into(future: asyncio.Future[Any], func: Callable[..., object], args: tuple[Any, ...]) -> None:
    if future.cancelled():
        return
    try:
        result = func(*args)
    except Exception as error:  # noqa: BLE001 - it is the waiting task's, whatever it is
        future.set_exception(error)
    else:
        if not future.cancelled():
            future.set_result(result)


def _unusable(name: str) -> Callable[..., NoReturn]:
    def unusable(*_args: object, **_keywords: object) -> NoReturn:
        raise RuntimeError(
            f"loop.{name}() reaches for the real world, which does not exist in qorb.testing.run(); use a fake, such "
            "as FakeConnector, or a real event loop"
        )

    unusable.__name__ = unusable.__qualname__ = name
    return unusable


for _name in (
    "add_reader",
    "add_signal_handler",
    "add_writer",
    "connect_accepted_socket",
    "connect_read_pipe",
    "connect_write_pipe",
    "create_connection",
    "create_datagram_endpoint",
    "create_server",
    "create_unix_connection",
    "create_unix_server",
    "getaddrinfo",
    "getnameinfo",
    "remove_reader",
    "remove_signal_handler",
    "remove_writer",
    "sendfile",
    "sock_accept",
    "sock_connect",
    "sock_recv",
    "sock_recv_into",
    "sock_recvfrom",
    "sock_recvfrom_into",
    "sock_sendall",
    "sock_sendfile",
    "sock_sendto",
    "start_tls",
    "subprocess_exec",
    "subprocess_shell",
):
    setattr(VirtualLoop, _name, _unusable(_name))
del _name
