"""Publisher: how a resolver tells the pool, besides the sets of backends, how it fares."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from qorb.backend import Backend
    from qorb.errors import ResolveError


class Publisher:
    """What a pool and a monitor give to `Resolver.watch()` as `publish`.

    Publishing sets is all that a resolver must do with it. One that asks others may tell more: why it has nothing
    newer, and what it asks. Servers and questions are texts. All of it belongs to the event loop's thread.
    """

    __slots__ = ("_publish",)

    def __init__(self, publish: Callable[[Iterable[Backend]], None]) -> None:
        """Pass sets on, and keep the rest to itself."""
        self._publish = publish

    def __call__(self, backends: Iterable[Backend]) -> None:
        """Publish a complete set."""
        self._publish(backends)

    def failed(self, error: ResolveError) -> None:
        """Tell why there is no newer set. Claims that find no backend say it."""

    def query_started(self, server: str, question: str) -> None:
        """Tell that a server is asked."""

    def query_done(self, server: str, question: str, records: int, ttl: float) -> None:
        """Tell that it has so many records, the first of which expires after `ttl` seconds."""

    def query_failed(self, server: str, question: str, reason: str) -> None:
        """Tell that it has none, or did not answer."""

    def instead(
        self, publish: Callable[[Iterable[Backend]], None], failed: Callable[[ResolveError], None] | None = None
    ) -> Publisher:
        """Give one that tells the same, but passes sets on to somebody else: for resolvers made of resolvers.

        With `failed` it passes on to somebody else, too, why there is no newer set.
        """
        return _Instead(self, publish, failed)


class _Instead(Publisher):
    __slots__ = ("_failed", "_told")

    def __init__(
        self,
        told: Publisher,
        publish: Callable[[Iterable[Backend]], None],
        failed: Callable[[ResolveError], None] | None,
    ) -> None:
        super().__init__(publish)
        self._told = told
        self._failed = told.failed if failed is None else failed

    def failed(self, error: ResolveError) -> None:
        self._failed(error)

    def query_started(self, server: str, question: str) -> None:
        self._told.query_started(server, question)

    def query_done(self, server: str, question: str, records: int, ttl: float) -> None:
        self._told.query_done(server, question, records, ttl)

    def query_failed(self, server: str, question: str, reason: str) -> None:
        self._told.query_failed(server, question, reason)


def publisher_of(publish: Callable[[Iterable[Backend]], None]) -> Publisher:
    """Give what was given to watch() as a Publisher: a plain function is told of sets only."""
    return publish if isinstance(publish, Publisher) else Publisher(publish)
