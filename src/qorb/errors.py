"""What can go wrong, as a tree.

    PoolError
    ├── ClaimError                        a claim could not be served
    │   ├── ClaimTimeoutError             (also a TimeoutError; never raised itself)
    │   │   ├── NoBackendsError           the resolver knows no backend
    │   │   ├── NoBackendsOnlineError     backends are known, none has a live connection
    │   │   └── AllClaimsUsedError        backends are online, every connection is in use
    │   └── QueueFullError                max_waiters reached
    ├── PoolNotStartedError               claim() before start()
    ├── PoolTerminatedError               claim() on a pool that is terminating or terminated
    ├── TerminationError                  terminate(timeout=...) ran out; `ledger` says what is left
    ├── ClaimReleasedError                Claim.connection after release
    ├── ClaimRevokedError                 Claim.connection after terminate() took it
    ├── WrongLoopError                    used from another event loop or thread
    ├── PoolForkedError                   used in a child process
    ├── ResolveError                      a cause: why no backends were found
    └── ConnectError                      a cause: why a backend could not be connected to
        └── BackendUnfitError             it answers, and is not what is wanted now
    PolicyError                           a ValueError that names the field

What the text says stands in attributes, too, for programs to read. No error carries a secret: texts of foreign
exceptions pass through `masked`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self, TypeGuard

    from qorb.explanation import Explanation
    from qorb.stats import Ledger

_MAX_TEXT = 500
_MAX_VALUE = 100
_MAX_NAME = 512
"""A DNS name has up to 253 characters; a backend's name may hold one, an address and a port."""
_MAX_BITS = 128
GIVEN_BY_ASYNCIO = re.compile(r"Task-\d+|None")
"""Names of tasks that nobody chose. Python 3.13.0 calls "None" what a task factory makes."""
_MAX_CHAIN = 10
_MAX_MEMBERS = 3


class PoolError(Exception):
    """Base of everything that qorb raises, PolicyError excepted. `pool` is the pool's name, if the error is of one."""

    pool: str | None = None

    def __init__(self, *args: object, pool: str | None = None) -> None:
        """Keep the pool's name beside the text."""
        super().__init__(*args)
        if pool is not None:
            self.pool = pool


class ClaimError(PoolError):
    """A claim could not be served."""


# TimeoutError takes texts and nothing else, and PoolError gives it those.
class ClaimTimeoutError(ClaimError, TimeoutError):  # pyright: ignore[reportUnsafeMultipleInheritance]
    """A claim was not served in time. Never raised itself: its subclasses say why.

    `explanation` is what Pool.explain() said when the claim was given up; None for an error that no pool made. Claims
    that are given up together share it; from 200 backends and claims out on, all in all, also those that are given up
    soon after each other: with a thousand, within a quarter of a second.
    """

    explanation: Explanation | None = None


class NoBackendsError(ClaimTimeoutError):
    """The resolver knows no backend. `last_error` is the text of its last error, if that was the latest news of it."""

    def __init__(self, *args: object, pool: str | None = None, last_error: str | None = None) -> None:
        """Keep the facts beside the text."""
        super().__init__(*args, pool=pool)
        self.last_error = last_error


class NoBackendsOnlineError(ClaimTimeoutError):
    """Backends are known, but none has a live connection; the text says why for each.

    `errors` has the text of the last error of each, by name; None for those that have had none.
    """

    def __init__(self, *args: object, pool: str | None = None, errors: Mapping[str, str | None] | None = None) -> None:
        """Keep the facts beside the text."""
        super().__init__(*args, pool=pool)
        self.errors: Mapping[str, str | None] = errors if errors is not None else {}


@dataclass(frozen=True, slots=True)
class Holder:
    """One claim that was out when an AllClaimsUsedError was raised, or when Pool.explain() was called."""

    backend: str
    slot_id: int
    seconds: float
    """For how long."""
    task: str | None
    """The name of the task that has it; None when that is gone, or is about to get it."""
    site: str | None
    """Where it was claimed, if that is known: in debug mode, or when tracemalloc was on as the pool was started."""
    now: str | None = None
    """Where that task stands: function, file and line, outside the standard library if it is anywhere else.

    None when it has ended, when it is running at this moment, and beyond the 50 that are held longest.
    """
    coroutine: str | None = None
    """The name of the function that the task runs."""
    of_task: int = 1
    """So many connections of the pool the task holds."""
    asks: bool = False
    """The task waits for another connection of the pool meanwhile: it may be waiting for itself."""
    handed_off: bool = False
    """Nobody has it yet: it is on its way to a claim that waited."""
    preparing: bool = False
    """The connector's on_acquire is under way, so that the caller has not got it yet; `now` says where that stands."""
    ended: bool = False
    """The task has ended: if it has not passed the claim on, nobody will release it."""

    def __str__(self) -> str:
        """Say who holds a connection, for how long, where it was claimed if known, and where the holder is now."""
        if self.handed_off:
            return "one that is being handed off to a waiting claim"
        text = f"{self.seconds:.1f} s by {self.who}"
        if self.ended and self.task is not None:
            text += ", which has ended"
        if self.preparing:
            text += ", for whom the connector's on_acquire is under way"
        if self.site is not None:
            text += f", claimed at {self.site}"
        return text if self.now is None else f"{text}, now in {self.now}"

    @property
    def who(self) -> str:
        """Name the task, and the function that it runs if nobody named the task."""
        if self.task is None:
            return "a task that has ended"
        function = self.coroutine if GIVEN_BY_ASYNCIO.fullmatch(self.task) else None
        return f"task {shown(self.task)}" if function is None else f"task {shown(self.task)} ({function})"


class AllClaimsUsedError(ClaimTimeoutError):
    """Backends are online, but every connection is in use; the text says who holds them.

    `holders` are all the claims that are out, the longest held first, `limit` is how many there can be at the most, and
    `waiting` counts the claims that still wait, this one not among them.
    """

    def __init__(
        self,
        *args: object,
        pool: str | None = None,
        holders: tuple[Holder, ...] = (),
        limit: int = 0,
        waiting: int = 0,
    ) -> None:
        """Keep the facts beside the text."""
        super().__init__(*args, pool=pool)
        self.holders = holders
        self.limit = limit
        self.waiting = waiting


class QueueFullError(ClaimError):
    """As many claims as Policy.max_waiters allows are waiting already: `waiting` of at most `limit`."""

    def __init__(self, *args: object, pool: str | None = None, waiting: int = 0, limit: int = 0) -> None:
        """Keep the facts beside the text."""
        super().__init__(*args, pool=pool)
        self.waiting = waiting
        self.limit = limit


class PoolTerminatedError(PoolError):
    """The pool is terminating or terminated."""


class PoolNotStartedError(PoolError):
    """The pool has not been started; use `async with pool:` or `await pool.start()`."""


class TerminationError(PoolError):
    """terminate(timeout=...) ran out. `ledger` is what is left; another terminate() goes on waiting for it."""

    def __init__(self, message: str, ledger: Ledger, *, pool: str | None = None) -> None:
        """Keep what is left beside the text."""
        super().__init__(message, pool=pool)
        self.ledger = ledger

    def __reduce__(self) -> tuple[type[Self], tuple[str, Ledger], dict[str, object]]:
        """Be copied and pickled with the ledger."""
        return type(self), (str(self), self.ledger), vars(self)


class ClaimReleasedError(PoolError):
    """The claim was released; its connection is no longer yours. `backend` is the name of what it went to."""

    def __init__(self, *args: object, pool: str | None = None, backend: str | None = None) -> None:
        """Keep the facts beside the text."""
        super().__init__(*args, pool=pool)
        self.backend = backend


class ClaimRevokedError(PoolError):
    """The pool's termination took the connection back. `backend` is the name of what it went to."""

    def __init__(self, *args: object, pool: str | None = None, backend: str | None = None) -> None:
        """Keep the facts beside the text."""
        super().__init__(*args, pool=pool)
        self.backend = backend


class WrongLoopError(PoolError):
    """The pool was used from another event loop or another thread than the one it was started in."""


class PoolForkedError(PoolError):
    """The pool was used in a child process; a child must make a pool of its own."""


class ResolveError(PoolError):
    """Why a resolver could not say which backends there are. Carries the service, never a secret."""

    def __init__(self, message: str, service: str | None = None) -> None:
        """Keep the service's name beside the text."""
        super().__init__(message)
        self.service = service


class ConnectError(PoolError):
    """Why a backend could not be connected to or failed a check. Carries the backend's name, never a secret.

    A connector that knows better than the policy when the next attempt makes sense says so: `min_backoff` and
    `max_backoff` are seconds, the shortest and the longest pause after this failure. A password that was refused is
    not tried again at once, lest the account be locked; a replica that is to be promoted is asked often.
    """

    def __init__(
        self, message: str, backend: str | None = None, *, min_backoff: float = 0.0, max_backoff: float = math.inf
    ) -> None:
        """Keep the facts beside the text."""
        super().__init__(message)
        self.backend = backend
        self.min_backoff: float = max(0.0, min_backoff)
        self.max_backoff: float = max(0.0, max_backoff)


class BackendUnfitError(ConnectError):
    """The backend answers, but is not what is wanted now: a replica where the primary is looked for, for instance.

    That concerns all connections to it: when on_recycle(), on_acquire() or validate() raises this, the backend's other
    idle ones are checked at once.
    """


class PolicyError(ValueError):
    """A policy's value is not usable. `field` names it."""

    def __init__(self, message: str, field: str | None = None) -> None:
        """Keep the field's name beside the text."""
        super().__init__(message)
        self.field = field


_URL_PASSWORD = re.compile(r"(://[^:/@\s]*:)\S*(@)")
_NAMED_SECRET = re.compile(
    r"""(?ix)
    ((?: (?<![^\W_]) | (?<=pg) | (?<=ssl) )
        (?: pass(?:word|wd|phrase)? | pwd | secret | token
            | (?:api|access|account|private|secret) [-_]? (?:access[-_]?)? key ))
    (['"]? \s* [=:] \s*) (b?"(?:\\.|[^"\\])*" | b?'(?:\\.|[^'\\])*' | [^\s,;&)\]}]+)"""
)
_AUTHORIZATION = re.compile(
    r"""(?ix) (authorization ['"]? \s* [=:] \s* ['"]?) [^\r\n,;'"}]+ | (\bbearer \s+) [\w.~+/=-]{16,}"""
)


def masked(text: str) -> str:
    """Hide passwords in URLs, the values of `password=` and its like and of Authorization; cut at 500 characters."""
    return _cut(_hidden(text))


def _hidden(text: str) -> str:
    if ":" not in text and "=" not in text and "bearer" not in text.lower():
        return text  # as names of tasks are, mostly; looking for what cannot be there takes ten times as long
    text = _URL_PASSWORD.sub(r"\1***\2", text)
    text = _NAMED_SECRET.sub(r"\1\2***", text)
    return _AUTHORIZATION.sub(r"\1\2***", text)


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def one_line(text: str) -> str:
    """Show what is not printable by its escape: a server's answer must not write to terminals, or lines of a log."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def is_name(name: object) -> TypeGuard[str]:
    """Say whether check_name() would let it pass."""
    return isinstance(name, str) and 0 < len(name) <= _MAX_NAME and name.isprintable() and name == name.strip()


def check_name(what: str, name: object) -> None:
    """Raise ValueError for what can be no name: names stand in logs, errors and metrics, and on terminals."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{what} must be a text that is not empty, not {shown(name)}")
    if len(name) > _MAX_NAME:
        raise ValueError(f"{what} must not be longer than {_MAX_NAME} characters; this one has {len(name)}")
    if not name.isprintable():
        raise ValueError(f"{what} must consist of printable characters, unlike {shown(name)}")
    if name != name.strip():
        raise ValueError(f"{what} must not begin or end with a blank, as {shown(name)} does")


def shown(value: object) -> str:
    """Give the text of a value that is refused: short, and without secrets. Never raises an Exception."""
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:  # Python itself refuses to write out the longest ones
        return f"{'-' if value < 0 else ''}10**{int(value.bit_length() * math.log10(2))} or so"
    try:
        text = repr(masked(value)) if isinstance(value, str) else masked(repr(value))
    except Exception:  # noqa: BLE001 - a broken __repr__ is user code too
        return f"something of the class {type(value).__name__}"
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 1] + "…"


def kind_of(value: object) -> str:
    """Name what a value is; the value itself may be a connection string, with a password."""
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}" if value is not None else "None"


def describe(error: BaseException) -> str:
    """Say what an exception of user code says: class first, in one line, without secrets. Never raises an Exception."""
    try:
        text = _text_of_group(error) if isinstance(error, BaseExceptionGroup) else str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ is user code too
        text = "(its text cannot be had)"
    kind = type(error).__name__
    return _cut(one_line(_hidden(f"{kind}: {text}" if text else kind)))


def _text_of_group(group: BaseExceptionGroup[BaseException]) -> str:
    """Give a group's text with those of its first members, for want of which it says nothing."""
    more = ["..."] if len(group.exceptions) > _MAX_MEMBERS else []
    return f"{group.message}: " + "; ".join([describe(one) for one in group.exceptions[:_MAX_MEMBERS]] + more)


def presentable(error: BaseException) -> BaseException:
    """Give what may stand as the cause of one of our errors: the exception itself when nothing in it needs masking."""
    if not all(isinstance(link, Exception) for link in _chain(error)):
        return ConnectError(describe(error))
    return reportable(error)


def reportable(error: BaseException) -> BaseException:
    """Give what may be told to others of an exception, which may be a BaseException: itself if nothing needs masking.

    The traceback is dropped: its frames hold the connector's local variables, credentials among them, and would keep
    them alive as long as the error is remembered.
    """
    chain = _chain(error)
    if len(chain) > _MAX_CHAIN or not all(map(_harmless, chain)):
        return ConnectError(describe(error))
    for link in chain:
        link.__traceback__ = None
        if link.__suppress_context__:  # is not printed, but would keep its own frames alive
            link.__context__ = None
    return error


def _chain(error: BaseException) -> list[BaseException]:
    """Give the exception and those that would be printed with it; one more than _MAX_CHAIN when there are too many."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(chain) <= _MAX_CHAIN:
        chain.append(link)
        link = link.__cause__ if link.__suppress_context__ or link.__cause__ is not None else link.__context__
    return chain


def _harmless(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup) or getattr(error, "__notes__", None):
        return False  # both are printed with more than their own text
    try:
        text, shown = str(error), repr(error)
    except Exception:  # noqa: BLE001 - a broken __str__ is user code too
        return False
    return masked(shown) == shown and masked(text) == text
