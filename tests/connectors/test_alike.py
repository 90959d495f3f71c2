"""What all connectors for servers that ask who comes do alike."""

from __future__ import annotations

import asyncio

import pytest
import redis

from qorb import Backend
from qorb.connectors.asyncpg import AsyncpgConnector
from qorb.connectors.psycopg import PsycopgConnector
from qorb.connectors.redis import RedisConnector
from qorb.connectors.sqlalchemy import SqlAlchemyConnector
from qorb.errors import ConnectError
from tests.connectors.peers import receive, send


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
