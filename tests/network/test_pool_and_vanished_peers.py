"""A pool whose backend vanishes without a word, between two network namespaces. The letters: see test_pool.py."""

from __future__ import annotations

import asyncio

import pytest

from qorb import ClaimRevokedError, NoBackendsOnlineError
from qorb.connectors import TcpConnector
from qorb.testing import assert_nothing_left
from tests.connectors.peers import eventually, open_sockets
from tests.network.pooling import QUIET, Pinging, ask, claim_and_ask, pool_over
from tests.network.servers import Server

# The kernel's own patience is 15 minutes at least; anything that ends within this has ended by what was configured.
LONG = 30.0


def seconds_since(began):
    return asyncio.get_running_loop().time() - began


def stats_of(pool, listener):
    return pool.stats().backends[listener.backend.name]


# B3: a backend that does not answer to connects.


def test_a_backend_behind_a_cut_cable_takes_no_claim_and_serves_when_it_is_mended(
    run_real, network, listener, far_listener
):
    async def main():
        network.cut()
        async with Server(listener), Server(far_listener), pool_over(listener, far_listener) as pool:
            assert {await claim_and_ask(pool) for _ in range(50)} == {listener.backend.name}
            await eventually(lambda: stats_of(pool, far_listener).failures >= 2)
            assert stats_of(pool, far_listener).last_error == "TimeoutError: not done within 0.3 s"
            assert {await claim_and_ask(pool) for _ in range(50)} == {listener.backend.name}
            network.mend()
            await eventually(lambda: stats_of(pool, far_listener).online)
            await claim_and_ask(pool)
        assert_nothing_left(pool)

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


# B8: a peer that vanishes while its connections are idle.


@pytest.mark.parametrize(
    "connector",
    [TcpConnector(keepalive=1, user_timeout=1), Pinging(keepalive=None, user_timeout=None)],
    ids=["by keepalive", "by health check"],
)
def test_a_peer_that_vanished_while_idle_is_noticed_and_one_that_is_back_serves(
    run_real, network, far_listener, connector
):
    async def main():
        async with Server(far_listener), pool_over(far_listener, connector=connector) as pool:
            await pool.ready()
            await claim_and_ask(pool)
            network.cut()
            await eventually(lambda: not stats_of(pool, far_listener).online)
            await eventually(lambda: "not done within" in (stats_of(pool, far_listener).last_error or ""))
            with pytest.raises(NoBackendsOnlineError, match="not done within"):
                await pool.claim(timeout=0.5)
            network.mend()
            await claim_and_ask(pool)
            await pool.ready()
        assert_nothing_left(pool)

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


# B9: a peer that vanishes while a claim is out.


def test_a_claimer_whose_peer_vanished_gets_an_error_by_user_timeout(run_real, network, far_listener):
    async def main():
        connector = TcpConnector(keepalive=None, user_timeout=1)
        async with Server(far_listener), pool_over(far_listener, connector=connector, policy=QUIET) as pool:
            async with pool.claim() as stream:
                await ask(stream)
                network.cut()
                with pytest.raises(OSError, match="timed out"):
                    await ask(stream)
            await pool.terminate(grace=0)
            assert_nothing_left(pool)

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before


@pytest.mark.parametrize("grace", [0, 0.2])
def test_terminating_does_not_wait_for_a_peer_that_vanished_under_a_claim(run_real, network, far_listener, grace):
    async def main():
        async with Server(far_listener) as server:
            before = open_sockets()
            connector = TcpConnector(keepalive=None, user_timeout=None)
            pool = pool_over(far_listener, connector=connector, policy=QUIET)
            await pool.start()
            claim = await pool.claim()
            stream = claim.connection
            await ask(stream)
            await pool.ready()
            network.cut()
            # More than the two ends take: part of it stays with this process.
            stream.writer.write(b"x" * (1 << 24))
            answer = asyncio.create_task(stream.reader.read(1))
            began = asyncio.get_running_loop().time()
            await pool.terminate(grace=grace)
            assert seconds_since(began) < LONG
            # What is open now is the other end, which has not heard of it.
            assert open_sockets() - before <= server.sockets()
            assert_nothing_left(pool)
            with pytest.raises(ClaimRevokedError):
                _ = claim.connection
            claim.release()
            assert await answer == b""

    run_real(main)


def test_terminating_does_not_wait_for_idle_connections_whose_peer_vanished(run_real, network, far_listener):
    async def main():
        connector = TcpConnector(keepalive=None, user_timeout=None)
        async with Server(far_listener), pool_over(far_listener, connector=connector, policy=QUIET) as pool:
            await pool.ready()
            network.cut()
            began = asyncio.get_running_loop().time()
            await pool.terminate()
            assert seconds_since(began) < LONG
            assert_nothing_left(pool)

    before = open_sockets()
    run_real(main)
    assert open_sockets() <= before
