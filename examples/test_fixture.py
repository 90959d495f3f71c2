"""Fixtures for tests that need a pool on a real event loop: run it with `python -m pytest examples/test_fixture.py`.

A pool belongs to one event loop, so its fixture must use the loop of the test. Here that is a runner, which needs no
plugin. With pytest-asyncio or anyio's plugin the fixture is an async one, `async with Pool(...) as pool: yield pool`,
of the same loop scope as the tests. (What needs no real server is tested faster in virtual time: test_application.py.)
"""

# ruff: noqa: D103, S101 - a test's name is its sentence, and it asserts what it expects

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from qorb import Policy, Pool
from qorb.connectors import TcpConnector, TcpStream
from qorb.resolvers import FixedResolver
from qorb.testing import assert_nothing_left

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """The event loop of one test."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def server(runner: asyncio.Runner) -> Iterator[tuple[str, int]]:
    """A service that sends every line back; in real life perhaps a database in a container."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):  # a client may hang up in the midst
            while line := await reader.readline():
                writer.write(line)
            writer.close()
            await writer.wait_closed()

    async def close() -> None:
        server.close()
        await asyncio.sleep(0.01)  # for what serves the last clients

    server = runner.run(asyncio.start_server(serve, "127.0.0.1", 0))
    yield server.sockets[0].getsockname()
    runner.run(close())


@pytest.fixture
def pool(runner: asyncio.Runner, server: tuple[str, int]) -> Iterator[Pool[TcpStream]]:
    """A pool that is started, and of which nothing is left after the test."""
    pool = Pool("test", FixedResolver([server]), TcpConnector(), Policy(spares_wanted=1, max_slots=2))
    runner.run(pool.start())
    runner.run(pool.ready())
    yield pool
    runner.run(pool.terminate(grace=0))
    assert_nothing_left(pool)


def test_a_line_comes_back(runner: asyncio.Runner, pool: Pool[TcpStream]) -> None:
    async def main() -> None:
        async with pool.claim() as stream:
            stream.writer.write(b"hello\n")
            assert await stream.reader.readline() == b"hello\n"

    runner.run(main())


def test_two_connections_serve_ten_tasks(runner: asyncio.Runner, pool: Pool[TcpStream]) -> None:
    async def ask(number: int) -> bytes:
        async with pool.claim() as stream:
            stream.writer.write(b"%d\n" % number)
            return await stream.reader.readline()

    async def main() -> None:
        answers = await asyncio.gather(*map(ask, range(10)))
        assert answers == [b"%d\n" % number for number in range(10)]

    runner.run(main())
