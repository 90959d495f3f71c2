"""App: the statistics as an ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

from qorb.top._feed import Feed, converse
from qorb.top._gate import SUBPROTOCOL, Request, offered

if TYPE_CHECKING:
    from qorb.top._gate import Answer
    from qorb.top._site import Site

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


class App:
    """What `qorb.top.app()` makes: an application after ASGI 3.0, for HTTP and WebSocket.

    What belongs to connections (pings, how long a request may take to arrive) is the server's; the limits on clients,
    on slow ones and on what they send are kept here.
    """

    def __init__(self, site: Site) -> None:
        """Show a site."""
        self._site = site

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection. Cancelling it ends that."""
        if scope["type"] == "http":
            await _say(self._site.answer(_request(scope)), "http.response", send)
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _live(receive, send)
        else:
            raise ValueError(f"an ASGI scope of the type {scope['type']!r} is none that is known here")

    async def _socket(self, scope: Message, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        request = _request(scope)
        feed = self._site.admit(request)
        if not isinstance(feed, Feed):
            await _refuse(feed, scope, send)
            return
        try:
            subprotocol = SUBPROTOCOL if SUBPROTOCOL in offered(request) else None
            await send({"type": "websocket.accept", "subprotocol": subprotocol})

            async def send_frame(frame: bytes) -> None:
                await send({"type": "websocket.send", "bytes": frame})

            async def receive_size() -> int | None:
                message = await receive()
                if message["type"] == "websocket.disconnect":
                    return None
                return len(message.get("bytes") or message.get("text") or b"")

            await converse(feed, send_frame, receive_size, self._site.limits.patience)
        finally:
            feed.leave()
        if not feed.client_gone:
            await send({"type": "websocket.close", "code": feed.code, "reason": feed.reason})


def _request(scope: Message) -> Request:
    root = str(scope.get("root_path") or "").rstrip("/")
    path = str(scope["path"])
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    client, server = scope.get("client"), scope.get("server")
    return Request(
        method=scope.get("method", "GET"),
        path=path,
        query=bytes(scope.get("query_string", b"")).decode("latin-1"),
        headers=tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]),
        client=client[0] if client else None,
        server=server[0] if server else None,
    )


async def _say(answer: Answer, kind: str, send: Send) -> None:
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    await send({"type": f"{kind}.start", "status": int(answer.status), "headers": headers})
    await send({"type": f"{kind}.body", "body": answer.body})


async def _refuse(answer: Answer, scope: Message, send: Send) -> None:
    if "websocket.http.response" in (scope.get("extensions") or {}):
        await _say(answer, "websocket.http.response", send)
    else:
        await send({"type": "websocket.close"})  # before it was accepted: 403


async def _live(receive: Receive, send: Send) -> None:
    """Have nothing to start and nothing to end: the pools do that."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
