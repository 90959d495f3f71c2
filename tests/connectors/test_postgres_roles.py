"""Connectors at a PostgreSQL primary and its standby: which of them is used, and what happens as that changes."""

from __future__ import annotations

import asyncio
import contextlib
import functools

import asyncpg
import psycopg
import pytest

from qorb import Backend, Policy, Pool
from qorb._demo.postgres import cluster
from qorb.connector import Outcome
from qorb.connectors.asyncpg import AsyncpgConnector
from qorb.connectors.psycopg import PsycopgConnector
from qorb.errors import AllClaimsUsedError, BackendUnfitError, NoBackendsOnlineError
from qorb.resolvers import FixedResolver
from qorb.testing import assert_nothing_left
from tests.connectors.peers import eventually

ReadOnly = (asyncpg.ReadOnlySQLTransactionError, psycopg.errors.ReadOnlySqlTransaction)


@pytest.fixture(scope="module")
def pair():
    """A primary and its standby, which every test leaves as it has found them."""
    with cluster(2) as (primary, standby):
        primary.sql("CREATE TABLE things (id int)")
        standby.caught_up()
        yield primary, standby


@pytest.fixture
def demoted(pair):
    """Has the primary refuse writes, and accept them again in the end."""
    primary, _ = pair
    yield primary.demote_in_place
    primary.configure(default_transaction_read_only="off")


def at(server):
    return Backend(server.address, server.host, server.port)


@pytest.fixture(params=[AsyncpgConnector, PsycopgConnector])
def connector_for(request):
    """Makes connectors of one of the drivers, given the role."""
    return lambda role, **options: request.param(user="postgres", database="postgres", role=role, **options)


@pytest.fixture
def pool_of(connector_for):
    def make(servers, role, *, resolver=None, **policy):
        policy = {"spares_wanted": 3, "max_slots": 6, "health_interval": 3600.0, **policy}
        resolver = resolver or FixedResolver([at(server) for server in servers])
        return Pool(role, resolver, connector_for(role), Policy(**policy))

    return make


@contextlib.asynccontextmanager
async def connected(connector, *servers):
    connections = [await connector.connect(at(server)) for server in servers]
    try:
        yield connections[0] if len(connections) == 1 else connections
    finally:
        for connection in connections:
            connector.abort(connection)
        await asyncio.sleep(0)


async def write(connection):
    await connection.execute("INSERT INTO things VALUES (1)")


async def write_until_refused(connection, *, in_transaction=False):
    """A session follows a new configuration when the signal has reached its process, some moments later."""
    while True:
        async with connection.transaction() if in_transaction else contextlib.nullcontext():
            await write(connection)


async def write_somewhere(pool):
    async with pool.claim() as connection:
        await write(connection)
        return await place(connection)


async def write_somewhere_until_refused(pool):
    while True:
        await write_somewhere(pool)


async def value(connection, query):
    if isinstance(connection, asyncpg.Connection):
        return await connection.fetchval(query)
    return (await (await connection.execute(query)).fetchone())[0]


place = functools.partial(value, query="SELECT host(inet_server_addr())")


def test_only_servers_that_have_the_role_are_used(run_real, pair, connector_for):
    primary, standby = pair

    async def main():
        for role, fit, unfit in (("primary", primary, standby), ("replica", standby, primary)):
            connector = connector_for(role)
            async with connected(connector, fit) as connection:
                await connector.validate(connection)
            with pytest.raises(BackendUnfitError, match=f"role='{role}' is wanted") as caught:
                await connector.connect(at(unfit))
            assert caught.value.max_backoff <= 0.5
        connector = connector_for("any")
        async with connected(connector, *pair):
            pass

    run_real(main)


def test_two_pools_share_a_resolver_and_each_takes_its_own_servers(run_real, pair, pool_of):
    async def main():
        resolver = FixedResolver([at(server) for server in pair])
        async with (
            pool_of(pair, "primary", resolver=resolver) as primaries,
            pool_of(pair, "replica", resolver=resolver) as replicas,
        ):
            for _ in range(8):
                async with primaries.claim() as connection, replicas.claim() as other:
                    await write(connection)
                    assert (await place(connection), await place(other)) == tuple(one.host for one in pair)
                    with pytest.raises(ReadOnly):
                        await write(other)
        assert_nothing_left(primaries)
        assert_nothing_left(replicas)

    run_real(main)


def test_a_reset_works_on_a_replica(run_real, pair, connector_for):
    _, standby = pair

    async def main():
        connector = connector_for("replica", reset="always")
        async with connected(connector, standby) as connection:
            for outcome in (Outcome.CLEAN, Outcome.ERROR, Outcome.CANCELLED):
                await connector.on_recycle(connection, outcome)

    run_real(main)


def test_a_transaction_that_a_replica_refuses_to_begin_is_none_for_the_next_claim(run_real, pair, pool_of):
    _, standby = pair

    async def begin(pool, level):
        async with pool.claim() as connection:
            if isinstance(connection, asyncpg.Connection):
                transaction = connection.transaction(isolation=level.name.lower())
            else:
                await connection.set_isolation_level(level)
                transaction = connection.transaction()
            async with transaction:
                return await value(connection, "SELECT pg_backend_pid()")

    async def main():
        async with pool_of([standby], "replica", max_slots=1) as pool:
            pid = await begin(pool, psycopg.IsolationLevel.REPEATABLE_READ)
            for _ in range(2):
                with pytest.raises((asyncpg.FeatureNotSupportedError, psycopg.errors.FeatureNotSupported)):
                    await begin(pool, psycopg.IsolationLevel.SERIALIZABLE)
                assert await begin(pool, psycopg.IsolationLevel.REPEATABLE_READ) == pid

    run_real(main)


def test_the_first_write_that_is_refused_takes_all_connections_to_a_demoted_primary_out_of_service(
    run_real, pair, demoted, pool_of
):
    primary, _ = pair

    async def main():
        async with pool_of(pair, "primary") as pool:
            await pool.ready()
            held = await pool.claim()
            async with pool.claim() as connection:
                await write(connection)
                demoted()
                with pytest.raises(ReadOnly):
                    await write_until_refused(connection)
                with pytest.raises(AllClaimsUsedError, match="refuses writes"):
                    await pool.claim(timeout=0.5)
            held.release()
            with pytest.raises(NoBackendsOnlineError):
                await pool.claim(timeout=0.1)
            primary.configure(default_transaction_read_only="off")
            async with pool.claim() as connection:
                await write(connection)

    run_real(main)


def test_a_demotion_is_noticed_in_a_transaction_too(run_real, pair, demoted, connector_for):
    primary, _ = pair

    async def main():
        connector = connector_for("primary")
        async with connected(connector, primary, primary) as (mine, other):
            demoted()
            with pytest.raises(ReadOnly):
                await write_until_refused(mine, in_transaction=True)
            assert connector.is_closed(mine)
            assert connector.is_closed(other)

    run_real(main)


def test_a_demotion_is_noticed_by_health_checks(run_real, pair, demoted, pool_of):
    async def main():
        async with pool_of(pair, "primary", health_interval=0.05, spread=0.0) as pool:
            await pool.ready()
            name = at(pair[0]).name
            demoted()
            await eventually(lambda: not pool.stats().backends[name].online)
            await eventually(lambda: "refuses writes" in pool.stats().backends[name].last_error)

    run_real(main)


def test_a_demotion_that_the_server_reports_with_an_answer_is_noticed_at_the_release(
    run_real, pair, demoted, connector_for
):
    primary, _ = pair

    async def main():
        connector = connector_for("primary")
        async with connected(connector, primary) as connection:
            demoted()
            while not connector.needs_recycle(connection, Outcome.CLEAN):
                await value(connection, "SELECT 1")
            with pytest.raises(BackendUnfitError):
                await connector.on_recycle(connection, Outcome.CLEAN)
            assert connector.is_closed(connection)

    run_real(main)


@pytest.mark.parametrize("ways", [["BEGIN READ ONLY"], ["BEGIN", "SET TRANSACTION READ ONLY"]])
def test_a_transaction_that_is_read_only_by_itself_is_no_demotion(run_real, pair, ways, connector_for):
    primary, _ = pair

    async def main():
        connector = connector_for("primary")
        async with connected(connector, primary, primary) as (mine, other):
            for way in ways:
                await mine.execute(way)
            with pytest.raises(ReadOnly):
                await write(mine)
            assert not connector.is_closed(mine)
            assert connector.needs_recycle(mine, Outcome.CLEAN)
            await connector.on_recycle(mine, Outcome.CLEAN)
            assert not connector.needs_recycle(mine, Outcome.CLEAN)
            assert not connector.is_closed(other)
            await write(mine)

    run_real(main)


def test_psycopgs_own_read_only_is_no_demotion(run_real, pair):
    primary, _ = pair

    async def main():
        connector = PsycopgConnector(user="postgres", database="postgres", role="primary")
        async with connected(connector, primary) as connection:
            await connection.set_read_only(True)
            with pytest.raises(ReadOnly):
                await write_until_refused(connection, in_transaction=True)
            assert not connector.is_closed(connection)
            await connector.on_recycle(connection, Outcome.CLEAN)
            assert not connector.needs_recycle(connection, Outcome.CLEAN)
            await write(connection)

    run_real(main)


@pytest.mark.parametrize(
    "statement",
    ["SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SET default_transaction_read_only = on"],
)
def test_a_session_that_was_set_to_read_only_is_set_back(run_real, pair, statement, connector_for):
    primary, _ = pair

    async def main():
        connector = connector_for("primary")
        async with connected(connector, primary) as connection:
            await connection.execute(statement)
            assert connector.needs_recycle(connection, Outcome.CLEAN)
            await connector.on_recycle(connection, Outcome.CLEAN)
            assert not connector.needs_recycle(connection, Outcome.CLEAN)
            assert not connector.is_closed(connection)
            await write(connection)

    run_real(main)


def test_a_server_that_reports_nothing_to_psycopg_is_asked_after_a_write_was_refused(
    run_real, pair, demoted, monkeypatch
):
    primary, _ = pair

    async def main():
        connector = PsycopgConnector(user="postgres", database="postgres", role="primary")
        async with connected(connector, primary) as connection:
            monkeypatch.setattr(type(connection), "reported_read_only", lambda self: None)  # as before PostgreSQL 14
            demoted()
            with pytest.raises(ReadOnly):
                await write_until_refused(connection)
            assert not connector.is_closed(connection)
            assert connector.needs_recycle(connection, Outcome.CLEAN)
            with pytest.raises(BackendUnfitError):
                await connector.on_recycle(connection, Outcome.CLEAN)
            assert connector.is_closed(connection)

    run_real(main)


def test_a_pool_of_primaries_follows_a_failover(run_real, pool_of):
    async def main():
        with cluster(2) as (old, new):
            old.sql("CREATE TABLE things (id int)")
            new.caught_up()
            primaries, replicas = pool_of([old, new], "primary"), pool_of([old, new], "replica")
            async with primaries, replicas:
                await primaries.ready()
                await replicas.ready()
                old.demote_in_place()
                with pytest.raises(ReadOnly):
                    await write_somewhere_until_refused(primaries)
                waiting = asyncio.create_task(write_somewhere(primaries))
                new.caught_up()
                new.promote()
                assert await waiting == new.host
                for _ in range(10):
                    assert await write_somewhere(primaries) == new.host
                # What was demoted passes for a replica; what was promoted is found out as it is used.
                while replicas.stats().backends[at(new).name].online:
                    async with replicas.claim() as one, replicas.claim() as other:
                        await value(one, "SELECT 1")
                        await value(other, "SELECT 1")
                async with replicas.claim() as connection:
                    assert await place(connection) == old.host
            assert_nothing_left(primaries)
            assert_nothing_left(replicas)

    run_real(main)
