"""The run of the demo with PostgreSQL, from the first server to the last count."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from qorb import Policy, Pool, PoolState, PoolStats, TerminationError
from qorb._demo.clients import PATIENCE, Tally, total
from qorb._demo.demo import DemoOptions, short_times, show
from qorb._demo.failover._asyncpg import Readers, Writers, connector
from qorb._demo.failover.frame import ClusterFrame
from qorb._demo.failover.report import Account, ClusterReport
from qorb._demo.failover.scenario import scenario
from qorb._demo.failover.stage import ClusterStage
from qorb._demo.frame import Meter
from qorb._demo.journal import Journal
from qorb._demo.report import Counter
from qorb._demo.statistics import serve_statistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qorb._demo.interruption import Interruption
    from qorb._demo.view import View

_TICK = 0.1
_GRACE = 1.0
_END_TIMEOUT = 10.0
_PATIENCE_AFTERWARDS = 3.0
_MOST_SLOTS = 40
"""For each pool: the servers have max_connections = 100."""


async def play_cluster(options: DemoOptions, view: View[ClusterFrame]) -> int:
    """Run the demo and print what is left at its end. Returns the exit status. Signals are as for play().

    Raises PostgresError when a server does not start.
    """
    return await show(view, lambda interruption: _perform(options, view, interruption))


async def _perform(options: DemoOptions, view: View[ClusterFrame], interruption: Interruption) -> ClusterReport:
    count = options.clients // 2
    policy = cluster_policy(options)
    view.open(_heading(options, policy))
    with Journal(pools=2) as journal:
        journal.step("A PostgreSQL cluster is started for this demo alone.", "it takes a second or two.")
        for entry in journal.take():
            view.tell(entry)
        view.show(_blank(options.seconds))
        async with ClusterStage() as stage:
            resolver = stage.resolver()
            rngs = random.Random(options.seed), random.Random(options.seed + 1)
            writes = Pool[Any]("writes", resolver, connector("primary"), policy, observer=journal.observe, rng=rngs[0])
            reads = Pool[Any](
                "reads", resolver, connector("replica"), policy, observer=journal.observe_servers, rng=rngs[1]
            )
            counter = Counter([writes, reads], stage)
            writers = Writers(writes, stage.was_well_since, count=count, seed=options.seed)
            readers = Readers(reads, stage.was_well_since, count=options.clients - count, seed=options.seed)
            async with writers, readers, writes, reads:
                journal.begin()
                await serve_statistics(journal, writes, reads)
                journal.step(
                    "db-1 is the primary, db-2 and db-3 are its standbys. The clients begin.",
                    "DNS names all three; each pool keeps to those that have its role.",
                )
                writers.start()
                readers.start()
                run = _Run(options, view, journal, stage, (writes, reads), writers, readers, counter)
                await run.until_the_end(interruption)
                return await run.end()


def cluster_policy(options: DemoOptions) -> Policy:
    """Give slots for seven tenths of a pool's clients."""
    return short_times(min(max(4, 7 * options.clients // 20), _MOST_SLOTS), claim_timeout=10.0)


def _heading(options: DemoOptions, policy: Policy) -> list[str]:
    count = options.clients // 2
    checks = f"checks every {policy.health_interval:g} s ({policy.health_check_timeout:g} s limit)"
    return [
        f"qorb demo: {count} writers, {options.clients - count} readers, two pools, a PostgreSQL cluster of three",
        f"Times are short, to show it all in {options.seconds:g} s: {checks},",
        f"query limit {PATIENCE:g} s; a claim waits {policy.claim_timeout:g} s at most. Ctrl-C ends it.",
    ]


def _blank(seconds: float) -> ClusterFrame:
    """Give what there is to show while there is nothing yet."""
    stats = PoolStats("", PoolState.NEW, claims=0, waiting=0, backends={})
    frame = Meter(seconds).frame(0.0, 0.0, stats, Tally(), str)
    return ClusterFrame(0.0, seconds, frame, frame, 0, 0)


class _Run:
    """A demo that is under way."""

    def __init__(
        self,
        options: DemoOptions,
        view: View[ClusterFrame],
        journal: Journal,
        stage: ClusterStage,
        pools: Sequence[Pool[Any]],
        writers: Writers,
        readers: Readers,
        counter: Counter,
    ) -> None:
        self._seconds = options.seconds
        self._steps = list(scenario())
        self._act: asyncio.Task[None] | None = None
        self._view = view
        self._journal = journal
        self._stage = stage
        self._pools = pools
        self._writers = writers
        self._readers = readers
        self._counter = counter
        self._meters = [Meter(options.seconds) for _ in pools]

    async def until_the_end(self, interruption: Interruption) -> None:
        """Take the steps when they are due and show how things are, until all is done or a signal comes.

        Steps take a moment, and each waits for the one before it. The one that is under way then comes to its end.
        """
        try:
            while (self._remains or self._journal.elapsed < self._seconds) and interruption.signal is None:
                self._go_on()
                self._show()
                await interruption.wait(_TICK)
        finally:
            if self._act is not None:
                await asyncio.wait([self._act])
        if self._act is not None:
            self._act.result()

    @property
    def _remains(self) -> bool:
        return bool(self._steps) or (self._act is not None and not self._act.done())

    def _go_on(self) -> None:
        if self._act is not None:
            if not self._act.done():
                return
            self._act.result()
            self._act = None
        if self._steps and self._steps[0].at * self._seconds <= self._journal.elapsed:
            self._act = asyncio.create_task(self._take_step(), name="step of the demo")

    async def _take_step(self) -> None:
        step = self._steps.pop(0)
        self._journal.step(step.say, step.look)
        what = await step.act(self._stage)
        if isinstance(what, str):
            self._journal.done(what)

    async def end(self) -> ClusterReport:
        """Terminate both pools under load, and count before and after."""
        loop = asyncio.get_running_loop()
        self._journal.step(
            "terminate() is called on both pools, while all clients go on.",
            "what is left is counted afterwards, in four ways.",
        )
        self._show()
        before = await self._counter.census()
        claims_out = self._writers.holding + self._readers.holding
        began = loop.time()
        failures = await self._terminate()
        took = loop.time() - began
        await self._stage.thaw_all()
        after = await self._counter.settled(_PATIENCE_AFTERWARDS)
        self._show()
        await self._writers.gone()
        await self._readers.gone()
        tallies = self._writers.tally, self._readers.tally
        return ClusterReport(
            before=before,
            after=after,
            claims_out=claims_out,
            took=took,
            tally=total(tallies),
            logged_errors=tuple(self._journal.logged_errors),
            failure="; ".join(failures) or None,
            writes=tallies[0],
            reads=tallies[1],
            account=await self._account(),
        )

    async def _terminate(self) -> list[str]:
        """Terminate the pools at once. Gives why one did not come to its end."""
        ends = [asyncio.create_task(pool.terminate(grace=_GRACE, timeout=_END_TIMEOUT)) for pool in self._pools]
        await asyncio.wait(ends)
        failures: list[str] = []
        for pool, end in zip(self._pools, ends, strict=True):
            try:
                end.result()
            except TerminationError as error:
                failures.append(str(error))
                pool.abort()
        return failures

    async def _account(self) -> Account:
        acknowledged = self._writers.acknowledged
        primary = self._stage.primary
        there = set[tuple[int, int]]() if primary is None else await self._stage.lines()
        lost = 0 if primary is None else len(acknowledged - there)
        return Account(len(acknowledged), lost, len(there - acknowledged), primary)

    def _show(self) -> None:
        for entry in self._journal.take():
            self._view.tell(entry)
        now, elapsed = asyncio.get_running_loop().time(), self._journal.elapsed
        tallies = self._writers.tally, self._readers.tally
        dns = self._stage.condition_of_dns()
        writes, reads = (
            meter.frame(now, elapsed, pool.stats(), tally, self._stage.condition, dns)
            for meter, pool, tally in zip(self._meters, self._pools, tallies, strict=True)
        )
        failed = [tally.failed_claims for tally in tallies]
        self._view.show(ClusterFrame(elapsed, self._seconds, writes, reads, *failed))
