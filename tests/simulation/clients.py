"""Clients: tasks that claim connections in every way there is, and treat them well or badly."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from qorb import ClaimReleasedError, ConnectError, Outcome
from qorb.testing import FakeConnection
from tests.simulation.laws import BrokenError, Law, in_line, require

if TYPE_CHECKING:
    from qorb import Claim
    from tests.simulation.books import Visit
    from tests.simulation.world import World


class BodyError(Exception):
    """What the body of a claim raises."""


class Client:
    """One client: a task that makes one claim after the other."""

    def __init__(self, world: World, number: int, claims: list[dict[str, Any]]) -> None:
        self.name = f"client {number}"
        self._world = world
        self._claims = claims
        self.cancels = 0
        """How often it was cancelled in time."""
        self.doomed = False
        """It is to be cancelled as soon as its claim is served."""
        self.lenient = False
        """What cancels it may be swallowed: by asyncio.wait_for() of Python 3.11, or by its own bad habits."""
        self._limits = 0
        """How many time limits of its own it is within."""
        self.task = asyncio.Task(self._live(), loop=world.loop, name=self.name)
        self.task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """Cancel it."""
        self.doomed = False
        self._world.note(f"{self.name} is cancelled")
        if self.task.cancel():
            self.cancels += 1

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._world.clients[self.name]
        if self.cancels and not self.lenient and not task.cancelled():
            text = f"{self.name} was cancelled {self.cancels} times and ended otherwise"
            self._world.broken(text, Law.CANCELLATION)
        elif task.cancelled():
            if not self.cancels and not self.lenient:
                text = f"{self.name} ended in CancelledError, although nobody had cancelled it"
                self._world.broken(text, Law.CANCELLATION)
        elif task.exception() is not None:
            self._world.broken(task.exception())

    async def _live(self) -> None:
        for claim in self._claims:
            await self._claim(claim)
            if claim["pause"]:
                await asyncio.sleep(claim["pause"])

    async def _claim(self, claim: dict[str, Any]) -> None:  # noqa: C901, PLR0912 - one end after another
        world, wrap = self._world, claim.get("wrap")
        engine = world.engine
        given = math.inf if claim["timeout"] == "inf" else claim["timeout"]
        timeout = world.plan.policy["claim_timeout"] if given is None else given
        arguments = {} if given is None else {"timeout": given}
        within = claim["within"] if wrap else math.inf
        if claim["end"] == "cancel itself" or wrap:
            self.lenient = True
        self._limits += wrap is not None
        waiting = len(in_line(engine))
        visit = world.books.arrive(self.name, timeout, waiting, engine.desk.line.waiting)
        try:
            if wrap == "timeout all":
                async with asyncio.timeout(within):
                    await self._use(visit, claim, arguments, None)
            else:
                await self._use(visit, claim, arguments, wrap)
        except BodyError:
            ours = visit.over or claim["end"] == "careless"
            require(ours, "the body's exception came from somewhere else", Law.CANCELLATION)
        except BrokenError:
            raise
        except BaseException as error:
            if not visit.over:
                if visit.connection is None:
                    world.books.gave_up(
                        visit, error, engine, wrapped=within, asked=self.cancels > 0 or self._limits > 0
                    )
                else:  # it was given to asyncio.wait_for(), which lost it, or nobody saw to its release
                    careless = wrap == "wait_for" or claim["end"] in ("careless", "forget")
                    require(careless, f"{self.name} lost its connection by {error!r}", Law.HELD)
            elif isinstance(error, TimeoutError) and wrap:
                return
            elif not isinstance(error, asyncio.CancelledError):
                raise
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            require(not visit.raised, f"what {self.name} raised in the body was swallowed", Law.CANCELLATION)
        finally:
            self._limits -= wrap is not None

    async def _use(self, visit: Visit, claim: dict[str, Any], arguments: dict[str, Any], wrap: str | None) -> None:
        request = self._world.pool.claim(**arguments)
        if claim["form"] == "async with" and wrap is None:
            async with request as connection:
                self._world.books.granted(visit, connection)
                await self._in_body(visit, claim, connection)
            return
        if wrap == "wait_for":
            held = await asyncio.wait_for(self._get(visit, request), claim["within"])
        elif wrap == "timeout":
            async with asyncio.timeout(claim["within"]):
                held = await self._get(visit, request)
        else:
            held = await self._get(visit, request)
        if claim["form"] == "with":
            with held as connection:
                await self._in_body(visit, claim, connection)
        else:
            await self._by_hand(visit, claim, held)

    async def _get(self, visit: Visit, request: Any) -> Claim[FakeConnection]:
        held: Claim[FakeConnection] = await request
        self._world.books.watch(visit, held)
        self._world.books.granted(visit, held.connection)
        require(held.backend == held.connection.backend, "the claim names another backend", Law.FITNESS)
        return held

    async def _in_body(self, visit: Visit, claim: dict[str, Any], connection: FakeConnection) -> None:
        clean = False
        try:
            await self._work(claim, connection)
            if claim["end"] == "raise":
                raise BodyError
            if claim["end"] == "cancel itself":
                raise asyncio.CancelledError
            clean = True
        except BaseException:
            visit.raised = True
            raise
        finally:
            self._world.books.gave_back(visit, clean=clean)

    async def _work(self, claim: dict[str, Any], connection: FakeConnection) -> None:
        if claim["asks"]:
            try:
                await connection.request(self.name)
            except ConnectError as error:
                raise BodyError from error
        for inner in claim.get("inner", ()):
            await self._claim(inner)
        if claim["hold"]:
            await asyncio.sleep(claim["hold"])

    async def _by_hand(self, visit: Visit, claim: dict[str, Any], held: Claim[FakeConnection]) -> None:
        world, end = self._world, claim["end"]
        try:
            await self._work(claim, held.connection)
        except BaseException as error:
            if end != "careless":
                world.books.gave_back(visit, clean=False)
                cancelled = isinstance(error, asyncio.CancelledError)
                held.release(Outcome.CANCELLED if cancelled else Outcome.ERROR)
            raise
        if end == "keep":
            world.kept.append((visit, held))
        elif end not in ("forget", "careless"):
            world.books.gave_back(visit, clean=end in ("clean", "twice"))
            self._release(held, end)

    def _release(self, held: Claim[FakeConnection], end: str) -> None:
        if end == "discard":
            held.discard()
        elif end == "raise":
            held.release(Outcome.ERROR)
        elif end == "cancel itself":
            held.release(Outcome.CANCELLED)
        else:
            held.release()
        if end == "twice":
            held.release()
            held.discard()
            held.release(Outcome.ERROR)
        try:
            _ = held.connection
        except ClaimReleasedError:
            return
        self._world.broken("a released claim still gives its connection", Law.OWNER)
