"""What all connectors for servers that ask who comes do alike."""

from __future__ import annotations

import asyncio
import sqlite3
import typing

import pytest
import redis

import qorb.connectors.asyncpg
import qorb.connectors.psycopg
import qorb.connectors.redis
from qorb import Backend, Outcome, Policy, Pool
from qorb._demo.postgres import PostgresServer
from qorb.connectors.asyncpg import AsyncpgConnector
from qorb.connectors.blocking import BlockingConnector
from qorb.connectors.psycopg import PsycopgConnector
from qorb.connectors.redis import RedisConnector
from qorb.connectors.sqlalchemy import SqlAlchemyConnector
from qorb.errors import ConnectError
from qorb.resolvers import FixedResolver
from tests.connectors.peers import eventually, receive, send

CANARY = "canary-4711"


@pytest.fixture(scope="module")
def server():
    with PostgresServer() as server:
        server.sql(f"CREATE ROLE app LOGIN PASSWORD '{CANARY}'")
        server.allow("host all app samehost scram-sha-256")
        yield server


def of_postgres(kind, **options):
    return kind(**{"user": "postgres", "database": "postgres", **options})


def pool_of(server, connector):
    return Pool("db", FixedResolver([server.address]), connector, Policy(spares_wanted=1, max_slots=1))


def over_sqlalchemy(user, **options):
    return SqlAlchemyConnector("postgresql+asyncpg:///shop", user=user, **options)


def redis_connector(user, **options):
    return RedisConnector(username=user, **options)


@pytest.mark.parametrize("kind", [AsyncpgConnector, PsycopgConnector, over_sqlalchemy, redis_connector])
def test_a_function_for_a_password_that_fails_is_named_and_nothing_is_connected_to(run_real, listener, kind):
    def ask():
        raise LookupError("the vault is closed")

    async def main():
        with pytest.raises(ConnectError, match=r"^asking for the password failed: LookupError: the vault") as caught:
            await kind(user="app", password=ask).connect(listener.backend)
        assert caught.value.backend == listener.backend.name
        assert isinstance(caught.value.__cause__, LookupError)
        with pytest.raises(BlockingIOError):
            listener.sock.accept()

    run_real(main)


@pytest.mark.parametrize("name", ["a,b", "@db", "/tmp"])
def test_a_server_name_that_means_more_to_libpq_is_refused_under_sqlalchemy_too(run_real, listener, name):
    backend = Backend("db", listener.host, listener.port, name)

    async def main():
        with pytest.raises(ConnectError, match="no certificate can be good for the server name"):
            await SqlAlchemyConnector("postgresql+psycopg:///shop").connect(backend)

    run_real(main)


async def refused_by(listener, connector, replies):
    connecting = asyncio.ensure_future(connector.connect(listener.backend))
    with await listener.accept() as peer:
        await receive(peer, 10)
        await send(peer, replies)
        with pytest.raises(ConnectError) as caught:
            await connecting
    return caught.value


def test_what_is_no_role_is_a_failure_like_any_other_and_names_the_answer(run_real, listener):
    sentinel = b"%0\r\n*2\r\n$8\r\nsentinel\r\n*0\r\n"
    error = run_real(lambda: refused_by(listener, RedisConnector(role="primary"), sentinel))
    assert "the handshake failed: ValueError: the answer to ROLE is neither of a primary nor of a replica" in str(error)


def test_an_error_of_redis_is_the_cause_of_what_is_raised(run_real, listener):
    error = run_real(lambda: refused_by(listener, RedisConnector(), b"-ERR unknown command 'HELLO'\r\n"))
    assert isinstance(error.__cause__, redis.ResponseError)


def test_an_error_of_redis_that_quotes_the_password_is_no_cause_that_is_shown(run_real, listener):
    reply = b"-ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'app' 'canary-0815'\r\n"
    error = run_real(lambda: refused_by(listener, RedisConnector(username="app", password="canary-0815"), reply))
    assert "canary" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__


def over_psycopg(user, **options):
    return SqlAlchemyConnector("postgresql+psycopg:///postgres", user=user, **options)


@pytest.mark.parametrize(
    "kind",
    [
        lambda **login: of_postgres(AsyncpgConnector, **login),
        lambda **login: of_postgres(PsycopgConnector, **login),
        lambda **login: SqlAlchemyConnector("postgresql+asyncpg:///postgres", **login),
        over_psycopg,
    ],
    ids=["asyncpg", "psycopg", "SQLAlchemy, asyncpg", "SQLAlchemy, psycopg"],
)
def test_a_password_that_is_put_right_is_used_long_before_the_wrong_one_would_be_tried_again(run_real, server, kind):
    asked = []

    def password():
        asked.append("wrong" if len(asked) < 3 else CANARY)
        return asked[-1]

    async def main():
        async with pool_of(server, kind(user="app", password=password)) as pool, pool.claim(timeout=60.0):
            assert pool.stats().backends[server.address].failures == len(asked) - 1 == 3

    def refusals():
        return server.log.count('password authentication failed for user "app"')

    before = refusals()
    run_real(main)
    assert refusals() - before == 1  # the wrong one was not shown to the server again


# Hooks, and classes that are derived.


@pytest.mark.parametrize("kind", [AsyncpgConnector, PsycopgConnector])
def test_the_hooks_and_the_methods_of_a_derived_class_are_awaited_once_each(run_real, server, kind):
    called = []

    class Derived(kind):
        async def on_acquire(self, connection):
            await super().on_acquire(connection)
            await connection.execute("SET lock_timeout = 98")
            called.append("derived")

    async def on_connect(connection):
        await connection.execute("SET lock_timeout = 97")
        called.append("connect")

    async def on_acquire(connection):
        await connection.execute("SET lock_timeout = 99")
        called.append("hook")

    async def main():
        connector = of_postgres(Derived, on_connect=on_connect, on_acquire=on_acquire)
        async with pool_of(server, connector) as pool:
            for _ in range(2):
                async with pool.claim():
                    pass

    run_real(main)
    assert called == ["connect", "hook", "derived", "hook", "derived"]


@pytest.mark.parametrize("kind", [AsyncpgConnector, PsycopgConnector])
def test_a_hook_that_fails_is_named_shows_no_secret_and_leaves_no_session(run_real, server, kind):
    async def on_connect(connection):
        raise LookupError(f"no such type, with {CANARY}")

    async def main():
        connector = of_postgres(kind, user="app", password=CANARY, application_name="hooks", on_connect=on_connect)
        with pytest.raises(
            ConnectError, match=r"^on_connect failed: LookupError: no such type, with \*\*\*$"
        ) as caught:
            await connector.connect(Backend.parse(server.address))
        assert caught.value.__cause__ is None
        assert caught.value.backend == server.address
        await asyncio.sleep(0)
        await eventually(lambda: server.sessions("hooks") == 0)

    run_real(main)


async def ask(connection):
    await connection.execute("SELECT 1")


async def ask_on_its_thread(connection):
    await connection.run(sqlite3.Connection.execute, "SELECT 1")


@pytest.mark.parametrize(
    ("kind", "options", "use"),
    [
        (AsyncpgConnector, {"user": "postgres", "database": "postgres"}, ask),
        (PsycopgConnector, {"user": "postgres", "database": "postgres"}, ask),
        (
            BlockingConnector,
            {"connect": lambda _: sqlite3.connect(":memory:"), "needs_recycle": lambda raw: raw.in_transaction},
            ask_on_its_thread,
        ),
    ],
)
def test_an_on_recycle_of_a_derived_class_runs_after_every_claim(run_real, server, kind, options, use):
    recycled = []

    class Derived(kind):
        async def on_recycle(self, connection, outcome):
            await super().on_recycle(connection, outcome)
            recycled.append(outcome)

    async def main():
        async with pool_of(server, Derived(**options)) as pool:
            for claims in (1, 2):
                async with pool.claim() as connection:
                    await use(connection)
                await eventually(lambda: len(recycled) == claims)  # noqa: B023 - it is awaited at once

    run_real(main)


@pytest.mark.parametrize("module", [qorb.connectors.asyncpg, qorb.connectors.psycopg, qorb.connectors.redis])
def test_the_type_of_a_role_is_there_for_annotations(module):
    assert "Role" in module.__all__
    assert typing.get_args(module.Role) == ("primary", "replica", "any")


@pytest.mark.parametrize("kind", [AsyncpgConnector, PsycopgConnector])
def test_a_connection_that_its_claimer_has_closed_is_not_recycled_and_that_is_all_that_is_said(
    run_real, server, kind, caplog
):
    async def main():
        connector = of_postgres(kind)
        connection = await connector.connect(Backend.parse(server.address))
        await connection.close()
        assert connector.needs_recycle(connection, Outcome.CLEAN)
        with pytest.raises(ConnectError, match=r"^the connection is closed$"):
            await connector.on_recycle(connection, Outcome.CLEAN)
        connector.abort(connection)

    run_real(main)
    assert not caplog.records
