"""What a scenario has cost: the claims, by how they ended and when they were begun."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.cluster.load import Try

_STILL = 0.3
"""A claim that was begun within so many seconds of the end and failed: it has not got well."""


@dataclass(slots=True)
class Marks:
    """When what happened, by the loop's clock."""

    strikes: list[tuple[float, float]] = field(default_factory=list)
    """Each fault: when it began, and when it was done."""
    mended: float | None = None
    """When it was taken away."""
    returning: str | None = None
    """The host of the server that came back then, if it was one alone that was harmed."""


@dataclass(frozen=True, slots=True)
class Account:
    """The figures of one pool in one scenario. Times are in seconds."""

    tries: tuple[Try, ...]
    """All claims that had not ended when the fault began, or were begun later."""
    marks: Marks
    open_failed: int
    """Failed, and open as a fault struck."""
    meanwhile: tuple[Try, ...]
    """Failed, and begun when no server could have served them."""
    late: tuple[Try, ...]
    """Failed, and begun when there was a server for them."""
    well_after: float | None
    """From when there was a server until a claim was served and none that was begun later failed. None: not in time."""
    longest: float
    """The longest that a claim waited for its connection, or to be told that there is none."""
    led_there: float | None
    """The share of the claims before the fault that led to the server that was harmed. None: all were harmed."""
    used_after: float | None
    """From its return until a claim was begun that led to the server. None: none was in time, or none came back."""
    left: int
    """Sessions of the pool in pg_stat_activity after it was closed."""

    @property
    def unserved(self) -> int:
        """How many of the late ones were not given a connection."""
        return sum(one.served is None for one in self.late)

    @property
    def broken(self) -> int:
        """How many of the late ones were given a connection, and failed with that."""
        return len(self.late) - self.unserved


def account(tries: Sequence[Try], marks: Marks, left: int, *, served_meanwhile: bool) -> Account:
    """Count. `served_meanwhile`: there was a server for every claim before the fault was mended, too."""
    struck = marks.strikes[0][0]
    concerned = [one for one in tries if one.ended is not None and one.ended >= struck]
    failed = [one for one in concerned if one.error is not None]
    later = [one for one in failed if not any(_overlaps(one, *strike) for strike in marks.strikes)]
    possible = -math.inf if served_meanwhile or marks.mended is None else marks.mended
    late = [one for one in later if one.begun >= possible]
    starts = [done for _, done in marks.strikes] if math.isinf(possible) else [possible]
    return Account(
        tries=tuple(concerned),
        marks=marks,
        open_failed=len(failed) - len(later),
        meanwhile=tuple(one for one in later if one.begun < possible),
        late=tuple(late),
        well_after=_well_after(concerned, late, starts),
        longest=max((one.served or one.ended or one.begun) - one.begun for one in concerned),
        led_there=_led_there([one for one in tries if one.begun < struck], marks),
        used_after=_used_after(concerned, marks),
        left=left,
    )


def _overlaps(one: Try, begun: float, done: float) -> bool:
    return one.begun <= done and one.ended is not None and one.ended >= begun


def _well_after(tries: Sequence[Try], late: Sequence[Try], starts: Sequence[float]) -> float | None:
    end = max(one.begun for one in tries)
    served = [one.ended for one in tries if one.error is None and one.ended is not None]
    delays = [min((ended - start for ended in served if ended >= start), default=math.inf) for start in starts]
    delays += [min(one.begun - start for start in starts if start <= one.begun) for one in late]
    worst = max(delays)
    return None if math.isinf(worst) or any(one.begun > end - _STILL for one in late) else worst


def _led_there(before: Sequence[Try], marks: Marks) -> float | None:
    if marks.returning is None:
        return None
    return sum(one.where == marks.returning for one in before) / len(before)


def _used_after(tries: Sequence[Try], marks: Marks) -> float | None:
    if marks.returning is None or marks.mended is None:
        return None
    since = marks.mended
    uses = (one.begun - since for one in tries if one.where == marks.returning and one.begun > since)
    return min(uses, default=None)
