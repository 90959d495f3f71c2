"""A pool within a web application, and within fixtures: what examples/starlette_app.py and test_fixture.py show."""

import asyncio
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
import uvicorn

from qorb import Policy, Pool, PoolState
from qorb.connectors import TcpConnector
from qorb.resolvers import FixedResolver
from tests.connectors.cancelling import at_every_await

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


app_of = load("starlette_app").make_app


class Echo:
    """A service that sends every line back; while it is `silent`, nothing."""

    def __init__(self):
        self.heard = asyncio.Condition()
        self.lines = 0
        self.speaks = asyncio.Event()
        self.speaks.set()
        self.tasks = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.address = "{}:{}".format(*self.server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *exc):
        self.server.close()
        self.speaks.set()
        while self.tasks:
            await asyncio.wait(self.tasks)

    async def serve(self, reader, writer):
        self.tasks.add(task := asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                async with self.heard:
                    self.lines += 1
                    self.heard.notify_all()
                await self.speaks.wait()
                writer.write(line)
        writer.transport.abort()
        self.tasks.discard(task)

    async def has_heard(self, lines):
        async with self.heard:
            await self.heard.wait_for(lambda: self.lines >= lines)


def make_pool(echo, **policy):
    settings = {"spares_wanted": 1, "max_slots": 1, **policy}
    return Pool("echo", FixedResolver([echo.address]), TcpConnector(), Policy(**settings))


async def get(app, path):
    """Call the application as a server does."""
    said = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        said.append(message)

    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": path, "raw_path": path.encode()}
    scope |= {"query_string": b"", "headers": [], "root_path": "", "scheme": "http", "client": None, "server": None}
    await app(scope, receive, send)
    return said[0]["status"], b"".join(message.get("body", b"") for message in said).decode()


@contextlib.asynccontextmanager
async def serving(**policy):
    """The application of the example, while it lives, over a pool of connections to a service."""
    async with Echo() as echo:
        pool = make_pool(echo, **policy)
        app = app_of(pool)
        async with app.router.lifespan_context(app):
            yield echo, pool, app


def test_every_request_claims_a_connection_and_the_pool_lives_as_long_as_the_application(run_real):
    async def main():
        async with serving() as (echo, pool, app):
            asked = [get(app, f"/echo/{number}") for number in range(20)]
            assert await asyncio.gather(*asked) == [(200, str(number)) for number in range(20)]
            assert await get(app, "/health") == (200, f'{{"{echo.address}":true}}')
        assert pool.state is PoolState.TERMINATED
        assert pool.ledger().empty
        assert (await get(app, "/echo/late"))[0] == 503

    run_real(main)


def test_a_request_that_gets_no_connection_is_told_why(run_real):
    async def main():
        async with serving(claim_timeout=0.05) as (_, pool, app):
            await pool.ready(timeout=10.0)
            async with pool.claim():
                status, words = await get(app, "/echo/hello")
            assert status == 503
            assert "in use" in words

    run_real(main)


def test_a_request_cancelled_anywhere_spoils_no_connection_for_the_next(run_real):
    async def main():
        attempts = 0
        async with serving() as (_, pool, app):
            await pool.ready()
            async for attempt in at_every_await():
                attempts += 1
                await attempt.run(get(app, "/echo/mine"))
                assert await get(app, "/echo/yours") == (200, "yours")
        assert attempts > 4
        assert pool.ledger().empty

    run_real(main)


def test_a_request_in_a_cancel_scope_that_ends_spoils_no_connection_for_the_next(run_real):
    async def main():
        async with serving() as (echo, pool, app):
            echo.speaks.clear()
            async with anyio.create_task_group() as group:
                for _ in range(10):  # one has the connection, nine wait for it
                    group.start_soon(get, app, "/echo/mine")
                await echo.has_heard(1)
                group.cancel_scope.cancel()
            echo.speaks.set()
            assert await get(app, "/echo/yours") == (200, "yours")
            assert pool.stats().waiting == 0

    run_real(main)


def test_the_application_may_end_in_a_cancel_scope(run_real):
    async def main():
        async with Echo() as echo:
            pool = make_pool(echo)
            app = app_of(pool)
            with anyio.CancelScope() as scope:
                async with app.router.lifespan_context(app):
                    await pool.ready()
                    scope.cancel()
            await pool.terminate(grace=0)
            assert pool.ledger().empty

    run_real(main)


class Server(uvicorn.Server):
    """A server on a free port, which leaves signals to the test."""

    def __init__(self, app, **options):
        super().__init__(uvicorn.Config(app, port=0, log_level="critical", lifespan="on", **options))
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self):
        yield

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.port = self.servers[0].sockets[0].getsockname()[1]
        self.up.set()


async def fetch(port, path):
    """Give the whole answer of a server, or what came of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("answers", [True, False])
def test_a_server_that_is_shut_down_under_load_leaves_nothing(run_real, answers):
    async def main():
        async with Echo() as echo:
            pool = make_pool(echo, max_slots=4, claim_timeout=60.0)
            server = Server(app_of(pool), timeout_graceful_shutdown=60 if answers else 0)
            serving = asyncio.create_task(server.serve())
            await server.up.wait()
            echo.speaks.clear()
            fetching = [asyncio.create_task(fetch(server.port, f"/echo/{number}")) for number in range(20)]
            await echo.has_heard(4)
            server.should_exit = True
            if answers:
                echo.speaks.set()
            await serving
            assert pool.state is PoolState.TERMINATED
            assert pool.ledger().empty
            outcomes = await asyncio.gather(*fetching)
            ends = [outcome.endswith(str(number).encode()) for number, outcome in enumerate(outcomes)]
            assert all(ends) if answers else not any(b" 200 " in outcome for outcome in outcomes)

    run_real(main)


def test_a_client_that_goes_away_leaves_no_claim_behind(run_real):
    async def main():
        async with Echo() as echo:
            pool = make_pool(echo)
            server = Server(app_of(pool))
            serving = asyncio.create_task(server.serve())
            await server.up.wait()
            echo.speaks.clear()
            going = asyncio.create_task(fetch(server.port, "/echo/mine"))
            await echo.has_heard(1)
            going.cancel()
            await asyncio.wait({going})
            echo.speaks.set()
            assert (await fetch(server.port, "/echo/yours")).endswith(b"\r\n\r\nyours")
            server.should_exit = True
            await serving
            assert pool.ledger().empty

    run_real(main)


def test_the_program_ends_on_a_signal_without_a_word(run_real):
    async def main():
        async with Echo() as echo:
            program = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "error", EXAMPLES / "starlette_app.py", echo.address),
                *("--port", str(port := free_port())),
                env={**os.environ, "PYTHONASYNCIODEBUG": ""},  # debug mode reports what is slow by the clock
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert (await until_served(port, "/echo/hello")).endswith(b"hello")
            program.send_signal(signal.SIGTERM)
            said = await program.communicate()
            assert said == (b"", b"")

    run_real(main)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


async def until_served(port, path):
    while True:
        try:
            return await fetch(port, path)
        except ConnectionError:
            await asyncio.sleep(0.01)  # nobody announces it


def test_the_fixtures_of_the_example_work():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", EXAMPLES / "test_fixture.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
