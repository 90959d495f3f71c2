"""What a claim gets from each connector, as the type checkers see it; none of it is written down where it is used."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# asyncpg comes without types, and redis-py does not tell all of its own.

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, assert_type

import asyncpg  # type: ignore[import-untyped]
import psycopg
import redis.asyncio
from psycopg.rows import DictRow, TupleRow, dict_row
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from qorb import Pool
from qorb.connectors.asyncpg import AsyncpgConnector
from qorb.connectors.blocking import BlockingConnection, BlockingConnector
from qorb.connectors.psycopg import PsycopgConnection, PsycopgConnector
from qorb.connectors.redis import RedisClient, RedisConnector
from qorb.connectors.sqlalchemy import SqlAlchemyConnector, create_engine_over
from qorb.resolvers import ManualResolver

if TYPE_CHECKING:
    from qorb import Backend


def open_database(backend: Backend) -> sqlite3.Connection:
    return sqlite3.connect(backend.host)


def count(raw: sqlite3.Connection, table: str, *, least: int = 0) -> int:
    return max(least, len(raw.execute(table).fetchall()))


asyncpg_pool = Pool("db", ManualResolver(), AsyncpgConnector(role="primary"))
psycopg_pool = Pool("db", ManualResolver(), PsycopgConnector(role="replica"))
rows_pool = Pool("db", ManualResolver(), PsycopgConnector(row_factory=dict_row))
redis_pool = Pool("cache", ManualResolver(), RedisConnector())
blocking_pool = Pool("files", ManualResolver(), BlockingConnector(open_database))
entries_pool = Pool("db", ManualResolver(), SqlAlchemyConnector("postgresql+asyncpg:///shop"))


def test_a_pool_has_the_type_of_the_connections_that_its_connector_makes() -> None:
    assert_type(asyncpg_pool, Pool[asyncpg.Connection])
    assert_type(psycopg_pool, Pool[PsycopgConnection[TupleRow]])
    assert_type(rows_pool, Pool[PsycopgConnection[DictRow]])
    assert_type(redis_pool, Pool[RedisClient])
    assert_type(blocking_pool, Pool[BlockingConnection[sqlite3.Connection]])
    assert_type(entries_pool, Pool[ConnectionPoolEntry])
    assert_type(create_engine_over(entries_pool), AsyncEngine)


async def a_claim_gets_a_connection_of_asyncpg() -> None:
    async with asyncpg_pool.claim() as connection:
        assert_type(connection, asyncpg.Connection)
        await connection.fetchval("SELECT 1")


async def a_claim_gets_a_connection_of_psycopg_whose_rows_have_their_type() -> None:
    async with psycopg_pool.claim() as connection:
        assert_type(connection, PsycopgConnection[TupleRow])
        plain: psycopg.AsyncConnection[TupleRow] = connection
        assert_type(await (await plain.execute("SELECT 1")).fetchone(), TupleRow | None)
    async with rows_pool.claim() as connection_with_names:
        cursor = await connection_with_names.execute("SELECT 1")
        assert_type(await cursor.fetchone(), DictRow | None)


async def a_claim_gets_a_client_of_redis() -> None:
    async with redis_pool.claim() as client:
        assert_type(client, RedisClient)
        plain: redis.asyncio.Redis = client
        await plain.ping()


async def a_claim_gets_a_connection_whose_calls_are_typed() -> None:
    async with blocking_pool.claim() as connection:
        assert_type(connection, BlockingConnection[sqlite3.Connection])
        assert_type(await connection.run(count, "SELECT 1", least=3), int)
        assert_type(await connection.run(lambda raw: raw.in_transaction), bool)
        await connection.run(count, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await connection.run(count)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def a_claim_gets_what_sqlalchemy_keeps_of_a_connection() -> None:
    claim = await entries_pool.claim()
    assert_type(claim.connection, ConnectionPoolEntry)
    assert_type(claim.connection.driver_connection, Any | None)
    async with entries_pool.claim() as entry:
        entry.cursor()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
