"""What a DnsResolver tells of its work: log lines, events, and why there is nothing newer."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from qorb.errors import ResolveError
from qorb.resolvers.dns._values import Records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qorb.backend import Backend
    from qorb.publishing import Publisher
    from qorb.resolvers.dns._servers import Server
    from qorb.resolvers.dns._values import Question, Reply

logger = logging.getLogger("qorb.dns")

_REPEAT = 60.0
"""Seconds after which the same failure is logged again."""
_MAX_SHOWN = 3


class Journal:
    """Tells of one watch(): queries and replies at DEBUG, changes at INFO, failures at WARNING and rate-limited."""

    def __init__(self, service: str, publisher: Publisher) -> None:
        """Tell the log, and the publisher."""
        self._service = service
        self._publisher = publisher
        self._logged: dict[str, tuple[float, int]] = {}
        """Of each failure: when it was logged last, and how often it came since; of the last minute at most."""

    def asked(self, server: Server, question: Question) -> None:
        """Tell of a query."""
        logger.debug("%s: asking %s for %s", self._service, server, question)
        self._publisher.query_started(str(server), str(question))

    def replied(self, server: Server, question: Question, reply: Reply, seconds: float) -> None:
        """Tell what came of it."""
        if isinstance(reply, Records):
            logger.debug(
                "%s: %s has %d of %s after %.3f s, TTL %g s",
                self._service,
                server,
                reply.total,
                question,
                seconds,
                reply.ttl,
            )
            self._publisher.query_done(str(server), str(question), reply.total, reply.ttl)
            for refused in reply.refused:
                logger.debug("%s: %s: left out %s", self._service, question, refused)
        else:
            logger.debug("%s: %s on %s after %.3f s: %s", self._service, server, question, seconds, reply.reason)
            self._publisher.query_failed(str(server), str(question), reply.reason)

    def changed(self, before: Sequence[Backend], after: Sequence[Backend]) -> None:
        """Tell which backends came, went or changed."""
        old, new = {one.name: one for one in before}, {one.name: one for one in after}
        added, removed = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
        moved = sorted(name for name in new.keys() & old.keys() if new[name] != old[name])
        logger.info(
            "%s: %d backends%s",
            self._service,
            len(after),
            "".join(
                f"; {word} {_listed(names)}"
                for word, names in (("new", added), ("gone", removed), ("changed", moved))
                if names
            ),
        )

    def could_not_ask(self, error: ResolveError, now: float) -> None:
        """Tell that nobody could be asked."""
        self._fail(error, str(error), now)

    def round_is_over(self, missing: Sequence[tuple[Question, str]], now: float) -> None:
        """Tell to what there is no answer, or none newer."""
        if not missing:
            return
        text = "; ".join(f"{question}: {reason}" for question, reason in missing[:_MAX_SHOWN])
        if len(missing) > _MAX_SHOWN:
            text += f"; and {len(missing) - _MAX_SHOWN} more"
        self._fail(ResolveError(f"DNS: {text}", self._service), text, now)

    def _fail(self, error: ResolveError, text: str, now: float) -> None:
        self._publisher.failed(error)
        logged_at, unlogged = self._logged.get(text, (-math.inf, 0))
        if now < logged_at + _REPEAT:
            self._logged[text] = logged_at, unlogged + 1
            return
        again = f" (and {unlogged} times since the last line)" if unlogged else ""
        logger.warning("%s: %s%s", self._service, text, again)
        self._logged = {one: last for one, last in self._logged.items() if now < last[0] + _REPEAT}
        self._logged[text] = now, 0


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more
