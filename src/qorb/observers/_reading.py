"""Reading pools for whoever publishes their numbers: without keeping them alive, and under names that differ."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qorb.errors import PoolForkedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from qorb.policy import Policy
    from qorb.pool import Pool
    from qorb.stats import PoolStats, Timings


@dataclass(frozen=True, slots=True)
class Reading:
    """What there is to publish about one pool at this moment."""

    name: str
    """The pool's name; with "#2" and so on behind it when an earlier pool bears the same."""
    policy: Policy
    stats: PoolStats
    timings: Timings | None


def read(pools: Iterable[Pool[Any]]) -> Iterator[Reading]:
    """Read the pools, in this order; any thread may. One that another process started, before a fork, is left out."""
    names: dict[str, int] = {}
    for pool in pools:
        try:
            stats, timings = pool.stats(), pool.timings()
        except PoolForkedError:
            continue
        names[pool.name] = number = names.get(pool.name, 0) + 1
        yield Reading(pool.name if number == 1 else f"{pool.name}#{number}", pool.policy, stats, timings)


class Watched:
    """Pools that are read again and again, and are not kept alive by that."""

    __slots__ = ("_pools",)

    def __init__(self, pools: Iterable[Pool[Any]]) -> None:
        """Know these pools, as long as there is somebody else who does."""
        self._pools: list[weakref.ref[Pool[Any]]] = [weakref.ref(pool) for pool in pools]

    def add(self, pools: Iterable[Pool[Any]]) -> None:
        """Know these pools, too, each once, and forget those that are gone. Another thread may be reading."""
        known = [reference for reference in self._pools if reference() is not None]
        added = dict.fromkeys(weakref.ref(pool) for pool in pools)
        self._pools = known + [reference for reference in added if reference not in known]

    def read(self) -> Iterator[Reading]:
        """Read those that there still are."""
        return read(pool for pool in [reference() for reference in self._pools] if pool is not None)
