"""AsyncpgConnector, against servers of PostgreSQL that the tests start."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import logging
import ssl
import sys
import threading
import traceback

import asyncpg
import pytest

from qorb import Backend, Outcome, Policy, Pool
from qorb._demo.postgres import PostgresServer
from qorb.connectors.asyncpg import AsyncpgConnector
from qorb.credentials import Secret
from qorb.errors import ConnectError, NoBackendsOnlineError
from qorb.resolvers import FixedResolver
from tests.connectors.cancelling import at_every_await
from tests.connectors.peers import eventually, open_sockets

CANARY = "canary-in-the-coal-mine"


@pytest.fixture(scope="module")
def server():
    """It lets in postgres and lonely, who may have no session, without a password, and app with one."""
    with PostgresServer() as server:
        server.sql(f"CREATE ROLE app LOGIN PASSWORD '{CANARY}'")
        server.sql("CREATE ROLE lonely LOGIN CONNECTION LIMIT 0")
        server.sql("CREATE TABLE things (id int PRIMARY KEY)")
        server.allow("host all app samehost scram-sha-256", "host all lonely samehost trust")
        yield server


@pytest.fixture(scope="session")
def server_context(authority):
    """The certificate is good for db.test."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("db.test").configure_cert(context)
    return context


class TlsFront:
    """Speaks TLS, as PostgreSQL begins it, for a server that was built without."""

    def __init__(self, server, context):
        self.server, self.context = server, context
        self.waiting = 0

    async def __aenter__(self):
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.host, self.port = self._listening.sockets[0].getsockname()
        return self

    async def __aexit__(self, *exc):
        self._listening.close()
        await eventually(lambda: not self.waiting)

    async def _serve(self, reader, writer):
        self.waiting += 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await reader.readexactly(8)
                writer.write(b"S")
                await writer.start_tls(self.context)
                await self._pass_on(reader, writer)
        finally:
            writer.transport.abort()
            self.waiting -= 1

    async def _pass_on(self, reader, writer):
        their_reader, their_writer = await asyncio.open_connection(self.server.host, self.server.port)
        ways = {asyncio.create_task(pump(reader, their_writer)), asyncio.create_task(pump(their_reader, writer))}
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        their_writer.transport.abort()
        writer.transport.abort()
        await asyncio.wait(ways)


async def pump(reader, writer):
    with contextlib.suppress(OSError):
        while some := await reader.read(65536):
            writer.write(some)


@contextlib.asynccontextmanager
async def facade(server, context, *, tls):
    """Where the server is to be found, with TLS or without."""
    if not tls:
        yield server
        return
    async with TlsFront(server, context) as front:
        yield front


@pytest.fixture
def application():
    """What the sessions of this test call themselves."""
    return f"test-{next(_numbers)}"


_numbers = itertools.count(1)


def at(server, server_name=None):
    return Backend("db", server.host, server.port, server_name)


def connector_for(application, **options):
    return AsyncpgConnector(**{"user": "postgres", "application_name": application, **options})


def pool_over(servers, connector, **policy):
    policy = {"max_slots": 2, "spares_wanted": 1, "spread": 0.0, **policy}
    backends = [Backend(f"db{i}", one.host, one.port) for i, one in enumerate(servers)]
    return Pool("db", FixedResolver(backends), connector, Policy(**policy))


@contextlib.asynccontextmanager
async def connected(connector, server, server_name=None):
    connection = await connector.connect(at(server, server_name))
    try:
        yield connection
    finally:
        connector.abort(connection)
        await asyncio.sleep(0)


def executors():
    """The threads of the loop's own executor."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("asyncio")]


async def gone(server, application):
    await eventually(lambda: server.sessions(application) == 0)


# Connecting.


def test_a_session_is_what_the_settings_say_and_ends_with_the_pool(run_real, server, application):
    connector = connector_for(
        application, database="template1", server_settings={"search_path": "nowhere"}, options={"command_timeout": 7}
    )

    async def main():
        async with pool_over([server], connector, spares_wanted=2) as pool:
            await pool.ready()
            async with pool.claim() as connection:
                assert isinstance(connection, asyncpg.Connection)
                assert await connection.fetchval("SELECT current_database()") == "template1"
                assert await connection.fetchval("SELECT current_setting('search_path')") == "nowhere"
                assert connection._config.command_timeout == 7
            assert server.sessions(application) == 2
        assert not executors()
        await gone(server, application)

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_a_session_says_goodbye_when_it_is_closed(run_real, server, application):
    async def main():
        connector = connector_for(application)
        connection = await connector.connect(at(server))
        await connector.close(connection)
        assert connector.is_closed(connection)
        assert connector.needs_recycle(connection, Outcome.CLEAN)
        connector.abort(connection)
        await gone(server, application)

    run_real(main)


def test_what_is_no_setting_is_refused_by_name():
    for error, options in [
        (TypeError, {"user": 1}),
        (TypeError, {"password": b"x"}),
        (TypeError, {"ssl": True}),
        (ValueError, {"role": "leader"}),
        (ValueError, {"reset": "never"}),
        (TypeError, {"server_settings": {"work_mem": 4}}),
        (TypeError, {"on_connect": 1}),
        (TypeError, {"on_acquire": 1}),
        (ValueError, {"options": {"timeout": 1}}),
        (ValueError, {"options": {"timeuot": 1}}),
        (ValueError, {"options": {"target_session_attrs": "primary"}}),
    ]:
        with pytest.raises(error, match=rf"^{next(iter(options))} must"):
            AsyncpgConnector(**options)


def test_without_asyncpg_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    monkeypatch.delitem(sys.modules, "qorb.connectors.asyncpg")
    with pytest.raises(ImportError) as caught:
        importlib.import_module("qorb.connectors.asyncpg")
    assert str(caught.value) == 'AsyncpgConnector needs asyncpg; run: pip install "qorb[asyncpg]"'


def test_a_host_name_is_looked_up_on_a_thread_of_the_pool(run_real, server, application, names):
    names.known["db.test"] = ["::1", server.host]  # nobody listens at the first one

    async def main():
        connector = connector_for(application)
        connection = await connector.connect(Backend("db", "db.test", server.port))
        with pytest.raises(asyncio.TimeoutError):  # the cancellation goes to the same server
            await connection.execute("SELECT pg_sleep(60)", timeout=0.01)
        await connector.on_recycle(connection, Outcome.ERROR)
        await connector.close(connection)
        assert not executors()

    run_real(main)


def test_a_server_that_is_not_there_is_named(run_real, server):
    async def main():
        with pytest.raises(ConnectError, match=r"connecting to 127\.0\.0\.99:\d+ failed: Connection refused"):
            await AsyncpgConnector(user="postgres").connect(Backend("db", "127.0.0.99", server.port))

    run_real(main)


@pytest.mark.parametrize("tls", [False, True])
def test_connect_leaves_nothing_when_it_is_cancelled_at_any_await(
    run_real, server, application, client_context, server_context, tls
):
    async def hook(connection):
        await connection.execute("SELECT 1")

    async def password():
        await asyncio.sleep(0)
        return "unused"

    connector = connector_for(
        application, role="primary", on_connect=hook, ssl=client_context if tls else None, password=password
    )

    async def main():
        async with facade(server, server_context, tls=tls) as place:
            before = open_sockets()
            count = 0
            async for attempt in at_every_await():
                count += 1
                connection = await attempt.run(connector.connect(at(place, "db.test")))
                if connection is not None:
                    connector.abort(connection)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                if not tls:
                    assert open_sockets() <= before
            assert count > 20
            await eventually(lambda: open_sockets() <= before)
        await gone(server, application)

    run_real(main)


# TLS.


def test_the_certificate_must_be_good_for_the_server_name(
    run_real, server, application, client_context, server_context
):
    connector = connector_for(application, ssl=client_context)

    async def main():
        async with TlsFront(server, server_context) as front, connected(connector, front, "db.test") as connection:
            assert await connection.fetchval("SELECT 1") == 1
            with pytest.raises(asyncio.TimeoutError):  # the cancellation, too, is sent under the right name
                await connection.execute("SELECT pg_sleep(60)", timeout=0.01)
            await connector.on_recycle(connection, Outcome.ERROR)
            assert not connector.is_closed(connection)

    run_real(main)


@pytest.mark.parametrize("server_name", ["other.test", None])
def test_a_certificate_for_somebody_else_is_refused(
    run_real, server, application, client_context, server_context, server_name
):
    connector = connector_for(application, ssl=client_context)

    async def main():
        async with TlsFront(server, server_context) as front:
            with pytest.raises(ConnectError) as caught:
                await connector.connect(at(front, server_name))
            name = server_name or "127.0.0.1"
            assert f"connecting to PostgreSQL at 127.0.0.1:{front.port} as {name!r} failed" in str(caught.value)
            assert "certificate verify failed" in str(caught.value)
            assert f"ertificate is not valid for '{name}'" in str(caught.value)

    run_real(main)


def test_a_server_without_tls_is_refused_where_tls_is_wanted(run_real, application, client_context):
    async def serve(reader, writer):
        await reader.readexactly(8)
        writer.write(b"N")
        await reader.read()
        writer.close()

    async def main():
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as peer:
            backend = Backend("db", *peer.sockets[0].getsockname())
            with pytest.raises(ConnectError, match="rejected SSL upgrade"):
                await connector_for(application, ssl=client_context).connect(backend)
            await eventually(lambda: len(asyncio.all_tasks()) == 1)

    run_real(main)


def test_a_server_that_falls_silent_under_tls_is_left_at_once(run_real, application, client_context, server_context):
    silent = asyncio.Event()

    async def serve(reader, writer):
        await reader.readexactly(8)
        writer.write(b"S")
        await writer.start_tls(server_context)
        await reader.read(1)  # of the startup message; there will be no answer
        silent.set()
        with contextlib.suppress(OSError):
            await reader.read()
        writer.transport.abort()

    async def main():
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as peer:
            backend = Backend("db", *peer.sockets[0].getsockname(), server_name="db.test")
            connecting = asyncio.create_task(connector_for(application, ssl=client_context).connect(backend))
            before = open_sockets()
            await silent.wait()
            connecting.cancel()
            await asyncio.wait({connecting})
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(open_sockets() - before) <= 1  # the peer's
            await eventually(lambda: len(asyncio.all_tasks()) == 1)

    run_real(main)


# Credentials.


def test_credentials_are_asked_for_at_every_connect(run_real, server, application):
    asked = []

    async def password():
        await asyncio.sleep(0)
        asked.append("password")
        return Secret(CANARY)

    def user():
        asked.append("user")
        return "app"

    async def main():
        connector = connector_for(application, user=user, password=password, database="postgres")
        for _ in range(2):
            async with connected(connector, server) as connection:
                assert await connection.fetchval("SELECT current_user") == "app"
                assert CANARY not in f"{connector!r} {connection!r} {connection._params!r}"
        assert asked == ["user", "password"] * 2

    run_real(main)


def test_a_refused_login_is_told_without_the_secret_and_not_tried_again_soon(run_real, server, application, caplog):
    caplog.set_level(logging.DEBUG)
    secret = CANARY + "-wrong"
    connector = connector_for(application, user="app", password=secret, database="postgres")
    seen = []

    async def main():
        with pytest.raises(ConnectError, match=r'authentication failed at .* for user "app"') as caught:
            await connector.connect(at(server))
        assert caught.value.min_backoff == 5.0
        seen.append(f"{caught.value!r} {caught.value.__cause__!r}")
        pool = Pool(
            "db",
            FixedResolver([at(server)]),
            connector,
            Policy(max_slots=1),
            observer=lambda one: seen.append(repr(one)),
        )
        async with pool:
            with pytest.raises(NoBackendsOnlineError, match="authentication") as claimed:
                await pool.claim(timeout=1.0)
            seen.append(
                "".join(traceback.TracebackException.from_exception(claimed.value, capture_locals=True).format())
            )
            seen.append(f"{pool!r} {pool.stats()!r} {pool.ledger()!r}")
            assert pool.stats().backends["db"].failures == 1

    run_real(main)
    seen += [caplog.text, repr(connector)]
    assert not [text for text in seen if secret in text.replace(f"secret = {secret!r}", "")]


def test_too_many_connections_are_an_ordinary_failure_with_a_clear_text(run_real, server, application):
    async def main():
        with pytest.raises(ConnectError, match=r"127\.0\.0\.1:\d+ has too many connections: ") as caught:
            await connector_for(application, user="lonely", database="postgres").connect(at(server))
        assert (caught.value.min_backoff, type(caught.value)) == (0.0, ConnectError)

    run_real(main)


# What a claim leaves behind.


@pytest.mark.parametrize("transaction", ["none", "driver", "own"])
def test_an_exception_of_the_application_costs_no_connection(run_real, server, application, transaction):
    connector = connector_for(application)

    async def fail(pool):
        async with pool.claim() as connection:
            if transaction == "own":
                await connection.execute("BEGIN")
            async with connection.transaction() if transaction == "driver" else contextlib.nullcontext():
                await connection.execute("INSERT INTO things SELECT 1 FROM generate_series(1, 2)")

    async def main():
        async with pool_over([server], connector, max_slots=1) as pool:
            async with pool.claim() as connection:
                pid = connection.get_server_pid()
            with pytest.raises(asyncpg.UniqueViolationError):
                await fail(pool)
            async with pool.claim() as connection:
                assert connection.get_server_pid() == pid
                assert not connection.is_in_transaction()
                assert await connection.fetchval("SELECT count(*) FROM things") == 0

    run_real(main)


def test_a_transaction_that_was_ended_behind_the_drivers_back_is_none_for_the_next_claim(run_real, server, application):
    async def main():
        async with pool_over([server], connector_for(application), max_slots=1) as pool:
            async with pool.claim() as connection:
                pid = connection.get_server_pid()
                await connection.transaction().start()
                await connection.execute("COMMIT")
            async with pool.claim() as connection, connection.transaction():
                assert connection.get_server_pid() == pid

    run_real(main)


def test_a_clean_claim_costs_no_round_trip(run_real, server, application):
    async def main():
        connector = connector_for(application, role="primary")
        async with connected(connector, server) as connection:
            async with connection.transaction():
                await connection.fetch("SELECT 1")
            with pytest.raises(asyncpg.UndefinedTableError):
                await connection.fetch("SELECT * FROM nothing")
            assert not connector.needs_recycle(connection, Outcome.CLEAN)
            assert not connector.needs_recycle(connection, Outcome.ERROR)
            assert connector.needs_recycle(connection, Outcome.CANCELLED)
            always = connector_for(application, reset="always")
            assert always.needs_recycle(connection, Outcome.CLEAN)

    run_real(main)


def test_a_cancelled_claim_never_leaves_an_answer_to_the_next(run_real, server, application):
    connector = connector_for(application)
    pids = set()

    async def use(pool):
        async with pool.claim() as connection, connection.transaction():
            await connection.execute("SELECT set_config('work_mem', '1MB', false), pg_advisory_lock(1)")
            await connection.fetch("SELECT 'stale', generate_series(1, 1000)")
        return True

    async def main():
        async with pool_over([server], connector, max_slots=1) as pool:
            async with pool.claim() as connection:
                fresh = await connection.fetchval("SELECT current_setting('work_mem')")
            count = 0
            async for attempt in at_every_await():
                cancelled = await attempt.run(use(pool)) is None
                count += 1
                async with pool.claim() as connection:
                    pids.add(connection.get_server_pid())
                    assert not connection.is_in_transaction()
                    assert await connection.fetchval("SELECT $1::int", count) == count
                    if not cancelled:
                        await connection.reset()
                        continue
                    assert await connection.fetchval("SELECT current_setting('work_mem')") == fresh
                    assert await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
            assert count > 10

    run_real(main)
    assert len(pids) == 1


def test_a_query_that_timed_out_is_over_before_the_next_claim(run_real, server, application):
    connector = connector_for(application)

    async def main():
        async with pool_over([server], connector, max_slots=1) as pool:
            async with pool.claim() as connection:
                pid = connection.get_server_pid()
                with pytest.raises(asyncio.TimeoutError):
                    await connection.execute("SELECT pg_sleep(60)", timeout=0.01)
            async with pool.claim() as connection:
                assert await connection.fetchval("SELECT 1") == 1
                assert connection.get_server_pid() == pid

    run_real(main)


def test_a_query_under_way_when_its_claim_ends_costs_the_connection(run_real, server, application):
    connector = connector_for(application)

    async def main():
        async with pool_over([server], connector, max_slots=1) as pool:
            async with pool.claim() as connection:
                pid = connection.get_server_pid()
                stray = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
                # Until the server has begun with it, it would not listen to being asked to end it.
                doing = f"SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}"
                await eventually(lambda: server.sql(doing) == "PgSleep")
            async with pool.claim() as connection:
                assert connection.get_server_pid() != pid
            with pytest.raises(asyncpg.QueryCanceledError):
                await stray

    run_real(main)


def test_a_copy_whose_last_rows_were_not_taken_holds_up_no_claim(run_real, server, application):
    async def fail(_rows):
        raise LookupError

    async def main():
        async with pool_over([server], connector_for(application), max_slots=1) as pool:
            for _ in range(2):
                with pytest.raises(LookupError):
                    async with pool.claim(timeout=2) as connection:
                        await connection.copy_from_query("SELECT 1", output=fail)
            async with pool.claim(timeout=2) as connection:
                with pytest.raises(LookupError):
                    await connection.copy_from_query("SELECT 1", output=fail)
                await pool.connector.close(connection)
                assert connection.is_closed()

    run_real(main)


def test_a_copy_that_was_cancelled_in_the_middle_of_its_rows_is_not_handed_on(run_real, server, application):
    async def take(_rows):
        pass

    async def main():
        async with pool_over([server], connector_for(application), max_slots=1) as pool:
            async with pool.claim() as connection:
                query = "SELECT repeat('x', 1000) FROM generate_series(1, 20000)"
                copying = asyncio.create_task(connection.copy_from_query(query, output=take))
                await asyncio.sleep(0)
                receive = connection._protocol.data_received

                def cancel_as_rows_arrive(received):
                    receive(received)
                    copying.cancel()

                connection._protocol.data_received = cancel_as_rows_arrive
                connection._transport.set_protocol(connection._protocol)
                with pytest.raises(asyncio.CancelledError):
                    await copying
            async with pool.claim(timeout=2) as connection:
                assert await connection.fetchval("SELECT 1") == 1

    run_real(main)


def test_a_connection_whose_claim_was_lost_is_not_used_again(run_real, server, application):
    async def main():
        connector = connector_for(application)
        async with connected(connector, server) as connection:
            assert connector.needs_recycle(connection, Outcome.LEAKED)
            with pytest.raises(ConnectError, match="without release"):
                await connector.on_recycle(connection, Outcome.LEAKED)

    run_real(main)


def test_what_listens_for_one_claim_does_not_listen_for_the_next(run_real, server, application):
    heard, noticed = [], []

    async def on_connect(connection):
        connection.add_log_listener(keep)

    def keep(connection, message):
        noticed.append(message.message)

    def lose(*arguments):
        heard.append(arguments)

    async def main():
        connector = connector_for(application, on_connect=on_connect)
        async with connected(connector, server) as connection:
            assert not connector.needs_recycle(connection, Outcome.CLEAN)
            for leave in [
                lambda: connection.add_listener("news", lose),
                lambda: connection.add_log_listener(lose),
                lambda: connection.add_termination_listener(lose),
                lambda: connection.add_query_logger(lose),
            ]:
                if (left := leave()) is not None:
                    await left
                assert connector.needs_recycle(connection, Outcome.CLEAN)
                await connector.on_recycle(connection, Outcome.CLEAN)
                assert not connector.needs_recycle(connection, Outcome.CLEAN)
            heard.clear()  # the query logger heard of the reset
            await connection.execute("NOTIFY news; DO $$ BEGIN RAISE NOTICE 'hear'; END $$")
            assert await connection.fetch("SELECT pg_listening_channels()") == []
            await asyncio.sleep(0)
        assert (heard, noticed) == ([], ["hear"])

    run_real(main)


def test_a_setting_stays_for_the_next_claim_unless_it_is_always_reset(run_real, server, application):
    async def main(reset, left):
        connector = connector_for(application, reset=reset, server_settings={"work_mem": "2MB"})
        async with pool_over([server], connector, max_slots=1) as pool:
            async with pool.claim() as connection:
                await connection.execute("SET work_mem = '1MB'")
            async with pool.claim() as connection:
                assert await connection.fetchval("SELECT current_setting('work_mem')") == left

    run_real(lambda: main("when needed", "1MB"))
    run_real(lambda: main("always", "2MB"))


@pytest.mark.parametrize("settings", [{}, {"role": "app"}])
@pytest.mark.parametrize("statement", ["SET ROLE lonely", "SET SESSION AUTHORIZATION lonely"])
def test_a_reset_gives_the_next_claim_the_role_that_the_settings_say(
    run_real, server, application, statement, settings
):
    async def main():
        connector = connector_for(application, reset="always", server_settings=settings)
        async with pool_over([server], connector, max_slots=1) as pool:
            async with pool.claim() as connection:
                pid = connection.get_server_pid()
                await connection.execute(statement)
                assert await connection.fetchval("SELECT current_user") == "lonely"
            async with pool.claim() as connection:
                assert connection.get_server_pid() == pid
                assert await connection.fetchval("SELECT current_user") == settings.get("role", "postgres")
                assert await connection.fetchval("SELECT session_user") == "postgres"

    run_real(main)


# Ends.


def test_sessions_that_the_server_ended_cost_no_claim_that_begins_later(run_real, server, application):
    connector = connector_for(application)

    async def main():
        async with pool_over([server], connector, max_slots=4, spares_wanted=4) as pool:
            await pool.ready()
            pids = set(
                map(
                    int,
                    server.sql(f"SELECT pid FROM pg_stat_activity WHERE application_name = '{application}'").split(),
                )
            )
            assert server.end_sessions(application) == len(pids) == 4
            await eventually(lambda: pids.isdisjoint(server.processes()))
            for _ in range(3):  # the loop reads why they ended, and then that they did
                await asyncio.sleep(0)
            for _ in range(8):
                async with pool.claim() as connection:
                    assert await connection.fetchval("SELECT 1") == 1

    run_real(main)


def test_terminate_leaves_no_session_whatever_they_were_doing(run_real, server, application):
    connector = connector_for(application, on_acquire=None)

    async def main():
        pool = pool_over([server], connector, max_slots=6, spares_wanted=2)
        await pool.start()
        held = await pool.claim()
        async with asyncio.timeout(None) as giving_up:
            with contextlib.suppress(asyncio.CancelledError):
                async with pool.claim() as connection:
                    query = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
                    await asyncio.sleep(0)
                    query.cancel()
        assert not giving_up.expired()
        stray = asyncio.create_task(held.connection.execute("SELECT pg_sleep(60)"))
        await asyncio.sleep(0)
        await pool.terminate(grace=0)
        await asyncio.wait({stray, query})
        assert isinstance(stray.exception(), asyncpg.ConnectionDoesNotExistError)
        held.release()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert open_sockets() <= before
        server.end_sessions(application)  # one does not notice while it sleeps
        await gone(server, application)

    before = frozenset()

    async def main_with_loop():
        nonlocal before
        before = open_sockets()
        await main()

    run_real(main_with_loop)


def test_terminate_does_not_wait_for_a_server_that_is_frozen(run_real, server, application):
    connector = connector_for(application)

    async def main():
        before = open_sockets()
        pool = pool_over([server], connector, max_slots=1)
        await pool.start()
        async with pool.claim() as connection:
            await connection.execute("SELECT 1")
            server.pause()
            query = asyncio.create_task(connection.execute("SELECT 1"))
            await asyncio.sleep(0)
            query.cancel()
            await asyncio.wait({query})
        await pool.terminate(grace=0)  # the server has not even heard that the query was cancelled
        for _ in range(3):
            await asyncio.sleep(0)
        assert open_sockets() <= before

    try:
        run_real(main)
    finally:
        server.resume()
    while server.sessions(application):
        pass


def test_a_connection_is_closed_even_when_its_loop_is(server, application):
    connector = connector_for(application)
    before = open_sockets()
    with asyncio.Runner() as runner:
        connection = runner.run(connector.connect(at(server)))
    connector.abort(connection)
    assert connector.is_closed(connection)
    assert open_sockets() <= before
    while server.sessions(application):
        pass


# Roles.


def test_a_server_too_old_to_report_its_state_is_asked_after_a_claim_that_raised(run_real, server, application):
    async def main():
        connector = connector_for(application, role="primary")
        async with connected(connector, server) as connection:
            connector._known[connection].settings = object()
            assert not connector.needs_recycle(connection, Outcome.CLEAN)
            assert connector.needs_recycle(connection, Outcome.ERROR)

    run_real(main)
