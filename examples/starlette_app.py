"""A web application with a pool: `python examples/starlette_app.py 127.0.0.1:7001 127.0.0.1:7002`.

The backends are services that send every line back, and GET /echo/hello asks one of them. The pool lives as long as the
application (Starlette's lifespan), and every request claims a connection for as long as it needs one. FastAPI takes the
same lifespan: FastAPI(lifespan=lifespan_with(pool)). Needs `pip install starlette uvicorn`.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from qorb import ClaimError, Policy, Pool, PoolTerminatedError
from qorb.connectors import TcpConnector
from qorb.resolvers import FixedResolver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from starlette.requests import Request
    from starlette.responses import Response

    from qorb.connectors import TcpStream

GRACE = 2.0
"""Seconds that requests which are under way get to end when the application does."""


def lifespan_with(pool: Pool[TcpStream]) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """Start the pool with the application, on its event loop, and end it with it."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await pool.start()
        try:
            yield
        finally:
            await pool.terminate(grace=GRACE)

    return lifespan


async def echo(request: Request) -> Response:
    """Send one line through the service. A request that is cancelled on the way spoils no connection for the next."""
    async with request.app.state.pool.claim() as stream:
        stream.writer.write(request.path_params["text"].encode() + b"\n")
        answer = await stream.reader.readline()
    if not answer:
        return PlainTextResponse("the service has hung up", status_code=502)
    return PlainTextResponse(answer.decode().rstrip("\n"))


async def health(request: Request) -> Response:
    """Say how the service does. Claims nothing, so it answers also when no backend does."""
    backends = request.app.state.pool.stats().backends
    online = {name: backend.online for name, backend in backends.items()}
    return JSONResponse(online, status_code=200 if any(online.values()) else 503)


async def out_of_reach(_request: Request, error: Exception) -> Response:
    """Answer when there is no connection to be had: that is no fault of the application. The error says why."""
    return PlainTextResponse(str(error), status_code=503, headers={"Retry-After": "1"})


def make_app(pool: Pool[TcpStream]) -> Starlette:
    """Make the application over a pool that has not been started."""
    app = Starlette(
        routes=[Route("/echo/{text}", echo), Route("/health", health)],
        exception_handlers={ClaimError: out_of_reach, PoolTerminatedError: out_of_reach},
        lifespan=lifespan_with(pool),
    )
    app.state.pool = pool
    return app


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="an application with a pool")
    parser.add_argument("backends", nargs="+", help="as host:port")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    # Shorter than the patience of who asks: a client that has gone away needs no connection.
    policy = Policy(max_slots=32, claim_timeout=2.0)
    pool = Pool("echo", FixedResolver(options.backends), TcpConnector(), policy)
    uvicorn.run(make_app(pool), port=options.port, log_level="warning", timeout_graceful_shutdown=int(GRACE))


if __name__ == "__main__":
    main()
