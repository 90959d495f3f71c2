"""The view for pipes, files and plain terminals: a line for everything that happens, and one each second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from qorb._demo.frame import in_short, milliseconds
from qorb._demo.journal import Kind

if TYPE_CHECKING:
    from qorb._demo.frame import Frame, Row
    from qorb._demo.journal import Entry

_MOST_ROWS = 6

_LEADS = {Kind.STEP: "==>", Kind.LOOK: "    look:", Kind.POOL: "    pool:", Kind.LOG: "    log:"}


class PlainView:
    """Prints lines of ASCII without control characters."""

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
        _print("Each backend: up or DOWN, slots connecting/unclaimed/checking/claimed, claims/s; then what is odd.")

    def tell(self, entry: Entry) -> None:
        """Print it."""
        _print(f"{entry.at:6.2f} s  {_LEADS[entry.kind]} {entry.text}")

    def show(self, frame: Frame) -> None:
        """Print a line if a second has passed since the last one."""
        if frame.elapsed < self._next_second:
            return
        self._next_second = int(frame.elapsed) + 1
        latency = f"p50 {milliseconds(frame.latency_p50)}, p99 {milliseconds(frame.latency_p99)}"
        claims = f"{frame.claims_per_second:.0f} claims/s, {frame.waiting} waiting, {latency}"
        parts = [f"{frame.elapsed:6.2f} s  {claims}", *map(_backend, frame.rows[:_MOST_ROWS])]
        if len(frame.rows) > _MOST_ROWS:
            parts.append(f"{len(frame.rows) - _MOST_ROWS} more")
        if frame.dns:
            parts.append(frame.dns)
        _print(" | ".join(parts))

    def conclude(self, lines: list[str]) -> None:
        """Print the report."""
        for line in lines:
            _print(line)


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
