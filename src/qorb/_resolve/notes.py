"""What a DnsResolver asks and is answered, kept until the next round of questions is over."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qorb.publishing import Publisher
from qorb.resolvers.dns import Journal, NoRecords, Records, Srv

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qorb.backend import Backend
    from qorb.errors import ResolveError
    from qorb.resolvers.dns import Question, Reply, Server


@dataclass(slots=True)
class Exchange:
    """One question to one server."""

    round: int
    began: float
    """The loop's time."""
    reply: Reply | None = None
    """None while there is none."""
    known: Records | NoRecords | None = None
    """The latest reply, of whatever round, that says what there is; None also if another has changed its own since."""
    seconds: float = 0.0
    """How long the reply took, or how long there was none when the round was over."""


class Notes(Journal):
    """A journal that keeps what it is told, and wakes whoever waits for something new."""

    def __init__(self, service: str) -> None:
        """Know nothing yet."""
        super().__init__(service, Publisher(self.publish))
        self.backends: tuple[Backend, ...] = ()
        """The latest set."""
        self.exchanges: dict[tuple[Question, Server], Exchange] = {}
        """The latest of each; those about targets that are gone are forgotten at the end of a round."""
        self.rounds = 0
        """How many are over."""
        self.missing: tuple[tuple[Question, str], ...] = ()
        """To what the last round found no answer, or none newer, and why."""
        self.trouble: str | None = None
        """Why nobody could be asked in the last round; None when it was not so."""
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Future[None] | None = None

    async def news(self) -> None:
        """Wait for a new set or the end of a round. Cancellation changes nothing."""
        self._news = self._loop.create_future()
        try:
            await self._news
        finally:
            self._news = None

    def wake(self) -> None:
        """Let news() return."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def knows_more_servers(self) -> bool:
        """Say whether records have come that name DNS servers: those of any SRV name but the service itself."""
        return any(
            question.kind == "SRV" and question.name != self._service and isinstance(exchange.known, Records)
            for (question, _), exchange in self.exchanges.items()
        )

    def publish(self, backends: Iterable[Backend]) -> None:
        """Take a set over."""
        self.backends = tuple(backends)
        if self.rounds:
            self.wake()

    # What the resolver tells.

    def asked(self, server: Server, question: Question) -> None:
        """Note a query."""
        before = self.exchanges.get((question, server))
        known = None if before is None else before.known
        self.exchanges[question, server] = Exchange(self.rounds, self._loop.time(), known=known)

    def replied(self, server: Server, question: Question, reply: Reply, seconds: float) -> None:
        """Note what came of it."""
        exchange = self.exchanges[question, server]
        exchange.reply, exchange.seconds = reply, seconds
        if isinstance(reply, Records | NoRecords):
            if exchange.known is not None and _records(exchange.known) != _records(reply):
                self._forget_what_others_said(question)
            exchange.known = reply

    def _forget_what_others_said(self, question: Question) -> None:
        """Drop what was said of it in former rounds: it has changed, and those who are not heard may know that, too."""
        for (other, _), exchange in self.exchanges.items():
            if other == question and not (exchange.round == self.rounds and exchange.reply is exchange.known):
                exchange.known = None

    def changed(self, before: Sequence[Backend], after: Sequence[Backend]) -> None:
        """Leave it to publish()."""

    def could_not_ask(self, error: ResolveError, now: float) -> None:
        """Note that nobody could be asked."""
        self._round_over((), str(error), now)

    def round_is_over(self, missing: Sequence[tuple[Question, str]], now: float) -> None:
        """Note to what there is no answer, or none newer."""
        self._round_over(tuple(missing), None, now)

    def _round_over(self, missing: tuple[tuple[Question, str], ...], trouble: str | None, now: float) -> None:
        targets = self._targets()
        for (question, server), exchange in tuple(self.exchanges.items()):
            if exchange.round != self.rounds and question.name not in targets:
                del self.exchanges[question, server]
            elif exchange.reply is None:
                exchange.seconds = now - exchange.began
        self.missing, self.trouble = missing, trouble
        self.rounds += 1
        self.wake()

    def _targets(self) -> set[str]:
        records = (one.known.records for one in self.exchanges.values() if isinstance(one.known, Records))
        return {record.target for found in records for record in found if isinstance(record, Srv)}


def _records(reply: Records | NoRecords) -> frozenset[object]:
    return frozenset(reply.records if isinstance(reply, Records) else ())
