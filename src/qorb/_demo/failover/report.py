"""The end of the demo with PostgreSQL: what is left, and what has become of the writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qorb._demo.frame import milliseconds
from qorb._demo.report import Report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qorb._demo.clients import Tally


@dataclass(frozen=True, slots=True)
class Account:
    """The writes that were acknowledged to clients, and those that the last primary has."""

    acknowledged: int
    lost: int
    """Acknowledged, and not there. None is expected: a standby has each before it is acknowledged."""
    unanswered: int
    """There, and never acknowledged: the answer was cut off."""
    primary: str | None
    """Who was asked; None when there was no primary at the end."""


@dataclass(frozen=True, slots=True)
class ClusterReport(Report):
    """The result of a demo with PostgreSQL; `tally` is that of all clients."""

    writes: Tally
    reads: Tally
    account: Account
    whose: ClassVar[str] = "both pools"
    by_the_servers: ClassVar[str] = "sessions, by pg_stat_activity"

    @property
    def good(self) -> bool:
        """Say whether nothing was left, nothing was lost, and nothing happened but what the demo did on purpose."""
        return Report.good.__get__(self) and not self.account.lost

    def answers(self) -> Iterator[str]:
        """Say what the clients got."""
        yield f"{'':10}{'right':>9}{'wrong':>7}{'cut short':>11}{'failed claims':>15}{'longest wait for a claim':>26}"
        for name, tally in (("writes", self.writes), ("reads", self.reads)):
            counts = f"{tally.right:9}{tally.wrong:7}{tally.cut_short:11}{tally.failed_claims:15}"
            yield f"  {name:8}{counts}{milliseconds(tally.longest_wait):>26}"
        yield "Cut short: under way when the demo did something to the server, or at the end."
        account = self.account
        if account.primary is None:
            yield f"Writes acknowledged: {account.acknowledged}; there is no primary to look for them"
            return
        yield f"Writes acknowledged: {account.acknowledged}; lacking in {account.primary}, the primary: {account.lost}"
        yield f"Writes that it has, and whose answer was cut off: {account.unanswered}"
