"""RoleKeeper, and what the connectors that have a role make of two answers that cross."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import asyncpg
import psycopg
import pytest
import redis

from qorb import Backend
from qorb._demo.postgres import PostgresServer
from qorb.connectors._postgres import RoleKeeper
from qorb.connectors.asyncpg import AsyncpgConnector
from qorb.connectors.psycopg import PsycopgConnector
from qorb.connectors.redis import RedisConnector
from qorb.errors import BackendUnfitError
from tests.connectors.peers import receive, send

MASTER = b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"


@pytest.fixture(scope="module")
def server():
    with PostgresServer() as server:
        yield server


def test_a_proof_is_as_old_as_the_question():
    keeper = RoleKeeper("primary")
    before = keeper.question()
    assert keeper.prove("db", before, read_only=False) == before
    keeper.lose("db")
    after = keeper.question()
    assert keeper.is_void("db", before)
    assert not keeper.is_void("db", keeper.prove("db", after, read_only=False))


def test_an_answer_to_a_question_from_before_the_loss_proves_nothing():
    keeper = RoleKeeper("primary")
    asked = keeper.question()
    keeper.lose("db")
    with pytest.raises(BackendUnfitError, match="lost the role while it was asked") as caught:
        keeper.prove("db", asked, read_only=False)
    assert caught.value.max_backoff <= 0.5
    assert keeper.prove("another", asked, read_only=False) == asked


@contextlib.contextmanager
def frozen(process):
    """What is asked of it meanwhile is answered afterwards."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def process_of(connection):
    return (
        connection.info.backend_pid if isinstance(connection, psycopg.AsyncConnection) else connection.get_server_pid()
    )


@pytest.mark.parametrize("kind", [AsyncpgConnector, PsycopgConnector])
def test_a_loss_noted_while_postgresql_is_asked_is_not_forgotten_over_the_answer(run_real, server, kind):
    backend = Backend("db", server.host, server.port)

    async def main():
        connector = kind(user="postgres", database="postgres", role="primary")
        slow, quick = await connector.connect(backend), await connector.connect(backend)
        with frozen(process_of(slow)):
            check = asyncio.ensure_future(connector.validate(slow))
            await asyncio.sleep(0)
            await quick.execute("SET default_transaction_read_only = on")
            with pytest.raises((asyncpg.ReadOnlySQLTransactionError, psycopg.errors.ReadOnlySqlTransaction)):
                await quick.execute("CREATE TABLE things (id int)")
        with pytest.raises(BackendUnfitError):
            await check
        assert connector.is_closed(slow)
        for connection in (slow, quick):
            connector.abort(connection)
        await asyncio.sleep(0)

    run_real(main)


def test_a_loss_noted_while_redis_is_asked_is_not_forgotten_over_the_answer(run_real, listener):
    async def login(connector, stack):
        connecting = asyncio.ensure_future(connector.connect(listener.backend))
        peer = stack.enter_context(await listener.accept())
        await answer(peer, b"ROLE", b"%0\r\n" + MASTER)
        return await connecting, peer

    async def answer(peer, question, reply):
        received = b""
        while question not in received:
            received += await receive(peer, 1)
        await receive(peer, len(b"\r\n"))
        await send(peer, reply)

    async def main():
        connector = RedisConnector(role="primary")
        with contextlib.ExitStack() as stack:
            (slow, its_peer), (quick, other_peer) = await login(connector, stack), await login(connector, stack)
            check = asyncio.ensure_future(connector.validate(slow))
            await asyncio.sleep(0)
            writing = asyncio.ensure_future(quick.set("a", 1))
            await answer(other_peer, b"SET", b"-READONLY You can't write against a read only replica.\r\n")
            with pytest.raises(redis.ReadOnlyError):
                await writing
            await answer(its_peer, b"ROLE", MASTER)
            with pytest.raises(BackendUnfitError):
                await check
            assert connector.is_closed(slow)
            for client in (slow, quick):
                connector.abort(client)
            await asyncio.sleep(0)

    run_real(main)
