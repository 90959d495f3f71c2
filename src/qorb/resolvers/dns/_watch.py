"""One watch() of a DnsResolver: round after round, until it is cancelled."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from qorb.errors import ResolveError
from qorb.resolvers.dns._knowledge import Knowledge
from qorb.resolvers.dns._names import check_name
from qorb.resolvers.dns._round import Preference, Round
from qorb.resolvers.dns._servers import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from qorb.backend import Backend
    from qorb.resolvers.dns._journal import Journal
    from qorb.resolvers.dns._round import Client
    from qorb.resolvers.dns.policy import DnsPolicy

MAX_LEARNED = 32
"""More DNS servers than this found through resolver_service are not used."""
_APART = 1.0
"""Two rounds never start less than so many seconds apart; and the pause after the first failed one."""
_MAX_DOUBLINGS = 30
_FOREVER = 1e9
"""No timer is set further away than this many seconds: event loops differ in what they can represent."""


class DnsWatch:
    """Asks in rounds, publishes what changed, and decides when to ask again."""

    def __init__(
        self,
        knowledge: Knowledge,
        policy: DnsPolicy,
        servers: Callable[[], Sequence[Server]],
        client: Callable[[Server], Client],
        publish: Callable[[Iterable[Backend]], None],
        journal: Journal,
    ) -> None:
        """Prepare to ask. `servers` gives those to ask in this round, `client` asks one of them."""
        self._knowledge = knowledge
        self._policy = policy
        self._servers = servers
        self._client = client
        self._publish = publish
        self._journal = journal
        self._loop = asyncio.get_running_loop()
        self._preference = Preference()
        self._published: tuple[Backend, ...] | None = None
        self._failures = 0
        self._of_servers: Knowledge | None = None
        """What is known of the servers behind resolver_service."""
        if policy.resolver_service is not None:
            self._of_servers = Knowledge(
                check_name("resolver_service", policy.resolver_service), None, policy, MAX_LEARNED
            )
        self._timer: asyncio.TimerHandle | None = None
        """Fires when something that is known gets stale."""

    async def run(self) -> None:
        """Ask, publish, wait, until cancelled."""
        try:
            while True:
                due = await self._round()
                self._expire()
                while (left := due - self._loop.time()) > 0:  # noqa: ASYNC110 - not a poll: one sleep, but for ages
                    await asyncio.sleep(min(left, _FOREVER))
                await asyncio.sleep(0)
        finally:
            if self._timer is not None:
                self._timer.cancel()

    async def _round(self) -> float:
        """Ask everything once, and give when to do so again."""
        began = self._loop.time()
        clients: list[Client] = []
        servers = self._all_servers()
        try:
            self._begin(clients, servers, began)
            done = Round(clients, self._policy, self._preference, self._journal, self._pass_on_early)
            done.add(self._knowledge, self._knowledge.first_questions())
            if self._of_servers is not None:
                done.add(self._of_servers, self._of_servers.first_questions())
            await done.run()
        except ResolveError as error:
            self._journal.could_not_ask(error, self._loop.time())
            return self._after_failure(began)
        finally:
            for client in clients:
                await client.close()
        backends = self._knowledge.backends()
        if backends or self._published is not None or not done.failed:
            self._pass_on(backends)
        self._journal.round_is_over(self._knowledge.missing(), self._loop.time())
        if not backends and not set(self._all_servers()).issubset(servers):
            return began + _APART  # those that were just found may know what the given ones do not
        return self._next(began, done)

    def _begin(self, clients: list[Client], servers: Sequence[Server], now: float) -> None:
        """Make a client for each server. Raises ResolveError when that works for none; the others are asked."""
        failure: ResolveError | None = None
        for server in servers:
            try:
                clients.append(self._client(server))
            except ResolveError as error:
                failure = error
        if failure is not None and not clients:
            raise failure
        if failure is not None:
            self._journal.could_not_ask(failure, now)

    def _all_servers(self) -> list[Server]:
        given = self._servers()
        known = {(server.host, server.port) for server in given}
        learned = self._of_servers.backends() if self._of_servers is not None else ()
        return [*given, *(Server(one.host, one.port) for one in learned if one.address not in known)]

    def _next(self, began: float, done: Round) -> float:
        """Give when to ask again: before a TTL has passed that was used, and sooner if something is missing."""
        due = done.refresh_at
        if done.failed:
            due = min(due, self._after_failure(began))
        else:
            self._failures = 0
            pause = min(self._policy.query_interval, self._policy.retry_interval if done.denied else math.inf)
            due = min(due, self._loop.time() + pause)
        return max(due, began + _APART)

    def _after_failure(self, began: float) -> float:
        pause = min(_APART * 2.0 ** min(self._failures, _MAX_DOUBLINGS), self._policy.retry_interval)
        self._failures += 1
        return max(self._loop.time() + pause, began + _APART)

    # What is known is passed on.

    def _pass_on_early(self) -> None:
        """Publish what has come although the round goes on: but never that there is nothing yet."""
        backends = self._knowledge.backends()
        if backends:
            self._pass_on(backends)

    def _pass_on(self, backends: tuple[Backend, ...]) -> None:
        if backends == self._published:
            return
        self._journal.changed(self._published or (), backends)
        self._published = backends
        self._publish(backends)

    def _expire(self) -> None:
        """Drop what has gone without a good answer for too long, and see when there is more to drop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time()
        if self._knowledge.expire(now):
            self._pass_on(self._knowledge.backends())
        if self._of_servers is not None:
            self._of_servers.expire(now)
        stale_at = self._knowledge.stale_at()
        if stale_at - now < _FOREVER:
            self._timer = self._loop.call_at(stale_at, self._expire)
