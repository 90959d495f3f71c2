"""Reading pools for whoever publishes their numbers: without keeping them alive, and under names that differ."""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from qorb.errors import PoolForkedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, MutableMapping

    from qorb.policy import Policy
    from qorb.pool import Pool
    from qorb.stats import PoolStats, Timings


@dataclass(frozen=True, slots=True)
class Reading:
    """What there is to publish about one pool at this moment."""

    pool: Pool[Any]
    name: str
    """The pool's name; with "#2" and so on behind it when that is another pool's."""
    policy: Policy
    stats: PoolStats
    timings: Timings | None


def read(pools: Iterable[Pool[Any]], names: MutableMapping[Pool[Any], str] | None = None) -> Iterator[Reading]:
    """Read the pools, each once, in this order; any thread may. One that was started before a fork is left out.

    `names`: those that pools were read under before, and keep; what is new is added.
    """
    names = {} if names is None else names
    found: list[tuple[Pool[Any], PoolStats, Timings | None]] = []
    for pool in dict.fromkeys(pools):
        with contextlib.suppress(PoolForkedError):
            found.append((pool, pool.stats(), pool.timings()))
    own = {pool.name for pool, _, _ in found}
    taken = {names[pool] for pool, _, _ in found if pool in names}
    for pool, stats, timings in found:
        if pool not in names:
            taken.add(names.setdefault(pool, _free_name(pool.name, taken, own)))  # another thread may read, too
        yield Reading(pool, names[pool], pool.policy, stats, timings)


def _free_name(name: str, taken: set[str], own: set[str]) -> str:
    """Give the name itself, or with a number that makes it neither one that is taken nor some pool's own."""
    if name not in taken:
        return name
    return next(one for number in count(2) if (one := f"{name}#{number}") not in taken and one not in own)


class Watched:
    """Pools that are read again and again, each under the same name, and are not kept alive by that."""

    __slots__ = ("_names", "_pools")

    def __init__(self, pools: Iterable[Pool[Any]]) -> None:
        """Know these pools, as long as there is somebody else who does."""
        self._pools: list[weakref.ref[Pool[Any]]] = [weakref.ref(pool) for pool in pools]
        self._names: weakref.WeakKeyDictionary[Pool[Any], str] = weakref.WeakKeyDictionary()
        """A series of numbers is one pool's: of two that share a name, neither goes on where the other has ended."""

    def add(self, pools: Iterable[Pool[Any]]) -> None:
        """Know these pools, too, each once, and forget those that are gone. Another thread may be reading."""
        known = [reference for reference in self._pools if reference() is not None]
        added = dict.fromkeys(weakref.ref(pool) for pool in pools)
        self._pools = known + [reference for reference in added if reference not in known]

    def read(self) -> Iterator[Reading]:
        """Read those that there still are."""
        return read((pool for pool in [reference() for reference in self._pools] if pool is not None), self._names)
