"""World: plays one plan from its first step to the end of the pool, and checks the laws all the way."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import random
import re
import warnings
import weakref
from typing import TYPE_CHECKING, Any

from qorb import (
    Backend,
    ClaimTimeoutError,
    Policy,
    Pool,
    PoolState,
    PoolTerminatedError,
    TerminationError,
)
from qorb._core.planner import targets
from qorb.resolvers import ManualResolver
from qorb.testing import assert_nothing_left, block, run, settle
from tests.simulation.books import Books
from tests.simulation.clients import Client
from tests.simulation.laws import BrokenError, Law, Laws, in_line, require, upholding
from tests.simulation.service import Manners, Service, UnrulyResolver, error, front, nonsense
from tests.simulation.situations import Situations
from tests.simulation.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from qorb import Claim
    from qorb._engine import Engine
    from qorb.testing import FakeConnection
    from tests.simulation.books import Visit
    from tests.simulation.plan import Plan, Step

TURNS = 4_000
"""So many turns of the loop before the finale at the most; what then is left of the plan is not played."""
TURNS_AT_ONE_MOMENT = 2_000
TURNS_TO_ASK_IN_VAIN = 6
"""So many turns a client takes who may not wait, gets nothing, and is followed by the next."""
PATIENCE = 100_000
"""Turns of the loop without any for the plan: then something never ends."""
NAME = "sim"


class World:
    """One run."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.trace: list[tuple[float, str]] = []
        self.clients: dict[str, Client] = {}
        self.lookers: dict[asyncio.Task[None], None] = {}
        """Who waits in ready()."""
        self.kept: list[tuple[Visit, Claim[FakeConnection]]] = []
        self.manners = Manners()
        self.turns = 0
        self._broken: BaseException | None = None
        self._number = 0
        self._excused: set[str] = set()
        """What may stand in the log or come to the exception handler, by its words, because the plan provokes it."""
        self._log = _Log()
        self._reports: list[dict[str, Any]] = []
        self._deaf = 0.0
        self._pushed: dict[str, Backend] = {}
        """The backends that were pushed into the resolver last."""
        self._moment = 0.0
        self._turns_then = 0
        self._warnings: list[str] = []
        self.pool: Pool[FakeConnection]
        self.engine: Engine[FakeConnection]
        self.loop: asyncio.AbstractEventLoop
        self.situations: Situations
        self.laws: Laws | None = None

    # Reporting.

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self.trace.append((self.loop.time(), text))

    def broken(self, what: BaseException | str | None, law: Law | None = None) -> None:
        """Note that a law was broken, where raising would not be heard; the run ends at the end of the turn."""
        if self._broken is None:
            self._broken = BrokenError(what, law) if isinstance(what, str) else what

    def told(self) -> str:
        """Write the trace down: what was done, and what the connector was asked for."""
        lines = [(when, 0, number, text) for number, (when, text) in enumerate(self.trace)]
        service = getattr(self, "service", None)
        for number, call in enumerate(service.calls if service is not None else ()):
            on = "" if call.connection is None else f" {call.connection.id}"
            end = "in flight" if call.ended is None else f"until {call.ended:.6f}"
            error = "" if call.raised is None else f", {call.raised.__name__}"
            text = f"    {call.operation}{on} to {call.backend}, by {call.task}, {end}{error}"
            lines.append((call.started, 1, number, text))
        lines.sort(key=lambda line: line[:3])
        return _renumbered("\n".join(f"{when:.6f} {text}" for when, _, _, text in lines))

    # The run.

    def play(self) -> None:
        """Play the plan; raise BrokenError, or whatever else goes wrong."""
        collects = gc.isenabled()
        gc.disable()
        logger = logging.getLogger("qorb")
        before = logger.level, logger.propagate
        logger.addHandler(self._log)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = self._warned
                try:
                    run(self._main, seed=self.plan.order, patience=PATIENCE)
                finally:
                    self._bury()
                self._check_reports()
        finally:
            logger.removeHandler(self._log)
            logger.level, logger.propagate = before
            if collects:
                gc.enable()

    def _warned(self, message: Warning | str, *_: object) -> None:
        """Keep the words only: a warning of a leak keeps the leaked alive."""
        self._warnings.append(str(message))

    def _bury(self) -> None:
        """See to it that a run that failed does not leave a pool behind."""
        pool = self.__dict__.pop("pool", None)
        if pool is not None and pool.state in (PoolState.RUNNING, PoolState.TERMINATING):
            with contextlib.suppress(Exception):
                pool.abort()
        self.kept.clear()

    async def _main(self) -> None:
        plan = self.plan
        self.loop = loop = asyncio.get_running_loop()
        loop.set_debug(plan.debug)
        loop.set_exception_handler(lambda _, context: self._reports.append(context))
        self.service = Service(plan, self.broken)
        self.books = Books(loop, self.note)
        self.books.policy = plan.policy
        self.service.dirty = self.books.dirty
        self.books.dropped_at = self.service.dropped_at
        self.books.checks_closed = "is_closed" in plan.overridden
        self.books.prepares = "on_acquire" in plan.overridden
        backends = [Backend(**values) for values in plan.backends]
        self.resolver = ManualResolver(backends) if plan.resolver == "manual" else UnrulyResolver(backends)
        self.witness = None if plan.observer == "none" else Witness(self, plan.observer)
        if plan.observer == "raising":
            self.manners.of["observer"] = "value"
            self._excused.add("the observer raised")
        self.pool = Pool(
            NAME,
            self.resolver,
            front(plan, self.service, self.manners),
            Policy(**plan.policy),  # type: ignore[arg-type] - counts are whole numbers
            observer=self.witness,
            rng=random.Random(plan.seed),
        )
        self._set_of_backends(backends, begins=True)
        await self.pool.start()
        self.engine = self.pool._engine
        self.situations = self.books.situations = Situations(self.engine)
        self.laws = Laws(self.engine, self.service, self.books, self._published, self.situations)
        self.laws.witness = self.witness
        with self._watched():
            await self._wait(["turn"])
            self._pushed = {backend.name: backend for backend in backends}
            for step in plan.steps:
                if self.turns > TURNS:
                    break
                await self._take(step)
            if not plan.ending.get("early"):
                await self._finale()
            with upholding(Law.END):
                await self._end()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Check the laws after each turn of the loop."""
        run_once: Callable[[], None] = self.loop._run_once  # type: ignore[attr-defined]

        def turn() -> None:
            run_once()
            self.turns += 1
            self.books.turn += 1
            try:
                self._after_turn()
            except BaseException:
                del self.loop._run_once  # type: ignore[attr-defined]
                raise

        self.loop._run_once = turn  # type: ignore[attr-defined]
        try:
            yield
        finally:
            self.loop.__dict__.pop("_run_once", None)

    def _after_turn(self) -> None:
        if self._broken is not None:
            raise self._broken
        self.service.check()
        self._count_turn()
        if self.laws is not None:
            self.laws.after_turn()
        if any(client.doomed for client in self.clients.values()):
            self._cancel_those_served()

    def _count_turn(self) -> None:
        now = self.loop.time()
        if now > self._moment:
            self._moment, self._turns_then = now, self.turns
        require(self.turns - self._turns_then < TURNS_AT_ONE_MOMENT, f"an endless loop at {now:.6f}", Law.QUIET)

    def _cancel_those_served(self) -> None:
        """Cancel clients whose claim has been served in this turn, before they have heard of it."""
        for client in tuple(self.clients.values()):
            waiter = getattr(client.task, "_fut_waiter", None)
            if client.doomed and isinstance(waiter, asyncio.Future) and waiter.done():
                self.situations.cancelled(waiter)
                client.cancel()

    # Steps.

    async def _take(self, step: Step) -> None:
        await self._wait(step.when)
        self.note(str(step))
        getattr(self, f"_do_{step.what}")(**step.how)

    async def _wait(self, when: list[Any]) -> None:
        if when[0] == "turn":
            await asyncio.sleep(0)
            return
        loop = self.loop
        if when[0] == "after":
            if not when[1]:
                return
            moment = loop.time() + when[1]
        else:
            due = sorted(timer.when() for timer in loop._scheduled if not timer.cancelled())  # type: ignore[attr-defined]
            due = [moment for moment in due if moment - loop.time() < 20 * self.plan.unit]
            moment = (due[min(when[1], len(due) - 1)] if due else loop.time()) + when[2]
        await self._until(moment)

    async def _until(self, moment: float) -> None:
        if moment <= self.loop.time():
            await asyncio.sleep(0)
            return
        future = self.loop.create_future()
        timer = self.loop.call_at(moment, lambda: None if future.done() else future.set_result(None))
        try:
            await future
        finally:
            timer.cancel()

    def _do_client(self, claims: list[dict[str, Any]]) -> None:
        self._number += 1
        client = Client(self, self._number, claims)
        self.clients[client.name] = client

    def _do_cancel(self, client: int, at: str) -> None:
        if not self.clients:
            return
        chosen = list(self.clients.values())[client % len(self.clients)]
        if at == "grant":
            chosen.doomed = True
        else:
            chosen.cancel()
            if at == "twice":
                chosen.cancel()

    def _do_backends(self, backends: list[dict[str, Any]]) -> None:
        self._set_of_backends([Backend(**values) for values in backends])

    def _set_of_backends(self, backends: list[Backend], *, begins: bool = False) -> None:
        self.service.pace.changed(backends)
        self.books.set_changed_at = self.loop.time()
        if begins:
            return
        self._pushed = {backend.name: backend for backend in backends}
        self.resolver.set(backends)

    def _published(self) -> dict[str, Backend]:
        return self.resolver.known if isinstance(self.resolver, UnrulyResolver) else self._pushed

    def _do_fault(self, verb: str, **how: Any) -> None:
        service = self.service
        if verb == "during":
            self._during(**how)
            return
        if verb == "fail":
            kind = how.pop("error")
            how["error"] = lambda: error(kind)
            if kind == "base":
                self._excused |= {"user code raised a BaseException"}
        if verb == "deafen":
            self._deaf = max(self._deaf, how["seconds"])
            self.books.lateness += 1e3 * self.plan.unit
            if how["operation"] in (None, "on_acquire"):
                self.books.deafness = max(self.books.deafness, how["seconds"])
        getattr(service, verb)(**how)

    def _during(self, action: str, seconds: float, operation: str | None, backend: str | None, **how: Any) -> None:
        def act(_: Backend) -> Awaitable[object] | None:
            if self.engine.state is not PoolState.RUNNING:
                return None
            if action == "block":
                self._do_block(seconds)
            elif action == "claim":
                return self._claim_within(seconds)
            elif action == "stats":
                self.pool.stats()
                self.pool.ledger()
            else:
                self._do_backends(**how)
            return None

        self.service.during(operation, act, backend)

    async def _claim_within(self, timeout: float) -> None:
        """Claim from inside the connector, which then also gives the connection back."""
        engine = self.engine
        visit = self.books.arrive("connector", timeout, len(in_line(engine)), engine.desk.line.waiting)
        try:
            claim = await self.pool.claim(timeout=timeout)
        except BaseException as failure:
            self.books.gave_up(visit, failure, engine, wrapped=math.inf, asked=True)
            raise
        self.books.granted(visit, claim.connection)
        self.books.gave_back(visit, clean=True)
        claim.release()

    def _do_heal(self, backend: str | None) -> None:
        self.service.heal(backend)
        if backend is None:
            self.books.deafness = 0.0
            observer = self.manners.of.get("observer")
            self.manners.of.clear()
            if observer is not None and self.plan.observer == "raising":
                self.manners.of["observer"] = observer

    def _do_drop(self, backend: str | None) -> None:
        self.service.drop(backend)

    def _do_block(self, seconds: float) -> None:
        block(seconds)
        self.books.lateness += seconds
        self.books.blocked_at = self.loop.time()

    def _do_nonsense(self, kind: str) -> None:
        resolver = self.resolver
        if isinstance(resolver, ManualResolver):
            backend = Backend("z", "10.9.9.9", 1)
            with contextlib.suppress(ValueError):
                resolver.set([backend, backend])
                self.broken("a ManualResolver took a set with a name given twice", Law.BACKENDS)
            return
        if kind == "watch raises":
            self._excused.add("watch() failed")
            resolver.end(OSError("password=canary"))
        elif kind == "watch returns":
            self._excused.add("watch() returned")
            resolver.end(None)
        else:
            self._excused.add("published a set that cannot be used")
            self.situations.see("no set can be used of what was published")
            resolver.say(nonsense(kind, Backend("z", "10.9.9.9", 1)))

    def _do_manners(self, method: str, error: str) -> None:
        if method == "observer":
            if self.witness is None:
                return
            self._excused.add("the observer raised")
        self.manners.of[method] = error
        if error == "base":
            self._excused.add("user code raised a BaseException")

    def _do_give_back(self) -> None:
        """Give back what was kept longest."""
        if self.kept:
            visit, claim = self.kept.pop(0)
            self.books.gave_back(visit, clean=True)
            claim.release()

    def _do_look(self, timeout: float | None) -> None:
        require(self.pool.stats().name == NAME, "the stats have another name", Law.STATS)
        task = asyncio.Task(self._ready(timeout), loop=self.loop, name="looker")
        self.lookers[task] = None
        task.add_done_callback(self._looked)

    async def _ready(self, timeout: float | None) -> None:
        began, lateness = self.loop.time(), self.books.lateness
        limit = self.plan.policy["claim_timeout"] if timeout is None else timeout
        try:
            await self.pool.ready(timeout=timeout)
        except ClaimTimeoutError as late:
            spent = self.loop.time() - began
            slack = self.books.lateness - lateness
            text = f"ready({limit}) gave up after {spent}: {late}"
            require(limit - 1e-9 <= spent <= limit + 1e-6 + slack, text, Law.DEADLINE)
        except PoolTerminatedError:
            ends = self.engine.state is not PoolState.RUNNING
            require(ends, "ready() says that the pool is terminated", Law.ONCE)

    def _looked(self, task: asyncio.Task[None]) -> None:
        del self.lookers[task]
        if not task.cancelled() and task.exception() is not None:
            self.broken(task.exception())

    # The finale: heal everything in place, then demand progress.

    async def _finale(self) -> None:
        plan, policy = self.plan, self.plan.policy
        self.note("FINALE: everything is healed")
        self._do_heal(None)
        self._cancel_all()
        self._give_back_what_is_kept()
        wanted = plan.finale["backends"]
        if wanted is not None or not self._pushed:
            self._do_backends(wanted or [{"name": "a", "host": "10.0.0.1", "port": 5432}])
        await settle()
        gc.collect()
        if plan.hopeless or not await self._listening():
            await self._until(self.loop.time() + 10 * plan.unit)
            return
        slack = self._slack()
        began, turns, asked = self.loop.time(), self.turns, self._number
        cap = min(5.0, policy["max_connection_backoff"]) + policy["spread"]
        with upholding(Law.PROGRESS):
            await self._served_within(cap + slack, f"nothing is served within {cap:g} + {slack:g} s of the healing")
            in_vain = self._number - asked - 1
            await self._capacity(began, slack)
            await self._crowd(slack)
        with upholding(Law.QUIET):
            await self._quiet()
        spent = self.loop.time() - began
        allowed = 3000 + 400 * policy["max_slots"] + self._turns_allowed(spent) + TURNS_TO_ASK_IN_VAIN * in_vain
        taken = self.turns - turns
        require(taken <= allowed, f"{taken} turns for {spent:g} s, {allowed:g} expected", Law.QUIET)

    def _turns_allowed(self, seconds: float) -> float:
        policy = self.plan.policy
        shortest = min(policy["health_interval"], policy["rebalance_interval"], 0.9 * policy["max_lifetime"])
        looks = max(policy["long_claim_warning"], 0.1)
        return 40 * policy["max_slots"] * seconds / shortest + 2 * seconds / looks

    def _slack(self) -> float:
        """Say how long what is under way may take until it is over, by the plan, once everything is healed."""
        times = [step.how.get("seconds", 0) for step in self.plan.steps]
        return max([0.0, *times]) + self._deaf + 30 * self.plan.latency + 2.0

    async def _listening(self) -> bool:
        """Wait until watch(), which may have been failing, runs again; say whether that is to be expected."""
        resolver, policy = self.resolver, self.plan.policy
        if isinstance(resolver, ManualResolver) or resolver.listening:
            return True
        limit = policy["max_connection_backoff"] + policy["spread"] + 1
        if not self._affords(limit):
            return False
        await self._until(self.loop.time() + limit)
        require(resolver.listening, f"watch() is not started again within {limit:g} s", Law.PROGRESS)
        return True

    async def _served_within(self, seconds: float, text: str) -> None:
        """Demand that somebody is served: one who waits, or, where nobody may wait, one who asks again and again."""
        until = self.loop.time() + seconds
        while True:
            self._number += 1
            patient = self.plan.policy["max_waiters"] > 0
            claim = {"form": "async with", "timeout": "inf" if patient else 0, "hold": 0, "asks": False, "end": "clean"}
            before = self.books.granted_count
            self._do_client([claim | {"pause": 0}])
            client = self.clients[f"client {self._number}"]
            await asyncio.wait([client.task], timeout=until - self.loop.time())
            if client.task.done() and self.books.granted_count > before:
                return
            require(self.loop.time() < until, text)
            await self._until(self.loop.time() + 2 * self.plan.latency)

    def _affords(self, seconds: float) -> bool:
        """Say whether so much time can pass without the pool's regular work taking too many turns."""
        return 0.1 * self._turns_allowed(seconds) < TURNS

    async def _capacity(self, began: float, slack: float) -> None:
        """Demand full capacity, as far as the policy lets it come in a foreseeable time."""
        policy, engine = self.plan.policy, self.engine
        retry = policy["max_connection_backoff"] + policy["spread"]
        if retry > 20 * self.plan.unit or not self._affords(retry + slack + 2):
            return
        slots = policy["max_slots"]
        # One retry at the latest after max_connection_backoff, then the ramp of a backend that returns, for each
        # backend that has to wait for a slot of another.
        ramp = 2 + math.ceil(slots / 8) * self.plan.latency
        await self._until(began + retry + slack + ramp)
        await settle()
        sets = list(engine.sets.values())
        if len(sets) > slots or policy["max_lifetime"] < math.inf or any(one.leaving for one in sets):
            return
        goal = targets(tuple(sets), engine.desk.line.waiting, engine._limits, self.loop.time())
        for one, least in zip(sets, goal, strict=True):
            connected = one.unclaimed + one.checking + one.claimed
            require(
                connected >= least and connected >= 1,
                f"{one.backend.name} has {connected} connections of {least} in the end: {one.stats()}",
            )
        await self.pool.ready(timeout=0)

    async def _crowd(self, slack: float) -> None:
        """Demand that many are served, each in his turn."""
        claim = {
            "form": "async with",
            "timeout": "inf",
            "hold": self.plan.latency,
            "asks": True,
            "end": "clean",
            "pause": 0,
        }
        first = self._number + 1
        for _ in range(int(min(self.plan.finale["clients"], self.plan.policy["max_waiters"]))):
            self._do_client([claim] * 3)
        ours = [client for client in self.clients.values() if int(client.name.split()[1]) >= first]
        capacity = max(1, sum(slots.online for slots in self.engine.sets.values()))
        rounds = 3 * math.ceil(len(ours) / capacity) + 3
        limit = rounds * (12 * self.plan.latency + self.plan.policy["spread"]) + slack + 10
        if ours:
            await asyncio.wait([client.task for client in ours], timeout=limit)
        left = [client.name for client in ours if not client.task.done()]
        require(not left, f"{left} are not served within {limit} s")

    async def _quiet(self) -> None:
        """Demand that a pool that is left alone leaves its connections alone."""
        policy, service = self.plan.policy, self.service
        if policy["max_lifetime"] < math.inf or policy["max_connection_backoff"] > 20 * self.plan.unit:
            return
        pause = 10 * self.plan.unit
        if policy["rebalance_interval"] < math.inf:
            pause = max(pause, 2.5 * policy["rebalance_interval"])
        if not self._affords(2 * pause):
            return
        await self._until(self.loop.time() + pause)
        if len(self.engine.sets) > policy["max_slots"]:
            return  # offline ones take turns
        before = service.count["connect"], service.count["close"], service.count["abort"]
        await self._until(self.loop.time() + pause)
        after = service.count["connect"], service.count["close"], service.count["abort"]
        require(before == after, f"connect, close and abort were called {before} times, and {after} after a quiet time")

    # The end.

    async def _end(self) -> None:
        ending = self.plan.ending
        self.note(f"END: {ending}")
        if ending.get("early") and ending["kind"] != "terminate":
            self._give_back_what_is_kept()
            gc.collect()
        for seconds in ending["holders"]:
            hold = {"form": "claim", "timeout": "inf", "hold": seconds, "asks": False, "end": "clean", "pause": 0}
            self._do_client([hold])
        await self._until(self.loop.time() + 0.5 * self.plan.unit)
        for fault in ending["faults"]:
            self._do_fault(**fault)
        for _ in range(ending.get("waiting", 0)):
            wait = {"form": "async with", "timeout": "inf", "hold": self.plan.latency, "asks": False, "end": "clean"}
            self._do_client([wait | {"pause": 0}] * 3)
        if ending.get("vanishing") and self._published():
            gone, *rest = self._published().values()
            self.note(f"{gone.name} vanishes, another comes")
            self._set_of_backends([*rest, Backend("new", "10.0.9.1", 5432)])
        await self._until(self.loop.time() + ending["detour"])
        self.note(f"the pool is ended: {ending['kind']}")
        self.situations.ending(early=bool(ending.get("early")))
        self.situations.see("a dead idle connection is found", self.service.found_dead)
        again = isinstance(self.resolver, UnrulyResolver) and self.resolver.asked > 1
        self.situations.see("watch() ended and was started again", again)
        if self.laws is not None:
            self.laws.detaches = ending["kind"] == "terminate" and ending["held"] == "detach"
        self._let_be_lenient()
        await getattr(self, f"_end_by_{ending['kind']}")()
        await settle()
        await self._after_the_end()

    def _give_back_what_is_kept(self) -> None:
        while self.kept:
            visit, claim = self.kept.pop()
            self.books.gave_back(visit, clean=True)
            claim.release()
            del claim

    def _let_be_lenient(self) -> None:
        for client in self.clients.values():
            client.lenient = True

    def _cancel_all(self) -> None:
        for client in tuple(self.clients.values()):
            client.cancel()

    async def _end_by_terminate(self) -> None:
        ending, pool = self.plan.ending, self.pool
        began = self.loop.time()
        waiting = self.plan.ending.get("waiting")  # whoever waits may be served in this very turn
        held = bool(self.books.holding or self.engine.claims_out() or waiting)
        longest = self._longest_end(held=held)
        callers = [
            asyncio.Task(self._terminate(), loop=self.loop, name=f"caller {number}")
            for number in range(ending["callers"])
        ]
        await asyncio.sleep(0)
        for caller in callers[: ending["cancelled"]]:
            caller.cancel()
            self.situations.see(
                "terminate() is cancelled, while others wait for it", len(callers) > ending["cancelled"]
            )
        await asyncio.wait(callers)
        for caller in callers:
            if not caller.cancelled():
                caller.result()
        await pool.terminate(grace=self._grace)
        spent = self.loop.time() - began
        self.situations.see("a claim is revoked", self.books.holding and ending["held"] == "revoke")
        self.situations.see("a claim is detached", self.books.holding and ending["held"] == "detach")
        require(spent <= longest, f"terminate() took {spent:.6f} s, allowed are {longest:.6f}")

    @property
    def _grace(self) -> float:
        """The plan's; nobody promises that claims come back by themselves when the end comes early."""
        grace: float = self.plan.ending["grace"]
        return min(grace, 20 * self.plan.unit) if self.plan.ending.get("early") else grace

    def _longest_end(self, *, held: bool) -> float:
        ending = self.plan.ending
        grace = self._grace
        holders, faults = [2 * self.plan.latency, *ending["holders"]], list(ending["faults"])
        if ending.get("early"):  # nothing is healed, and whoever has a connection keeps it for as long as he likes
            faults += [step.how for step in self.plan.steps if step.what == "fault"]
            holders.append(grace)
        claims = min(max(holders) if held else 0.0, grace)
        blocking = any(how.get("action") == "block" for how in faults)
        blocked = sum(how.get("seconds", 0) for how in faults) * (50 if blocking else 1)
        deaf = 2 * self._deaf + 2 if self._deaf else 0
        return claims + 0.05 + deaf + blocked * (1 if blocking else 0)

    async def _terminate(self) -> None:
        ending = self.plan.ending
        try:
            await self.pool.terminate(grace=self._grace, held=ending["held"], timeout=ending["timeout"])
        except TerminationError as late:
            self.note(
                f"TerminationError, left: {late.ledger}"
            )  # its text also says where claims were made, in debug mode
            self.situations.see("terminate() runs out of time")
            require(not late.ledger.empty, "TerminationError, although nothing was left")
            require("canary" not in str(late), "a secret in a TerminationError", Law.SECRETS)
            await self.pool.terminate(grace=self._grace, held=ending["held"])
        require(self.pool.state is PoolState.TERMINATED, "terminate() returned before the end")
        require(self.pool.ledger().empty, f"left: {self.pool.ledger()}")

    async def _end_by_abort(self) -> None:
        self.pool.abort()
        require(not self.service.unclosed, f"abort() left open {self.service.unclosed}")
        await self._until(self.loop.time() + self._longest_end(held=False))

    async def _end_by_dropped(self) -> None:
        self._cancel_all()
        self._look_no_more()
        await self._until(self.loop.time() + self._deaf + 1e-3)
        self._give_back_what_is_kept()
        if self.clients or self.books.open_visits:
            await self._end_by_abort()  # a client who does not listen, and a connector that claims, keep it alive
            return
        reference = weakref.ref(self.pool)
        self._excused.add("unterminated pool")
        del self.pool
        if reference() is not None:
            gc.collect()
        require(reference() is None, "something keeps the pool alive")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if not self._deaf:
            await settle()
            require(self.engine.ledger().empty, f"left of a pool that was dropped: {self.engine.ledger()}")
        await self._until(self.loop.time() + self._longest_end(held=False))

    def _look_no_more(self) -> None:
        """Cancel whoever waits in ready(): that keeps a pool alive, too."""
        for looker in tuple(self.lookers):
            looker.cancel()

    async def _end_by_outside(self) -> None:
        self._excused.add("cancelled from outside")
        for task in sorted(asyncio.all_tasks(self.loop), key=asyncio.Task.get_name):
            if task.get_name().startswith(f"qorb {NAME} "):
                task.cancel()
        await self._until(self.loop.time() + self._longest_end(held=False))

    async def _after_the_end(self) -> None:
        engine, service = self.engine, self.service
        require(engine.state is PoolState.TERMINATED, f"the pool is {engine.state}: {engine.ledger()}")
        require(engine.ledger().empty, f"left: {engine.ledger()}")
        pool = self.__dict__.get("pool")
        detaches = self.plan.ending["kind"] == "terminate" and self.plan.ending["held"] == "detach"
        service.forbid(allow=("abort",) if detaches else ())
        if isinstance(self.resolver, UnrulyResolver):
            require(not self.resolver.listening, "watch() is still running")
            self.resolver.forbidden = True
        self._give_back_what_is_kept()
        if pool is not None:
            if not detaches or not self.books.holding:
                assert_nothing_left(pool)
            try:
                await pool.claim()
            except PoolTerminatedError:
                await pool.terminate()
            else:
                self.broken("a claim on a pool that is terminated")
        await self._until(self.loop.time() + 200 * self.plan.unit + 10)
        self._cancel_all()
        await settle()
        self._give_back_what_is_kept()
        gc.collect()
        await settle()
        require(not self.books.open_visits, f"claims without an end: {list(self.books.open_visits)}", Law.ONCE)
        late = isinstance(self.resolver, UnrulyResolver) and self.resolver.asked_too_late
        require(not late, "watch() was called after the end")
        require(not service.unclosed, f"not closed: {service.unclosed}")
        service.check()
        if self.witness is not None and self.plan.ending["kind"] == "terminate":
            self.witness.check_end()

    # What was said on the way.

    def _check_reports(self) -> None:
        if self._broken is not None:
            raise self._broken
        self.service.check()
        for record in self._log.records:
            text = record.getMessage()
            require("canary" not in text, f"a secret in the log: {text}", Law.SECRETS)
            if record.levelno >= logging.ERROR:
                require(any(words in text for words in self._excused), f"logged without a reason: {text}", Law.LOG)
        for context in self._reports:
            text = f"{context.get('message')} {context.get('exception')!r}"
            if not any(words in text for words in self._excused):
                raise BrokenError(f"the exception handler was called: {text}", Law.LOG) from context.get("exception")
        gc.collect()
        leaks = 0
        for text in self._warnings:
            leaks += "unreleased claim" in text
            expected = "unreleased claim" in text or any(words in text for words in self._excused)
            require(expected, f"a warning without a reason: {text}", Law.LOG)
        require(leaks <= self.books.leaked, f"{leaks} warnings of leaked claims, {self.books.leaked} leaked", Law.LOG)


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def _renumbered(text: str) -> str:
    """Number slots and unnamed tasks from 1: their numbers count through all runs of a process."""
    return _renumber("Task-", _renumber("slot ", text))


def _renumber(kind: str, text: str) -> str:
    numbers: dict[str, int] = {}
    return re.sub(rf"{kind}(\d+)", lambda found: f"{kind}{numbers.setdefault(found[1], len(numbers) + 1)}", text)
