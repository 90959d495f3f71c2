"""The live table of the demo with PostgreSQL: a line for each server, with what each pool has of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from qorb._demo._rich import Screen, strip
from qorb._demo.failover.frame import ClusterFrame, is_unfit
from qorb._demo.frame import in_short, milliseconds

if TYPE_CHECKING:
    from qorb._demo.frame import Frame, Row

_NAME, _STATE, _ONLINE, _RATE = 6, 8, 6, 8
_GAP = "   "
_WIDTH = _NAME + 1 + _STATE + 2 * (len(_GAP) + _ONLINE + 1 + 1 + _RATE)
"""Of the table without the slots of both pools, which get what is left."""
_FEWEST_SLOTS, _MOST_SLOTS = 5, 42
_STYLES = {"primary": "bold green", "standby": "green", "killed": "bold red", "hung": "bold yellow"}


class ClusterScreen(Screen[ClusterFrame]):
    """Of two pools over the same servers."""

    def table(self, frame: ClusterFrame, width: int, room: int) -> list[Text]:
        """Draw the servers; below, why a pool cannot reach one that it may need, when there is room."""
        slots = min(max((width - _WIDTH) // 2, _FEWEST_SLOTS), _MOST_SLOTS)
        lines = [*_head(slots)]
        lines += [
            _server(writes, reads, slots) for writes, reads in zip(frame.writes.rows, frame.reads.rows, strict=False)
        ]
        pools = (("writes", frame.writes), ("reads", frame.reads))
        errors = [error for name, pool in pools for row in pool.rows if (error := _error(name, row)) is not None]
        return lines + errors if len(lines) + len(errors) <= room else lines

    def totals(self, frame: ClusterFrame) -> list[Text]:
        """Draw rates and latencies of each pool, the answers, DNS."""
        return [
            _sums("writes", frame.writes, frame.failed_writes),
            _sums("reads ", frame.reads, frame.failed_reads),
            Text.assemble(
                (f"answers right {frame.right}", "green"),
                "   ",
                (f"wrong {frame.wrong}", "bold red" if frame.wrong else "green"),
                f"   cut short by the demo {frame.cut_short}   ",
                (f"unexpected failures {frame.surprises}", "bold red" if frame.surprises else "green"),
            ),
            Text.assemble(
                *(frame.writes.dns, "   ", ("■", "bold blue"), " claimed ", ("□", "green"), " unclaimed "),
                *(("■", "cyan"), " checking ", ("·", "yellow"), " connecting"),
            ),
        ]


def _head(slots: int) -> tuple[Text, Text]:
    columns = f"{'online':{_ONLINE}} {'slots':{slots}} {'claims/s':>{_RATE}}"
    left = " " * (_NAME + 1 + _STATE)
    writes, reads = 'to write: role="primary"'.ljust(len(columns)), 'to read: role="replica"'
    return (
        Text(f"{left}{_GAP}{writes}{_GAP}{reads}", "bold"),
        Text(f"{'server':{_NAME}} {'state':{_STATE}}{_GAP}{columns}{_GAP}{columns}", "bold"),
    )


def _server(writes: Row, reads: Row, slots: int) -> Text:
    state = writes.server
    line = Text.assemble(f"{writes.name:{_NAME}} ", (f"{state:{_STATE}}", _STYLES.get(state, "bold yellow")))
    for row in (writes, reads):
        line.append(_GAP).append_text(_online(row)).append(" ").append_text(_slots(row, slots))
        line.append(f" {row.claims_per_second:{_RATE}.0f}", "bold" if row.claims_per_second else "dim")
    return line


def _online(row: Row) -> Text:
    if row.online:
        return Text(f"{'yes':{_ONLINE}}", "green")
    return Text(f"{'unfit':{_ONLINE}}", "dim") if is_unfit(row) else Text(f"{'no':{_ONLINE}}", "bold red")


def _slots(row: Row, size: int) -> Text:
    marks = strip(row)
    if len(marks) > size:
        marks = Text.assemble((f"{row.claimed}", "bold blue"), "+", (f"{len(marks) - row.claimed}", "green"))
    marks.pad_right(max(size - len(marks), 0))
    return marks


def _error(pool: str, row: Row) -> Text | None:
    if row.online or row.last_error is None or is_unfit(row):
        return None
    return Text(f"  {pool}, {row.name}: {in_short(row.last_error)}", "red")


def _sums(name: str, frame: Frame, failed: int) -> Text:
    return Text.assemble(
        (f"{name} {frame.claims_per_second:4.0f} claims/s", "bold"),
        "   ",
        (f"{frame.waiting:2} waiting", "bold yellow" if frame.waiting else "bold"),
        f"   p50 {milliseconds(frame.latency_p50):>7}  p99 {milliseconds(frame.latency_p99):>7}   ",
        (f"{failed} failed claims", "bold red" if failed else "green"),
    )
