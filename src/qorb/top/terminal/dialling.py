"""A TCP connection that is given up at once when nobody wants it any more, though the look-up of a name cannot be."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    Address = tuple[int, int, int, str, Any]


async def dial(host: str, port: int, seconds: float) -> socket.socket:
    """Connect to the first of the host's addresses that answers; each has its share of the time.

    Raises OSError; TimeoutError, when nothing came of it in so many seconds; UnicodeError for what can be no name.
    Cancellation leaves no connection behind; a look-up that hangs goes on, on a thread that does not keep the
    program from ending.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    async with asyncio.timeout_at(until):
        addresses = await _look_up(host, port)
    failure: OSError = OSError("the host has no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        share = (until - loop.time()) / (len(addresses) - number)
        sock = socket.socket(family, kind, protocol)
        sock.settimeout(0)
        try:
            async with asyncio.timeout(share):
                await loop.sock_connect(sock, address)
        except OSError as error:  # TimeoutError is one
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


async def _look_up(host: str, port: int) -> Sequence[Address]:
    # Threads of asyncio's own pool are waited for when a program ends, however long a name server says nothing.
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Sequence[Address]] = loop.create_future()

    def tell(addresses: Sequence[Address], error: Exception | None) -> None:
        if found.done():
            return
        if error is None:
            found.set_result(addresses)
        else:
            found.set_exception(error)

    def work() -> None:
        addresses: Sequence[Address] = ()
        failure: Exception | None = None
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(tell, addresses, failure)

    threading.Thread(target=work, name="qorb top: look-up", daemon=True).start()
    return await found
