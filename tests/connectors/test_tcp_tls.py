"""TcpConnector with TLS, on loopback, with certificates that the tests make."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import threading
import warnings
from functools import partial

import pytest
import trustme

from qorb.connector import Outcome
from qorb.connectors import TcpConnector
from qorb.connectors.asyncpg import AsyncpgConnector
from qorb.connectors.redis import RedisConnector
from qorb.connectors.sqlalchemy import SqlAlchemyConnector
from qorb.errors import ConnectError
from tests.connectors.cancelling import at_every_await
from tests.connectors.peers import Listener, eventually, open_sockets, receive, send, tls_peer


@pytest.fixture(scope="session")
def server_context(authority):
    """The certificate is good for db.test and for 127.0.0.1."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("db.test", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def connector(client_context):
    return TcpConnector(ssl=client_context)


# Whom it trusts.


@pytest.mark.parametrize("server_name", ["db.test", "db.test.", "DB.test", "127.0.0.1", None])
def test_the_certificate_must_be_good_for_the_server_name(run_real, connector, listener, server_context, server_name):
    async def main():
        async with tls_peer(listener, server_context) as accepting:
            stream = await connector.connect(listener.named(server_name))
            reader, writer = await accepting
            stream.writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
            writer.write(b"pong")
            assert await stream.reader.readexactly(4) == b"pong"
            assert not connector.is_closed(stream)
            assert not connector.needs_recycle(stream, Outcome.CLEAN)
            await connector.close(stream)

    run_real(main)


@pytest.mark.parametrize("server_name", ["other.test", "sub.db.test", "127.0.0.2"])
def test_a_certificate_for_somebody_else_is_refused(run_real, connector, listener, server_context, server_name):
    async def main():
        async with tls_peer(listener, server_context):
            backend = listener.named(server_name)
            with pytest.raises(ConnectError) as caught:
                await connector.connect(backend)
            where = f"127.0.0.1:{listener.port} as {server_name!r}"
            assert str(caught.value).startswith(f"the TLS handshake with {where} failed: certificate verify failed: ")
            assert f"certificate is not valid for '{server_name}'" in str(caught.value)
            assert caught.value.backend == backend.name
            assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_a_certificate_of_a_stranger_is_refused(run_real, connector, listener):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("db.test").configure_cert(context)

    async def main():
        async with tls_peer(listener, context):
            with pytest.raises(ConnectError, match=r"as 'db.test' failed: certificate verify failed: .*certificate"):
                await connector.connect(listener.named("db.test"))

    run_real(main)


def test_a_new_address_must_show_a_good_certificate_too(run_real, connector, listener, authority, server_context):
    other_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("other.test").configure_cert(other_context)

    async def main():
        async with tls_peer(listener, server_context):
            await connector.close(await connector.connect(listener.named("db.test")))
        with Listener("127.0.0.2") as elsewhere:
            async with tls_peer(elsewhere, other_context):
                with pytest.raises(ConnectError, match=r"with 127\.0\.0\.2:.*not valid for 'db.test'"):
                    await connector.connect(elsewhere.named("db.test"))
            async with tls_peer(elsewhere, server_context):
                await connector.close(await connector.connect(elsewhere.named("db.test")))

    run_real(main)


@pytest.fixture
def careless_context():
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize(
    "kind", [TcpConnector, RedisConnector, AsyncpgConnector, partial(SqlAlchemyConnector, "postgresql+asyncpg:///shop")]
)
def test_a_context_that_checks_nothing_brings_a_warning_where_the_connector_is_made(careless_context, kind):
    with pytest.warns(RuntimeWarning, match="^ssl: this context checks no certificate") as caught:
        kind(ssl=careless_context)
    assert [one.filename for one in caught] == [__file__]


def test_checks_that_are_switched_off_on_purpose_stay_off(run_real, listener, server_context, careless_context):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ssl: this context checks no certificate", RuntimeWarning)  # as docs/tcp.md
        connector = TcpConnector(ssl=careless_context)

    async def main():
        async with tls_peer(listener, server_context):
            stream = await connector.connect(listener.named("whoever.test"))
            await connector.close(stream)

    run_real(main)


def test_a_context_that_forgets_to_check_the_name_brings_a_warning(client_context):
    context = ssl.create_default_context()
    context.check_hostname = False
    with pytest.warns(RuntimeWarning, match="^ssl: this context accepts the certificate of anybody"):
        TcpConnector(ssl=context)


# A handshake that fails.


@pytest.mark.parametrize("server_name", ["nul\0byte", "x" * 64 + ".test", ".test", ".", "long." * 60])
def test_what_can_be_no_server_name_is_refused_before_anything_is_connected(run_real, connector, listener, server_name):
    async def main():
        with pytest.raises(ConnectError, match=r"^no certificate can be good for the server name ") as caught:
            await connector.connect(listener.named(server_name))
        assert caught.value.backend == listener.backend.name
        with pytest.raises(BlockingIOError):
            listener.sock.accept()

    run_real(main)


@pytest.mark.parametrize("server_name", ["two words", "umlaut-ä.test", "*.test"])
def test_a_server_name_that_nobody_has_is_refused(run_real, connector, listener, server_context, server_name):
    async def main():
        async with tls_peer(listener, server_context):
            with pytest.raises(ConnectError, match=r"^the TLS handshake with .* failed: certificate verify failed"):
                await connector.connect(listener.named(server_name))

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_a_context_that_fails_before_the_handshake_leaves_nothing_open(listener):
    class Broken(ssl.SSLContext):
        def wrap_bio(self, *arguments, **options):
            raise ssl.SSLError(1, "it is broken")

    before = open_sockets()
    with asyncio.Runner() as runner, pytest.raises(ConnectError, match="it is broken") as caught:
        runner.run(TcpConnector(ssl=Broken(ssl.PROTOCOL_TLS_CLIENT)).connect(listener.named("db.test")))
    del caught
    assert open_sockets() <= before


def test_a_server_that_does_not_speak_tls_is_refused(run_real, connector, listener):
    async def main():
        connecting = asyncio.create_task(connector.connect(listener.named("db.test")))
        with await listener.accept() as peer:
            await send(peer, b"220 mail.test ESMTP ready\r\n")
            with pytest.raises(ConnectError, match=r"^the TLS handshake with .* as 'db.test' failed: "):
                await connecting

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_a_server_that_closes_in_the_middle_of_the_handshake_is_refused(run_real, connector, listener):
    async def main():
        connecting = asyncio.create_task(connector.connect(listener.named("db.test")))
        with await listener.accept() as peer:
            assert await receive(peer, 100)
        with pytest.raises(ConnectError, match=r"^the TLS handshake with .* as 'db.test' failed: ."):
            await connecting

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_a_handshake_that_gets_no_answer_ends_when_it_is_cancelled(run_real, connector, listener):
    async def main():
        connecting = asyncio.create_task(connector.connect(listener.named("db.test")))
        with await listener.accept() as peer:
            assert await receive(peer, 1)
            connecting.cancel()
            await asyncio.wait({connecting})
            assert connecting.cancelled()
            while await receive(peer, 4096):  # the rest of what it had said
                pass

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_connecting_that_is_cancelled_anywhere_leaves_nothing_open(run_real, connector, listener, server_context):
    async def main():
        ends = set()
        async for attempt in at_every_await():
            async with tls_peer(listener, server_context):
                before = open_sockets()
                stream = await attempt.run(connector.connect(listener.named("db.test")))
                ends.add(stream is None)
                if stream is None:
                    await asyncio.sleep(0)  # the turn in which the transport closes its socket
                    # The other end's is still open, or came meanwhile.
                    assert len(open_sockets() - before) <= 1
                else:
                    await connector.close(stream)
        assert ends == {True, False}

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


# Closed or not.


def test_a_farewell_closes_it(run_real, connector, listener, server_context):
    async def main():
        async with tls_peer(listener, server_context) as accepting:
            stream = await connector.connect(listener.named("db.test"))
            _, writer = await accepting
            writer.close()
            await eventually(lambda: connector.is_closed(stream))
            await connector.close(stream)

    run_real(main)


def test_a_connection_that_breaks_off_is_closed(run_real, connector, listener, server_context):
    async def main():
        async with tls_peer(listener, server_context) as accepting:
            stream = await connector.connect(listener.named("db.test"))
            _, writer = await accepting
            writer.transport.abort()
            await eventually(lambda: connector.is_closed(stream))
            await connector.close(stream)

    run_real(main)


def test_bytes_that_nobody_asked_for_close_it(run_real, connector, listener, server_context):
    async def main():
        async with tls_peer(listener, server_context) as accepting:
            stream = await connector.connect(listener.named("db.test"))
            _, writer = await accepting
            writer.write(b"late answer")
            await eventually(lambda: connector.is_closed(stream))
            assert connector.needs_recycle(stream, Outcome.CLEAN)
            await connector.close(stream)

    run_real(main)


def test_a_peer_that_floods_an_idle_connection_fills_no_more_than_64_kib(run_real, connector, listener, server_context):
    flood = bytes(range(256)) * 4096 * 4

    async def main():
        async with tls_peer(listener, server_context) as accepting:
            stream = await connector.connect(listener.named("db.test"))
            _, writer = await accepting
            stream.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            writer.write(flood)
            await eventually(lambda: len(stream.reader._buffer) > 32 * 1024)
            draining = asyncio.create_task(writer.drain())
            await asyncio.wait({draining}, timeout=0.2)
            assert len(stream.reader._buffer) <= 64 * 1024 or uses_uvloop()
            assert await stream.reader.readexactly(len(flood)) == flood
            await draining
            await connector.close(stream)

    run_real(main)


def uses_uvloop():
    return not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop)


# The end.


def test_closing_says_farewell(run_real, connector, listener, server_context):
    async def main():
        async with tls_peer(listener, server_context) as accepting:
            stream = await connector.connect(listener.named("db.test"))
            reader, _ = await accepting
            stream.writer.write(b"last words")
            closing = asyncio.create_task(connector.close(stream))
            assert await reader.read() == b"last words"
            await closing

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_aborting_ends_it_however_often_its_user_has_closed_it(run_real, connector, listener, server_context, times):
    async def main():
        async with tls_peer(listener, server_context) as accepting:
            stream = await connector.connect(listener.named("db.test"))
            reader, writer = await accepting
            writer.transport.pause_reading()  # so the farewell stays unanswered
            before = len(open_sockets())
            for _ in range(times):
                stream.writer.close()
            connector.abort(stream)
            await eventually(lambda: len(open_sockets()) < before)
            assert connector.is_closed(stream)
            writer.transport.resume_reading()
            await reader.read()

    run_real(main)


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_cancelled_close_aborts(run_real, connector, listener, server_context, times):
    async def main():
        async with tls_peer(listener, server_context) as accepting:
            stream = await connector.connect(listener.named("db.test"))
            _, writer = await accepting
            writer.transport.pause_reading()
            before = len(open_sockets())
            for _ in range(times):
                stream.writer.close()
            closing = asyncio.create_task(connector.close(stream))
            await asyncio.wait({closing}, timeout=0.01)
            closing.cancel()
            await asyncio.wait({closing})
            await eventually(lambda: len(open_sockets()) < before)

    run_real(main)


class ServerThread:
    """A TLS server for one connection, on a thread: it goes on when the loop of the client has ended."""

    def __init__(self, context, listener, *, answers):
        listener.sock.setblocking(True)
        self._thread = threading.Thread(target=self._serve, args=(context, listener.sock, answers))
        self._thread.start()

    def _serve(self, context, sock, answers):
        peer, _ = sock.accept()
        peer.settimeout(60)
        if not answers:
            with peer:
                while peer.recv(4096):
                    pass
            return
        with context.wrap_socket(peer, server_side=True, suppress_ragged_eofs=True) as peer:
            assert peer.recv(1) == b""

    def join(self):
        self._thread.join()


def test_aborting_on_a_closed_loop_closes_the_socket_without_a_word(connector, listener, server_context):
    server = ServerThread(server_context, listener, answers=True)
    before = open_sockets()
    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(connector.connect(listener.named("db.test")))
    loop.close()
    connector.abort(stream)
    assert connector.is_closed(stream)
    server.join()
    del stream
    gc.collect()  # a transport that is collected unclosed warns, and warnings are errors
    assert open_sockets() <= before


def test_a_handshake_that_is_given_up_on_a_closed_loop_closes_the_socket_without_a_word(
    connector, listener, server_context
):
    server = ServerThread(server_context, listener, answers=False)
    before = open_sockets()
    loop = asyncio.new_event_loop()
    connecting = connector.connect(listener.named("db.test"))
    task = loop.create_task(connecting)
    loop.run_until_complete(asyncio.sleep(0.05))
    task._log_destroy_pending = False
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        connecting.close()
    server.join()
    del task, connecting
    gc.collect()
    assert open_sockets() <= before
