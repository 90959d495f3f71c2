"""The view for pipes, files and plain terminals: a line for everything that happens, and one each second."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Self

from qorb._demo.frame import in_short, milliseconds
from qorb._demo.journal import Kind
from qorb._demo.view import F

if TYPE_CHECKING:
    from qorb._demo.frame import Frame, Row
    from qorb._demo.journal import Entry

_MOST_ROWS = 6

_LEADS = {
    Kind.STEP: "==>",
    Kind.LOOK: "    look:",
    Kind.DONE: "    done:",
    Kind.POOL: "    pool:",
    Kind.LOG: "    log:",
}


class Lines(ABC, Generic[F]):
    """Prints lines of ASCII without control characters."""

    legend: str
    """How to read the lines that come every second."""

    def __init__(self) -> None:
        """Print nothing yet."""
        self._next_second = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def open(self, heading: list[str]) -> None:
        """Print the heading and how to read the lines that follow."""
        for line in heading:
            _print(line)
        _print(self.legend)

    def tell(self, entry: Entry) -> None:
        """Print it."""
        _print(f"{entry.at:6.2f} s  {_LEADS[entry.kind]} {entry.text}")

    def show(self, frame: F) -> None:
        """Print a line if a second has passed since the last one."""
        if frame.elapsed < self._next_second:
            return
        self._next_second = int(frame.elapsed) + 1
        _print(f"{frame.elapsed:6.2f} s  {self.line(frame)}")

    @abstractmethod
    def line(self, frame: F) -> str:
        """Say in a line how things are."""

    def conclude(self, lines: list[str]) -> None:
        """Print the report."""
        for line in lines:
            _print(line)


class PlainView(Lines["Frame"]):
    """Of one pool."""

    legend = "Each backend: up or DOWN, slots connecting/unclaimed/checking/claimed, claims/s; then what is odd."

    def line(self, frame: Frame) -> str:
        """Say how the pool is, then each backend, then DNS; and when claims wait, how the pool explains that."""
        latency = f"p50 {milliseconds(frame.latency_p50)}, p99 {milliseconds(frame.latency_p99)}"
        claims = f"{frame.claims_per_second:.0f} claims/s, {frame.waiting} waiting, {latency}"
        parts = [claims, *map(_backend, frame.rows[:_MOST_ROWS])]
        if len(frame.rows) > _MOST_ROWS:
            parts.append(f"{len(frame.rows) - _MOST_ROWS} more")
        if frame.dns:
            parts.append(frame.dns)
        if frame.waiting:
            parts.append(f"explain: {frame.verdict}")
        return " | ".join(parts)


def _backend(row: Row) -> str:
    slots = f"{row.connecting}/{row.unclaimed}/{row.checking}/{row.claimed}"
    text = f"{row.name} {'up' if row.online else 'DOWN'} {slots} {row.claims_per_second:.0f}/s"
    if row.server != "well":
        text += f" {row.server}"
    if row.failures:
        text += f" failures {row.failures}"
    return text if row.online or row.last_error is None else f"{text} ({in_short(row.last_error)})"


def _print(line: str) -> None:
    # What reads a pipe sees it now, and a name or an error that is not ASCII cannot end the demo.
    print(line.encode("ascii", "backslashreplace").decode(), flush=True)
