"""How anything here is measured: a fresh event loop for every sample, contestants by turns, medians.

What a claim costs is taken in processor time of the loop's thread, which other programs do not add to; nobody here uses
other threads. What somebody waits for is taken on the clock.
"""

import asyncio
import gc
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import median
from typing import TypeVar

T = TypeVar("T")

Sampler = Callable[[], Awaitable[T]]


def sample(main: Sampler[T]) -> T:
    """Run one sample in an event loop of its own, so that no contestant inherits another's timers or tasks.

    Garbage of the one before is collected first; during the sample the collector runs as it does in an application, for
    every contestant alike. asyncio's debug mode is off whatever the environment says.
    """
    gc.collect()
    with asyncio.Runner(debug=False) as runner:
        return runner.run(_awaited(main))


async def _awaited(main: Sampler[T]) -> T:
    return await main()


def by_turns(contestants: Mapping[str, Sampler[T]], rounds: int) -> dict[str, list[T]]:
    """Sample every contestant once a round: A B C, A B C and so on.

    What slows the machine down for a while then hits all of them, and one round's samples can be compared as a pair.
    """
    samples: dict[str, list[T]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, main in contestants.items():
            samples[name].append(sample(main))
    return samples


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios within each round."""
    return median(our / their for our, their in zip(ours, theirs, strict=True))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0 to 1) of the sorted values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
