"""FallbackResolver and MergeResolver: resolvers made of resolvers."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from qorb.errors import shown
from qorb.publishing import publisher_of
from qorb.resolver import Resolver
from qorb.watching import watch_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from qorb.backend import Backend
    from qorb.errors import ResolveError
    from qorb.publishing import Publisher

_LONGEST_PATIENCE = 3600.0


class _Answer:
    """What one of the resolvers has said."""

    __slots__ = ("backends", "error")

    def __init__(self) -> None:
        self.backends: tuple[Backend, ...] | None = None
        """Its last set; None: there was none yet."""
        self.error: ResolveError | None = None
        """Why there is no newer one."""

    @property
    def silent(self) -> bool:
        """Whether it has said nothing at all: a set may be about to come."""
        return self.backends is None and self.error is None


class _Composite(Resolver):
    """Watches several resolvers and publishes what it makes of their sets."""

    def __init__(self, resolvers: Iterable[Resolver], *, patience: float = 0.5) -> None:
        self._resolvers = _read_resolvers(type(self).__name__, resolvers)
        self._patience = _check_patience(patience)

    async def watch(self, publish: Callable[[Iterable[Backend]], None]) -> None:
        """Watch them all and publish, until cancelled; when it ends, nothing of them is running.

        One whose watch() ends is started again after a growing pause; its last set stays meanwhile.
        """
        book = _Book(len(self._resolvers), self._made_of, publisher_of(publish))
        timer = asyncio.get_running_loop().call_later(self._patience, book.end_patience)
        try:
            await watch_all(self._resolvers, book.publishers)
        finally:
            timer.cancel()

    def _made_of(self, answers: Sequence[_Answer], *, patient: bool) -> tuple[Backend, ...] | None:
        """Decide which set follows from the answers; None: none yet. `patient`: whether to wait for the silent ones."""
        raise NotImplementedError


class FallbackResolver(_Composite):
    """Knows what the first of several resolvers knows that has any backend.

    While one has none, the next is used; when it gets some, it takes over again. All are watched all the time. When
    none has any, the set is empty, once one of them has said so.

    At the start one that has said nothing yet, neither a set nor an error, is waited for up to `patience` seconds (so
    that connections are not opened to a fallback only because DNS takes ten milliseconds); 0: not at all.
    """

    def __init__(self, resolvers: Iterable[Resolver], *, patience: float = 0.5) -> None:
        """Take the resolvers, the preferred one first; start nothing.

        Raises TypeError for what is no Resolver or no number, ValueError when there are none, when one is given twice,
        or for a patience that is negative or more than an hour.
        """
        super().__init__(resolvers, patience=patience)

    def _made_of(self, answers: Sequence[_Answer], *, patient: bool) -> tuple[Backend, ...] | None:
        for answer in answers:
            if answer.backends:
                return answer.backends
            if patient and answer.silent:
                return None
        return () if any(answer.backends is not None for answer in answers) else None


class MergeResolver(_Composite):
    """Knows what several resolvers know together.

    When two of them know a backend of the same name, the earlier one's is taken. A resolver that fails keeps its part
    as it was.

    At the start those that have said nothing yet, neither a set nor an error, are waited for up to `patience` seconds,
    so that the first set is complete if that can be had; 0: not at all.
    """

    def __init__(self, resolvers: Iterable[Resolver], *, patience: float = 0.5) -> None:
        """Take the resolvers; start nothing.

        Raises TypeError for what is no Resolver or no number, ValueError when there are none, when one is given twice,
        or for a patience that is negative or more than an hour.
        """
        super().__init__(resolvers, patience=patience)

    def _made_of(self, answers: Sequence[_Answer], *, patient: bool) -> tuple[Backend, ...] | None:
        known = [answer.backends for answer in answers if answer.backends is not None]
        if not known or (patient and any(answer.silent for answer in answers)):
            return None
        merged: dict[str, Backend] = {}
        for backends in known:
            for backend in backends:
                merged.setdefault(backend.name, backend)
        return tuple(merged.values())


class _Book:
    """The answers within one watch(), and what was published of them."""

    def __init__(self, count: int, made_of: Callable[..., tuple[Backend, ...] | None], publisher: Publisher) -> None:
        self._answers = [_Answer() for _ in range(count)]
        self._made_of = made_of
        self._publisher = publisher
        self._patient = True
        self._published: tuple[Backend, ...] | None = None
        self._failed = False
        """An error was told since the last set was published."""
        self.publishers = [
            publisher.instead(partial(self._known, answer), partial(self._known_to_fail, answer))
            for answer in self._answers
        ]
        """One for each resolver."""

    def end_patience(self) -> None:
        """Wait no longer for those that have said nothing."""
        self._patient = False
        self._pass_on(anew=False)

    def _known(self, answer: _Answer, backends: Iterable[Backend]) -> None:
        answer.backends, answer.error = tuple(backends), None
        self._pass_on()

    def _known_to_fail(self, answer: _Answer, error: ResolveError) -> None:
        answer.error = error
        self._failed = True
        self._publisher.failed(error)
        self._pass_on(anew=False)

    def _pass_on(self, *, anew: bool = True) -> None:
        """Publish what has changed; with `anew`, also what has not after an error, which is over then."""
        made = self._made_of(self._answers, patient=self._patient)
        if made is None or (made == self._published and not (anew and self._failed)):
            return
        self._published, self._failed = made, False
        self._publisher(made)
        if not made:
            self._say_why_there_are_none()

    def _say_why_there_are_none(self) -> None:
        """Tell the errors again: a set, even an empty one, has made the pool forget them."""
        for answer in reversed(self._answers):
            if answer.error is not None:
                self._failed = True
                self._publisher.failed(answer.error)


def _read_resolvers(name: str, resolvers: Iterable[Resolver]) -> tuple[Resolver, ...]:
    if isinstance(resolvers, Resolver) or not hasattr(resolvers, "__iter__"):
        raise TypeError(f"{name} takes a list of resolvers, not {shown(resolvers)}; write {name}([first, second])")
    read = tuple(resolvers)
    if not read:
        raise ValueError(f"{name} needs at least one resolver")
    for one in read:
        if not isinstance(one, Resolver):
            raise TypeError(f"{name} takes resolvers, and {shown(one)} is none")
    if len({id(one) for one in read}) < len(read):
        raise ValueError(f"{name} was given the same resolver twice; it has no more to say the second time")
    return read


def _check_patience(patience: float) -> float:
    if not isinstance(patience, int | float) or isinstance(patience, bool):
        raise TypeError(f"patience must be a number of seconds, not {shown(patience)}")
    if not 0 <= patience <= _LONGEST_PATIENCE:
        raise ValueError(f"patience must be from 0 to {_LONGEST_PATIENCE:g} seconds, not {shown(patience)}")
    return patience
