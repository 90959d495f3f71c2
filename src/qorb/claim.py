"""ClaimRequest and Claim: what a user holds.

The two hot paths stand here, written out: taking an idle connection when nobody waits, and giving a clean one back.
They do what the desk and Slot.move() do in the same situation, and a test says that they do.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from asyncio import InvalidStateError, current_task
from contextvars import Context
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import ref

from qorb._core.buckets import FULL
from qorb._desk import Attempt, check_thread
from qorb._home import Unique
from qorb._slot import CLAIMED, UNCLAIMED, Slot
from qorb.connector import Outcome
from qorb.errors import ClaimReleasedError, ClaimRevokedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator

    from qorb._desk import Desk
    from qorb.backend import Backend
    from qorb.pool import Pool

C = TypeVar("C")


class ClaimRequest(Attempt, Unique, Generic[C]):
    """A claim that is to be made: nothing happens until it is awaited or entered.

    `async with pool.claim() as connection:` gives the connection itself and returns it at the end of the block;
    `claim = await pool.claim()` gives a Claim, to be released by hand.

    Raises NoBackendsError, NoBackendsOnlineError or AllClaimsUsedError when the timeout is over, QueueFullError,
    PoolTerminatedError, PoolNotStartedError, WrongLoopError, PoolForkedError. Cancelling it at any point loses nothing.
    """

    # No __init__: Pool.claim() fills the attributes in, which takes half the time.
    __slots__ = ("pool", "slot")

    future: Any  # as in Attempt; said again for those who check that no public type is missing
    pool: Pool[C]
    slot: Slot[C] | None
    """What it holds while entered."""

    def __await__(self) -> Generator[Any, Any, Claim[C]]:
        """Make the claim; it must be released."""
        return self._claim().__await__()

    if TYPE_CHECKING:  # what the two are for those who use them; at run time they are the two functions below

        async def __aenter__(self) -> C:
            """Make the claim; it is released at the end of the block."""
            ...

        async def __aexit__(self, *exc: object) -> None:
            """Give the connection back. Never suspends.

            Raises WrongLoopError in another thread, and gives nothing back, unless the connection just goes back among
            the idle ones or to the first in line: those two ways are measured, and do not look.
            """
            ...

    def _enter_quickly(self) -> Awaitable[C]:  # noqa: PLR0911 - each way out is a short cut not taken
        """Take an idle connection: it comes in a future that is done already, which costs less than a coroutine."""
        desk: Desk[C] | None = self.pool._desk  # noqa: SLF001 - a request is a part of its pool
        if desk is None or not desk.plain or self.future is not None or get_ident() != desk.thread:
            return self._enter()
        task = current_task(desk.loop)
        if task is None:
            return self._enter()
        if not desk.quick:
            return self._wait(desk, task)
        best = desk.ranking.best
        if best is None:
            return self._enter()
        slots = best.low.head
        if slots is None or slots.load != slots.level or not slots.idle:
            slots = best.first()
            if slots is None:
                return self._enter()
        slot = slots.idle[-1]
        if desk.checks_closed and not (
            desk.engine.seems_open(slot)
            # is_closed() may have made calls of its own: is it still this slot's turn?
            and desk.quick
            and best.low.head is slots
            and slots.idle
            and slots.idle[-1] is slot
        ):
            return self._enter()
        best.low.head = slots.next
        slots.idle.pop()
        slot.state = CLAIMED
        slots.load += 1
        slots.total_claims += 1
        desk.claimed = claimed = desk.claimed + 1
        if claimed > desk.planned_for:
            desk.engine.replan()
        slot.holder = ref(task)
        slot.since = desk.clock()
        if desk.tracing:
            slot.site = self.site
        self.slot = slot
        self.future = slot.ready
        return slot.ready  # type: ignore[return-value]  # pyright: ignore[reportReturnType] - an idle slot has one

    async def _wait(self, desk: Desk[C], task: asyncio.Task[Any]) -> C:
        """Stand in line, when there is nothing to do but wait for one's turn."""
        future = desk.join_line(self, task)
        try:
            given = await future
        except BaseException:
            desk.forsake(self)
            raise
        if type(given) is Slot and not given.revoked:
            slot: Slot[C] = given  # pyright: ignore[reportUnknownVariableType] - of this pool
            slot.holder = ref(task)
            slot.since = desk.clock()
            slot.site = self.site
        else:
            slot = desk.take_over(self, given)  # pyright: ignore[reportUnknownArgumentType] - anything goes
        self.slot = slot
        slot.owner.total_claims += 1
        if desk.timing is not None:  # what Timing.waited() does, without the call; so it is below
            waits = desk.timing.waits
            waits.append(slot.since - self.started)
            if len(waits) >= FULL:
                desk.timing.wait.sort()
        return slot.connection  # type: ignore[return-value]  # pyright: ignore[reportReturnType] - it is claimed

    async def _enter(self) -> C:
        if self.future is not None:
            raise RuntimeError("this claim request has been used; call pool.claim() for every claim")
        desk = self.pool._running_desk()  # noqa: SLF001 - a request is a part of its pool
        self.slot = slot = await desk.claim(self)
        return slot.connection  # type: ignore[return-value]  # pyright: ignore[reportReturnType] - it is claimed

    def _exit(self, *exc: object) -> Awaitable[None]:  # noqa: C901 - the short ways make no call that can be spared
        """Give the connection back."""
        slot = self.slot
        desk = self.pool._desk  # noqa: SLF001 - as above
        if slot is None or desk is None:
            return _nothing()
        self.slot = None
        kind = exc[0]
        unfit: bool | None = None  # the connector's answer, which it is asked for only once
        if (
            kind is None
            and desk.swift
            and not slot.odd
            and (
                not desk.asks
                or (
                    (unfit := desk.must_recycle(slot, Outcome.CLEAN)) is False
                    and desk.engine.seems_open(slot)
                    # What the connector may have called is the reason to look again.
                    and desk.swift
                    and not slot.odd
                )
            )
        ):
            if desk.timing is not None:
                uses = desk.timing.uses
                uses.append(desk.clock() - slot.since)
                if len(uses) >= FULL:
                    desk.timing.use.sort()
            slot.state = UNCLAIMED
            slots = slot.owner
            slots.idle.append(slot)
            desk.claimed -= 1
            slots.load = load = slots.load - 1
            if load < slots.level:
                desk.ranking.improve(slots)
        elif (
            kind is None
            and desk.brisk
            and not slot.odd
            and (
                not desk.asks
                or (
                    unfit is None
                    and (unfit := desk.must_recycle(slot, Outcome.CLEAN)) is False
                    and desk.engine.seems_open(slot)
                    and desk.brisk
                    and not slot.odd
                )
            )
            and (first := desk.line.pop()) is not None
        ):
            if desk.timing is not None:
                uses = desk.timing.uses
                uses.append(desk.clock() - slot.since)
                if len(uses) >= FULL:
                    desk.timing.use.sort()
            if not desk.line.waiting:
                desk.refresh()
            holder, slot.holder = slot.holder, None  # until the claimer takes over
            try:
                first.future.set_result(slot)  # it stays CLAIMED: only the claimer changes
            except InvalidStateError:  # it was cancelled: the long way goes on to the next
                slot.holder = holder
                desk.release(slot, Outcome.CLEAN, unfit)
        elif get_ident() == desk.thread or desk.engine.forked or desk.loop.is_closed():
            desk.give_back(slot, _outcome(kind), unfit)
        else:
            self._exit_elsewhere(desk, slot, kind)
        return desk.done

    def _exit_elsewhere(self, desk: Desk[C], slot: Slot[C], kind: object) -> None:
        """Raise WrongLoopError, and give nothing back: the block ends in another thread.

        Unless that is the garbage collector's doing, which closes coroutines in whatever thread it runs.
        """
        if kind is not GeneratorExit:
            self.slot = slot
            check_thread(desk)
        desk.at_home(desk.give_back, slot, _outcome(kind))

    if not TYPE_CHECKING:
        __aenter__ = _enter_quickly
        __aexit__ = _exit

    async def _claim(self) -> Claim[C]:
        await self._enter_quickly()
        slot, self.slot = self.slot, None
        return Claim(self.pool, slot)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - it is there now


class Claim(Unique, Generic[C]):
    """A claimed connection. Release it, or use it as a context manager: `with await pool.claim() as connection:`.

    One that is dropped without release is returned with Outcome.LEAKED and a ResourceWarning.
    """

    __slots__ = ("__weakref__", "_backend", "_pool", "_slot")

    def __init__(self, pool: Pool[C], slot: Slot[C]) -> None:
        """Belong to a slot; pool.claim() makes claims."""
        self._pool = pool
        self._slot: Slot[C] | None = slot
        self._backend = slot.backend

    @property
    def connection(self) -> C:
        """The connection. Raises ClaimReleasedError after release, ClaimRevokedError after terminate() took it."""
        slot = self._slot
        if slot is None:
            text = f"the claim on pool {self._pool.name} was released; its connection may be somebody else's by now"
            raise ClaimReleasedError(text, pool=self._pool.name, backend=self._backend.name)
        if slot.revoked or slot.connection is None:
            desk: Desk[C] = self._pool._desk  # type: ignore[assignment]  # noqa: SLF001 - as below; the claim was made
            if desk.engine.forked:
                desk.engine.check_place()
            text = f"pool {self._pool.name} has taken the connection to {self._backend.name} back, because it was ended"
            remedy = '; give terminate() more `grace`, or held="detach"'
            raise ClaimRevokedError(text + remedy, pool=self._pool.name, backend=self._backend.name)
        return slot.connection

    @property
    def backend(self) -> Backend:
        """The backend that the connection goes to."""
        return self._backend

    def release(self, outcome: Outcome = Outcome.CLEAN) -> None:
        """Give the connection back. Never suspends; a second call does nothing.

        Raises WrongLoopError when called from another thread: nothing is given back then.
        """
        slot = self._slot
        if slot is None:
            return
        if not isinstance(outcome, Outcome):
            raise TypeError(f"outcome must be an Outcome, not {outcome!r}")
        desk = self._desk_here(slot)
        self._slot = None
        if desk is not None:
            desk.give_back(slot, outcome)

    def discard(self) -> None:
        """Give the connection back to be closed; the slot connects anew. Never suspends; a second call does nothing.

        Raises WrongLoopError when called from another thread: nothing is given back then.
        """
        slot = self._slot
        if slot is None:
            return
        desk = self._desk_here(slot)
        self._slot = None
        if desk is not None:
            desk.note_use(slot)
            desk.discard(slot)

    def _desk_here(self, slot: Slot[C]) -> Desk[C] | None:
        desk = self._pool._desk  # noqa: SLF001 - a claim is a part of its pool
        if desk is None or desk.engine.forked:
            return None  # the connection is the parent's
        check_thread(desk)
        if desk.loop.is_closed() and not slot.detached:
            return None  # nobody can be told; the connection is closed with the pool
        return desk

    def __enter__(self) -> C:
        """Give the connection."""
        return self.connection

    def __exit__(self, *exc: object) -> None:
        """Release, with the outcome of the block."""
        self.release(_outcome(exc[0]))

    def __del__(self) -> None:
        """Give back what was forgotten."""
        slot = getattr(self, "_slot", None)
        if slot is None or slot.revoked:
            return
        self._slot = None
        desk = self._pool._desk  # noqa: SLF001 - a claim is a part of its pool
        if desk is None or desk.engine.forked or (desk.loop.is_closed() and not slot.detached):
            return
        try:
            # Garbage is collected anywhere: in another thread, or in the midst of a move; and in anybody's context.
            desk.loop.call_soon_threadsafe(desk.give_back, slot, Outcome.LEAKED, context=Context())
        except RuntimeError:  # the loop is closed, and may have been closed at this very moment
            if not slot.detached:
                return
            desk.discard(slot)
        site = f", claimed at {slot.site}" if slot.site is not None else ""
        warnings.warn(
            f"unreleased claim on pool {desk.engine.name}, slot {slot.id} to {self._backend.name}{site}",
            ResourceWarning,
            source=self,
            stacklevel=2,
        )


async def _nothing() -> None:
    """Have nothing to wait for."""


def _outcome(kind: object) -> Outcome:
    if kind is None:
        return Outcome.CLEAN
    cancelled = isinstance(kind, type) and issubclass(kind, asyncio.CancelledError)
    return Outcome.CANCELLED if cancelled else Outcome.ERROR


def call_site() -> str:
    """Say where the function that called our caller was: file, line, function."""
    frame = sys._getframe(2)  # noqa: SLF001 - the only way; only used when tracing
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
