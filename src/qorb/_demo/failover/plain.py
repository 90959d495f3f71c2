"""The view of the demo with PostgreSQL for pipes, files and plain terminals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qorb._demo.failover.frame import ClusterFrame, is_unfit
from qorb._demo.frame import in_short, milliseconds
from qorb._demo.plain import Lines

if TYPE_CHECKING:
    from qorb._demo.frame import Frame, Row


class ClusterLines(Lines[ClusterFrame]):
    """Of two pools over the same servers."""

    legend = (
        "Each second: how the servers are; for each pool its claims, and connecting/unclaimed/checking/claimed slots."
    )

    def __init__(self) -> None:
        """Print nothing yet."""
        super().__init__()
        self._errors: dict[tuple[str, str], str] = {}
        """What was last said of a server that a pool cannot reach: once is enough."""

    def line(self, frame: ClusterFrame) -> str:
        """Say how the servers are, then each pool, with the servers that have its role."""
        servers = ", ".join(f"{row.name} {row.server}" for row in frame.writes.rows)
        return " | ".join(
            (servers or "no servers yet", self._pool("writes", frame.writes), self._pool("reads", frame.reads))
        )

    def _pool(self, name: str, frame: Frame) -> str:
        latency = f"p50 {milliseconds(frame.latency_p50)} p99 {milliseconds(frame.latency_p99)}"
        waiting = f", {frame.waiting} waiting" if frame.waiting else ""
        rows = [self._row(name, row) for row in frame.rows if not is_unfit(row)]
        return f"{name} {frame.claims_per_second:.0f}/s {latency}{waiting}: {', '.join(rows) or 'no server'}"

    def _row(self, pool: str, row: Row) -> str:
        key = pool, row.name
        if row.online:
            self._errors.pop(key, None)
            return f"{row.name} {row.connecting}/{row.unclaimed}/{row.checking}/{row.claimed}"
        error = in_short(row.last_error or "")
        if self._errors.get(key, "") == error:
            return f"{row.name} DOWN"
        self._errors[key] = error
        return f"{row.name} DOWN ({error})"
