"""The statistics of pools, over HTTP and WebSocket: as numbers, as metrics, and as a page to look at.

`app(*pools)` is an ASGI application, to be mounted in a service of your own. `serve(*pools)` is a server of its own,
which ends with the pools. Both speak the protocol of the original's `qtop`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qorb.top._gate import Gate, check_access
from qorb.top._site import PORT, Site
from qorb.top.asgi import App

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qorb.credentials import Secret
    from qorb.pool import Pool
    from qorb.top._websockets import Server

__all__ = ["PORT", "App", "app", "serve"]


def app(
    *pools: Pool[Any],
    token: str | Secret | None = None,
    hosts: Iterable[str] = (),
    trusted: Iterable[str] | None = None,
) -> App:
    """Make an ASGI application that shows the pools. Mount it, or run it with any ASGI server.

    token: what a request must bring, at least 16 characters: `Authorization: Bearer TOKEN`, or `?token=TOKEN` for
        clients that have only an address.
    hosts: names, besides localhost and the address that a request came to, under which it may be asked for (`Host`).
        "*": under any, where something before it has looked at that.
    trusted: networks such as "10.0.0.0/8" from which no token is needed. None: 127.0.0.0/8 and ::1, or nobody when
        there is a token. Whoever is not trusted and has no token is refused.

    Pools are shown in the given order, and held by weak references: one that is dropped is shown no more. They may be
    started later, and belong to the loop that the application runs in. Raises TypeError and ValueError for an argument
    that is none of these, two pools of the same name among them.
    """
    return App(Site(pools, Gate(token, hosts, trusted)))


async def serve(
    *pools: Pool[Any],
    host: str = "127.0.0.1",
    port: int = PORT,
    token: str | Secret | None = None,
    hosts: Iterable[str] = (),
    trusted: Iterable[str] | None = None,
) -> Server:
    """Serve the statistics of pools that run, until the last of them has ended, or the server is closed.

    host: the IP address to listen on, or "localhost", which is 127.0.0.1. Any but the machine's own needs `token` or
        `trusted`.
    port: 0 for any that is free; Server.url says which.
    token, hosts, trusted: as for app().

    It accepts connections when this returns. It is a companion of every pool: when `Pool.terminate()` of the last one
    returns, nothing of the server runs. Raises ImportError without `websockets`; OSError when it cannot listen there,
    because the port is taken for example; ValueError and TypeError for an argument that is none of these;
    PoolNotStartedError, PoolTerminatedError, WrongLoopError and PoolForkedError as Pool.accompany() does. Never
    suspends for long; when it is cancelled nothing has been opened.
    """
    check_access(host, token, trusted)
    site = Site(pools, Gate(token, hosts, trusted))
    try:
        from qorb.top._websockets import Server  # noqa: PLC0415 - brings an optional dependency
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "websockets":
            raise
        raise ImportError('the statistics server needs websockets: pip install "qorb[stats]"') from error
    server = Server(site)
    await server.open(host, port, pools)
    return server
