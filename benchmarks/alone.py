"""What qorb promises by itself: costs that must not grow, moments that must not last."""

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from sys import getsizeof
from time import perf_counter, process_time, thread_time

from benchmarks.deleting import without_notes_of_holders, without_tests_for_observers, without_tests_for_timings
from benchmarks.fakes import BadConnector, NoOpConnector, PreparingConnector, backends
from benchmarks.measure import by_turns, ratio, sample
from qorb import Backend, ClaimTimeoutError, Connector, Observer, Policy, Pool, PoolTerminatedError
from qorb._core.planner import Limits, grow, rebalance
from qorb.resolvers import FixedResolver


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value and, where there is one, the most that it may be."""

    what: str
    value: float
    unit: str
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None when there is none."""
        return None if self.target is None else self.value <= self.target

    @property
    def verdict(self) -> str:
        """The same in words, with the distance."""
        if self.target is None:
            return ""
        distance = abs(self.value / self.target - 1) * 100
        return f"met, {distance:.0f} % to spare" if self.met else f"missed by {distance:.0f} %"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done for a figure."""

    rounds: int
    claims: int
    seconds: float


@asynccontextmanager
async def open_pool(
    places: Sequence[Backend], slots: int, observer: Observer | None = None, connector: Connector[object] | None = None
) -> AsyncIterator[Pool[object]]:
    """Open a pool with so many slots over no-op connections, all of them idle."""
    policy = Policy(max_slots=slots, max_slots_per_backend=slots, spares_wanted=slots)
    connector = NoOpConnector() if connector is None else connector
    async with Pool("bench", FixedResolver(places), connector, policy, observer=observer) as pool:
        await pool.ready()
        yield pool


def many_backends(effort: Effort) -> list[Figure]:
    """Measure one claim and release with 1,000 backends beside 3, over 1,000 slots in both cases."""
    claims = max(effort.claims, 10_000)  # ten for each backend
    samples = by_turns({str(count): partial(_claim, count, 1_000, None, claims) for count in (3, 1_000)}, effort.rounds)
    return [
        Figure("one claim with 3 backends, 1,000 slots", median(samples["3"]) * 1e6, "µs"),
        Figure("one claim with 1,000 backends, 1,000 slots", median(samples["1000"]) * 1e6, "µs"),
        Figure("1,000 backends beside 3", ratio(samples["1000"], samples["3"]), "times", 1.3),
    ]


def observer(effort: Effort) -> list[Figure]:
    """Measure what an observer that does nothing adds to a claim, and what it costs that there could be one.

    Without one there is nothing but a test here and there. The tests are deleted from the code, in this process and for
    as long as that takes, to measure a claim without them.
    """
    claims = effort.claims
    contestants = {
        "without": partial(_claim, 3, 16, None, claims),
        "deleted": partial(_claim_with, without_tests_for_observers, claims),
        "long": partial(_claim, 3, 16, None, claims, connector=PreparingConnector),
        "long, deleted": partial(_claim_with, without_tests_for_observers, claims, PreparingConnector),
        "with": partial(_claim, 3, 16, _look_away, claims),
    }
    samples = by_turns(contestants, max(effort.rounds, 5))
    beside = "the same beside one whose tests for an observer are deleted"
    return [
        Figure("one claim without an observer", median(samples["without"]) * 1e6, "µs"),
        Figure(beside, ratio(samples["without"], samples["deleted"]), "times", 1.05),
        Figure("one claim with on_acquire, without an observer", median(samples["long"]) * 1e6, "µs"),
        Figure(beside, ratio(samples["long"], samples["long, deleted"]), "times", 1.05),
        Figure("one claim with an observer that does nothing", median(samples["with"]) * 1e6, "µs"),
    ]


def timings(effort: Effort) -> list[Figure]:
    """Measure what it adds to a claim that its times are counted, and that they could be."""
    rounds = max(effort.rounds, 5)
    contestants = {
        "off": partial(_claim, 3, 16, None, effort.claims),
        "deleted": partial(_claim_with, without_tests_for_timings, effort.claims),
        "on": partial(_claim, 3, 16, None, effort.claims, measured=True),
        "waiting, off": partial(_claim_in_a_crowd, 300, effort.claims, measured=False),
        "waiting, on": partial(_claim_in_a_crowd, 300, effort.claims, measured=True),
    }
    samples = by_turns(contestants, rounds)
    added = median(on - off for on, off in zip(samples["on"], samples["off"], strict=True))
    waiting = median(on - off for on, off in zip(samples["waiting, on"], samples["waiting, off"], strict=True))
    return [
        Figure("one claim whose times are not counted", median(samples["off"]) * 1e6, "µs"),
        Figure(
            "the same beside one that does not look whether they are",
            ratio(samples["off"], samples["deleted"]),
            "times",
        ),
        Figure("what Pool.measure() adds to a claim", added * 1e6, "µs", 0.3),
        Figure("one claim that waits, of 300 tasks", median(samples["waiting, off"]) * 1e6, "µs"),
        Figure("what Pool.measure() adds to a claim that waits", waiting * 1e6, "µs"),
        *_recording(effort),
    ]


def holders(effort: Effort) -> list[Figure]:
    """Measure what it adds to a claim that explain() and the errors of claims can say who has it, and since when."""
    contestants = {
        "noted": partial(_claim, 3, 16, None, effort.claims),
        "deleted": partial(_claim_with, without_notes_of_holders, effort.claims),
    }
    samples = by_turns(contestants, max(effort.rounds, 5))
    added = median(noted - deleted for noted, deleted in zip(samples["noted"], samples["deleted"], strict=True))
    return [Figure("what it adds to a claim that its holder is noted", added * 1e6, "µs", 0.3)]


def _recording(effort: Effort) -> list[Figure]:
    """Measure what one recorded time costs in a histogram of OpenTelemetry's SDK, of which a claim would need two."""
    try:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    except ImportError:
        return []
    provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    histogram = provider.get_meter("bench").create_histogram("bench")
    attributes = {"db.client.connection.pool.name": "bench"}
    seconds = []
    for _ in range(effort.rounds):
        started = thread_time()
        for _ in range(effort.claims):
            histogram.record(0.001, attributes)
        seconds.append((thread_time() - started) / effort.claims)
    provider.shutdown()
    return [Figure("one time recorded by OpenTelemetry's SDK instead", median(seconds) * 1e6, "µs")]


def claim_object(effort: Effort) -> list[Figure]:
    """Measure the same claim by `claim = await pool.claim()` and `claim.release()`."""
    seconds = [sample(partial(_claim_and_release, effort.claims)) for _ in range(effort.rounds)]
    return [Figure("one claim as an object, awaited and released", median(seconds) * 1e6, "µs")]


async def _claim(
    count: int,
    slots: int,
    observer: Observer | None,
    claims: int,
    *,
    measured: bool = False,
    connector: Callable[[], Connector[object]] = NoOpConnector,
) -> float:
    async with open_pool(backends(count), slots, observer, connector()) as pool:
        if measured:
            pool.measure()
        await _claim_often(pool, max(claims // 10, slots))
        started = thread_time()
        await _claim_often(pool, claims)
        return (thread_time() - started) / claims


async def _claim_in_a_crowd(tasks: int, claims: int, *, measured: bool) -> float:
    """Claim in many tasks side by side, on 16 connections, each of which is held for one turn of the loop."""

    async def claim_often() -> None:
        for _ in range(claims // tasks):
            async with pool.claim():
                await asyncio.sleep(0)

    async with open_pool(backends(3), 16) as pool:
        if measured:
            pool.measure()
        started = thread_time()
        await asyncio.wait([asyncio.create_task(claim_often()) for _ in range(tasks)])
        return (thread_time() - started) / (claims // tasks * tasks)


async def _claim_with(
    change: Callable[[], AbstractContextManager[None]],
    claims: int,
    connector: Callable[[], Connector[object]] = NoOpConnector,
) -> float:
    with change():
        return await _claim(3, 16, None, claims, connector=connector)


async def _claim_often(pool: Pool[object], times: int) -> None:
    for _ in range(times):
        async with pool.claim():
            pass


async def _claim_and_release(claims: int) -> float:
    async with open_pool(backends(3), 16) as pool:
        started = thread_time()
        for _ in range(claims):
            claim = await pool.claim()
            claim.release()
        return (thread_time() - started) / claims


def _look_away(_event: object) -> None:
    pass


@dataclass(slots=True)
class Holdings:
    """A backend as the planner sees it."""

    connecting: int = 0
    unclaimed: int = 0
    checking: int = 0
    claimed: int = 0
    ending: int = 0
    attempting: int = 0
    online: bool = True
    untried: bool = False
    failing: bool = False
    leaving: bool = False
    next_attempt: float = 0.0
    last_attempt: float = 0.0
    since: float = 0.0


PLANS: Mapping[str, Callable[[int], Holdings]] = {
    "all to be started": lambda _: Holdings(online=False, untried=True),
    "all idle": lambda _: Holdings(unclaimed=4),
    "unevenly claimed": lambda n: Holdings(claimed=n % 5, unclaimed=4 - n % 5),
    "half of the backends dead": lambda n: Holdings(unclaimed=4) if n % 2 else Holdings(connecting=1, online=False),
    "half of the backends failing": lambda n: Holdings(unclaimed=1 + n % 7, connecting=1, failing=n % 2 > 0),
}


def planner(effort: Effort) -> list[Figure]:
    """Plan 4,000 slots for 1,000 backends, in several situations."""
    limits = Limits(spares_wanted=4_000, max_slots=4_000, max_slots_per_backend=16, max_connection_backoff=30.0)
    figures = []
    for situation, holdings in PLANS.items():
        sets = [holdings(n) for n in range(1_000)]
        seconds = [max(_plan(grow, sets, limits), _plan(rebalance, sets, limits)) for _ in range(effort.rounds)]
        figures.append(Figure(f"planning 4,000 slots of 1,000 backends, {situation}", median(seconds) * 1e3, "ms", 2))
    return figures


def _plan(decide: Callable[..., object], sets: Sequence[Holdings], limits: Limits) -> float:
    started = thread_time()
    decide(sets, 0, limits, 100.0)
    return thread_time() - started


def memory(effort: Effort) -> list[Figure]:  # noqa: ARG001
    """Weigh an idle slot: a pool of 1,016 beside one of 16, less the connection objects themselves."""
    sample(partial(_allocated, 16))  # what is allocated once and for all
    few, many = sample(partial(_allocated, 16)), sample(partial(_allocated, 1_016))
    return [Figure("memory of an idle slot", (many - few) / 1_000 - getsizeof(object()), "bytes", 4_096)]


async def _allocated(slots: int) -> int:
    places = backends(3)
    gc.collect()
    tracemalloc.start()
    try:
        async with open_pool(places, slots):
            gc.collect()
            return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def idle_cpu(effort: Effort) -> list[Figure]:
    """Take the processor time of 1,000 idle slots between health checks, beyond that of a loop that only sleeps."""
    contestants = {"pool": partial(_sleep_beside_pool, effort.seconds), "loop": partial(_sleep, effort.seconds)}
    samples = by_turns(contestants, min(effort.rounds, 3))
    extra = median(samples["pool"]) - median(samples["loop"])
    return [Figure("1,000 idle slots, share of a processor", max(0.0, extra / effort.seconds) * 100, "%", 0.1)]


async def _sleep_beside_pool(seconds: float) -> float:
    async with open_pool(backends(3), 1_000):
        return await _sleep(seconds)


async def _sleep(seconds: float) -> float:
    await asyncio.sleep(0.1)  # what the start has left to do
    gc.collect()
    started = process_time()
    await asyncio.sleep(seconds)
    return process_time() - started


def waiters(effort: Effort) -> list[Figure]:
    """Terminate with 10,000 claims waiting: how long the loop stands still while they are failed."""
    both = [sample(partial(_fail_waiters, 10_000)) for _ in range(effort.rounds)]
    return [
        Figure("failing 10,000 waiting claims", median(failing for failing, _ in both) * 1e3, "ms", 20),
        Figure("until all 10,000 callers have their error", median(told for _, told in both) * 1e3, "ms"),
    ]


async def _fail_waiters(count: int) -> tuple[float, float]:
    async with open_pool(backends(3), 16) as pool:
        held = [await pool.claim() for _ in range(16)]
        crowd = [asyncio.create_task(_wait_in_vain(pool)) for _ in range(count)]
        await asyncio.sleep(0)
        if pool.stats().waiting != count:
            raise AssertionError(f"{pool.stats().waiting} claims wait, not {count}")
        started = thread_time()
        end = asyncio.create_task(pool.terminate(grace=0))
        await asyncio.sleep(0)  # the first step of terminate() and nothing of what follows from it
        failing = thread_time() - started
        await asyncio.wait(crowd)
        told = thread_time() - started
        await end
        del held
    return failing, told


async def _wait_in_vain(pool: Pool[object]) -> None:
    try:
        async with pool.claim():
            raise AssertionError("a claim came through although every connection is held")
    except PoolTerminatedError:
        pass


def deadlines(effort: Effort) -> list[Figure]:
    """Let 1,000 claims time out at the same moment: how late the last of them hears of it."""
    late = [sample(partial(_miss_deadlines, 1_000, 0.1)) for _ in range(effort.rounds)]
    if min(min(each) for each in late) < 0:
        raise AssertionError("a claim timed out before its deadline")
    return [Figure("lateness of 1,000 deadlines due at once", median(max(each) for each in late) * 1e3, "ms", 15)]


async def _miss_deadlines(count: int, patience: float) -> list[float]:
    async with open_pool(backends(3), 16) as pool:
        held = [await pool.claim() for _ in range(16)]
        late: list[float] = []
        await asyncio.wait([asyncio.create_task(_miss_deadline(pool, patience, late)) for _ in range(count)])
        for claim in held:
            claim.release()
    if len(late) != count:
        raise AssertionError(f"{len(late)} claims timed out, not {count}")
    return late


async def _miss_deadline(pool: Pool[object], patience: float, late: list[float]) -> None:
    clock = asyncio.get_running_loop().time
    due = clock() + patience
    try:
        await pool.claim(timeout=patience)
    except ClaimTimeoutError:
        late.append(clock() - due)


TROUBLE: Mapping[str, Mapping[str, int]] = {
    "500 dead backends": {"dead": 500},
    "100 hanging connects": {"connect": 100},
    "100 hanging checks": {"check": 100},
    "100 hanging closes": {"close": 100},
    "all of these together": {"dead": 500, "connect": 100, "check": 100, "close": 100},
}


def termination(effort: Effort) -> list[Figure]:
    """Terminate pools in which nothing answers any more. A graceful close may take 25 ms of it."""
    samples = by_turns({name: partial(_terminate, trouble) for name, trouble in TROUBLE.items()}, effort.rounds)
    return [Figure(f"terminate() with {name}", median(each) * 1e3, "ms", 50) for name, each in samples.items()]


async def _terminate(trouble: Mapping[str, int]) -> float:
    places = [backend for kind, count in trouble.items() for backend in backends(count, kind)]
    policy = Policy(
        spares_wanted=len(places),
        max_slots=len(places),
        max_slots_per_backend=1,
        connect_timeout=600,
        min_connection_backoff=30,
        health_interval=0.05,
        health_check_timeout=600,
        close_timeout=600,
    )
    connector = BadConnector()
    pool = Pool("bench", FixedResolver(places), connector, policy)
    await pool.start()
    await _until(lambda: _in_trouble(connector, trouble))
    started = perf_counter()
    await pool.terminate()
    taken = perf_counter() - started
    calls = connector.calls
    await asyncio.sleep(0)
    if connector.hanging.total() or connector.calls != calls or not pool.ledger().empty:
        raise AssertionError(f"terminate() left something: {connector.hanging}, {pool.ledger()}")
    return taken


def _in_trouble(connector: BadConnector, trouble: Mapping[str, int]) -> bool:
    hanging = {kind: count for kind, count in trouble.items() if kind != "dead"}
    return len(connector.refused) == trouble.get("dead", 0) and all(
        connector.hanging[kind] == count for kind, count in hanging.items()
    )


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the connector under it counts, and tells nobody
            await asyncio.sleep(0.005)
