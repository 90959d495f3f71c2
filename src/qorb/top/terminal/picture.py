"""What the view draws, line by line, as text and what it means. Every line is exactly as wide as it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qorb.top.terminal.rows import Order, bar, sparkline
from qorb.top.terminal.words import count, latency, legible, rate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qorb.top.terminal.board import Board
    from qorb.top.terminal.frame import Counts
    from qorb.top.terminal.rates import Reading
    from qorb.top.terminal.rows import Row

Part = tuple[str, str]
"""Text, and its meaning: "" is none in particular; _textual has the styles of all others."""
Line = list[Part]

_SLOTS = (("claimed", "█"), ("unclaimed", "░"), ("checking", "▒"), ("connecting", "·"))
_LEAST_NAME, _MOST_NAME = 12, 40
_WIDE = 110
"""From here on there is room for longer bars and sparklines."""
_LEAST_ERROR = 24
"""Where there is room; with less, names go first, and the selected backend's error is seen below."""


def head(board: Board, now: float, width: int) -> list[Line]:
    """Draw what is true of the whole pool."""
    reading = board.reading
    pool = "" if reading is None or reading.frame.pool is None else legible(reading.frame.pool, 60)
    state = "" if reading is None or reading.frame.state is None else legible(reading.frame.state, 20)
    status = _status(board, now)
    left: Line = [(" qorb top ", "title"), (f" {pool}", "strong"), (f" {state}", "" if state == "running" else "bad")]
    room = width - _length(left) - len(status[0]) - 3
    place = legible(board.address, max(8, room))
    lines = [_ends(left, [(f"{place}  ", "dim"), status, (" ", "")], width)]
    if reading is None:
        return [*lines, _fit([], width), _fit([], width), _fit([], width)]
    return [*lines, _totals(reading, width), _slots(reading, width), _latencies(reading, width)]


def _status(board: Board, now: float) -> Part:
    if board.paused_at is not None:
        return f"paused for {now - board.paused_at:.0f} s", "warn"
    if board.trouble is not None:
        return "no connection", "bad"
    return ("connecting", "warn") if board.connecting else ("live", "good")


def _totals(reading: Reading, width: int) -> Line:
    frame = reading.frame
    known = [one for one in reading.samples if one is not None]
    drawn = sparkline(reading.samples, max(known, default=0.0), max(10, min(60, width - 66)))
    parts: Line = [(" claims/s ", "dim"), (f"{rate(reading.claims_per_second):>7}", "strong"), (f" {drawn}", "spark")]
    if frame.waiting is not None:
        parts += [("   waiting ", "dim"), (count(frame.waiting), "warn" if frame.waiting else "strong")]
    parts += [("   backends ", "dim")]
    online = [counts.online for counts in frame.backends.values() if counts.online is not None]
    if online or not frame.backends:
        all_of_them = sum(online) == len(frame.backends)
        parts += [(f"{count(sum(online))} of {count(len(frame.backends))} online", "strong" if all_of_them else "bad")]
    else:
        parts += [(count(len(frame.backends)), "strong")]
    return _fit(parts, width)


def _slots(reading: Reading, width: int) -> Line:
    all_counts = reading.frame.backends.values()
    parts: Line = [(" slots ", "dim"), (f"{count(sum(counts.slots for counts in all_counts)):<6}", "strong")]
    for state, mark in _SLOTS:
        number = sum(getattr(counts, f"{state}_slots") for counts in all_counts)
        parts += [(f" {mark} ", state), (count(number), "strong"), (f" {state}  ", "dim")]
    return _fit(parts, width)


def _latencies(reading: Reading, width: int) -> Line:
    parts: Line = []
    for name, figures in reading.latencies.items():
        more = [(f" {name} ", "dim"), (latency(figures).replace("<=", "≤"), ""), ("  ", "")]
        if _length(parts) + _length(more) > width:
            break
        parts += more
    return _fit(parts, width)


def trouble(board: Board, now: float, width: int) -> Line | None:
    """Draw why there is no connection; None when all is well."""
    if board.trouble is None:
        return None
    left = max(0.0, board.trouble.again_at - now)
    again = "connecting again" if board.connecting or not left else f"again in {left:.0f} s"
    reason = legible(board.trouble.reason, max(20, width - len(again) - 4))
    return _fit([(f" {reason}; {again}", "trouble")], width, "trouble")


class Columns:
    """Where what stands, for a width."""

    def __init__(self, width: int, rows: Sequence[Row]) -> None:
        """Share the width out: names first, for by them one finds one's way, then errors."""
        self.width = width
        self.bar, self.spark = (16, 20) if width >= _WIDE else (10, 8)
        longest = max((len(legible(row.name, _MOST_NAME)) for row in rows), default=0)
        fixed = 1 + 1 + 7 + 1 + self.bar + 1 + 8 + 1 + 8 + 1 + self.spark + 1 + 5 + 1
        room = width - fixed - (_LEAST_ERROR if width >= _WIDE else 0)
        self.name: int = max(_LEAST_NAME, min(longest, _MOST_NAME, room))
        self.error: int = max(0, width - fixed - self.name)

    def title(self, board: Board) -> Line:
        """Draw the names of the columns, with an arrow at the one by which is sorted."""
        order, backwards = board.choice.order, board.choice.backwards

        def name(text: str, width: int, by: Order | None = None, *, right: bool = False) -> str:
            up = backwards != (order is Order.NAME)
            text = f"{text}{'▲' if up else '▼'}" if by is order else text
            return (text.rjust(width) if right else text.ljust(width))[:width]

        cells = (
            name("backend", self.name, Order.NAME),
            name("state", 7, Order.STATE),
            name("slots", self.bar),
            name("claimed", 8, Order.CLAIMED, right=True),
            name("claims/s", 8 if order is not Order.CLAIMS_PER_SECOND else 9, Order.CLAIMS_PER_SECOND, right=True),
            name("", self.spark if order is not Order.CLAIMS_PER_SECOND else self.spark - 1),
            name("fails", 5, Order.FAILURES, right=True)
            if order is not Order.FAILURES
            else name("fail", 5, Order.FAILURES, right=True),
            name("last error", self.error),
        )
        return _fit([(f" {' '.join(cells)}", "columns")], self.width, "columns")

    def row(self, row: Row, reading: Reading, largest: int, *, selected: bool) -> Line:
        """Draw one backend."""
        counts = row.counts
        state, meaning = _state(counts)
        failures = count(counts.failures)
        parts: Line = [
            (f" {legible(row.name, self.name):<{self.name}} ", "strong" if selected else ""),
            (f"{state:<7} ", meaning),
            *self._bar(counts, largest),
            (f" {f'{count(counts.claimed_slots)}/{count(counts.slots)}':>8} ", ""),
            (f"{rate(row.per_second):>8} ", "strong"),
            (sparkline(row.samples, reading.peak, self.spark), "spark"),
            (f" {failures:>5} ", "bad" if counts.failures else "dim"),
            (legible(counts.last_error or "", max(4, self.error)), "bad" if counts.failures else "dim"),
        ]
        return _fit(parts, self.width)

    def _bar(self, counts: Counts, largest: int) -> Iterable[Part]:
        cells = bar(counts, largest, self.bar)
        for (state, mark), number in zip(_SLOTS, cells, strict=True):
            yield mark * number, state
        yield " " * (self.bar - sum(cells)), ""


def _state(counts: Counts) -> Part:
    if counts.online is None:
        return "", ""
    return ("online", "good") if counts.online else ("OFFLINE", "bad")


def table(board: Board, width: int, height: int, top: int) -> list[Line]:
    """Draw the names of the columns and, from the row `top` on, as many backends as there is room for."""
    reading = board.reading
    shown = board.rows[top : top + height - 1]
    columns = Columns(width, shown)
    lines = [columns.title(board)]
    if reading is None:
        return lines
    largest = max((counts.slots for counts in reading.frame.backends.values()), default=0)
    selected = board.index
    lines += [
        columns.row(row, reading, largest, selected=number == selected) for number, row in enumerate(shown, start=top)
    ]
    if not board.rows:
        wanted = legible(board.choice.wanted, 40)
        lines.append(_fit([(f" no backend matches {wanted!r}" if wanted else " no backend", "dim")], width))
    return lines


def detail(board: Board, width: int) -> list[Line]:
    """Draw the selected backend's numbers and all of its last error, in three lines.

    While none is selected, it is the one with the most failures; when there are none, what can be done.
    """
    index = board.index
    if index is not None:
        return _detail(board.rows[index], "", width)
    failing = max(board.rows, key=lambda row: row.counts.failures or 0, default=None)
    if failing is not None and failing.counts.failures:
        return _detail(failing, "most failures: ", width)
    total = 0 if board.reading is None else len(board.reading.frame.backends)
    wanted = f", with {legible(board.choice.wanted, 30)!r} in name or error" if board.choice.wanted else ""
    said = f" {count(len(board.rows))} of {count(total)} backends{wanted}; ↑ ↓ choose one to see all of its last error"
    return [_fit([(said, "dim")], width), _fit([], width), _fit([], width)]


def _detail(row: Row, why: str, width: int) -> list[Line]:
    counts = row.counts
    numbers = [(getattr(counts, f"{state}_slots"), state) for state, _ in _SLOTS]
    slots = ", ".join(f"{count(number)} {state}" for number, state in numbers if number) or "no slots"
    lately = "" if counts.failures is None else f"; {count(counts.failures)} failures lately"
    said = f"  {slots}; {count(counts.total_claims)} claims in all{lately}"
    room = width - 2
    error = legible(counts.last_error or "", max(4, 2 * room))
    meaning = "bad" if counts.failures else "dim"
    return [
        _fit([(f" {why}", "dim"), (legible(row.name, width), "strong"), (said, "")], width),
        _fit([(f" {error[:room]}", meaning)], width),
        _fit([(f" {error[room:]}", meaning)], width),
    ]


def _length(parts: Line) -> int:
    return sum(len(text) for text, _ in parts)


def _fit(parts: Line, width: int, rest: str = "") -> Line:
    """Cut, or fill up with spaces."""
    fitted: Line = []
    for text, meaning in parts:
        fitted.append((text[:width], meaning))
        width -= len(text[:width])
    return [*fitted, (" " * width, rest)]


def _ends(left: Line, right: Line, width: int) -> Line:
    between = max(1, width - _length(left) - _length(right))
    return _fit([*left, (" " * between, ""), *right], width)
