"""What SqlAlchemyConnector knows of the drivers beneath SQLAlchemy: asyncpg and psycopg. It imports neither."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

from qorb.connectors._dialling import DiallingLoop
from qorb.connectors._postgres import REFUSED_LOGIN, Farewell, libpq_host
from qorb.connectors._sockets import addresses_of, server_name

if TYPE_CHECKING:
    import ssl as tls

    from qorb.backend import Backend
    from qorb.connectors._sockets import Dialler

DRIVERS = ("asyncpg", "psycopg")
_INVALID_AUTHORIZATION = "28"
"""The class of SQLSTATE that a refused login has."""


async def ways(driver: str, backend: Backend, dialler: Dialler, context: tls.SSLContext | None) -> list[dict[str, Any]]:
    """Give what to tell a driver so that it connects to a backend, once for each address to try. Raises ConnectError.

    A host that is a name is looked up on a thread: a call that is cancelled meanwhile ends when the look-up does.
    """
    if driver == "asyncpg":
        # Under that name also where the URL, or connect_args, ask for TLS.
        loop = DiallingLoop(dialler, backend, server_name(backend))
        options: dict[str, Any] = {"loop": loop, "timeout": None}  # the pool bounds it
        return [options if context is None else {**options, "ssl": context}]
    name = libpq_host(backend)
    # As libpq has it: what is verified, and where to go.
    return [{"host": name, "hostaddr": str(address[0])} for _, address in await addresses_of(backend)]


def failed_login(error: BaseException) -> bool:
    """Whether the server did not accept who we say we are. psycopg says so in words alone."""
    link: BaseException | None = error
    while link is not None:
        state = getattr(link, "sqlstate", None)
        if isinstance(state, str):
            return state.startswith(_INVALID_AUTHORIZATION)
        link = link.__cause__
    return REFUSED_LOGIN.search(str(error)) is not None


def has_transaction(driver: Any) -> bool:  # noqa: ANN401 - of either driver
    """Whether a transaction is open, or a statement under way, on a connection of a driver."""
    if driver is None:
        return False
    if hasattr(driver, "pgconn"):
        return bool(driver.pgconn.transaction_status != 0)  # psycopg's TransactionStatus.IDLE
    return bool(driver.is_in_transaction())


def believes_in_transaction(driver: Any) -> bool:  # noqa: ANN401 - of either driver
    """Whether asyncpg would take the next transaction for a nested one: also when none is open, but BEGIN failed."""
    return getattr(driver, "_top_xact", None) is not None


def forget_transaction(driver: Any) -> None:  # noqa: ANN401 - of either driver
    """Have asyncpg believe in none; for when none is open."""
    if believes_in_transaction(driver):
        driver._top_xact = None  # noqa: SLF001 - there is no public word for it


def listen(driver: Any, loop: DiallingLoop | None, farewell: Farewell) -> None:  # noqa: ANN401 - of either driver
    """Hear from now on when the server ends the session of a new connection."""
    if loop is not None:
        loop.listen_in(driver)
    else:
        driver.add_notice_handler(farewell.listen)


def is_dead(driver: Any, loop: DiallingLoop | None, farewell: Farewell) -> bool:  # noqa: ANN401 - of either driver
    """Whether a connection of a driver is visibly closed, by either end, or cannot be used nor closed in order."""
    if loop is not None:
        return loop.is_closing or loop.cancels_in_vain or bool(driver.is_closed())
    return bool(driver.closed) or (not has_transaction(driver) and farewell.is_there(driver.pgconn))


def cut(driver: Any, loop: DiallingLoop | None) -> None:  # noqa: ANN401 - of either driver, or None
    """Close a connection of a driver at once, and what it has begun. What is under way on it fails."""
    if loop is not None:
        with contextlib.suppress(RuntimeError):  # the loop is closed; the transport cannot ask it to go on
            if driver is not None:
                driver.terminate()
        loop.abort()
    elif driver is not None and not driver.closed:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(driver.pgconn.socket)) as sock:
            sock.shutdown(socket.SHUT_RDWR)  # fails when the peer was quicker
        # Whoever waits for it on the loop sees its end and goes; until then the descriptor's number must not be free.
        if not driver.lock.locked():
            driver.pgconn.finish()
