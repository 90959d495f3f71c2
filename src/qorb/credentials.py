"""Credentials: passwords and tokens that show themselves nowhere, and are asked for when they are needed.

For connectors. Credentials live in the connector alone; what a driver raises may quote them, and is told on without.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from typing import TYPE_CHECKING, TypeAlias

from qorb.errors import ConnectError, describe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

_HIDDEN = "***"
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
    if callable(credential):
        answer = credential()
        credential = await answer if inspect.isawaitable(answer) else answer
        if not isinstance(credential, str | Secret):
            kind = type(credential).__name__
            raise TypeError(f"the function given as {what} must return a text or a Secret, not a {kind}")
    return Secret(credential) if isinstance(credential, str) else credential


async def revealed_for(what: str, credential: Credential | None, backend: str) -> Secret | None:
    """Give the credential of this moment, as revealed() does. Raises ConnectError, for a backend, for what that raises.

    Cancellation reaches the function.
    """
    try:
        return await revealed(what, credential)
    except Exception as error:  # noqa: BLE001 - the user's function may raise anything
        told = connect_error(f"asking for the {what} failed", error, backend)
        raise told from told.__cause__


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
