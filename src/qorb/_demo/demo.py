"""The run of the demo, from the first server to the last count."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qorb import Policy, Pool, TerminationError
from qorb._demo.clients import PATIENCE, EchoClients
from qorb._demo.connector import EchoConnector
from qorb._demo.frame import Meter
from qorb._demo.interruption import Interruption
from qorb._demo.journal import Journal
from qorb._demo.report import Counter, Report
from qorb._demo.scenario import Stage, scenario
from qorb._demo.statistics import serve_statistics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qorb._demo.frame import Frame
    from qorb._demo.view import F, View
    from qorb.connectors.tcp import TcpStream

_TICK = 0.1
_GRACE = 1.0
_END_TIMEOUT = 10.0
_PATIENCE_AFTERWARDS = 1.0
_MOST_SLOTS = 200
_STATUS_BAD = 1
_STATUS_SIGNAL = 128


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What can be chosen."""

    backends: int = 3
    clients: int = 20
    seconds: float = 30.0
    seed: int = 1


async def play(options: DemoOptions, view: View[Frame]) -> int:
    """Run the demo and print what is left at its end. Returns the exit status.

    SIGINT, SIGTERM and SIGHUP end it early, through the same end: 128 + the signal's number is the status then, if
    all is well. Cancelled, it terminates the pool all the same.
    """
    return await show(view, lambda interruption: _perform(options, view, interruption))


async def show(view: View[F], perform: Callable[[Interruption], Awaitable[Report]]) -> int:
    """Perform a demo in a view, print its report, and give the exit status. As for play()."""
    with Interruption() as interruption:
        with view:
            report = await perform(interruption)
        view.conclude(list(report.lines()))
    if not report.good:
        return _STATUS_BAD
    return 0 if interruption.signal is None else _STATUS_SIGNAL + interruption.signal


async def _perform(options: DemoOptions, view: View[Frame], interruption: Interruption) -> Report:
    policy = demo_policy(options)
    view.open(_heading(options, policy))
    with Journal() as journal:
        async with Stage(options.backends) as stage:
            pool = Pool(
                "demo",
                stage.resolver(),
                EchoConnector(),
                policy,
                observer=journal.observe,
                rng=random.Random(options.seed),
            )
            counter = Counter([pool], stage)
            async with EchoClients(pool, stage.servers, count=options.clients, seed=options.seed) as clients, pool:
                await serve_statistics(journal, pool)
                journal.step(
                    f"{options.backends} servers are up, and in DNS. The clients begin.",
                    "each backend gets its share of the slots, and of the claims.",
                )
                clients.start()
                run = _Run(options, view, journal, stage, pool, clients, counter)
                await run.until_the_end(interruption)
                return await run.end()


def demo_policy(options: DemoOptions) -> Policy:
    """Give slots for seven tenths of the clients."""
    return short_times(min(max(3 * options.backends, 7 * options.clients // 10), _MOST_SLOTS), claim_timeout=5.0)


def short_times(slots: int, *, claim_timeout: float) -> Policy:
    """Give so many slots, and times so short that a person sees things happen."""
    return Policy(
        spares_wanted=2,
        max_slots=slots,
        max_slots_per_backend=slots,
        rebalance_interval=2.0,
        claim_timeout=claim_timeout,
        connect_timeout=1.0,
        max_connection_backoff=1.0,
        health_interval=1.0,
        health_check_timeout=0.5,
        close_timeout=0.5,
    )


def _heading(options: DemoOptions, policy: Policy) -> list[str]:
    servers = f"{options.backends} echo servers found through DNS"
    checks = f"checks every {policy.health_interval:g} s ({policy.health_check_timeout:g} s limit)"
    backoff = f"backoff {1000 * policy.min_connection_backoff:g} ms to {policy.max_connection_backoff:g} s"
    failures = f"failures of the last {2 * policy.max_connection_backoff:g} s"
    return [
        f"qorb demo: {_clients(options)} {policy.max_slots} connections to {servers}",
        f"Times are short, to show it all in {options.seconds:g} s: {checks},",
        f"{backoff}, {failures}, echo limit {PATIENCE:g} s. Ctrl-C ends it.",
    ]


def _clients(options: DemoOptions) -> str:
    return "1 client has" if options.clients == 1 else f"{options.clients} clients share"


class _Run:
    """A demo that is under way."""

    def __init__(
        self,
        options: DemoOptions,
        view: View[Frame],
        journal: Journal,
        stage: Stage,
        pool: Pool[TcpStream],
        clients: EchoClients,
        counter: Counter,
    ) -> None:
        self._seconds = options.seconds
        self._steps = list(scenario(options.backends))
        self._view = view
        self._journal = journal
        self._stage = stage
        self._pool = pool
        self._clients = clients
        self._counter = counter
        self._meter = Meter(options.seconds)

    async def until_the_end(self, interruption: Interruption) -> None:
        """Take the steps when they are due and show how things are, until the time is over or a signal comes."""
        while self._journal.elapsed < self._seconds and interruption.signal is None:
            while self._steps and self._steps[0].at * self._seconds <= self._journal.elapsed:
                step = self._steps.pop(0)
                self._journal.step(step.say, step.look)
                await step.act(self._stage)
            self._show()
            await interruption.wait(_TICK)

    async def end(self) -> Report:
        """Terminate the pool under load, and count before and after."""
        loop = asyncio.get_running_loop()
        self._journal.step(
            "terminate() is called, while all clients go on.", "what is left is counted afterwards, in four ways."
        )
        self._show()
        claims_out = self._clients.holding
        before = await self._counter.census()
        began = loop.time()
        failure = None
        try:
            await self._pool.terminate(grace=_GRACE, timeout=_END_TIMEOUT)
        except TerminationError as error:
            failure = str(error)
            self._pool.abort()
        took = loop.time() - began
        after = await self._counter.settled(_PATIENCE_AFTERWARDS)
        self._show()
        await self._clients.gone()
        return Report(
            before=before,
            after=after,
            claims_out=claims_out,
            took=took,
            tally=self._clients.tally,
            logged_errors=tuple(self._journal.logged_errors),
            failure=failure,
        )

    def _show(self) -> None:
        for entry in self._journal.take():
            self._view.tell(entry)
        now = asyncio.get_running_loop().time()
        stats = self._pool.stats()
        self._view.show(
            self._meter.frame(
                now,
                self._journal.elapsed,
                stats,
                self._clients.tally,
                self._stage.condition,
                self._stage.condition_of_dns(),
                self._pool.explain().verdict,
            )
        )
