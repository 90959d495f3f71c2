"""SqlAlchemyConnector: engines of SQLAlchemy over a pool, against a real PostgreSQL."""

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import os
import re
import select as select_module
import socket
import ssl
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from sqlalchemy import event, exc, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool

from qorb import (
    AllClaimsUsedError,
    Backend,
    NoBackendsOnlineError,
    Outcome,
    Policy,
    Pool,
    PoolNotStartedError,
    PoolTerminatedError,
)
from qorb._demo.postgres import PostgresServer
from qorb.connectors import TcpConnector
from qorb.connectors.sqlalchemy import SqlAlchemyConnector, create_engine_over
from qorb.credentials import Secret
from qorb.errors import ConnectError
from qorb.resolvers import FixedResolver, ManualResolver
from tests.connectors.cancelling import at_every_await

DRIVERS = ("asyncpg", "psycopg")
LAZY = Policy(spares_wanted=1, max_slots=1, health_interval=3600.0)


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


@pytest.fixture(scope="module")
def server():
    with PostgresServer(settings={"client_connection_check_interval": "20ms"}) as server:
        server.sql("CREATE TABLE account (id serial PRIMARY KEY, name text UNIQUE)", writing=True)
        yield server


@pytest.fixture(params=DRIVERS)
def driver(request):
    return request.param


@pytest.fixture
def application(request):
    """What the sessions of a test call themselves."""
    return f"sa{abs(hash(request.node.name)) % 10**8}"


@pytest.fixture
def connector(driver, application):
    return make_connector(driver, application)


def make_connector(driver, application, **options):
    named = {"server_settings": {"application_name": application}}
    if driver == "psycopg":
        named = {"application_name": application}
    return SqlAlchemyConnector(f"postgresql+{driver}://postgres@/postgres", connect_args=named, **options)


def make_pool(server, connector, policy=LAZY):
    return Pool("db", FixedResolver([server.address]), connector, policy)


async def until(said):
    while not said():  # noqa: ASYNC110 - nobody announces it
        await asyncio.sleep(0.001)


async def pid(connection):
    return (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()


async def names(engine):
    async with AsyncSession(engine) as session:
        return (await session.scalars(select(Account.name).order_by(Account.name))).all()


@pytest.fixture(autouse=True)
def empty_table(server):
    yield
    server.sql("TRUNCATE account", writing=True)


# Engines and sessions.


def test_an_engine_over_a_pool_takes_two_lines(run_real, server, driver):
    async def main():
        connector = SqlAlchemyConnector(f"postgresql+{driver}://postgres@/postgres")
        pool = Pool("db", FixedResolver([server.address]), connector)
        engine = create_engine_over(pool)
        async with pool, engine.connect() as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1

    run_real(main)


def test_a_transaction_is_committed_or_rolled_back(run_real, server, connector):
    async def fail(engine):
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO account (name) VALUES ('lost')"))
            raise ZeroDivisionError

    async def main():
        pool = make_pool(server, connector)
        engine = create_engine_over(pool)
        async with pool:
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO account (name) VALUES ('kept')"))
            with pytest.raises(ZeroDivisionError):
                await fail(engine)
            async with engine.connect() as connection:
                await connection.execute(text("INSERT INTO account (name) VALUES ('forgotten')"))
            assert await names(engine) == ["kept"]
            assert pool.stats().backends[server.address].failures == 0

    run_real(main)


def test_orm_sessions_work_and_an_error_of_the_database_does_not_cost_the_connection(run_real, server, connector):
    async def main():
        pool = make_pool(server, connector)
        sessions = async_sessionmaker(create_engine_over(pool), expire_on_commit=False)
        async with pool:
            async with sessions.begin() as session:
                ada = Account(name="ada")
                session.add(ada)
                first = await pid(session)
            async with sessions() as session:
                assert (await session.get_one(Account, ada.id)).name == "ada"
            with pytest.raises(exc.IntegrityError):
                async with sessions.begin() as session:
                    session.add(Account(name="ada"))
            async with sessions.begin() as session, session.begin_nested():
                session.add(Account(name="grace"))
                assert await pid(session) == first
        assert server.sql("SELECT string_agg(name, ',' ORDER BY name) FROM account") == "ada,grace"

    run_real(main)


def test_many_sessions_share_few_connections(run_real, server, connector, application):
    async def main():
        pool = make_pool(server, connector, Policy(spares_wanted=2, max_slots=3))
        sessions = async_sessionmaker(create_engine_over(pool))

        async def add(number):
            async with sessions.begin() as session:
                session.add(Account(name=f"{number:03}"))

        async with pool:
            await asyncio.gather(*map(add, range(50)))
            assert server.sessions(application) <= 3
            assert await names(create_engine_over(pool)) == [f"{number:03}" for number in range(50)]
        await until(lambda: server.sessions(application) == 0)

    run_real(main)


def test_results_are_streamed(run_real, server, connector):
    async def main():
        pool = make_pool(server, connector)
        async with pool, create_engine_over(pool).connect() as connection:
            result = await connection.stream(text("SELECT generate_series(1, 1000)"))
            assert [row[0] async for row in result] == list(range(1, 1001))

    run_real(main)


def test_an_isolation_level_ends_with_its_checkout(run_real, server, connector):
    async def main():
        pool = make_pool(server, connector)
        engine = create_engine_over(pool)
        question = text("SHOW transaction_isolation")
        async with pool:
            async with engine.connect() as connection:
                await connection.execution_options(isolation_level="SERIALIZABLE")
                assert (await connection.execute(question)).scalar_one() == "serializable"
            async with engine.connect() as connection:
                assert (await connection.execute(question)).scalar_one() == "read committed"

    run_real(main)


def test_a_transaction_that_a_replica_refuses_to_begin_is_none_for_the_next_session(run_real, server, connector):
    async def begin(engine, level):
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level=level)
            return await pid(connection)

    async def main(standby):
        pool = make_pool(standby, connector)
        engine = create_engine_over(pool)
        async with pool:
            first = await begin(engine, "READ COMMITTED")
            with pytest.raises(exc.DBAPIError, match="serializable"):
                await begin(engine, "SERIALIZABLE")
            assert await begin(engine, "READ COMMITTED") == first

    with PostgresServer("127.0.0.2", server.port, of=server) as standby:
        run_real(lambda: main(standby))


def test_a_clean_connection_goes_back_without_a_round_trip(run_real, server, connector):
    async def main():
        pool = make_pool(server, connector)
        engine = create_engine_over(pool)
        async with pool:
            async with engine.begin() as connection:
                await pid(connection)
            assert pool.stats().backends[server.address].unclaimed_slots == 1
            connection = await engine.connect()
            await pid(connection)
            await connection.close()
            assert pool.stats().backends[server.address].unclaimed_slots == 1

    run_real(main)


def test_a_claim_without_an_engine_gives_the_connection_of_the_driver_and_is_rolled_back(run_real, server, connector):
    async def main():
        pool = make_pool(server, connector)
        async with pool:
            async with pool.claim() as entry:
                await entry.driver_connection.execute("BEGIN")
                await entry.driver_connection.execute("INSERT INTO account (name) VALUES ('lost')")
            async with pool.claim() as entry:
                assert connector.needs_recycle(entry, Outcome.CLEAN) is False
            assert await names(create_engine_over(pool)) == []

    run_real(main)


@pytest.mark.parametrize("driver", ["asyncpg"])
def test_a_connection_on_which_a_copy_was_broken_off_is_not_handed_on(run_real, server, connector):
    async def fail(_rows):
        raise LookupError

    async def copy(engine):
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            await raw.driver_connection.copy_from_query("SELECT 1", output=fail)

    async def main():
        pool = make_pool(server, connector)
        engine = create_engine_over(pool)
        async with pool:
            with pytest.raises(LookupError):
                await copy(engine)
            async with asyncio.timeout(2), engine.connect() as connection:
                assert await pid(connection)

    run_real(main)


# Events.


def listened(engine):
    heard = []
    for name in ("connect", "checkout", "reset", "checkin", "invalidate", "soft_invalidate", "close", "close_detached"):

        def listen(*told, name=name):
            heard.append((name, *told))

        event.listen(engine.sync_engine, name, listen)
    return heard


def test_the_events_of_the_pool_come_as_with_any_pool(run_real, server, connector):
    async def main():
        pool = make_pool(server, connector)
        engine = create_engine_over(pool)
        heard = listened(engine)
        async with pool:
            await pool.ready()
            async with engine.connect() as connection:
                (await connection.get_raw_connection()).info["mine"] = 1
            async with engine.connect() as connection:
                assert (await connection.get_raw_connection()).info == {"mine": 1}
                await connection.invalidate()
            async with engine.connect() as connection:
                assert (await connection.get_raw_connection()).info == {}
        kinds = [one[0] for one in heard]
        records = [one[2] for one in heard if one[0] != "reset"]
        assert [kind for kind in kinds if kind not in {"connect", "close"}] == [
            *("checkout", "reset", "checkin"),
            *("checkout", "invalidate", "checkin"),
            *("checkout", "reset", "checkin"),
        ]
        assert (kinds.count("connect"), kinds.count("close")) == (2, 2)
        assert kinds[0] == "connect"
        assert kinds[-1] == "close"
        assert len(set(map(id, records))) == 2

    run_real(main)


def test_a_connect_listener_may_set_a_connection_up_and_its_failure_is_one_of_the_backend(
    run_real, server, connector, application
):
    async def main():
        pool = make_pool(server, connector, Policy(spares_wanted=1, max_slots=1, max_connection_backoff=0.02))
        engine = create_engine_over(pool)
        refusals = iter([RuntimeError("not yet")])

        @event.listens_for(engine.sync_engine, "connect")
        def set_up(connection, _record):
            for refusal in refusals:
                raise refusal
            cursor = connection.cursor()
            cursor.execute("SET SESSION search_path TO pg_catalog")
            cursor.close()
            connection.commit()

        async with pool, engine.connect() as connection:
            assert (await connection.execute(text("SHOW search_path"))).scalar_one() == "pg_catalog"
            assert "not yet" in pool.stats().backends[server.address].last_error
            assert server.sessions(application) == 1

    run_real(main)


def test_a_checkout_listener_that_refuses_a_connection_gets_another(run_real, server, connector):
    async def main():
        pool = make_pool(server, connector)
        engine = create_engine_over(pool)
        refused = []

        @event.listens_for(engine.sync_engine, "checkout")
        def refuse(_connection, record, _proxy):
            if len(refused) < limit:
                refused.append(record)
                raise exc.DisconnectionError("not this one")

        async with pool:
            limit = 2
            async with engine.connect() as connection:
                await pid(connection)
            assert len(set(map(id, refused))) == 2
            limit = 1000
            with pytest.raises(exc.InvalidRequestError, match="This connection is closed") as caught:
                await engine.connect()
            assert isinstance(caught.value.__cause__, exc.DisconnectionError)
            assert len(refused) == 2 + 3

    run_real(main)


# Ends of connections.


def test_a_connection_that_breaks_is_noticed_and_never_used_again(run_real, server, connector, application):
    async def main():
        pool = make_pool(server, connector, Policy(spares_wanted=3, max_slots=3))
        engine = create_engine_over(pool)
        async with pool:
            await pool.ready()
            async with engine.connect() as connection:
                await pid(connection)
                assert server.end_sessions(application) == 3
                with pytest.raises(exc.DBAPIError) as caught:
                    await pid(connection)
                assert caught.value.connection_invalidated
                await connection.rollback()
                await pid(connection)  # SQLAlchemy takes another
            for _ in range(5):
                async with engine.connect() as connection:
                    await pid(connection)

    run_real(main)


def test_a_broken_connection_says_nothing_about_other_backends(run_real, application):
    async def main():
        with PostgresServer("0.0.0.0") as server:
            places = [Backend("one", "127.0.0.1", server.port), Backend("two", "127.0.0.2", server.port)]
            connector = make_connector("asyncpg", application)
            pool = Pool("db", FixedResolver(places), connector, Policy(spares_wanted=4, max_slots=4))
            engine = create_engine_over(pool)
            heard = listened(engine)
            async with pool:
                await pool.ready()
                async with engine.connect() as connection:
                    raw = await connection.get_raw_connection()
                    broken = raw._connection_record.backend.name
                    server.sql(f"SELECT pg_terminate_backend({await pid(connection)})")
                    with pytest.raises(exc.DBAPIError):
                        await pid(connection)
                    await connection.rollback()
                claims = [await pool.claim() for _ in range(4)]
                for claim in claims:
                    claim.release()
                closed = [told[2].backend.name for told in heard if told[0] == "close"]
                assert closed == [broken, broken]

    run_real(main)


def test_with_pre_ping_a_dead_connection_is_replaced_at_checkout(run_real, server, driver, application):
    async def main():
        pool = make_pool(server, make_connector(driver, application, pool_pre_ping=True))
        engine = create_engine_over(pool)
        async with pool:
            async with engine.connect() as connection:
                first = await pid(connection)
            server.end_sessions(application)
            async with engine.connect() as connection:
                assert await pid(connection) != first

    run_real(main)


def test_a_health_check_finds_a_connection_that_does_not_answer(run_real, server, connector):
    async def main():
        pool = make_pool(server, connector)
        async with pool:
            async with pool.claim() as entry:
                await connector.validate(entry)
            claim = await pool.claim()
            connector.abort(claim.connection)
            with pytest.raises(ConnectError, match="closed"):
                await connector.validate(claim.connection)
            claim.release()

    run_real(main)


def test_a_detached_connection_belongs_to_who_detached_it(run_real, server, connector, application):
    async def main():
        pool = make_pool(server, connector)
        engine = create_engine_over(pool)
        connection = None
        async with pool:
            connection = await engine.connect()
            first = await pid(connection)
            driver_connection = (await connection.get_raw_connection()).driver_connection
            await connection.run_sync(lambda sync: sync.detach())
            async with engine.connect() as other:
                assert await pid(other) != first
        await until(lambda: server.sessions(application) == 1)
        assert await pid(connection) == first
        await connection.close()
        await driver_connection.close()  # with psycopg, SQLAlchemy does not
        await until(lambda: server.sessions(application) == 0)

    run_real(main)


def test_a_connection_that_is_forgotten_is_closed_and_its_slot_goes_on(run_real, server, application):
    async def main():
        pool = make_pool(server, make_connector("asyncpg", application))
        engine = create_engine_over(pool)
        async with pool:
            connection = await engine.connect()
            first = await pid(connection)
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                del connection
                gc.collect()
            assert [one.category for one in warned] == [exc.SAWarning]
            async with engine.connect() as connection:
                assert await pid(connection) != first

    run_real(main)


def test_dispose_replaces_the_connections_and_leaves_the_pool_alone(run_real, server, connector):
    async def main():
        pool = make_pool(server, connector)
        engine = create_engine_over(pool)
        async with pool:
            async with engine.connect() as connection:
                first = await pid(connection)
                await engine.dispose(close=False)
            async with engine.connect() as connection:
                assert await pid(connection) == first
            await engine.dispose()
            async with engine.connect() as connection:
                assert await pid(connection) != first
            assert engine.pool.status() == "Pool db: 1 connections to 1 backends, 0 of them in use"

    run_real(main)


# When there is nothing to be had.


def test_claims_that_time_out_are_timeouts_of_sqlalchemy(run_real, server, connector):
    async def main():
        policy = Policy(spares_wanted=1, max_slots=1, claim_timeout=0.05)
        pool = make_pool(server, connector, policy)
        engine = create_engine_over(pool)
        with pytest.raises(PoolNotStartedError):
            await engine.connect()
        async with pool:
            await pool.ready(timeout=10.0)
            async with engine.connect():
                with pytest.raises(exc.TimeoutError, match="db") as caught:
                    await engine.connect()
                assert isinstance(caught.value.__cause__, AllClaimsUsedError)
        with pytest.raises(PoolTerminatedError):
            await engine.connect()

    run_real(main)


def test_what_keeps_a_backend_away_stands_in_the_error(run_real, connector):
    async def main():
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{sock.getsockname()[1]}"
            pool = Pool("db", FixedResolver([address]), connector, Policy(claim_timeout=0.2))
            async with pool:
                with pytest.raises(exc.TimeoutError, match="efused") as caught:
                    await create_engine_over(pool).connect()
                assert isinstance(caught.value.__cause__, NoBackendsOnlineError)

    run_real(main)


def test_terminate_takes_connections_back_from_sessions_and_says_so(run_real, server, connector, application):
    async def main():
        pool = make_pool(server, connector, Policy(spares_wanted=2, max_slots=2))
        engine = create_engine_over(pool)
        await pool.start()
        await pool.ready()
        idle, busy = AsyncSession(engine), AsyncSession(engine)
        await pid(idle)
        await pid(busy)
        query = asyncio.create_task(busy.execute(text("SELECT pg_sleep(3600)")))
        await until(lambda: server.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "1")
        await pool.terminate(grace=0)
        assert pool.ledger().empty
        for use in (query, pid(idle)):
            with pytest.raises(exc.DBAPIError) as caught:
                await use
            assert "has taken the connection back" in caught.value.__notes__[0]
        for session in (idle, busy):
            await session.rollback()
            with pytest.raises(PoolTerminatedError):
                await pid(session)
            await session.close()
        await until(lambda: server.sessions(application) == 0)

    run_real(main)


def test_terminate_waits_for_sessions_within_its_grace(run_real, server, connector):
    async def main():
        pool = make_pool(server, connector)
        sessions = async_sessionmaker(create_engine_over(pool))
        await pool.start()
        async with sessions.begin() as session:
            session.add(Account(name="ada"))
            await session.flush()
            end = asyncio.create_task(pool.terminate(grace=60.0))
            await asyncio.sleep(0)
            assert (await session.scalar(select(Account.name))) == "ada"
        await end
        assert server.sql("SELECT name FROM account") == "ada"

    run_real(main)


def test_connections_that_are_detached_by_terminate_end_with_their_sessions(run_real, server, connector, application):
    async def main():
        pool = make_pool(server, connector)
        engine = create_engine_over(pool)
        await pool.start()
        async with engine.connect() as connection:
            await pid(connection)
            await pool.terminate(grace=0, held="detach")
            await pid(connection)
        await until(lambda: server.sessions(application) == 0)

    run_real(main)


def test_abort_ends_the_sessions_at_once(run_real, server, connector, application):
    async def main():
        pool = make_pool(server, connector, Policy(spares_wanted=3, max_slots=3))
        create_engine_over(pool)
        await pool.start()
        await pool.ready()
        pool.abort()
        await until(lambda: server.sessions(application) == 0)
        await pool.terminate()

    run_real(main)


# Cancellation.


def test_a_transaction_cancelled_anywhere_hands_on_no_dirty_connection(run_real, server, connector, application):
    async def main():
        pool = make_pool(server, connector)
        sessions = async_sessionmaker(create_engine_over(pool))

        async def work():
            async with sessions.begin() as session:
                session.add(Account(name="ada"))
                await session.flush()
                await session.execute(text("SELECT set_config('qorb.dirty', 'yes', true)"))

        attempts = 0
        async with pool:
            await pool.ready()
            async for attempt in at_every_await():
                attempts += 1
                await attempt.run(work())
                async with sessions.begin() as session:
                    question = "SELECT count(*), coalesce(current_setting('qorb.dirty', true), '') FROM account"
                    count, dirty = (await session.execute(text(question))).one()
                    assert (count <= 1, dirty) == (True, "")
                    await session.execute(text("DELETE FROM account"))
                assert pool.stats().backends[server.address].claimed_slots == 0
            assert server.sessions(application) == 1
        assert attempts > 10

    run_real(main)


def test_a_connect_cancelled_anywhere_leaves_no_session(run_real, server, connector, application):
    async def main():
        backend = Backend.parse(server.address)
        connected = 0
        async for attempt in at_every_await():
            entry = await attempt.run(connector.connect(backend))
            if entry is not None:
                connected += 1
                await connector.close(entry)
        assert connected
        await until(lambda: server.sessions(application) == 0)

    run_real(main)


def test_a_frozen_server_is_noticed_and_held_up_by_nobody(run_real, driver, application):
    async def main():
        with PostgresServer() as server:
            policy = Policy(spares_wanted=2, max_slots=2, health_interval=0.05, health_check_timeout=0.5)
            pool = make_pool(server, make_connector(driver, application), policy)
            engine = create_engine_over(pool)
            async with pool:
                await pool.ready()
                server.pause()
                await until(lambda: not pool.stats().backends[server.address].online)
                server.resume()
                async with engine.connect() as connection:
                    await pid(connection)
                server.pause()
                await pool.terminate(grace=0)
                assert pool.ledger().empty
            server.resume()
            await until(lambda: server.sessions(application) == 0)

    run_real(main)


# Credentials, names, TLS.


@pytest.fixture(scope="module")
def guarded():
    """A server that wants passwords, and has TLS for those who ask."""
    with PostgresServer() as server:
        server.sql("CREATE USER app PASSWORD 'open sesame'", writing=True)
        server.allow("host all app,shopper samehost scram-sha-256")
        yield server


def test_a_password_is_asked_for_at_every_connect(run_real, guarded, driver):
    async def main():
        asked = []

        async def password():
            asked.append(len(asked))
            return Secret("open sesame")

        connector = SqlAlchemyConnector(f"postgresql+{driver}:///postgres", user="app", password=password)
        pool = make_pool(guarded, connector)
        engine = create_engine_over(pool)
        async with pool:
            async with engine.connect() as connection:
                assert (await connection.execute(text("SELECT current_user"))).scalar_one() == "app"
                await connection.invalidate()
            async with engine.connect() as connection:
                await pid(connection)
        assert len(asked) == 2

    run_real(main)


def test_a_refused_login_is_not_tried_again_soon_and_shows_no_password(run_real, guarded, driver, caplog):
    secret = "canary-7391"
    caplog.set_level(logging.DEBUG)

    async def main():
        url = f"postgresql+{driver}://shopper:{secret}@/postgres"
        connector = SqlAlchemyConnector(url, echo_pool="debug")
        pool = make_pool(guarded, connector, Policy(claim_timeout=0.5))
        engine = create_engine_over(pool)
        with pytest.raises(ConnectError, match="authentication failed") as refused:
            await connector.connect(Backend.parse(guarded.address))
        assert refused.value.min_backoff >= 5.0
        async with pool:
            with pytest.raises(exc.TimeoutError, match="authentication failed") as caught:
                await engine.connect()
        texts = [repr(connector), repr(engine), str(engine.url), repr(pool), repr(vars(connector))]
        texts += [str(refused.value), str(caught.value), repr(caught.value.__cause__), caplog.text]
        assert not [one for one in texts if secret in one]
        assert 'user "shopper"' in str(refused.value)
        assert refused.value.__cause__ is not None

    run_real(main)


def test_a_password_that_was_refused_is_not_tried_at_the_next_address(run_real, guarded, driver, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", of_two_addresses)

    async def main():
        connector = SqlAlchemyConnector(f"postgresql+{driver}://app:wrong@/postgres")
        before = guarded.log.count("password authentication failed")
        with pytest.raises(ConnectError, match="authentication failed") as refused:
            await connector.connect(Backend("db", "db.test", guarded.port))
        assert refused.value.min_backoff >= 5.0
        assert guarded.log.count("password authentication failed") == before + 1

    run_real(main)


def of_two_addresses(host, port, **_options):
    if host == "db.test" and not _options.get("flags"):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.1", "127.0.0.2")]
    raise socket.gaierror(socket.EAI_NONAME, "no such name")


def test_what_failed_at_each_address_is_told(run_real, server, driver, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", of_two_addresses)

    async def main():
        connector = SqlAlchemyConnector(f"postgresql+{driver}://postgres@/postgres")
        with socket.create_server(("127.0.0.3", 0)) as nobody:
            port = nobody.getsockname()[1]
        with pytest.raises(ConnectError, match=r"127\.0\.0\.1.*; .*127\.0\.0\.2"):
            await connector.connect(Backend("db", "db.test", port))

    run_real(main)


def test_connecting_leaves_no_task_behind(run_real, server, connector):
    async def main():
        entry = await connector.connect(Backend.parse(server.address))
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await connector.close(entry)

    run_real(main)


def test_what_asking_for_a_password_raises_is_a_failed_connect(run_real, server, driver):
    async def main():
        def password():
            raise LookupError("the vault is closed")

        connector = SqlAlchemyConnector(f"postgresql+{driver}://postgres@/postgres", password=password)
        with pytest.raises(ConnectError, match="the vault is closed"):
            await connector.connect(Backend.parse(server.address))

    run_real(main)


class Refusing(concurrent.futures.ThreadPoolExecutor):
    def submit(self, *_arguments, **_options):
        raise AssertionError("the loop's executor was used")


def test_host_names_are_looked_up_on_a_thread_of_the_pool(run_real, server, connector):
    async def main():
        asyncio.get_running_loop().set_default_executor(Refusing())
        pool = Pool("db", FixedResolver([f"localhost:{server.port}"]), connector, LAZY)
        async with pool, create_engine_over(pool).connect() as connection:
            await pid(connection)

    run_real(main)


class TlsFront:
    """Speaks TLS, as PostgreSQL begins it, for a server that was built without; to one client, on a thread."""

    def __init__(self, server, context):
        self.server, self.context = server, context
        self.served = 0

    def __enter__(self):
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.thread.join()

    def serve(self):
        with self.listening, contextlib.suppress(ssl.SSLError, ConnectionError):
            plain, _ = self.listening.accept()
            with plain:
                plain.recv(8)
                plain.sendall(b"S")
                with (
                    self.context.wrap_socket(plain, server_side=True) as client,
                    socket.create_connection((self.server.host, self.server.port)) as there,
                ):
                    self.served += 1
                    while self.pass_on(client, there):
                        pass

    def pass_on(self, client, there):
        if client.pending():
            ready = [client]
        else:
            ready, _, _ = select_module.select([client, there], [], [])
        source, target = (client, there) if client in ready else (there, client)
        some = source.recv(65536)
        target.sendall(some)
        return bool(some)


@pytest.mark.parametrize(("name", "refusal"), [("db.example.com", None), ("other.example.com", "certificate")])
def test_the_certificate_must_be_good_for_the_server_name(
    run_real, server, driver, authority, client_context, tmp_path, name, refusal
):
    async def main():
        with TlsFront(server, context) as front:
            backend = Backend("db", "127.0.0.1", front.port, server_name=name)
            pool = Pool("db", FixedResolver([backend]), connector, LAZY)
            async with pool:
                if refusal is None:
                    async with create_engine_over(pool).connect() as connection:
                        await pid(connection)
                    assert front.served == 1
                else:
                    with pytest.raises(ConnectError, match=refusal):
                        await connector.connect(backend)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("db.example.com").configure_cert(context)
    if driver == "asyncpg":
        connector = SqlAlchemyConnector("postgresql+asyncpg://postgres@/postgres", ssl=client_context)
    else:
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        query = f"sslmode=verify-full&sslrootcert={tmp_path / 'ca.pem'}"
        connector = SqlAlchemyConnector(f"postgresql+psycopg://postgres@/postgres?{query}")
    run_real(main)


# What is refused.


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("postgresql+asyncpg://u:canary@db.local/shop", {}, "no host"),
        ("postgresql+asyncpg://u:canary@/shop?host=db.local", {}, "no host"),
        ("sqlite+aiosqlite:///canary", {}, "must begin with"),
        ("postgresql+pg8000://u:canary@/shop", {}, "must begin with"),
        ("postgresql+nonesuch://u:canary@/shop", {}, "none of SQLAlchemy"),
        ("canary", {}, "none of SQLAlchemy"),
        ("postgresql+psycopg:///shop", {"ssl": ssl.create_default_context()}, "ssl is for asyncpg"),
        ("postgresql+asyncpg:///shop", {"ssl": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}, "for clients"),
        ("postgresql+asyncpg:///shop", {"ssl": True}, "ssl must be"),
        ("postgresql+asyncpg:///shop", {"pool_size": 5}, "Policy.max_slots"),
        ("postgresql+asyncpg:///shop", {"pool_recycle": 5}, "Policy.max_lifetime"),
        ("postgresql+asyncpg:///shop", {"poolclass": NullPool}, "create_engine_over"),
        ("postgresql+asyncpg:///shop", {"nonesuch": 5}, "nonesuch"),
        ("postgresql+asyncpg:///shop", {"password": 5}, "password must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(url, options, words):
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        SqlAlchemyConnector(url, **options)
    assert "u:canary" not in str(caught.value)


def test_an_engine_stands_on_one_pool_with_the_right_connector():
    connector = SqlAlchemyConnector("postgresql+asyncpg:///shop")
    pool = Pool("db", ManualResolver(), connector)
    assert create_engine_over(pool) is create_engine_over(pool)
    with pytest.raises(ValueError, match="connector of its own"):
        create_engine_over(Pool("other", ManualResolver(), connector))
    with pytest.raises(TypeError, match="must be a SqlAlchemyConnector"):
        create_engine_over(Pool("tcp", ManualResolver(), TcpConnector()))


def test_an_engine_does_not_keep_its_pool(run_real):
    async def main():
        engine = create_engine_over(Pool("db", ManualResolver(), SqlAlchemyConnector("postgresql+asyncpg:///shop")))
        gc.collect()
        with pytest.raises(PoolTerminatedError, match="is gone"):
            await engine.connect()
        assert engine.pool.status() == "no pool"

    run_real(main)


def test_without_sqlalchemy_the_import_says_what_to_install():
    code = "import sys; sys.modules['sqlalchemy'] = None; import qorb.connectors.sqlalchemy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    words = 'ImportError: SqlAlchemyConnector needs SQLAlchemy; run: pip install "qorb[sqlalchemy]"'
    assert done.stderr.splitlines()[-1] == words


def test_the_example_in_the_documentation_runs(server, tmp_path):
    page = Path(__file__).parents[2] / "docs/sqlalchemy.md"
    (code,) = re.findall(r"^```py\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    program = tmp_path / "program.py"
    program.write_text(code.replace("127.0.0.1:5432", server.address), encoding="utf-8")
    quiet = {**os.environ, "PYTHONASYNCIODEBUG": ""}  # debug mode reports what is slow by the clock
    done = subprocess.run(
        [sys.executable, "-W", "error", program], capture_output=True, text=True, check=False, env=quiet
    )
    assert (done.stdout, done.stderr) == ("hello\n", "")
