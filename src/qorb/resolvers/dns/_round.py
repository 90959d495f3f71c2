"""One round of questions to all servers: who is asked when, and which answer counts."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from qorb.resolvers.dns._sifting import in_slices
from qorb.resolvers.dns._values import Failed, NoRecords, Question, Records

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qorb.resolvers.dns._knowledge import Knowledge
    from qorb.resolvers.dns._servers import Server
    from qorb.resolvers.dns._values import Kind, Reply
    from qorb.resolvers.dns.policy import DnsPolicy

PATIENCE = 0.3
"""Seconds for which the preferred server may keep another's differing answer waiting."""
QUIET = 0.05
"""What has come is published when nothing more came for so many seconds."""
_LEAD = 1.0
"""An answer is asked for again so many seconds before its TTL has passed, or a tenth of the TTL if that is less."""
_OTHER_FAMILY: dict[Kind, Kind] = {"A": "AAAA", "AAAA": "A"}
_LONG = 3600.0
"""No timer is set further away than this many seconds: event loops differ in what they can represent."""
_OVERDUE = 1.0
"""A query that has waited so many seconds no longer counts as in flight."""
_BATCH = 50
"""Queries to send before the loop has its turn."""
_HOLD_UP = 3.0
"""Seconds without any answer after which a round ends if what has come is to be asked for again."""


class Client(Protocol):
    """Asks one server, for one round."""

    server: Server

    def ask(self, question: Question) -> asyncio.Future[Any]:
        """Send a query, and again when it gets lost. What comes of it may be an exception, closing included."""
        ...

    async def read(self, question: Question, asked: asyncio.Future[Any]) -> Reply:
        """Read what came of a query, in slices."""
        ...

    async def close(self) -> None:
        """Cancel every query, and leave no socket. Never waits."""
        ...


class Journal(Protocol):
    """Who wants to know what is asked and answered."""

    def asked(self, server: Server, question: Question) -> None:
        """Be told of a query."""
        ...

    def replied(self, server: Server, question: Question, reply: Reply, seconds: float) -> None:
        """Be told what came of it."""
        ...


class _LookUp:
    """A question, and what has come of it so far."""

    __slots__ = ("began", "knowledge", "question", "replies", "settled")

    def __init__(self, question: Question, knowledge: Knowledge) -> None:
        self.question = question
        self.knowledge = knowledge
        self.began = math.inf
        """When it was first asked."""
        self.replies: dict[Server, Reply] = {}
        """In the order in which they came, those that came too late to count included."""
        self.settled: Reply | None = None


class Preference:
    """The server whose answer was used last: as long as it answers, servers that disagree do not make the set flap."""

    def __init__(self) -> None:
        """Prefer none."""
        self.server: Server | None = None


class Round:
    """Asks every server every question until one has a good answer to each, or time is up.

    After run(), `failed` and `denied` tell whether there are questions to which no server gave an answer, or all said
    that there is nothing; `refresh_at` is when the first of the answers used should be asked for again.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        policy: DnsPolicy,
        preference: Preference,
        journal: Journal,
        changed: Callable[[], None],
    ) -> None:
        """Prepare to ask. `changed` is called when what has been learned should be passed on."""
        self._clients = {client.server: client for client in clients}
        self._policy = policy
        self._preference = preference
        self._journal = journal
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._began = self._heard_at = self._loop.time()
        self._look_ups: dict[Question, _LookUp] = {}
        self._queues: dict[Server, deque[_LookUp]] = {client.server: deque() for client in clients}
        self._in_flight: dict[asyncio.Future[Any], tuple[_LookUp, Server, float]] = {}
        self._inbox: deque[asyncio.Future[Any]] = deque()
        self._main: Knowledge | None = None
        self._open = 0
        """Look-ups that are not settled."""
        self._held_back: dict[_LookUp, None] = {}
        """Look-ups whose answer differs from what is known, while the preferred server may still answer."""
        self._talked: dict[Server, None] = {}
        """Servers that have replied to anything in this round."""
        self._used: Server | None = None
        """Whose answer was used last."""
        self._news_at = math.inf
        """When something was learned last that has not been passed on."""
        self._waker: asyncio.Future[None] | None = None
        self.failed = False
        self.denied = False
        self.refresh_at = math.inf

    def add(self, knowledge: Knowledge, questions: Sequence[Question]) -> None:
        """Ask these questions, too. What is added first is what counts as failed."""
        if self._main is None:
            self._main = knowledge
        for question in questions:
            if question not in self._look_ups:
                self._look_ups[question] = look_up = _LookUp(question, knowledge)
                self._open += 1
                for queue in self._queues.values():
                    queue.append(look_up)

    async def run(self) -> None:
        """Ask until everything is settled. Cancellation ends it at once; what was learned stays learned."""
        while self._open:
            through = self._send()
            await self._wait(min(self._deadline(), self._next_moment()) if through else -math.inf)
            while self._inbox:
                await self._read(self._inbox.popleft())
                await asyncio.sleep(0)  # many small answers are as much work as a big one
            now = self._loop.time()
            if now >= self._deadline():
                await self._give_up()
            for look_up in tuple(self._held_back):
                self._consider(look_up)
            if self._news_at + QUIET <= now:
                self._news_at = math.inf
                self._changed()
        if self._used is not None and self._preference.server not in self._talked:
            self._preference.server = self._used

    def _deadline(self) -> float:
        """Give when the round ends whatever is missing: what never answers must not keep the rest from its refresh."""
        return min(self._began + self._policy.query_timeout, max(self.refresh_at, self._heard_at + _HOLD_UP))

    # Asking.

    def _send(self) -> bool:
        """Send as many queries as may be in flight: first to servers that have talked, and of those the preferred.

        Tell whether that is all; if not, the loop must have its turn first.
        """
        now = self._loop.time()
        batch = 0
        busy = sum(sent + _OVERDUE > now for _, _, sent in self._in_flight.values())
        for server in sorted(self._queues, key=lambda one: (one not in self._talked, one != self._preference.server)):
            queue = self._queues[server]
            while queue and busy < self._policy.max_concurrency:
                look_up = queue.popleft()
                if look_up.settled is None:
                    self._ask(server, look_up, now)
                    busy += 1
                    batch += 1
                if batch == _BATCH:
                    return False
        return True

    def _ask(self, server: Server, look_up: _LookUp, now: float) -> None:
        look_up.began = min(look_up.began, now)
        self._journal.asked(server, look_up.question)
        query = self._clients[server].ask(look_up.question)
        self._in_flight[query] = (look_up, server, now)
        query.add_done_callback(self._answered)

    def _answered(self, query: asyncio.Future[Any]) -> None:
        if not query.cancelled():
            query.exception()  # when the round is over nobody reads it, and asyncio would complain of that
        self._inbox.append(query)
        self._wake()

    def _next_moment(self) -> float:
        """Give when something may be due although no answer comes."""
        now = self._loop.time()
        moments = [self._news_at + QUIET]
        if any(self._queues.values()):
            moments += [sent + _OVERDUE for _, _, sent in self._in_flight.values() if sent + _OVERDUE > now]
        moments += [one.began + PATIENCE for one in self._held_back]
        return min(moments)

    async def _wait(self, until: float) -> None:
        if self._inbox or until <= self._loop.time():
            await asyncio.sleep(0)
            return
        self._waker = self._loop.create_future()
        timer = self._loop.call_at(min(until, self._loop.time() + _LONG), self._wake)
        try:
            await self._waker
        finally:
            timer.cancel()
            self._waker = None

    def _wake(self) -> None:
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    # Settling.

    async def _read(self, query: asyncio.Future[Any]) -> None:
        look_up, server, sent = self._in_flight.pop(query)
        reply = await self._clients[server].read(look_up.question, query)
        self._journal.replied(server, look_up.question, reply, self._loop.time() - sent)
        self._talked[server] = None
        self._heard_at = self._loop.time()
        look_up.replies[server] = reply
        self._consider(look_up)
        self._consider(self._sibling(look_up))

    def _consider(self, look_up: _LookUp | None) -> None:
        """Settle on an answer if there is one that counts."""
        if look_up is None or look_up.settled is not None:
            return
        server = self._who_has_an_answer(look_up)
        if server is None:
            if len(look_up.replies) == len(self._clients) and not self._may_the_other_family_come(look_up):
                replies = {one: look_up.replies[one] for one in self._clients}
                self._settle(look_up, _all_together(replies), None)
        elif self._may_use(look_up, server):
            self._settle(look_up, look_up.replies[server], server)
        else:
            self._held_back[look_up] = None

    def _who_has_an_answer(self, look_up: _LookUp) -> Server | None:
        """Give the preferred server if it has a good answer; else one with records; else one that has none of them.

        That there are no records of one family is a good answer from a server that has records of the other.
        """
        other = self._sibling(look_up)
        records = [server for server, reply in look_up.replies.items() if isinstance(reply, Records)]
        nothing = [
            server
            for server, reply in look_up.replies.items()
            if isinstance(reply, NoRecords) and other is not None and isinstance(other.replies.get(server), Records)
        ]
        preferred = self._preference.server
        return preferred if preferred in records + nothing else next(iter(records + nothing), None)

    def _may_use(self, look_up: _LookUp, server: Server) -> bool:
        """Whether a good answer counts now, or the preferred server is waited for."""
        preferred = self._preference.server
        if preferred not in self._clients or preferred in look_up.replies:
            return True
        if self._loop.time() >= look_up.began + PATIENCE:
            return True
        return look_up.knowledge.is_what_is_known(look_up.question, look_up.replies[server])

    def _may_the_other_family_come(self, look_up: _LookUp) -> bool:
        """Whether it may yet turn out that a server that has none of this family has some of the other."""
        other = self._sibling(look_up)
        if other is None or other.settled is not None:
            return False
        return len(other.replies) < len(self._clients) or other in self._held_back

    def _sibling(self, look_up: _LookUp) -> _LookUp | None:
        kind = _OTHER_FAMILY.get(look_up.question.kind)
        return None if kind is None else self._look_ups.get(Question(look_up.question.name, kind))

    async def _give_up(self) -> None:
        """Settle everything on what there is: time is up. What is known of what was not even asked for stays as it is.

        That goes for targets that became known just now, too.
        """
        whole = self._loop.time() >= self._began + self._policy.query_timeout
        silent = Failed(f"no answer within {self._policy.query_timeout if whole else _HOLD_UP:g} s")
        async for look_up in in_slices(tuple(self._look_ups.values())):
            if look_up.began == math.inf:
                self.failed = True
            elif look_up.settled is None:
                for server in self._clients:
                    look_up.replies.setdefault(server, silent)
                self._consider(look_up)
        self._open = 0

    def _settle(self, look_up: _LookUp, reply: Reply, server: Server | None) -> None:
        """Take a reply for the answer: that of a server, or what all say together."""
        now = self._loop.time()
        same = look_up.knowledge.is_what_is_known(look_up.question, reply)
        look_up.settled = reply
        self._held_back.pop(look_up, None)
        self._open -= 1
        self._news_at = now
        look_up.knowledge.take(look_up.question, reply, now, certain=server is not None)
        if server is not None:
            self._used = server
            if self._preference.server not in self._clients or not same:
                self._preference.server = server
        if isinstance(reply, Records):
            self.refresh_at = min(self.refresh_at, now + self._lifetime(reply.ttl))
        elif server is None and isinstance(reply, Failed) and look_up.knowledge is self._main:
            self.failed = True
        elif server is None:
            self.denied = True
        if look_up.question.kind == "SRV":
            self.add(look_up.knowledge, look_up.knowledge.address_questions())
        self._consider(self._sibling(look_up))

    def _lifetime(self, ttl: float) -> float:
        """Give after how many seconds to ask again: a little before the TTL has passed, or after query_interval.

        And while there is time left before it gets stale: only a DNS that fails may let that come about.
        """
        policy = self._policy
        lasts = (
            policy.ttl_override if policy.ttl_override is not None else min(max(ttl, policy.min_ttl), policy.max_ttl)
        )
        return min(lasts - min(_LEAD, lasts / 10), policy.query_interval, policy.stale_limit / 2)


def _all_together(replies: dict[Server, Reply]) -> Reply:
    """Give what servers say together of which none has records: only those that answer have a vote.

    In the order in which they are given, not that in which they came: the same failures are the same text.
    """
    for reply in replies.values():
        if isinstance(reply, NoRecords):
            return reply
    return Failed(
        "; ".join(f"{server}: {reply.reason}" for server, reply in replies.items() if not isinstance(reply, Records))
    )
