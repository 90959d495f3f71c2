"""The live table, drawn with rich, on the terminal's alternate screen: the one before comes back at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from qorb._demo.frame import in_short, milliseconds
from qorb._demo.journal import Entry, Kind
from qorb._demo.view import F

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from qorb._demo.frame import Frame, Row

_COLUMNS = (
    ("backend", 8),
    ("server", 7),
    ("online", 6),
    ("connecting", 10),
    ("unclaimed", 9),
    ("checking", 8),
    ("claimed", 7),
    ("claims/s", 8),
    ("failures", 8),
)
_LEFT_ALIGNED = {"backend", "server", "online"}
_TABLE_WIDTH = sum(width for _, width in _COLUMNS) + len(_COLUMNS) - 1
_STRIP_FROM = _TABLE_WIDTH + 16
"""From this width on each backend's slots are drawn, too, one mark each."""

_LEAST_NEWS = 4

_CONNECTING, _UNCLAIMED, _CHECKING, _CLAIMED = "yellow", "green", "cyan", "bold blue"
_SERVER_STYLES = {"well": "green", "killed": "bold red", "hung": "bold yellow", "removed": "bold magenta"}
_ENTRY_STYLES = {Kind.STEP: "bold", Kind.LOOK: "cyan", Kind.DONE: "bold", Kind.POOL: "", Kind.LOG: "yellow"}
_LEADS = {Kind.STEP: "", Kind.LOOK: "look: ", Kind.DONE: "done: ", Kind.POOL: "  pool: ", Kind.LOG: "  log: "}


class Screen(ABC, Generic[F]):
    """Redraws the whole screen with every frame.

    Leaving it brings the screen from before back and prints onto it what happened.
    """

    def __init__(self) -> None:
        """Leave the terminal as it is, yet."""
        self._console = Console(highlight=False)
        self._live = Live(
            console=self._console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._heading: list[str] = []
        self._entries: list[Entry] = []

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, traceback)
        self._print(*(Text(line, "bold") for line in self._heading[:1]))
        self._print(*(line(entry) for entry in self._entries if entry.kind is not Kind.LOOK))

    def open(self, heading: list[str]) -> None:
        """Keep the heading for the top of the screen."""
        self._heading = heading

    def tell(self, entry: Entry) -> None:
        """Keep it for the bottom of the screen."""
        self._entries.append(entry)

    def show(self, frame: F) -> None:
        """Draw everything anew."""
        self._live.update(Group(*self.lines(frame, *self._console.size)), refresh=True)

    def conclude(self, lines: list[str]) -> None:
        """Print the report; bold, what is left."""
        self._print(*(Text(line, "bold" if line.startswith("left:") else "") for line in lines))

    def lines(self, frame: F, width: int, height: int) -> list[Text]:
        """Give the lines for a terminal of that size: never more than it has, the oldest news go first."""
        above = [*self._top(frame, width), Text()]
        below = [Text(), *self.totals(frame), Text()]
        table = self.table(frame, width, height - len(above) - len(below) - _LEAST_NEWS)
        lines = [*above, *table, *below]
        lines += self._news(height - len(lines))
        for one in lines:
            one.no_wrap = True
            one.overflow = "ellipsis"
        return lines[:height]

    @abstractmethod
    def table(self, frame: F, width: int, room: int) -> list[Text]:
        """Draw the servers, in not many more than `room` lines."""

    @abstractmethod
    def totals(self, frame: F) -> list[Text]:
        """Draw the sums, and whatever is one of a kind."""

    def _top(self, frame: F, width: int) -> list[Text]:
        clock = f" {frame.elapsed:4.1f} of {frame.seconds:g} s"
        length = min(width, _TABLE_WIDTH) - len(clock)
        done = round(min(frame.elapsed / frame.seconds, 1.0) * length)
        bar = Text.assemble(("━" * done, "green"), ("─" * (length - done), "dim"), (clock, "bold"))
        return [Text(self._heading[0], style="bold"), *(Text(line, style="dim") for line in self._heading[1:]), bar]

    def _news(self, room: int) -> list[Text]:
        """Give the latest entries, oldest first; the step that is under way stays however many come after it."""
        steps = [number for number, entry in enumerate(self._entries) if entry.kind is Kind.STEP]
        under_way = steps[-1] if steps else 0
        before = [entry for entry in self._entries[:under_way] if entry.kind is not Kind.LOOK]
        step, since = self._entries[under_way : under_way + 2], self._entries[under_way + 2 :]
        since = since[max(len(since) - max(room - len(step), 0), 0) :]
        before = before[max(len(before) + len(step) + len(since) - room, 0) :]
        return [line(entry) for entry in (*before, *step, *since)]

    def _print(self, *lines: Text) -> None:
        for line in lines:
            self._console.print(line, soft_wrap=True)


class LiveView(Screen["Frame"]):
    """Of one pool."""

    def __init__(self) -> None:
        """Leave the terminal as it is, yet."""
        super().__init__()
        self._frames = 0
        self._conditions: dict[str, tuple[str, bool]] = {}
        self._changed: dict[str, int] = {}
        """For each backend the number of the frame in which it came, or was in another condition than before."""

    def table(self, frame: Frame, width: int, room: int) -> list[Text]:
        """Draw the head and as many backends as there is room for; their errors too, when all have room."""
        self._notice(frame.rows)
        return _table(frame.rows, self._changed, width, room)

    def totals(self, frame: Frame) -> list[Text]:
        """Draw rates and latencies, the echoes, DNS, and what explain() says first."""
        return _totals(frame)

    def _notice(self, rows: tuple[Row, ...]) -> None:
        """Remember which backends have come, or are in another condition than they were in the last frame."""
        self._frames += 1
        conditions = {row.name: (row.server, row.online) for row in rows}
        self._changed = {
            name: self._changed[name] if self._conditions.get(name) == condition else self._frames
            for name, condition in conditions.items()
        }
        self._conditions = conditions


def line(entry: Entry) -> Text:
    style = _ENTRY_STYLES[entry.kind]
    return Text.assemble((f"{entry.at:6.2f}  ", "dim"), (f"{_LEADS[entry.kind]}{entry.text}", style))


def _table(rows: tuple[Row, ...], changed: Mapping[str, int], width: int, room: int) -> list[Text]:
    """Draw the head and as many backends as there is room for; their errors too, when all have room.

    When not all have room, those stay whose condition changed last, for it is them that the demo speaks of.
    """
    with_strip = width >= _STRIP_FROM
    head = Text(" ".join(_fit(name, name, size) for name, size in _COLUMNS), style="bold")
    if with_strip:
        head.append("  slots")
    with_errors = 1 + len(rows) + sum(row.last_error is not None for row in rows) <= room
    left_out: set[str] = set()
    if 1 + len(rows) > room:
        latest = sorted(rows, key=lambda row: -changed[row.name])
        left_out = {row.name for row in latest[max(room - 2, 0) :]}
    lines = [head]
    for row in rows:
        if row.name in left_out:
            continue
        line = _row(row)
        lines.append(line.append("  ").append_text(strip(row)) if with_strip else line)
        if with_errors and row.last_error is not None:
            lines.append(Text(f"  last error: {in_short(row.last_error)}", style="dim" if row.online else "red"))
    if left_out:
        lines.append(Text(f"and {len(left_out)} more backends", style="dim"))
    return lines


def _row(row: Row) -> Text:
    cells = (
        (row.name, ""),
        (row.server, _SERVER_STYLES[row.server]),
        ("yes", "green") if row.online else ("no", "bold red"),
        _count(row.connecting, _CONNECTING),
        _count(row.unclaimed, _UNCLAIMED),
        _count(row.checking, _CHECKING),
        _count(row.claimed, _CLAIMED),
        _count(round(row.claims_per_second), "bold"),
        _count(row.failures, "bold red"),
    )
    fitted = [(_fit(text, name, size), style) for (text, style), (name, size) in zip(cells, _COLUMNS, strict=True)]
    return Text(" ").join(Text(text, style) for text, style in fitted)


def strip(row: Row) -> Text:
    return Text.assemble(
        ("■" * row.claimed, _CLAIMED),
        ("■" * row.checking, _CHECKING),
        ("□" * row.unclaimed, _UNCLAIMED),
        ("·" * row.connecting, _CONNECTING),
    )


def _count(number: int, style: str) -> tuple[str, str]:
    return str(number), style if number else "dim"


def _fit(text: str, column: str, size: int) -> str:
    return text[:size].ljust(size) if column in _LEFT_ALIGNED else text[:size].rjust(size)


def _totals(frame: Frame) -> list[Text]:
    latency = f"claim latency p50 {milliseconds(frame.latency_p50)}  p99 {milliseconds(frame.latency_p99)}"
    return [
        Text.assemble(
            (f"claims/s {frame.claims_per_second:.0f}", "bold"),
            "   ",
            (f"waiting {frame.waiting}", "bold yellow" if frame.waiting else "bold"),
            "   ",
            (latency, "bold"),
        ),
        Text.assemble(
            (f"echoes right {frame.right}", "green"),
            "   ",
            (f"wrong {frame.wrong}", "bold red" if frame.wrong else "green"),
            f"   cut short by the demo {frame.cut_short}   ",
            (f"unexpected failures {frame.surprises}", "bold red" if frame.surprises else "green"),
        ),
        Text(frame.dns, "bold yellow" if "silent" in frame.dns else ""),
        Text(f"explain(): {frame.verdict}", "bold yellow" if frame.waiting else ""),
    ]
