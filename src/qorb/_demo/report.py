"""The end of the demo: what was there just before terminate(), what is left after it, and whether all went well."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qorb import Ledger, Pool
    from qorb._demo.clients import Tally

_MOST_SURPRISES = 5


@dataclass(frozen=True, slots=True)
class Census:
    """Everything of the pool that is alive at one moment, counted in three independent ways."""

    ledger: Ledger
    """By the pool."""
    named_tasks: int
    """By asyncio: unfinished tasks that bear the pool's name."""
    server_connections: int
    """By the servers: connections that are open."""

    @property
    def empty(self) -> bool:
        """Say whether nothing is left, by all three counts."""
        return self.ledger.empty and not self.named_tasks and not self.server_connections


def census(pool: Pool[Any], server_connections: int) -> Census:
    """Count now."""
    named = sum(pool.name in task.get_name() for task in asyncio.all_tasks())
    return Census(pool.ledger(), named, server_connections)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a demo."""

    before: Census
    after: Census
    claims_out: int
    """How many clients held a claim when terminate() was called."""
    took: float
    """Seconds until terminate() returned."""
    tally: Tally
    logged_errors: tuple[str, ...]
    failure: str | None
    """Why terminate() did not come to its end, if it did not."""

    @property
    def good(self) -> bool:
        """Say whether nothing was left and nothing happened but what the demo did on purpose."""
        clean = self.after.empty and self.failure is None
        return clean and not (self.tally.wrong or self.tally.surprises or self.logged_errors)

    def lines(self) -> Iterator[str]:
        """Give it in words, in lines of 80 columns (but for error texts)."""
        yield (
            f"terminate() under load took {1000 * self.took:.0f} ms "
            f"(claims in use: {self.claims_out}, waiting: {self.before.ledger.waiters})."
        )
        if self.failure is not None:
            yield f"It failed: {self.failure}"
        yield f"{'':42}{'before':>8}{'after':>8}"
        for label, before, after in self._counts():
            yield f"  {label:<40}{before:8}{after:8}"
        yield f"left: {self._left()}"
        yield ""
        tally = self.tally
        yield (
            f"Echoes that were right: {tally.right}, wrong: {tally.wrong}, "
            f"cut short by what the demo did: {tally.cut_short}"
        )
        unexpected = [*tally.surprises, *self.logged_errors]
        yield f"Failed claims and other unexpected failures: {len(unexpected)}"
        for text in unexpected[:_MOST_SURPRISES]:
            yield f"  {text}"
        if len(unexpected) > _MOST_SURPRISES:
            yield f"  and {len(unexpected) - _MOST_SURPRISES} more"

    def _counts(self) -> Iterator[tuple[str, int, int]]:
        before, after = self.before.ledger, self.after.ledger
        yield "tasks of the pool, by its ledger", len(before.tasks), len(after.tasks)
        yield "timers of the pool, by its ledger", before.timers, after.timers
        yield "connections, by its ledger", before.connections, after.connections
        yield "waiting claims, by its ledger", before.waiters, after.waiters
        yield "threads of the pool, by its ledger", before.threads, after.threads
        yield "tasks with the pool's name, by asyncio", self.before.named_tasks, self.after.named_tasks
        yield "open connections, by the servers", self.before.server_connections, self.after.server_connections

    def _left(self) -> str:
        if self.after.empty:
            return "nothing"
        names = ", ".join(self.after.ledger.tasks)
        return f"something; see above{f' (tasks: {names})' if names else ''}"
