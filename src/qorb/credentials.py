"""Credentials: passwords and tokens that show themselves nowhere, and are asked for when they are needed.

For connectors. Credentials live in the connector alone; what a driver raises may quote them, and is told on without.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from qorb.errors import ConnectError, describe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

_HIDDEN = "***"
_LOCK_OUT = 5.0
"""Seconds between two attempts with the same credentials, when they were refused."""
_LOOK_AGAIN = 0.5
"""Seconds until a function is asked again for others."""
_LEAST_LENGTH = 4
"""Shorter secrets are not looked for in texts: everything would be full of them."""


class Secret:
    """A text that repr, str, format, copies and pickles show as ***; `reveal()` gives it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """Keep the text. Raises TypeError, without showing it, for what is none."""
        if not isinstance(text, str):
            raise TypeError(f"a secret must be a text, not something of the class {type(text).__name__}")
        self._text = text

    def reveal(self) -> str:
        """Give the text. Call it where it is used, and keep it nowhere."""
        return self._text

    def __repr__(self) -> str:
        return _HIDDEN

    def __format__(self, specification: str) -> str:
        return _HIDDEN

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        return type(self), (_HIDDEN,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


Asked: TypeAlias = "Callable[[], str | Secret | Awaitable[str | Secret]]"
Credential: TypeAlias = "str | Secret | Asked"
"""A value, or a function, which may be a coroutine function, that is asked at every connect: tokens expire."""


def checked(
    what: str, credential: Credential | None
) -> Secret | Callable[[], str | Secret | Awaitable[str | Secret]] | None:
    """Give what may be kept of a credential that a user gave: never a bare text. Raises TypeError naming `what`."""
    if credential is None or isinstance(credential, Secret) or callable(credential):
        return credential
    if isinstance(credential, str):
        return Secret(credential)
    raise TypeError(
        f"{what} must be a text, a Secret or a function, not something of the class {type(credential).__name__}"
    )


async def revealed(what: str, credential: Credential | None) -> Secret | None:
    """Give the credential of this moment; a function is asked. Raises what it raises; TypeError naming `what`.

    Cancellation reaches the function.
    """
    answer = await _answer(what, credential)
    return Secret(answer) if isinstance(answer, str) else answer


async def _answer(what: str, credential: Credential | None) -> str | Secret | None:
    if not callable(credential):
        return credential
    answer = credential()
    answer = await answer if inspect.isawaitable(answer) else answer
    if not isinstance(answer, str | Secret):
        kind = type(answer).__name__
        raise TypeError(f"the function given as {what} must return a text or a Secret, not a {kind}")
    return answer


@dataclass(frozen=True, slots=True)
class Credentials:
    """What to log in with at this moment."""

    user: Secret | None
    password: Secret | None
    secrets: tuple[Secret, ...]
    """Those of the two that no text may show: a name that was given as a bare text is none."""


class Login:
    """Who a connector logs in as, with a memory of what each backend has refused.

    Servers lock the accounts of those who go on with a wrong password. So what was refused is not tried again there for
    five seconds; what the functions say instead, after half a second.
    """

    def __init__(self, user: Credential | None, password: Credential | None, *, user_is: str = "user") -> None:
        """Keep the two; `user_is` is what the user's name is called. Raises TypeError naming what is no credential."""
        self._user = checked(user_is, user)
        self._user_is = user_is
        self._password = checked("password", password)
        self._bare_user = isinstance(user, str)
        self._refused: dict[str, _Refusal] = {}

    async def ask(self, backend: str) -> Credentials:
        """Give the credentials of this moment; functions are asked. Cancellation reaches the function.

        Raises ConnectError, for a backend, for what a function raises, and when the backend has just refused the same.
        """
        user, bare = await self._ask(self._user_is, self._user, backend)
        password, _ = await self._ask("password", self._password, backend)
        refused = self._refused.get(backend)
        if refused is not None and (user, password) == (refused.user, refused.password):
            left = refused.until - asyncio.get_running_loop().time()
            if left > 0:
                text = f"{refused.text}; the same is not tried again for {left:.1f} s"
                least, most = self._pauses(left)
                raise ConnectError(text, backend, min_backoff=least, max_backoff=most)
        shown = bare or self._bare_user
        secrets = tuple(one for one in ((None if shown else user), password) if one is not None)
        return Credentials(user, password, secrets)

    def refusal(
        self, what: str, error: BaseException, backend: str, used: Credentials, secrets: Iterable[Secret | None] = ()
    ) -> ConnectError:
        """Note that a backend has refused the credentials, and make the error to raise, as connect_error() does.

        `secrets` are further ones that no text may show.
        """
        least, most = self._pauses(_LOCK_OUT)
        told = connect_error(what, error, backend, (*used.secrets, *secrets), min_backoff=least, max_backoff=most)
        until = asyncio.get_running_loop().time() + _LOCK_OUT
        self._refused[backend] = _Refusal(used.user, used.password, until, str(told))
        return told

    def _pauses(self, left: float) -> tuple[float, float]:
        """Say how long to wait, at least and at most, when nothing but other credentials can help so soon."""
        may_change = callable(self._user) or callable(self._password)
        return (_LOOK_AGAIN, _LOOK_AGAIN) if may_change else (left, math.inf)

    async def _ask(self, what: str, credential: Credential | None, backend: str) -> tuple[Secret | None, bool]:
        """Give a credential, and whether it came as a bare text."""
        try:
            answer = await _answer(what, credential)
        except Exception as error:  # noqa: BLE001 - the user's function may raise anything
            told = connect_error(f"asking for the {what} failed", error, backend)
            raise told from told.__cause__
        return (Secret(answer), True) if isinstance(answer, str) else (answer, False)


@dataclass(frozen=True, slots=True)
class _Refusal:
    user: Secret | None
    password: Secret | None
    until: float
    text: str


def without(text: str, secrets: Iterable[Secret | None]) -> str:
    """Give the text with *** for each of the secrets."""
    for secret in secrets:
        if secret is not None and len(secret.reveal()) >= _LEAST_LENGTH:
            text = text.replace(secret.reveal(), _HIDDEN)
    return text


def connect_error(
    what: str,
    error: BaseException,
    backend: str,
    secrets: Iterable[Secret | None] = (),
    *,
    min_backoff: float = 0.0,
    max_backoff: float = math.inf,
) -> ConnectError:
    """Make the error to raise for what a driver raised, and say `what` failed; no secret is in it.

    Its cause is the driver's error only when the secrets do not stand in that, nor in what it is chained to. Raise it
    `from` its own cause.
    """
    secrets = tuple(secrets)
    text = f"{what}: {_described(error, secrets)}"
    told = ConnectError(text, backend, min_backoff=min_backoff, max_backoff=max_backoff)
    told.__cause__ = error if _is_free_of(error, secrets) else None
    return told


def summed_up(failures: Sequence[ConnectError], backend: str) -> ConnectError:
    """Make one error of those of several addresses, with the pauses of the last one. Raise it `from` its own cause."""
    if len(failures) == 1:
        return failures[0]
    last = failures[-1]
    text = "; ".join(map(str, failures))
    told = ConnectError(text, backend, min_backoff=last.min_backoff, max_backoff=last.max_backoff)
    told.__cause__ = last
    return told


def _described(error: BaseException, secrets: tuple[Secret | None, ...]) -> str:
    """Describe the error, with *** for the secrets: before its text is cut and put into one line, and after that."""
    with contextlib.suppress(Exception):  # a broken __str__ is user code too
        text = str(error)
        if (rest := without(text, secrets)) != text:
            error = type(type(error).__name__, (Exception,), {})(rest)
    return without(describe(error), secrets)


def _is_free_of(error: BaseException, secrets: tuple[Secret | None, ...]) -> bool:
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        try:
            text = f"{link} {link!r} {getattr(link, '__notes__', '')}"
        except Exception:  # noqa: BLE001 - a broken __str__ is user code too
            return False
        if without(text, secrets) != text:
            return False
        link = link.__cause__ or link.__context__
    return True
