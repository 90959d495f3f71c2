"""A PostgreSQL server that ends a session says so before the connection ends, which may be much later."""

import asyncio
import contextlib

import pytest
from sqlalchemy import text

from qorb import Backend, Policy, Pool
from qorb._demo.postgres import PostgresServer
from qorb.connectors._postgres import Overhearing
from qorb.connectors.asyncpg import AsyncpgConnector
from qorb.connectors.psycopg import PsycopgConnector
from qorb.connectors.sqlalchemy import SqlAlchemyConnector
from qorb.resolvers import FixedResolver
from tests.connectors.peers import eventually

APPLICATION = "farewell"
READY = b"Z\0\0\0\5I"
NOTICE = b"N\0\0\0\7abc"
FATAL = b"E\0\0\0\x09SFATAL"[:10]


@pytest.fixture(scope="module")
def server():
    with PostgresServer() as server:
        yield server


def with_asyncpg():
    connector = AsyncpgConnector(user="postgres", database="postgres", application_name=APPLICATION)

    async def ask(pool):
        async with pool.claim() as connection:
            return await connection.fetchval("SELECT 1")

    return connector, ask


def with_psycopg():
    connector = PsycopgConnector(user="postgres", database="postgres", application_name=APPLICATION)

    async def ask(pool):
        async with pool.claim() as connection:
            row = await (await connection.execute("SELECT 1")).fetchone()
        return row[0]

    return connector, ask


def with_sqlalchemy(driver):
    named = {"application_name": APPLICATION}
    arguments = {"server_settings": named} if driver == "asyncpg" else named
    connector = SqlAlchemyConnector(f"postgresql+{driver}://postgres@/postgres", connect_args=arguments)

    async def ask(pool):
        async with connector.engine_over(pool).connect() as connection:
            return await connection.scalar(text("SELECT 1"))

    return connector, ask


DRIVERS = {
    "asyncpg": with_asyncpg,
    "psycopg": with_psycopg,
    "SQLAlchemy, asyncpg": lambda: with_sqlalchemy("asyncpg"),
    "SQLAlchemy, psycopg": lambda: with_sqlalchemy("psycopg"),
}


class Relay:
    """Stands between client and server. All passes at once but the end of the server, which comes after the client."""

    def __init__(self, server):
        self.server = server
        self.serving = 0
        self.ended = 0

    async def serve(self, reader, writer):
        self.serving += 1
        upstream, downstream = await asyncio.open_connection(self.server.host, self.server.port)
        asking = asyncio.create_task(self.ask(reader, downstream))
        await self.pass_on(upstream, writer)
        self.ended += 1
        await asking
        for one in (writer, downstream):
            one.transport.abort()
            with contextlib.suppress(OSError):  # uvloop tells here that the other end had gone before
                await one.wait_closed()
        self.serving -= 1

    async def ask(self, reader, downstream):
        await self.pass_on(reader, downstream)
        with contextlib.suppress(OSError):
            downstream.write_eof()

    async def pass_on(self, reader, writer):
        with contextlib.suppress(ConnectionError):
            while received := await reader.read(1 << 16):
                writer.write(received)


@pytest.mark.parametrize("make", DRIVERS.values(), ids=DRIVERS)
def test_a_session_that_the_server_has_ended_is_not_handed_out_before_its_connection_ends(run_real, server, make):
    async def main():
        connector, ask = make()
        relay = Relay(server)
        async with await asyncio.start_server(relay.serve, "127.0.0.1", 0) as front:
            backend = Backend("db", *front.sockets[0].getsockname())
            policy = Policy(spares_wanted=1, max_slots=1)
            async with Pool("db", FixedResolver([backend]), connector, policy) as pool:
                assert await ask(pool) == 1
                await asyncio.to_thread(server.end_sessions, APPLICATION)
                await eventually(lambda: relay.ended == 1)
                await asyncio.sleep(0.05)  # what the relay has passed on is there, in the client's kernel or its loop
                assert pool.stats().backends["db"].failures == 0
                assert await ask(pool) == 1
                assert relay.ended == 1
            await eventually(lambda: not relay.serving)

    run_real(main)


@pytest.mark.parametrize(
    "chunks",
    [
        [READY, FATAL],
        [READY + FATAL],
        [b"rows" + READY + NOTICE + FATAL],
        [b"rows" + READY, NOTICE, NOTICE + FATAL],
    ],
)
def test_a_farewell_is_heard_whatever_it_comes_with(chunks):
    overhearing = Overhearing()
    for chunk in chunks:
        assert not overhearing.farewell
        overhearing.hear(chunk)
    assert overhearing.farewell


@pytest.mark.parametrize(
    "chunks",
    [
        [FATAL],  # it may be a part of an answer that has come in several
        [FATAL + READY],  # an answer: the query has failed
        [READY, NOTICE[:3], NOTICE[3:] + FATAL],  # where a message begins is not known any more
        [READY + NOTICE[:2], FATAL],
        [READY, b"D" + FATAL],
    ],
)
def test_what_may_be_something_else_is_no_farewell(chunks):
    overhearing = Overhearing()
    for chunk in chunks:
        overhearing.hear(chunk)
    assert not overhearing.farewell


def test_the_failure_of_a_query_is_no_farewell():
    overhearing = Overhearing()
    overhearing.hear(READY)
    overhearing.asked()
    overhearing.hear(FATAL)
    overhearing.hear(READY)
    assert not overhearing.farewell
    overhearing.hear(NOTICE + FATAL)
    assert overhearing.farewell
