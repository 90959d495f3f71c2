"""Which backends are shown, in which order, and what is drawn of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qorb.top.terminal.frame import Counts
    from qorb.top.terminal.rates import Reading, Samples

_MOST_CELLS = 4
_LEVELS = "▁▂▃▄▅▆▇█"


class Order(enum.Enum):
    """By what the rows are sorted. What is unknown comes last, whatever the direction."""

    NAME = "name"
    """From A to Z."""
    STATE = "state"
    """Offline ones first."""
    CLAIMED = "claimed"
    """Those with the most claimed slots first, and so on."""
    CLAIMS_PER_SECOND = "claims/s"
    FAILURES = "failures"

    def next(self, step: int = 1) -> Order:
        """Give the one after it, or with -1 the one before."""
        orders = list(Order)
        return orders[(orders.index(self) + step) % len(orders)]


@dataclass(frozen=True, slots=True)
class Row:
    """One backend."""

    name: str
    counts: Counts
    per_second: float | None
    samples: Samples


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a reading is shown, and how."""

    order: Order = Order.NAME
    backwards: bool = False
    wanted: str = ""
    """Only backends that have this in their name or last error, in whatever case."""


_ALL = Choice()


def rows(reading: Reading, choice: Choice = _ALL) -> list[Row]:
    """Choose and sort."""
    wanted = choice.wanted.casefold()
    found = [
        Row(name, counts, reading.per_second.get(name), reading.samples_of.get(name, ()))
        for name, counts in sorted(reading.frame.backends.items())
        if not wanted or wanted in name.casefold() or wanted in (counts.last_error or "").casefold()
    ]
    if choice.order is Order.NAME:
        return found[::-1] if choice.backwards else found
    keys = [(_key(row, choice.order), row) for row in found]
    known = sorted(
        ((key, row) for key, row in keys if key is not None), key=lambda pair: pair[0], reverse=not choice.backwards
    )
    return [row for _, row in known] + [row for key, row in keys if key is None]


def _key(row: Row, order: Order) -> float | None:
    match order:
        case Order.STATE:
            return None if row.counts.online is None else float(not row.counts.online)
        case Order.CLAIMED:
            return row.counts.claimed_slots
        case Order.CLAIMS_PER_SECOND:
            return row.per_second
        case _:
            return row.counts.failures


def bar(counts: Counts, largest: int, width: int) -> tuple[int, int, int, int]:
    """Give how many of `width` cells are claimed, unclaimed, checking and connecting slots.

    `largest` slots fill the width; when there are fewer, each has the same number of cells, at most 4. A state that
    occurs has a cell.
    """
    slots = (counts.claimed_slots, counts.unclaimed_slots, counts.checking_slots, counts.connecting_slots)
    if largest <= width:
        each = min(_MOST_CELLS, width // max(1, largest))
        claimed, unclaimed, checking, connecting = (each * number for number in slots)
        return claimed, unclaimed, checking, connecting
    cells = [max(1, round(number * width / largest)) if number else 0 for number in slots]
    while sum(cells) > width:
        cells[cells.index(max(cells))] -= 1
    claimed, unclaimed, checking, connecting = cells
    return claimed, unclaimed, checking, connecting


def sparkline(samples: Sequence[float | None], peak: float, width: int) -> str:
    """Draw the newest samples, one a cell, the last at the right; nothing where nothing is known."""
    shown = samples[-width:] if width > 0 else ()
    drawn = "".join(" " if one is None else _LEVELS[_level(one, peak)] for one in shown)
    return drawn.rjust(width)


def _level(sample: float, peak: float) -> int:
    if sample <= 0 or peak <= 0:
        return 0
    # The lowest is for zero only.
    return 1 + min(6, int(7 * sample / peak))
