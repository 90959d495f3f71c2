"""A peer that vanishes without a word, between two network namespaces, as TcpConnector alone sees it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from qorb import Backend, ConnectError
from qorb.connectors import TcpConnector
from tests.connectors.peers import Listener, eventually, open_sockets
from tests.network.namespaces import CLIENT, SERVER, SERVER_V6


@pytest.mark.parametrize(
    "settings", [{"keepalive": 1, "user_timeout": None}, {"keepalive": 1, "user_timeout": 1}], ids=str
)
def test_an_idle_connection_whose_peer_vanished_is_closed_by_keepalive(run_real, network, far_listener, settings):
    async def main():
        connector, deaf = TcpConnector(**settings), TcpConnector(keepalive=None, user_timeout=1)
        stream = await connector.connect(far_listener.backend)
        deaf_stream = await deaf.connect(far_listener.backend)
        network.cut()
        await eventually(lambda: connector.is_closed(stream))
        assert not deaf.is_closed(deaf_stream)
        await connector.close(stream)
        deaf.abort(deaf_stream)

    run_real(main)


def test_keepalive_leaves_a_quiet_peer_alone(run_real, far_listener):
    async def main():
        connector = TcpConnector(keepalive=1, user_timeout=1)
        stream = await connector.connect(far_listener.backend)
        with await far_listener.accept() as peer:
            # Longer than it takes to give up a peer that has vanished.
            await asyncio.sleep(5)
            assert not connector.is_closed(stream)
            peer.send(b"x")
            assert await stream.reader.readexactly(1) == b"x"
            await connector.close(stream)

    run_real(main)


def test_a_read_whose_question_is_never_acknowledged_fails_by_user_timeout(run_real, network, far_listener):
    async def main():
        connector, patient = TcpConnector(keepalive=None, user_timeout=1), TcpConnector(user_timeout=None)
        stream = await connector.connect(far_listener.backend)
        patient_stream = await patient.connect(far_listener.backend)
        network.cut()
        for one in (stream, patient_stream):
            one.writer.write(b"question")
        with pytest.raises(OSError, match="timed out"):
            await stream.reader.read(1)
        assert connector.is_closed(stream)
        assert not patient.is_closed(patient_stream)
        patient.abort(patient_stream)

    run_real(main)


def test_connecting_to_silence_ends_by_user_timeout(run_real, network, far_listener):
    async def main():
        network.cut()
        with pytest.raises(
            ConnectError, match=f"connecting to {SERVER}:{far_listener.port} failed: Connection timed out"
        ):
            await TcpConnector(user_timeout=1).connect(far_listener.backend)

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_connecting_to_silence_ends_when_it_is_cancelled(run_real, network, far_listener):
    async def main():
        network.cut()
        before = open_sockets()
        connecting = asyncio.create_task(TcpConnector().connect(far_listener.backend))
        await eventually(lambda: not open_sockets() <= before)
        connecting.cancel()
        await asyncio.wait({connecting})
        assert connecting.cancelled()
        assert open_sockets() <= before

    run_real(main)


def test_closing_waits_for_a_vanished_peer_no_longer_than_its_caller_does(run_real, network, far_listener):
    async def main():
        connector = TcpConnector()
        stream = await connector.connect(far_listener.backend)
        network.cut()
        stream.writer.write(b"x" * (1 << 24))
        before = open_sockets()
        closing = asyncio.create_task(connector.close(stream))
        done, _ = await asyncio.wait({closing}, timeout=0.1)
        assert not done
        closing.cancel()
        await asyncio.wait({closing})
        await eventually(lambda: len(open_sockets()) < len(before))

    run_real(main)


def test_nobody_connects_to_himself(run_real, network):
    port = 40_001
    network.have_client_choose(port)

    async def main():
        with pytest.raises(ConnectError, match="Connection refused"):
            await TcpConnector().connect(Backend("db", CLIENT, port))

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


def test_a_link_local_address_is_connected_to_without_a_thread(network):
    async def main():
        threads = threading.active_count()
        connector = TcpConnector()
        stream = await connector.connect(Backend("db", SERVER_V6, listener.port))
        assert threading.active_count() == threads
        await connector.close(stream)

    with network.at_server():
        listener = Listener(SERVER_V6)
    # Not run_real: uvloop drops the zone from the address.
    with listener, asyncio.Runner(debug=True) as runner:
        runner.run(main())
