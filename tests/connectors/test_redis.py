"""RedisConnector against real Valkey servers, and against peers that say what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import threading
import traceback

import pytest
import redis
from redis.asyncio.client import PubSub

from qorb import Backend, Policy, Pool
from qorb.connector import Outcome
from qorb.connectors.redis import RedisClient, RedisConnector
from qorb.credentials import Secret
from qorb.errors import BackendUnfitError, ConnectError, NoBackendsOnlineError
from qorb.resolvers import FixedResolver
from tests.connectors.cancelling import at_every_await
from tests.connectors.peers import eventually, open_sockets, receive, send, tls_peer
from tests.servers.valkey import ValkeyServer

CANARY = "kanarienvogel-4711"


@pytest.fixture(scope="module")
def shared():
    """A server for tests that do not harm it."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def server(shared):
    shared.command("FLUSHALL")
    return shared


def backend_of(server, server_name=None):
    return Backend(server.address, server.host, server.port, server_name)


def pool_of(connector, *servers, **policy):
    policy = {"spares_wanted": 1, "max_slots": 1, "health_interval": 1000.0, **policy}
    return Pool("redis", FixedResolver([server.address for server in servers]), connector, Policy(**policy))


# What a claim gets.


def test_a_claim_gets_a_client_that_speaks_over_one_connection_whatever_is_asked_of_it(run_real, server):
    async def main():
        async with pool_of(RedisConnector(client_name="one", db=3, decode_responses=True), server) as pool:
            async with pool.claim() as client:
                assert await client.set("a", 1)
                assert await client.incr("a") == 2
                assert await client.get("a") == "2"
                async with client.pipeline() as pipeline:
                    assert await pipeline.incr("a").get("a").execute() == [3, "3"]

                async def double(pipeline):
                    value = int(await pipeline.get("a"))
                    pipeline.multi()
                    pipeline.set("a", 2 * value)

                assert await client.transaction(double, "a") == [True]
                await client.rpush("list", "x")
                assert await client.blpop(["list"], timeout=1) == ["list", "x"]
                assert await client.eval("return redis.call('get', KEYS[1])", 1, "a") == "6"
                assert [key async for key in client.scan_iter()] == ["a"]
                await client.set("big", "x" * 3_000_000)
                assert len(await client.get("big")) == 3_000_000
                assert len(server.clients("one")) == 1
                first = await client.client_id()
            assert all(one.failures == 0 for one in pool.stats().backends.values())
            async with pool.claim() as client:
                assert await client.client_id() == first
        assert server.clients("one") == []

    run_real(main)


def test_a_pubsub_uses_the_claimed_connection_which_the_next_claim_does_not_get(run_real, server):
    async def main():
        async with pool_of(RedisConnector(client_name="one"), server) as pool:
            async with pool.claim() as client:
                first = await client.client_id()
                async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe("news")
                    await asyncio.to_thread(server.command, "PUBLISH", "news", "hello")
                    message = None
                    while message is None:
                        message = await pubsub.get_message(timeout=10)
                    assert message["data"] == b"hello"
                    with pytest.raises(redis.RedisError, match="one connection, and that is in use"):
                        await client.get("a")
                    assert len(server.clients("one")) == 1
            async with pool.claim() as client:
                assert await client.client_id() != first
                assert await client.get("a") is None
            assert all(one.failures == 0 for one in pool.stats().backends.values())

    run_real(main)


def test_two_commands_at_a_time_are_refused_and_the_first_is_not_harmed(run_real, server):
    async def main():
        async with pool_of(RedisConnector(), server) as pool, pool.claim() as client:
            first = asyncio.ensure_future(client.set("a", 1))
            await asyncio.sleep(0)
            with pytest.raises(redis.RedisError, match="claim another connection"):
                await client.get("a")
            assert await first is True
            assert await client.get("a") == b"1"

    run_real(main)


def test_a_pubsub_that_is_left_open_cannot_read_what_the_next_claim_is_told(run_real, server):
    async def main():
        async with pool_of(RedisConnector(), server) as pool:
            async with pool.claim() as client:
                pubsub: PubSub = client.pubsub()
                await pubsub.subscribe("news")
            async with pool.claim() as client:
                assert await client.get("a") is None
                with pytest.raises(redis.ConnectionError):
                    await pubsub.get_message(timeout=1)
                assert await client.get("a") is None
            await pubsub.aclose()

    run_real(main)


def test_a_connection_that_is_closed_is_never_opened_again_by_redis_py(run_real, server):
    async def main():
        connector = RedisConnector(client_name="closed")
        client = await connector.connect(backend_of(server))
        connector.abort(client)
        with pytest.raises(redis.ConnectionError, match="is closed, and is not opened again"):
            await client.get("a")
        with pytest.raises(redis.ConnectionError, match="is closed, and is not opened again"):
            await client.pipeline().get("a").execute()
        with pytest.raises(redis.ConnectionError, match="is closed, and is not opened again"):
            await client.pubsub().subscribe("news")
        with pytest.raises(redis.RedisError, match="nothing is retried"):
            client.set_retry(None)
        assert connector.is_closed(client)
        with pytest.raises(ConnectError, match="closed"):
            await connector.validate(client)
        await eventually(lambda: not server.clients("closed"))

    run_real(main)


# In step.


def test_a_clean_connection_goes_to_the_next_claim_without_a_round_trip(run_real, server):
    async def main():
        connector = RedisConnector()
        client = await connector.connect(backend_of(server))
        await client.set("a", "text")
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            await client.lpush("a", 1)
        with pytest.raises(redis.DataError):
            await client.pipeline().set("a", 1).set("a", object()).execute()
        async with client.pipeline() as pipeline:
            await pipeline.watch("a")
            pipeline.multi()
            await pipeline.get("a").lpush("a", 1).execute(raise_on_error=False)
        for outcome in (Outcome.CLEAN, Outcome.ERROR, Outcome.CANCELLED):
            assert not connector.needs_recycle(client, outcome)
        assert connector.needs_recycle(client, Outcome.LEAKED)
        assert not connector.is_closed(client)
        await connector.close(client)

    run_real(main)


@pytest.mark.parametrize(
    "commands",
    [
        ["SELECT 5"],
        ["select 5"],
        ["WATCH a"],
        ["MULTI"],
        ["WATCH a", "MULTI", "SET a 2"],
        ["CLIENT SETNAME other"],
        ["CLIENT TRACKING on"],
        ["CLIENT NO-TOUCH on"],
        ["WATCH a", "EXEC"],
    ],
)
def test_what_a_claim_leaves_on_the_server_is_undone_before_the_next(run_real, server, commands):
    async def main():
        async with pool_of(RedisConnector(client_name="mine", db=2), server) as pool:
            async with pool.claim() as client:
                first = await client.client_id()
                for command in commands:
                    with contextlib.suppress(redis.ResponseError):
                        await client.execute_command(*command.split())
            async with pool.claim() as client:
                assert await client.client_id() == first
                told = await client.client_info()
                assert (told["name"], int(told["db"]), int(told["watch"])) == ("mine", 2, 0)
                assert told["flags"] == "N"  # no MULTI, no tracking
                assert int(told["resp"]) == 3
            assert all(one.failures == 0 for one in pool.stats().backends.values())

    run_real(main)


@pytest.mark.parametrize(
    "command", ["CLIENT REPLY OFF", "client reply skip", "MONITOR", "SUBSCRIBE a", "RESET", "HELLO 2", "QUIT"]
)
def test_a_connection_that_cannot_be_undone_is_closed(run_real, server, command):
    async def main():
        async with pool_of(RedisConnector(client_name="mine"), server) as pool:
            async with pool.claim() as client:
                first = await client.client_id()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await client.execute_command(*command.split())
            async with pool.claim() as client:
                assert await client.client_id() != first
                assert await client.ping()
            await eventually(lambda: len(server.clients("mine")) == 1)
            assert all(one.failures == 0 for one in pool.stats().backends.values())

    run_real(main)


def test_messages_that_nobody_has_read_cost_the_connection(run_real, server):
    async def main():
        connector = RedisConnector()
        client = await connector.connect(backend_of(server))
        await client.execute_command("CLIENT TRACKING", "on")
        await client.get("a")
        await asyncio.to_thread(server.command, "SET", "a", "1")
        await eventually(lambda: connector.is_closed(client))
        connector.abort(client)

    run_real(main)


def test_a_command_that_is_cancelled_closes_its_connection_and_is_no_failure_of_the_server(run_real, server):
    server.command("SET", "mine", "mine")

    async def main():
        async with pool_of(RedisConnector(client_name="mine"), server) as pool:
            for _ in range(20):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.01), pool.claim() as client:
                        await client.blpop(["nothing"])
                async with pool.claim() as client:
                    assert await client.get("mine") == b"mine"
            assert all(one.failures == 0 for one in pool.stats().backends.values())
        await eventually(lambda: not server.clients("mine"))

    run_real(main)


def test_a_command_cancelled_at_every_await_leaves_the_next_claim_its_own_answer(run_real, server):
    server.command("MSET", "a", "a", "b", "b")

    async def main():
        async with pool_of(RedisConnector(), server) as pool:

            async def ask():
                async with pool.claim() as client, client.pipeline() as pipeline:
                    return await pipeline.get("a").get("a").execute()

            async for attempt in at_every_await():
                assert await attempt.run(ask()) in (None, [b"a", b"a"])
                async with pool.claim() as client:
                    assert await client.get("b") == b"b"

    run_real(main)


CANCELS = 100_000
BATCH = 60


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute, on a machine that is idle
def test_no_answer_reaches_another_claim_in_100_000_cancels(run_real, server):
    keys = [f"key-{number}" for number in range(100)]
    for key in keys:
        server.command("SET", key, f"value of {key}")
    counted = {"cancelled": 0, "in flight": 0, "answered": 0, "mismatches": 0}
    chance = random.Random(random.getrandbits(64))

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_debug(False)
        async with pool_of(RedisConnector(), server, spares_wanted=8, max_slots=8) as pool:

            async def ask(key, asking):
                async with pool.claim() as client:
                    asking.add(key)
                    answer = await client.get(key)
                    asking.discard(key)
                    counted["answered"] += 1
                    counted["mismatches"] += answer != f"value of {key}".encode()

            await pool.ready()
            # How many of them find an answer under way depends on the loop: those are the ones that count.
            while counted["cancelled"] < CANCELS or counted["in flight"] <= CANCELS / 10:
                asking = set()
                tasks = [loop.create_task(ask(key, asking)) for key in chance.sample(keys, BATCH)]
                for _ in range(chance.randrange(1, 8)):
                    await asyncio.sleep(0)
                kept = tasks.pop()
                for task in tasks:
                    task.cancel()
                await asyncio.wait({*tasks, kept})
                counted["cancelled"] += sum(task.cancelled() for task in tasks)
                counted["in flight"] += len(asking)
                kept.result()

    run_real(main)
    print(counted)  # noqa: T201 - shown when it fails
    assert counted["mismatches"] == 0
    assert counted["in flight"] > CANCELS / 10
    assert counted["answered"] > 1000


# Who may come in.


@pytest.fixture(scope="module")
def guarded():
    with ValkeyServer(password="geheim") as server:
        server.command("ACL", "SETUSER", "app", "on", f">{CANARY}", "~*", "+@all", "&*")
        yield server


@pytest.mark.parametrize(
    ("username", "password"),
    [(None, "geheim"), ("default", Secret("geheim")), ("app", CANARY), (lambda: "app", lambda: Secret(CANARY))],
)
def test_credentials_are_values_or_functions_that_are_asked_at_every_login(run_real, guarded, username, password):
    asked = []

    async def answer():
        asked.append(password)
        return password() if callable(password) else password

    async def main():
        async with pool_of(RedisConnector(username=username, password=answer), guarded) as pool:
            async with pool.claim() as client:
                first = await client.client_id()
                await client.select(4)
            async with pool.claim() as client:
                assert (await client.client_id(), int((await client.client_info())["db"])) == (first, 0)
        assert len(asked) == 2  # once more after RESET, which has logged it out

    run_real(main)


@pytest.mark.parametrize("password", [None, "wrong", CANARY])
def test_a_refused_user_is_left_alone_for_five_seconds(run_real, guarded, password):
    async def main():
        with pytest.raises(ConnectError, match=r"^authentication failed: AuthenticationError") as caught:
            await RedisConnector(password=password).connect(backend_of(guarded))
        assert caught.value.min_backoff == 5.0
        assert caught.value.backend == guarded.address

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_no_secret_shows_anywhere(run_real, guarded, caplog):
    caplog.set_level(logging.DEBUG)
    events = []

    async def main():
        right = RedisConnector(username="app", password=CANARY)
        wrong = RedisConnector(username="app", password=f"{CANARY}-not")
        async with pool_of(right, guarded) as pool, pool.claim() as client:
            events.append(repr([right, wrong, client, client.wire, client.connection_pool, pool, vars(client.wire)]))
            connection_id = await client.client_id()
            guarded.command("CLIENT", "KILL", "ID", connection_id)
            with pytest.raises(redis.ConnectionError) as caught:
                await client.ping()
            events.append("".join(traceback.format_exception(caught.value)))
        pool = Pool("wrong", FixedResolver([guarded.address]), wrong, observer=lambda event: events.append(repr(event)))
        async with pool:
            with pytest.raises(NoBackendsOnlineError, match="authentication") as refused:
                await pool.claim(timeout=1)
            told = traceback.TracebackException.from_exception(refused.value, capture_locals=True)
            events.extend([repr(pool.stats()), *told.format()])

    run_real(main)
    events.extend(record.getMessage() for record in caplog.records)
    assert not [text for text in events if CANARY in text]


# Errors of the server.


@pytest.mark.parametrize(
    ("greeting", "words"),
    [
        (b"-LOADING Valkey is loading the dataset in memory\r\n", "still loading its data"),
        (b"-ERR max number of clients reached\r\n", "as many clients as it takes"),
        (b"-ERR unknown command 'HELLO'\r\n", "handshake failed.*unknown command 'HELLO'"),
        (b"HTTP/1.1 400 Bad Request\r\n", "handshake failed"),
        (b"$x\r\n", "handshake failed"),
    ],
)
def test_a_handshake_that_fails_says_why(run_real, listener, greeting, words):
    async def main():
        connecting = asyncio.ensure_future(RedisConnector().connect(listener.backend))
        with await listener.accept() as peer:
            await receive(peer, 10)
            await send(peer, greeting)
            with pytest.raises(ConnectError, match=words):
                await connecting

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_a_server_with_too_many_clients_is_said_to_have_too_many(run_real):
    async def main(server):
        connector = RedisConnector()
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                client = await connector.connect(backend_of(server))
                stack.callback(connector.abort, client)
            with pytest.raises(ConnectError, match=r"as many clients as it takes|handshake failed"):
                await connector.connect(backend_of(server))

    with ValkeyServer(settings={"maxclients": "2"}) as server:
        run_real(lambda: main(server))


def test_a_connect_that_is_cancelled_leaves_nothing_open(run_real, server):
    async def main():
        connector = RedisConnector(client_name="cancelled", db=1, role="primary")
        async for attempt in at_every_await():
            client = await attempt.run(connector.connect(backend_of(server)))
            if client is not None:
                await connector.close(client)
        await eventually(lambda: not server.clients("cancelled"))

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_host_names_are_not_looked_up_on_the_loops_executor(run_real, server, names):
    names.known["redis.test"] = ["127.0.0.1"]

    async def main():
        connector = RedisConnector()
        await connector.close(await connector.connect(Backend("b", "redis.test", server.port)))
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio_")]

    run_real(main)


# Roles.


@pytest.fixture
def pair():
    with ValkeyServer() as first, ValkeyServer("127.0.0.2", of=first) as second:
        yield first, second


def test_a_role_is_looked_for(run_real, pair):
    async def main():
        for role, wanted, other in (("primary", *pair), ("replica", *reversed(pair))):
            connector = RedisConnector(role=role)
            client = await connector.connect(backend_of(wanted))
            await connector.validate(client)
            await connector.close(client)
            with pytest.raises(BackendUnfitError, match=f"role='{role}' is wanted") as caught:
                await connector.connect(backend_of(other))
            assert caught.value.max_backoff == 0.5

    run_real(main)


def test_a_primary_that_was_demoted_is_not_used_again_from_the_first_refused_write_on(run_real, pair):
    first, second = pair

    async def main():
        connector = RedisConnector(role="primary")
        async with pool_of(connector, first, second, spares_wanted=4, max_slots=8) as pool:
            await pool.ready()
            async with pool.claim() as client:
                second.promote()
                first.follow(second)
                with pytest.raises(redis.ReadOnlyError):
                    await client.set("a", 1)
            for _ in range(20):
                async with pool.claim() as client:
                    assert await client.set("a", 1)
                    assert client.wire.backend == second.address

    run_real(main)


def test_a_check_finds_a_role_that_was_lost(run_real, pair):
    first, second = pair

    async def main():
        connector = RedisConnector(role="primary")
        one = await connector.connect(backend_of(first))
        other = await connector.connect(backend_of(first))
        first.follow(second)
        with pytest.raises(BackendUnfitError, match="refuses writes"):
            await connector.validate(one)
        assert connector.is_closed(other)
        connector.abort(one)
        connector.abort(other)

    run_real(main)


# Servers that go.


def test_a_server_that_is_killed_and_started_again_is_used_again(run_real):
    async def main(server):
        async with pool_of(RedisConnector(), server, spares_wanted=4, max_slots=4) as pool:
            await pool.ready()
            async with pool.claim() as client:
                server.kill()
                with pytest.raises(redis.ConnectionError):
                    await client.get("a")
            server.start()
            async with pool.claim() as client:
                assert await client.get("a") is None

    with ValkeyServer() as server:
        run_real(lambda: main(server))


def test_killing_all_connections_costs_no_claim_that_begins_afterwards(run_real, server):
    async def main():
        async with pool_of(RedisConnector(client_name="mine"), server, spares_wanted=4, max_slots=4) as pool:
            await pool.ready()
            for _ in range(5):
                await asyncio.to_thread(server.command, "CLIENT", "KILL", "TYPE", "normal")
                await asyncio.to_thread(
                    server.clients, "mine"
                )  # the ends of the connections have come before this answer

                async def ask():
                    async with pool.claim() as client:
                        assert await client.ping()

                tasks = [asyncio.create_task(ask()) for _ in range(20)]
                await asyncio.wait(tasks)
                for task in tasks:
                    task.result()

    run_real(main)


def test_a_server_that_does_not_answer_holds_up_no_termination(run_real):
    async def main(server):
        async with pool_of(RedisConnector(), server) as pool:
            claim = await pool.claim()
            server.pause()
            asking = asyncio.ensure_future(claim.connection.get("a"))
            await asyncio.sleep(0)
            await pool.terminate(grace=0)
            with pytest.raises(redis.ConnectionError):
                await asking
            assert pool.ledger().empty
        server.resume()

    with ValkeyServer() as server:
        run_real(lambda: main(server))


# TLS.


async def relay(accepting, server):
    """Pass on between who comes over TLS and the server, which was built without, until the former goes."""
    reader, writer = await accepting
    there_reader, there_writer = await asyncio.open_connection(server.host, server.port)

    async def pump(source, sink):
        while read := await source.read(1 << 16):
            sink.write(read)

    back = asyncio.create_task(pump(there_reader, writer))
    await pump(reader, there_writer)
    there_writer.close()
    await there_writer.wait_closed()
    back.cancel()
    await asyncio.wait({back})


def test_tls_is_verified_for_the_name_of_the_server(run_real, server, listener, authority, client_context):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("db.test").configure_cert(context)

    async def main():
        connector = RedisConnector(ssl=client_context)
        async with tls_peer(listener, context) as accepting:
            relaying = asyncio.create_task(relay(accepting, server))
            client = await connector.connect(listener.named("db.test"))
            assert await client.set("a", 1)
            await connector.close(client)
            await relaying
        async with tls_peer(listener, context):
            with pytest.raises(ConnectError, match=r"not valid for 'other\.test'"):
                await connector.connect(listener.named("other.test"))

    run_real(main)


# The settings.


@pytest.mark.parametrize(
    ("settings", "error", "name"),
    [
        ({"db": -1}, ValueError, "db"),
        ({"db": "1"}, TypeError, "db"),
        ({"db": True}, TypeError, "db"),
        ({"client_name": "a b\n"}, ValueError, "client_name"),
        ({"client_name": "a b"}, ValueError, "client_name"),
        ({"client_name": ""}, ValueError, "client_name"),
        ({"role": "master"}, ValueError, "role"),
        ({"password": 1}, TypeError, "password"),
        ({"username": b"x"}, TypeError, "username"),
        ({"ssl": True}, TypeError, "ssl"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_name(settings, error, name):
    with pytest.raises(error, match=name):
        RedisConnector(**settings)


def test_a_subclass_with_an_on_recycle_of_its_own_has_it_called(run_real, server):
    class Own(RedisConnector):
        called = 0

        async def on_recycle(self, connection: RedisClient, outcome: Outcome) -> None:
            self.called += 1
            await super().on_recycle(connection, outcome)

    async def main():
        connector = Own()
        async with pool_of(connector, server) as pool:
            for _ in range(2):
                async with pool.claim() as client:
                    await client.ping()
            async with pool.claim():
                assert connector.called == 2

    run_real(main)
