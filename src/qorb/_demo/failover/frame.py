"""What there is to show at one moment of the demo with PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qorb._demo.frame import Moment

if TYPE_CHECKING:
    from qorb._demo.frame import Frame, Row

_UNFIT = "BackendUnfitError: "


@dataclass(frozen=True, slots=True)
class ClusterFrame(Moment):
    """Everything that a view shows beside the journal."""

    writes: Frame
    """Of the pool with role="primary"."""
    reads: Frame
    """Of the pool with role="replica"."""
    failed_writes: int
    """Claims for writing that failed."""
    failed_reads: int

    @property
    def right(self) -> int:
        """How many answers were right."""
        return self.writes.right + self.reads.right

    @property
    def wrong(self) -> int:
        """How many answers were somebody else's."""
        return self.writes.wrong + self.reads.wrong

    @property
    def cut_short(self) -> int:
        """How many queries failed by what the demo did."""
        return self.writes.cut_short + self.reads.cut_short

    @property
    def surprises(self) -> int:
        """How many failures nothing explains."""
        return self.writes.surprises + self.reads.surprises


def is_unfit(row: Row) -> bool:
    """Say whether a server is left aside for its role alone."""
    return not row.online and (row.last_error or "").startswith(_UNFIT)
