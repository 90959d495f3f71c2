"""RoleKeeper, and what the connectors that have a role make of two answers that cross."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal

import asyncpg
import psycopg
import pytest
import redis

from qorb import Backend, Policy, Pool
from qorb._demo.postgres import PostgresServer
from qorb.connectors._postgres import RoleKeeper
from qorb.connectors.asyncpg import AsyncpgConnector
from qorb.connectors.psycopg import PsycopgConnector
from qorb.connectors.redis import RedisConnector
from qorb.errors import BackendUnfitError, NoBackendsOnlineError
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector, run
from tests.connectors.peers import eventually, receive, send
from tests.pools import backends, opened

ReadOnly = (asyncpg.ReadOnlySQLTransactionError, psycopg.errors.ReadOnlySqlTransaction)
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
    with pytest.raises(BackendUnfitError, match="meanwhile lost the role") as caught:
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


async def write_in_vain(connection):
    """Have the connector believe that the server refuses writes."""
    await connection.execute("SET default_transaction_read_only = on")
    with pytest.raises(ReadOnly):
        await connection.execute("CREATE TABLE things (id int)")


@pytest.mark.parametrize("kind", [AsyncpgConnector, PsycopgConnector])
def test_a_loss_noted_while_postgresql_is_asked_is_not_forgotten_over_the_answer(run_real, server, kind):
    backend = Backend("db", server.host, server.port)

    async def main():
        connector = kind(user="postgres", database="postgres", role="primary")
        slow, quick = await connector.connect(backend), await connector.connect(backend)
        with frozen(process_of(slow)):
            check = asyncio.ensure_future(connector.validate(slow))
            await asyncio.sleep(0)
            await write_in_vain(quick)
        with pytest.raises(BackendUnfitError):
            await check
        assert connector.is_closed(slow)
        for connection in (slow, quick):
            connector.abort(connection)
        await asyncio.sleep(0)

    run_real(main)


@pytest.mark.parametrize("kind", [AsyncpgConnector, PsycopgConnector])
def test_a_loss_noted_while_on_connect_is_awaited_is_the_reason_why_there_is_no_connection(run_real, server, kind):
    backend = Backend("db", server.host, server.port)

    async def main():
        other = None

        async def lose(_):
            if other is not None:
                await write_in_vain(other)

        connector = kind(user="postgres", database="postgres", role="primary", on_connect=lose)
        other = await connector.connect(backend)
        with pytest.raises(BackendUnfitError, match="meanwhile lost the role"):
            await connector.connect(backend)
        connector.abort(other)
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


# What the pool makes of it.


class Kept(FakeConnector):
    """A FakeConnector for primaries: its servers say that they accept writes until `demoted` is set."""

    demoted = False

    def __init__(self):
        super().__init__()
        self.keeper = RoleKeeper("primary")
        self.proofs = {}

    async def connect(self, backend):
        connection = await super().connect(backend)
        await self.validate(connection)
        return connection

    async def validate(self, connection):
        question = self.keeper.question()
        await super().validate(connection)
        self.proofs[connection] = self.keeper.prove(connection.backend.name, question, read_only=self.demoted)

    async def on_recycle(self, connection, outcome):
        await self.validate(connection)

    def is_closed(self, connection):
        return super().is_closed(connection) or self.keeper.is_void(connection.backend.name, self.proofs[connection])


@pytest.mark.parametrize(("health_interval", "ends"), [(0.1, "discard"), (1000.0, "release")])
def test_the_reason_why_a_backend_is_offline_is_the_role_that_it_lost(health_interval, ends):
    async def main():
        connector = Kept()
        policy = {"spares_wanted": 4, "max_slots": 4, "health_interval": health_interval}
        async with opened(backends(1), connector, **policy) as watched:
            claim = await watched.pool.claim()
            connector.demoted = True
            connector.stall("connect")  # so that there is nothing to tell but how it was found
            if ends == "release":
                claim.release()
            await eventually(lambda: watched.stats().unclaimed_slots == 0)
            claim.discard()
            with pytest.raises(NoBackendsOnlineError, match="refuses writes") as caught:
                await watched.pool.claim(timeout=0.3)
            assert "closed" not in str(caught.value)
            assert isinstance(caught.value.__cause__, BackendUnfitError)
            assert "refuses writes" in watched.stats().last_error
            connector.heal()

    run(main)


@pytest.fixture
def demotable(server):
    yield server
    server.configure(default_transaction_read_only="off")


@pytest.mark.parametrize("kind", [AsyncpgConnector, PsycopgConnector])
def test_a_demoted_postgresql_is_offline_for_its_role_and_says_so(run_real, demotable, kind):
    async def write_until_refused(connection):
        while True:
            await connection.execute("CREATE TABLE IF NOT EXISTS written (id int)")

    async def main():
        connector = kind(user="postgres", database="postgres", role="primary")
        policy = Policy(spares_wanted=3, max_slots=3, health_interval=math.inf)
        async with Pool("db", FixedResolver([demotable.address]), connector, policy) as pool:
            await pool.ready()
            async with pool.claim() as connection:
                demotable.demote_in_place()
                with pytest.raises(ReadOnly):
                    await write_until_refused(connection)
            await eventually(lambda: not pool.stats().backends[demotable.address].online)
            with pytest.raises(NoBackendsOnlineError, match="refuses writes") as caught:
                await pool.claim(timeout=0.1)
            assert isinstance(caught.value.__cause__, BackendUnfitError)
            assert "refuses writes" in pool.stats().backends[demotable.address].last_error

    run_real(main)
