"""Bad days of a Pool over TcpConnector, on loopback. The letters are those of the catalogue of faults."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import threading

import pytest

from qorb import (
    AllClaimsUsedError,
    Backend,
    ClaimRevokedError,
    ConnectError,
    NoBackendsOnlineError,
    Policy,
    Pool,
    TerminationError,
)
from qorb.connectors import TcpConnector
from qorb.resolvers import ManualResolver
from qorb.testing import assert_nothing_left
from tests.connectors.peers import Listener, eventually, open_sockets
from tests.network.pooling import BRISK, QUIET, ask, at_rest, claim_and_ask, pool_over
from tests.network.servers import Server, ServerProcess, TlsServer
from tests.words import without_slowness


@pytest.fixture
def other_listener():
    with Listener() as listener:
        yield listener


# B3: a backend that does not answer to connects.


def test_a_backend_that_never_accepts_takes_no_claim_and_says_why(run_real, listener):
    async def main():
        with Listener(backlog=0) as silent:
            filler = socket.create_connection(silent.backend.address)  # the only one that the queue has room for
            async with Server(listener), pool_over(silent, listener) as pool:
                assert {await claim_and_ask(pool) for _ in range(50)} == {listener.backend.name}
                stats = pool.stats
                await eventually(lambda: stats().backends[silent.backend.name].last_error is not None)
                assert stats().backends[silent.backend.name].last_error == "TimeoutError: not done within 0.3 s"
                assert not stats().backends[silent.backend.name].online
                assert {await claim_and_ask(pool) for _ in range(50)} == {listener.backend.name}
            filler.close()
        assert_nothing_left(pool)

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


# B6, B7: idle connections that their server ends.


def spoiled(how):
    """What a server may do to an idle connection."""
    if how == "unasked bytes":
        return lambda served: served.transport.write(b"an answer to somebody else")
    return lambda served: getattr(served, how)()


@pytest.mark.parametrize("how", ["reset", "close", "unasked bytes"])
def test_an_idle_connection_that_its_server_has_spoiled_is_never_handed_out(run_real, listener, how):
    class Remembering(TcpConnector):
        async def connect(self, backend):
            stream = await super().connect(backend)
            streams.append(stream)
            return stream

    streams = []
    connector = Remembering()

    async def main():
        async with (
            Server(listener) as server,
            pool_over(listener, connector=connector, policy=QUIET) as pool,
        ):
            for _ in range(20):
                await at_rest(pool, server)
                for served in tuple(server.connections):
                    spoiled(how)(served)
                await eventually(lambda: all(map(connector.is_closed, streams)))
                await claim_and_ask(pool)
            assert pool.stats().claims == 20
            assert server.opened >= 20 * 4
        assert_nothing_left(pool)

    run_real(main)


@pytest.mark.parametrize("how", ["reset", "close", "unasked bytes"])
def test_idle_connections_that_their_server_has_spoiled_are_replaced_without_a_claim(run_real, listener, how):
    async def main():
        async with Server(listener) as server, pool_over(listener) as pool:
            await at_rest(pool, server)
            old = set(server.connections)
            for served in old:
                spoiled(how)(served)
            await eventually(lambda: not old & set(server.connections))
            await at_rest(pool, server)
            assert pool.stats().claims == 0

    run_real(main)


# A server that is killed.


def test_a_server_that_is_killed_and_started_again_serves_again(run_real):
    async def main():
        with ServerProcess() as server:
            async with pool_over(server.address) as pool:
                await pool.ready()
                held = await pool.claim()
                with held as stream:
                    await ask(stream)
                    # A connect that the kernel has answered already would succeed in spite of the kill.
                    await eventually(lambda: not pool.stats().backends[server.address].connecting_slots)
                    server.kill()
                    assert await stream.reader.read() == b""
                with pytest.raises(NoBackendsOnlineError, match="Connection refused"):
                    await pool.claim(timeout=0.3)
                server.start()
                await claim_and_ask(pool)
                await pool.ready()
            assert_nothing_left(pool)

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_claims_go_on_while_one_of_two_servers_is_killed_and_started_again(run_real):
    async def main():
        with ServerProcess() as one, ServerProcess() as other:
            async with pool_over(one.address, other.address) as pool:
                await pool.ready()
                served = [0]
                failed = [0]
                stop = asyncio.Event()

                async def client():
                    while not stop.is_set():
                        try:
                            await claim_and_ask(pool)
                            served[0] += 1
                        except (OSError, EOFError):  # it had the connection when the server was killed
                            failed[0] += 1

                clients = [asyncio.create_task(client()) for _ in range(6)]
                await eventually(lambda: served[0] > 200)
                one.kill()
                enough = served[0] + 500
                await eventually(lambda: served[0] > enough)
                one.start()
                await eventually(lambda: pool.stats().backends[one.address].online)
                before = pool.stats().backends[one.address].total_claims
                await eventually(lambda: pool.stats().backends[one.address].total_claims > before + 50)
                stop.set()
                for task in clients:
                    await task
                # Those that were in use, and those that were handed out before this end heard of it.
                assert failed[0] <= BRISK.max_slots
            assert_nothing_left(pool)

    run_real(main)


# B16: a server that does not keep to the protocol.


class Greeted(TcpConnector):
    """Speaks a protocol in which the server begins, with a line."""

    async def connect(self, backend):
        stream = await super().connect(backend)
        try:
            greeting = await stream.reader.readline()
            if greeting != b"READY\n":
                raise ConnectError(f"no greeting: {greeting[:20]!r}", backend.name)
        except BaseException:
            self.abort(stream)
            raise
        return stream


def greet(transport):
    transport.write(b"READY\n")


def drip(transport):
    """One byte at a time, and never a whole line."""
    if not transport.is_closing():
        transport.write(b"x")
        asyncio.get_running_loop().call_later(0.02, drip, transport)


BAD_WELCOMES = {
    "garbage": (lambda transport: transport.write(b"\x00\xff\n"), "no greeting"),
    "endless garbage": (lambda transport: transport.write(b"\xff" * (1 << 22)), "ValueError"),
    "a close": (lambda transport: transport.close(), "no greeting: b''"),
    "a byte now and then": (drip, "not done within 0.3 s"),
    "nothing": (lambda transport: None, "not done within 0.3 s"),
}


@pytest.mark.parametrize("welcome", BAD_WELCOMES)
def test_a_server_that_greets_with_nonsense_gets_no_claim_and_is_not_besieged(
    run_real, listener, other_listener, welcome
):
    behave, words = BAD_WELCOMES[welcome]

    async def main():
        async with (
            Server(listener, behave) as bad,
            Server(other_listener, greet),
            pool_over(listener, other_listener, connector=Greeted()) as pool,
        ):
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert {await claim_and_ask(pool) for _ in range(50)} == {other_listener.backend.name}
            await eventually(
                lambda: bad.opened >= 5 and pool.stats().backends[listener.backend.name].last_error is not None
            )
            stats = pool.stats().backends[listener.backend.name]
            assert words in stats.last_error
            assert not stats.online
            # Eight at first, then one at a time, each after at least half the backoff.
            assert bad.opened <= 2 * BRISK.max_slots + 10 + (loop.time() - began) / 0.1
        await eventually(lambda: not bad.connections)
        assert_nothing_left(pool)

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


@pytest.mark.parametrize("welcome", ["garbage", "a close", "half a record", "a byte now and then"])
def test_a_server_that_fails_the_tls_handshake_gets_no_claim(run_real, listener, welcome):
    def half_a_record(transport):
        transport.write(b"\x16\x03\x03\x40\x00" + bytes(100))

    def drip_a_record(transport, rest=b"\x16\x03\x03\x40\x00"):
        if not transport.is_closing():
            transport.write(rest[:1] or b"\x02")
            asyncio.get_running_loop().call_later(0.02, drip_a_record, transport, rest[1:])

    behave, words = {
        "garbage": (lambda transport: transport.write(b"220 ready\r\n"), "the TLS handshake with"),
        "a close": (lambda transport: transport.close(), "the TLS handshake with"),
        "half a record": (half_a_record, "not done within 0.3 s"),
        "a byte now and then": (drip_a_record, "not done within 0.3 s"),
    }[welcome]

    async def main():
        connector = TcpConnector(ssl=ssl.create_default_context())
        async with Server(listener, behave) as server, pool_over(listener, connector=connector) as pool:
            server.reply = lambda transport, received: None
            await eventually(lambda: any(stats.last_error for stats in pool.stats().backends.values()))
            with pytest.raises(NoBackendsOnlineError, match=words):
                await pool.claim(timeout=0.1)
        await eventually(lambda: not server.connections)
        assert_nothing_left(pool)

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


# TLS, and a backend that moves under its name.


def test_a_backend_that_moves_must_show_a_good_certificate_at_its_new_address(
    run_real, listener, other_listener, authority, client_context
):
    good, bad = (ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in range(2))
    authority.issue_cert("db.test").configure_cert(good)
    authority.issue_cert("other.test").configure_cert(bad)

    def at(listener):
        return [Backend("db", *listener.backend.address, "db.test")]

    async def main():
        resolver = ManualResolver(at(listener))
        connector = TcpConnector(ssl=client_context)
        with Listener() as third_listener:
            async with (
                TlsServer(listener, good) as old,
                TlsServer(other_listener, bad) as impostor,
                TlsServer(third_listener, good) as new,
                Pool("test", resolver, connector, BRISK) as pool,
            ):
                await claim_and_ask(pool)
                resolver.set(at(other_listener))
                await eventually(lambda: impostor.refused >= 3)
                # On a busy machine an attempt may as well be too slow.
                await eventually(lambda: "not valid for 'db.test'" in str(pool.stats().backends["db"].last_error))
                assert not impostor.opened
                resolver.set(at(third_listener))
                await eventually(lambda: not old.connections and len(new.connections) >= BRISK.spares_wanted)
                await claim_and_ask(pool)
                assert not impostor.opened
        assert_nothing_left(pool)

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


# The end.


def test_terminating_under_load_leaves_no_socket_open(run_real, listener, other_listener):
    async def main():
        async with Server(listener) as one, Server(other_listener) as other:
            before = open_sockets()
            pool = pool_over(listener, other_listener)
            await pool.start()

            async def client():
                while True:
                    await claim_and_ask(pool)

            clients = [asyncio.create_task(client()) for _ in range(20)]
            await eventually(lambda: pool.stats().claims > 200)
            await pool.terminate(grace=0.1)
            # Without another turn of the loop: what is open now is the servers'.
            assert open_sockets() - before <= one.sockets() | other.sockets()
            assert_nothing_left(pool)
            for task in clients:
                await asyncio.wait({task})
                assert task.exception() is not None
            await eventually(lambda: not one.connections and not other.connections)

    run_real(main)


@pytest.mark.parametrize("held", ["revoke", "detach"])
def test_terminating_with_a_claim_out_ends_its_connection_when_it_should(run_real, listener, held):
    async def main():
        async with Server(listener) as server:
            pool = pool_over(listener)
            await pool.start()
            claim = await pool.claim()
            await eventually(lambda: len(server.connections) >= 4)
            await pool.terminate(grace=0, held=held)
            if held == "revoke":
                await eventually(lambda: not server.connections)
                with pytest.raises(ClaimRevokedError):
                    _ = claim.connection
            else:
                await eventually(lambda: len(server.connections) == 1)
                await ask(claim.connection)
            claim.release()
            await eventually(lambda: not server.connections)
            assert_nothing_left(pool)

    run_real(main)


def test_a_pool_whose_connections_are_all_held_says_so_on_real_sockets_too(run_real, listener):
    async def main():
        async with Server(listener), pool_over(listener, policy=Policy(max_slots=1, spares_wanted=0)) as pool:
            async with pool.claim():
                with pytest.raises(AllClaimsUsedError):
                    await pool.claim(timeout=0.01)
            await claim_and_ask(pool)

    run_real(main)


def test_terminating_waits_for_a_look_up_that_nothing_can_interrupt(run_real, names):
    names.known["db.test"] = ["127.0.0.1"]
    names.may_answer.clear()
    threads = threading.active_count()

    async def main():
        pool = pool_over("db.test:1")
        await pool.start()
        await eventually(names.asked.is_set)
        with pytest.raises(TerminationError, match=r"db\.test:1"):
            await pool.terminate(grace=0, timeout=0.2)
        assert threading.active_count() > threads
        names.may_answer.set()
        await pool.terminate()
        assert threading.active_count() == threads
        assert_nothing_left(pool)

    run_real(main)


# M1: no file descriptors left.


def test_a_process_without_file_descriptors_keeps_its_claims_says_so_and_recovers():
    program = [sys.executable, "-m", "tests.network.without_descriptors"]
    with ServerProcess() as server:
        done = subprocess.run([*program, server.address], check=False, capture_output=True, text=True, timeout=300)
    assert (done.returncode, without_slowness(done.stderr)) == (0, ""), done.stderr
    told = json.loads(done.stdout)
    assert "Too many open files" in told["last_error"]
    assert told["held_claim_works"]
    assert told["attempts"] < 200
    assert told["recovered"]
