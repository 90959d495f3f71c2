"""TcpConnector without TLS, on loopback."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import re
import socket
import ssl
import threading

import pytest

from qorb.backend import Backend
from qorb.connector import Outcome
from qorb.connectors import TcpConnector, TcpStream
from qorb.errors import ConnectError
from tests.connectors.cancelling import at_every_await
from tests.connectors.peers import Listener, eventually, fill, open_sockets, receive, receive_end, reset, send

MOST_UNREAD = 64 * 1024
ONE_READ_OF_UVLOOP = 64 * 1024 + 256 * 1024


def option(stream: TcpStream, level: int, name: int) -> int:
    return stream.writer.get_extra_info("socket").getsockopt(level, name)


# Settings.


@pytest.mark.parametrize("name", ["keepalive", "user_timeout"])
@pytest.mark.parametrize("value", [0, 0.0, -1, -math.inf, math.nan, 1e9])
def test_a_number_that_is_no_such_time_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .* seconds .*{re.escape(repr(value))}$"):
        TcpConnector(**{name: value})


@pytest.mark.parametrize("name", ["keepalive", "user_timeout"])
@pytest.mark.parametrize("value", ["30", True, b"", [30]])
def test_what_is_no_number_is_refused_by_name(name, value):
    with pytest.raises(TypeError, match=rf"^{name} must be a number of seconds or None"):
        TcpConnector(**{name: value})


@pytest.mark.parametrize("value", [True, "context", ssl])
def test_what_is_no_context_is_refused_by_name(value):
    with pytest.raises(TypeError, match=r"^ssl must be an ssl\.SSLContext or None"):
        TcpConnector(ssl=value)


def test_a_context_for_servers_is_refused():
    with pytest.raises(ValueError, match=r"^ssl must be a context for clients"):
        TcpConnector(ssl=ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))


def test_the_repr_shows_the_settings_and_nothing_else():
    connector = TcpConnector(ssl=ssl.create_default_context(), keepalive=5, user_timeout=math.inf)
    assert repr(connector) == "TcpConnector(ssl=<SSLContext>, keepalive=5.0, user_timeout=None)"


@pytest.mark.parametrize(
    ("settings", "idle", "interval", "timeout"),
    [
        ({}, 30, 10, 30_000),
        ({"keepalive": 0.2, "user_timeout": 0.0005}, 1, 1, 1),
        ({"keepalive": 7.1, "user_timeout": 7.1}, 8, 3, 7_100),
        ({"keepalive": 32_767, "user_timeout": 2_147_483}, 32_767, 10_923, 2_147_483_000),
    ],
)
@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="these are the options of Linux")
def test_the_kernel_is_told_of_keepalive_and_user_timeout(run_real, listener, settings, idle, interval, timeout):
    async def main():
        connector = TcpConnector(**settings)
        stream = await connector.connect(listener.backend)
        assert option(stream, socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert option(stream, socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert option(stream, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == idle
        assert option(stream, socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == interval
        assert option(stream, socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
        assert option(stream, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == timeout
        await connector.close(stream)

    run_real(main)


@pytest.mark.parametrize("never", [None, math.inf])
def test_keepalive_and_user_timeout_can_be_switched_off(run_real, listener, never):
    async def main():
        connector = TcpConnector(keepalive=never, user_timeout=never)
        stream = await connector.connect(listener.backend)
        assert not option(stream, socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert option(stream, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        await connector.close(stream)

    run_real(main)


# Connecting.


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_bytes_go_there_and_back(run_real, host):
    async def main():
        with Listener(host) as listener:
            connector = TcpConnector()
            stream = await connector.connect(listener.backend)
            with await listener.accept() as peer:
                stream.writer.write(b"ping")
                assert await receive(peer, 4) == b"ping"
                await send(peer, b"pong")
                assert await stream.reader.readexactly(4) == b"pong"
                assert repr(stream) == f"<TcpStream to {host if host != '::1' else '[::1]'}:{listener.port}, open>"
                await connector.close(stream)

    run_real(main)


def test_a_refused_connection_says_where_and_why(run_real, listener):
    async def main():
        listener.close()
        with pytest.raises(ConnectError) as caught:
            await TcpConnector().connect(listener.backend)
        assert str(caught.value) == f"connecting to 127.0.0.1:{listener.port} failed: Connection refused"
        assert caught.value.backend == listener.backend.name
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_an_ip_address_is_not_looked_up(run_real, listener, monkeypatch):
    ask = socket.getaddrinfo

    def numbers_only(*arguments, **options):
        assert options.get("flags", 0) & socket.AI_NUMERICHOST
        return ask(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", numbers_only)
    threads = threading.active_count()

    async def main():
        connector = TcpConnector()
        stream = await connector.connect(listener.backend)
        assert threading.active_count() == threads
        await connector.close(stream)

    run_real(main)


def test_a_host_name_is_tried_at_each_of_its_addresses(run_real, listener, names):
    names.known["db.test"] = ["::1", "127.0.0.2", "127.0.0.1"]
    threads = threading.active_count()

    async def main():
        connector = TcpConnector()
        stream = await connector.connect(Backend("db", "db.test", listener.port))
        assert stream.writer.get_extra_info("peername") == ("127.0.0.1", listener.port)
        assert threading.active_count() == threads
        await connector.close(stream)

    run_real(main)


def test_a_host_name_none_of_whose_addresses_answers_says_so_for_each(run_real, listener, names):
    names.known["db.test"] = ["::1", "127.0.0.2"]

    async def main():
        with pytest.raises(ConnectError) as caught:
            await TcpConnector().connect(Backend("db", "db.test", listener.port))
        assert str(caught.value) == (
            f"connecting to [::1]:{listener.port} failed: Connection refused; "
            f"connecting to 127.0.0.2:{listener.port} failed: Connection refused"
        )

    run_real(main)


@pytest.mark.parametrize(
    ("host", "failure", "words"),
    [
        ("db.test", socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        ("db.test", RuntimeError("a resolver's own"), None),
        ("x" * 64, None, "label"),
    ],
)
def test_a_host_name_that_cannot_be_looked_up_says_so(run_real, names, host, failure, words):
    if failure is not None:
        names.known[host] = failure

    async def main():
        with pytest.raises(ConnectError if words else RuntimeError) as caught:
            await TcpConnector().connect(Backend("db", host, 1))
        if words:
            assert str(caught.value).startswith(f"looking up {host!r} failed: ")
            assert words in str(caught.value)

    run_real(main)


def test_a_cancelled_look_up_ends_when_its_thread_does(run_real, listener, names):
    names.known["db.test"] = ["127.0.0.1"]
    names.may_answer.clear()

    async def main():
        task = asyncio.create_task(TcpConnector().connect(Backend("db", "db.test", listener.port)))
        await eventually(names.asked.is_set)
        for _ in range(3):
            task.cancel()
            done, _pending = await asyncio.wait({task}, timeout=0.01)
            assert not done
        assert any("db.test" in thread.name for thread in threading.enumerate())
        names.may_answer.set()
        await asyncio.wait({task})
        assert task.cancelled()
        assert not any("db.test" in thread.name for thread in threading.enumerate())

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_a_look_up_may_outlive_its_loop(run_real, listener, names):
    names.known["db.test"] = ["127.0.0.1"]
    names.may_answer.clear()

    loop = asyncio.new_event_loop()
    connecting = TcpConnector().connect(Backend("db", "db.test", listener.port))
    task = loop.create_task(connecting)
    loop.run_until_complete(asyncio.sleep(0.01))
    task._log_destroy_pending = False
    loop.close()
    connecting.close()
    (thread,) = (thread for thread in threading.enumerate() if "db.test" in thread.name)
    names.may_answer.set()
    thread.join()


def test_connecting_that_is_cancelled_anywhere_leaves_nothing_open(run_real, listener):
    async def main():
        connector = TcpConnector()
        ends = set()
        async for attempt in at_every_await():
            before = open_sockets()
            stream = await attempt.run(connector.connect(listener.backend))
            ends.add(stream is None)
            if stream is None:
                await asyncio.sleep(0)  # the turn in which the transport closes its socket
                assert open_sockets() <= before
            else:
                await connector.close(stream)
        assert ends == {True, False}

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_connecting_that_is_cancelled_before_anybody_answers_leaves_nothing_open(run_real):
    async def main():
        with Listener(backlog=0) as listener:
            connector = TcpConnector()
            filling = [await connector.connect(listener.backend)]
            before = open_sockets()
            connecting = asyncio.create_task(connector.connect(listener.backend))  # the SYN stays unanswered
            await eventually(lambda: len(open_sockets()) > len(before))
            connecting.cancel()
            await asyncio.wait({connecting})
            assert connecting.cancelled()
            assert open_sockets() <= before
            for stream in filling:
                await connector.close(stream)

    run_real(main)


# Closed or not.


def test_a_connection_in_order_is_open_and_needs_nothing(run_real, listener):
    async def main():
        connector = TcpConnector()
        stream = await connector.connect(listener.backend)
        with await listener.accept():
            assert not connector.is_closed(stream)
            assert not connector.needs_recycle(stream, Outcome.CLEAN)
            await connector.validate(stream)
            await connector.on_recycle(stream, Outcome.CLEAN)
            await connector.close(stream)

    run_real(main)


def test_a_fin_closes_it(run_real, listener):
    async def main():
        connector = TcpConnector()
        stream = await connector.connect(listener.backend)
        (await listener.accept()).close()
        await eventually(lambda: connector.is_closed(stream))
        with pytest.raises(ConnectError, match="the peer has closed the connection"):
            await connector.validate(stream)
        await connector.close(stream)

    run_real(main)


def test_a_reset_closes_it(run_real, listener):
    async def main():
        connector = TcpConnector()
        stream = await connector.connect(listener.backend)
        reset(await listener.accept())
        await eventually(lambda: connector.is_closed(stream))
        with pytest.raises(ConnectError, match="the connection is closed"):
            await connector.validate(stream)
        await connector.close(stream)

    run_real(main)


def test_bytes_that_nobody_asked_for_close_it(run_real, listener):
    async def main():
        connector = TcpConnector()
        stream = await connector.connect(listener.backend)
        with await listener.accept() as peer:
            await send(peer, b"late answer")
            await eventually(lambda: connector.is_closed(stream))
            assert connector.needs_recycle(stream, Outcome.CLEAN)
            for check in (connector.validate(stream), connector.on_recycle(stream, Outcome.CLEAN)):
                with pytest.raises(ConnectError, match="11 bytes have arrived that nobody has read"):
                    await check
            await connector.close(stream)

    run_real(main)


def test_bytes_before_a_fin_close_it(run_real, listener):
    async def main():
        connector = TcpConnector()
        stream = await connector.connect(listener.backend)
        with await listener.accept() as peer:
            await send(peer, b"bye")
        await eventually(lambda: connector.is_closed(stream))
        await connector.close(stream)

    run_real(main)


def test_what_was_read_does_not_close_it(run_real, listener):
    async def main():
        connector = TcpConnector()
        stream = await connector.connect(listener.backend)
        with await listener.accept() as peer:
            await send(peer, b"answer")
            assert await stream.reader.readexactly(6) == b"answer"
            assert not connector.is_closed(stream)
            assert not connector.needs_recycle(stream, Outcome.CLEAN)
            await connector.close(stream)

    run_real(main)


@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.CANCELLED, Outcome.LEAKED])
def test_a_claim_that_did_not_end_cleanly_costs_the_connection(run_real, listener, outcome):
    async def main():
        connector = TcpConnector()
        stream = await connector.connect(listener.backend)
        assert connector.needs_recycle(stream, outcome)
        with pytest.raises(ConnectError, match=outcome.value):
            await connector.on_recycle(stream, outcome)
        await connector.close(stream)

    run_real(main)


def test_a_subclass_recycles_after_every_claim_only_when_it_says_how(run_real, listener):
    class Resetting(TcpConnector):
        async def on_recycle(self, connection, outcome):
            await super().on_recycle(connection, outcome)

    class Pinging(TcpConnector):
        async def validate(self, connection):
            await super().validate(connection)

    async def main():
        stream = await TcpConnector().connect(listener.backend)
        assert Resetting().needs_recycle(stream, Outcome.CLEAN)
        assert not Pinging().needs_recycle(stream, Outcome.CLEAN)
        await TcpConnector().close(stream)

    run_real(main)


def test_a_peer_that_floods_an_idle_connection_fills_no_more_than_64_kib(run_real, listener):
    flood = os.urandom(1 << 20) * 12

    async def main():
        connector = TcpConnector()
        stream = await connector.connect(listener.backend)
        stream.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        with await listener.accept() as peer:
            sent = fill(peer, flood)
            assert sent > 2 * MOST_UNREAD
            await eventually(lambda: len(stream.reader._buffer) > MOST_UNREAD // 2)
            # A single read more, and it is full; it stays so however long the peer goes on.
            sending = asyncio.create_task(send(peer, flood[sent:]))
            await asyncio.wait({sending}, timeout=0.1)
            most = MOST_UNREAD if isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop) else ONE_READ_OF_UVLOOP
            assert len(stream.reader._buffer) <= most
            assert connector.is_closed(stream)
            # Nothing was lost: who reads it gets it all.
            assert await stream.reader.readexactly(len(flood)) == flood
            await sending
            assert not connector.is_closed(stream)
            await connector.close(stream)

    run_real(main)


# The end.


def test_closing_sends_what_is_still_to_be_sent(run_real, listener):
    content = os.urandom(1 << 20) * 4

    async def main():
        connector = TcpConnector()
        stream = await connector.connect(listener.backend)
        with await listener.accept() as peer:
            stream.writer.write(content)
            closing = asyncio.create_task(connector.close(stream))
            assert await receive(peer, len(content) + 1) == content
            await closing
            assert connector.is_closed(stream)

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_closing_what_the_peer_has_reset_is_no_error(run_real, listener):
    async def main():
        connector = TcpConnector()
        stream = await connector.connect(listener.backend)
        peer = await listener.accept()
        stream.writer.write(b"x" * (1 << 24))
        closing = asyncio.create_task(connector.close(stream))
        await asyncio.sleep(0)
        reset(peer)
        await closing

    run_real(main)


def test_closing_twice_and_aborting_after_it_is_no_error(run_real, listener):
    async def main():
        connector = TcpConnector()
        stream = await connector.connect(listener.backend)
        await connector.close(stream)
        await connector.close(stream)
        connector.abort(stream)
        assert repr(stream).endswith("closed>")

    run_real(main)


def test_a_cancelled_close_aborts(run_real, listener):
    async def main():
        connector = TcpConnector()
        stream = await connector.connect(listener.backend)
        with await listener.accept():
            stream.writer.write(b"x" * (1 << 24))  # the peer does not read: it can never be sent
            before = open_sockets()
            closing = asyncio.create_task(connector.close(stream))
            await asyncio.wait({closing}, timeout=0.01)
            closing.cancel()
            await asyncio.wait({closing})
            assert closing.cancelled()
            await eventually(lambda: len(open_sockets()) < len(before))

    run_real(main)


def test_aborting_ends_it_at_once(run_real, listener):
    async def main():
        connector = TcpConnector()
        stream = await connector.connect(listener.backend)
        with await listener.accept() as peer:
            connector.abort(stream)
            assert connector.is_closed(stream)
            await receive_end(peer)

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_aborting_reaches_the_peer_although_the_loop_has_stopped(listener):
    listener.sock.setblocking(True)
    connector = TcpConnector()
    with asyncio.Runner() as runner:
        stream = runner.run(connector.connect(listener.backend))
        peer, _ = listener.sock.accept()
        with peer:
            connector.abort(stream)
            peer.settimeout(60)
            assert peer.recv(1) == b""


@pytest.mark.parametrize("closed_before", [False, True])
def test_aborting_on_a_closed_loop_closes_the_socket_without_a_word(listener, closed_before):
    listener.sock.setblocking(True)
    connector = TcpConnector()
    before = open_sockets()
    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(connector.connect(listener.backend))
    peer, _ = listener.sock.accept()
    if closed_before:
        stream.writer.close()
    loop.close()
    with peer:
        connector.abort(stream)
        connector.abort(stream)
        peer.settimeout(60)
        assert peer.recv(1) == b""
        assert connector.is_closed(stream)
    del stream
    gc.collect()  # a transport that is collected unclosed warns, and warnings are errors
    assert open_sockets() <= before
