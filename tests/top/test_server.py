"""The server of its own, over real sockets: the protocol of the original's client, limits, and the end."""

import asyncio
import contextlib
import dataclasses
import errno
import gc
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
from types import ModuleType

import pytest

import qorb.top._websockets
from qorb import Policy, Pool, PoolNotStartedError, PoolState, PoolTerminatedError
from qorb.resolvers import ManualResolver
from qorb.stats import PoolStats
from qorb.testing import FakeConnector, assert_nothing_left
from qorb.top import serve
from qorb.top._gate import Gate
from qorb.top._site import Limits, Site
from qorb.top._websockets import Server
from tests.top.clients import Qtop, RefusedError, get, until

TOKEN = "correct-horse-battery"


def make_pool(*backends, name="db", **policy):
    resolver = ManualResolver(backends or ["a:1", "b:1"])
    return Pool(name, resolver, FakeConnector(), Policy(**{"max_slots": 4, "spares_wanted": 2} | policy))


def qtop(server, query="", **options):
    return Qtop(f"{server.url.replace('http', 'ws')}qtop/stats{query}", **options)


async def serve_with(limits, *pools):
    server = Server(Site(pools, Gate(None, (), None), limits))
    await server.open("127.0.0.1", 0, pools)
    return server


# What the original's client needs.


def test_the_originals_client_gets_its_frames(run_real):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server:
            await pool.ready()
            async with qtop(server, "?update_secs=1") as client:
                assert (await client.update())["claims"] == 0
                for _ in range(3):
                    async with pool.claim():
                        pass
                update = await client.claims(3)
                assert sum(own["total_claims"] for own in update["sets"].values()) == 3
                assert (await client.update())["claims"] == 0
                assert set(client.kinds) == {client.BINARY}
                assert "sec-websocket-extensions" not in client.answered
                assert "sec-websocket-protocol" not in client.answered

    run_real(main)


def test_without_update_secs_it_is_once_a_second(run_real):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server, qtop(server) as client:
            await client.update()
            began = asyncio.get_running_loop().time()
            await client.update()
            assert asyncio.get_running_loop().time() - began > 0.5

    run_real(main)


def test_a_frame_comes_at_once_when_the_backends_change(run_real):
    async def main():
        pool = make_pool("a:1")
        async with pool, await serve(pool, port=0) as server:
            await pool.ready()
            async with qtop(server, "?update_secs=255") as client:
                assert list((await client.update())["sets"]) == ["a:1"]
                pool._resolver.set(["a:1", "b:1"])
                assert list((await client.update())["sets"]) == ["a:1", "b:1"]

    run_real(main)


@pytest.mark.parametrize("seconds", ["-1", "256", "1.5", "", "x", "1e2", "%D9%A1", "0255"])
def test_an_interval_that_is_none_is_refused(run_real, seconds):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server:
            with pytest.raises(RefusedError) as caught:
                async with qtop(server, f"?update_secs={seconds}"):
                    pass
            assert caught.value.reply.status == 400
            assert "whole number from 0 to 255" in caught.value.reply.text

    run_real(main)


def test_several_pools_are_chosen_by_name_and_the_first_is_the_default(run_real):
    async def main():
        async with (
            make_pool("a:1", name="one") as one,
            make_pool("b:1", name="two & more") as two,
            await serve(one, two, port=0) as server,
        ):
            for query, name in (("", "one"), ("?pool=one", "one"), ("?pool=two%20%26+more", "two & more")):
                async with qtop(server, query) as client:
                    assert (await client.update())["pool"] == name
            with pytest.raises(RefusedError) as caught:
                async with qtop(server, "?pool=three"):
                    pass
            assert caught.value.reply.status == 404
            read = (await get(f"{server.url}stats.json")).json()
            assert [pool["name"] for pool in read["pools"]] == ["one", "two & more"]

    run_real(main)


# What else there is.


def test_stats_json_has_everything(run_real):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server:
            await pool.ready()
            async with pool.claim():
                reply = await get(f"{server.url}stats.json")
            assert reply.status == 200
            assert reply.headers["content-type"] == "application/json"
            (read,) = reply.json()["pools"]
            assert list(read) == ["name", "state", "claims", "waiting", "timeouts", "policy", "backends", "timings"]
            assert set(read) >= {field.name for field in dataclasses.fields(PoolStats)}
            assert (read["name"], read["state"], read["claims"], read["waiting"]) == ("db", "running", 1, 0)
            assert (read["policy"]["max_slots"], read["policy"]["max_lifetime"]) == (4, None)
            assert sum(backend["claimed_slots"] for backend in read["backends"].values()) == 1
            assert b"Infinity" not in reply.body
            for name in ("cache-control", "x-content-type-options", "referrer-policy", "cross-origin-resource-policy"):
                assert name in reply.headers
            assert not [name for name in reply.headers if name.startswith("access-control")]

    run_real(main)


def test_the_page_lets_nothing_in_but_itself(run_real):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server:
            reply = await get(server.url)
            assert reply.status == 200
            assert reply.headers["content-type"] == "text/html; charset=utf-8"
            policy = reply.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'sha256-")
            assert "unsafe" not in policy
            assert "http:" not in policy

    run_real(main)


def test_health_says_what_is_wrong(run_real):
    async def main():
        pool, connector = make_pool("a:1"), FakeConnector()
        broken = Pool("broken", ManualResolver(["x:1", "y:1"]), connector)
        connector.refuse()
        empty = Pool("empty", ManualResolver(), FakeConnector())
        async with pool, broken, empty:
            await pool.ready()
            async with await serve(pool, port=0) as server:
                reply = await get(f"{server.url}healthz")
                assert (reply.status, reply.text) == (200, "ok\n")
            ended = make_pool(name="ended")
            await ended.start()
            async with await serve(pool, broken, empty, ended, port=0) as server:
                await ended.terminate()
                reply = await get(f"{server.url}healthz")
                assert reply.status == 503
                assert reply.text.splitlines() == [
                    "pool broken has no backend online, of 2",
                    "pool empty knows no backend",
                    "pool ended is terminated",
                ]

    run_real(main)


def test_metrics_are_what_the_observer_says_or_why_there_are_none(run_real, monkeypatch):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server:
            monkeypatch.setitem(sys.modules, "qorb.observers.prometheus", None)
            reply = await get(f"{server.url}metrics")
            assert reply.status == 501
            assert reply.text.startswith("There are no metrics here: ")

            module = ModuleType("qorb.observers.prometheus")
            module.exposition = lambda pools: "".join(f"pool {pool.name}\n" for pool in pools)
            monkeypatch.setitem(sys.modules, "qorb.observers.prometheus", module)
            reply = await get(f"{server.url}metrics")
            assert (reply.status, reply.text) == (200, "pool db\n")
            assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"

    run_real(main)


def test_there_is_nothing_elsewhere(run_real):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server:
            for path in ("x", "stats.json/", "../etc/passwd", "page.html", "qtop", "%2e%2e/", "?x", "stats.json%00"):
                assert (await get(server.url + path)).status == (200 if path == "?x" else 404)
            assert (await get(f"{server.url}qtop/stats")).status == 426
            with pytest.raises(RefusedError) as caught:
                async with Qtop(f"{server.url.replace('http', 'ws')}qtop/other"):
                    pass
            assert caught.value.reply.status == 404

    run_real(main)


# Who is kept out.


def test_pages_from_elsewhere_and_other_names_are_kept_out(run_real):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server:
            for headers in ({"Host": "evil.com"}, {"Origin": "http://evil.com"}, {"Origin": "null"}):
                assert (await get(f"{server.url}stats.json", **headers)).status == 403
                assert (await get(server.url, **headers)).status == 403
                with pytest.raises(RefusedError) as caught:
                    async with qtop(server, **headers):
                        pass
                assert caught.value.reply.status == 403
            async with qtop(server, Origin=server.url.rstrip("/")) as client:
                await client.update()

    run_real(main)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"])
def test_nothing_but_get_is_answered(run_real, method):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server:
            reply = await get(f"{server.url}stats.json", method=method)
            assert 400 <= reply.status < 600
            assert b"pools" not in reply.body

    run_real(main)


def test_the_token_is_needed_everywhere_but_for_the_page(run_real, caplog):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0, token=TOKEN) as server:
            assert (await get(server.url)).status == 200
            for path in ("stats.json", "metrics", "healthz", "x"):
                reply = await get(server.url + path)
                assert (reply.status, reply.headers["www-authenticate"]) == (401, 'Bearer realm="qorb"')
            with pytest.raises(RefusedError) as caught:
                async with qtop(server):
                    pass
            assert caught.value.reply.status == 401
            assert (await get(f"{server.url}stats.json", Authorization=f"Bearer {TOKEN}")).status == 200
            async with qtop(server, f"?token={TOKEN}") as client:  # the original's has nothing but an address
                await client.update()
            async with qtop(server, Sec_WebSocket_Protocol="qorb, qorb.token.Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5") as client:
                await client.update()
                assert client.answered["sec-websocket-protocol"] == "qorb"

    with caplog.at_level(logging.DEBUG):
        run_real(main)
    assert TOKEN not in caplog.text


# What clients may cost.


def test_the_ninth_client_is_refused_until_one_goes(run_real):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server, contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(qtop(server)) for _ in range(8)]
            with pytest.raises(RefusedError) as caught:
                async with qtop(server):
                    pass
            assert caught.value.reply.status == 503
            assert "8 clients at a time" in caught.value.reply.text
            assert (await get(f"{server.url}healthz")).status == 200
            await clients[0].end()
            await until(lambda: len(server._site._feeds) == 7)
            async with qtop(server) as client:
                await client.update()

    run_real(main)


def test_a_client_that_does_not_read_is_dropped_and_costs_no_memory(run_real):
    async def main():
        names = [f"a-backend-with-quite-a-long-name-{number:04}:1" for number in range(500)]
        async with make_pool(*names) as pool:
            server = await serve_with(Limits(patience=1.0, ping=600.0), pool)
            async with server, qtop(server, "?update_secs=0", receive_buffer=4096) as client:
                client.writer.transport.pause_reading()
                await until(lambda: server._site._feeds)
                (connection,) = server.connections
                most = 0

                def dropped():
                    nonlocal most
                    most = max(most, connection.transport.get_write_buffer_size())
                    return not server._site._feeds

                await until(dropped)
                await until(lambda: not server.connections)
                assert most < 500_000

    run_real(main)


def test_a_client_that_answers_no_ping_is_dropped(run_real):
    async def main():
        async with make_pool() as pool:
            server = await serve_with(Limits(ping=0.2), pool)
            async with server, qtop(server) as client:
                while True:  # reads, and answers nothing
                    kind, content = await client.raw()
                    if kind == client.CLOSE:
                        break
                assert content[:2] == (1011).to_bytes(2)
                client.send(client.CLOSE, content[:2])
                await until(lambda: not server._site._feeds)

    run_real(main)


def test_what_a_client_says_is_ignored_and_too_much_ends_it(run_real):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server, qtop(server) as client:
            for _ in range(200):
                client.send(client.BINARY, b"x" * 1024)
            await client.update()
            await client.update()
            client.send(client.BINARY, b"x" * 1025)
            with pytest.raises(EOFError):
                await client.to_the_end()
            assert client.close_code == 1009

    run_real(main)


def test_connections_that_ask_for_nothing_are_few(run_real):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server:
            port = int(server.url.rstrip("/").rpartition(":")[2])
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(70)]
            ended = [asyncio.ensure_future(reader.read()) for reader, _ in idle]
            await until(lambda: sum(task.done() for task in ended) >= 6)
            assert len(server.connections) == 64
            for _, writer in idle:
                writer.close()
            await asyncio.wait(ended)
            for task in ended:
                task.exception()
            await until(lambda: not server.connections)

    run_real(main)


def test_a_request_that_does_not_come_is_not_waited_for(run_real, monkeypatch):
    monkeypatch.setattr(qorb.top._websockets, "_OPENING", 0.2)

    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server:
            port = int(server.url.rstrip("/").rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /stats.json HTTP/1.1\r\nHost: local")
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()

    run_real(main)


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"\0" * 100 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /stats.json HTTP/1.1\r\n\r\n",
        b"GET /stats.json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
        b"\x16\x03\x01\x02\x00",
    ],
)
def test_nonsense_ends_that_connection_and_nothing_else(run_real, sent):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server:
            port = int(server.url.rstrip("/").rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                assert b"pools" not in await reader.read()
            writer.close()
            await until(lambda: not server.connections)
            assert (await get(f"{server.url}stats.json")).status == 200

    run_real(main)


# Where it listens.


def test_a_port_that_is_taken_is_said(run_real):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server:
            port = int(server.url.rstrip("/").rpartition(":")[2])
            with pytest.raises(OSError, match=rf"statistics cannot be served on 127.0.0.1:{port}: .*port=0") as caught:
                await serve(pool, port=port)
            assert caught.value.errno == errno.EADDRINUSE
            assert pool.ledger().tasks.count("qorb db statistics server") == 1
        assert_nothing_left(pool)

    run_real(main)


def test_bad_arguments_open_nothing(run_real):
    async def main():
        async with make_pool() as pool:
            for wrong in (
                {"host": "0.0.0.0"},
                {"host": "example.com"},
                {"port": -1},
                {"port": 65536},
                {"token": "short"},
            ):
                with pytest.raises(ValueError, match=r"token|host|port"):
                    await serve(pool, **{"port": 0} | wrong)
            with pytest.raises(ValueError, match="there is no pool to be shown"):
                await serve(port=0)
            with pytest.raises(ValueError, match="two pools of the name 'db'"):
                await serve(pool, make_pool(), port=0)
            with pytest.raises(TypeError, match="must be Pools, not a str"):
                await serve("db", port=0)
            assert not [name for name in pool.ledger().tasks if "statistics" in name]

    run_real(main)


def test_a_pool_that_does_not_run_is_said_and_nothing_is_left(run_real):
    async def main():
        async with make_pool(name="runs") as runs:
            with pytest.raises(PoolNotStartedError):
                await serve(runs, make_pool(), port=0)
            await until(lambda: "qorb runs statistics server" not in runs.ledger().tasks)
        with pytest.raises(PoolTerminatedError):
            await serve(runs, port=0)

    run_real(main)


def test_other_addresses_need_a_token_and_are_warned_of(run_real, caplog):
    async def main():
        async with make_pool() as pool:
            async with await serve(pool, host="0.0.0.0", port=0, token=TOKEN) as server:
                port = server.url.rstrip("/").rpartition(":")[2]
                here = f"http://127.0.0.1:{port}/"
                assert (await get(f"{here}stats.json")).status == 401
                assert (await get(f"{here}stats.json", Authorization=f"Bearer {TOKEN}")).status == 200
            async with await serve(pool, host="::1", port=0) as server:
                assert server.url.startswith("http://[::1]:")
                assert (await get(f"{server.url}stats.json")).status == 200
            async with await serve(pool, host="localhost", port=0) as server:
                assert server.url.startswith("http://127.0.0.1:")

    with caplog.at_level(logging.WARNING, logger="qorb"):
        run_real(main)
    (warning,) = [record.getMessage() for record in caplog.records if "statistics" in record.getMessage()]
    assert warning.startswith("statistics can be asked for from other machines: http://0.0.0.0:")


# How it ends.


def threads():
    return {thread.name for thread in threading.enumerate()}


def test_terminate_ends_it_under_open_sockets(run_real):
    async def main():
        before, handler = threads(), signal.getsignal(signal.SIGTERM)
        pool = make_pool()
        async with pool, contextlib.AsyncExitStack() as stack:
            server = await serve(pool, port=0)
            assert signal.getsignal(signal.SIGTERM) is handler
            port = int(server.url.rstrip("/").rpartition(":")[2])
            listener = await stack.enter_async_context(qtop(server, "?update_secs=255"))
            await listener.update()
            deaf = await stack.enter_async_context(qtop(server, "?update_secs=0", receive_buffer=4096))
            deaf.writer.transport.pause_reading()
            _, silent = await asyncio.open_connection("127.0.0.1", port)
            await until(lambda: len(server.connections) == 3)
            await pool.terminate()
            # All that is left is what this test has itself.
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert_nothing_left(pool)
            assert not server.connections
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            with pytest.raises(EOFError):
                await listener.update()
            assert listener.close_code == 1001
            silent.close()
        assert threads() == before

    run_real(main)


def test_it_tells_of_the_end_while_claims_are_waited_for(run_real):
    async def main():
        pool = make_pool()
        async with pool:
            server = await serve(pool, port=0)
            async with qtop(server, "?update_secs=0") as client:
                claim = await pool.claim()
                ending = asyncio.ensure_future(pool.terminate(grace=60.0))
                while (await client.update())["state"] != "terminating":
                    pass
                assert (await get(f"{server.url}healthz")).text == "pool db is terminating\n"
                with pytest.raises(RefusedError) as caught:
                    async with qtop(server):
                        pass
                assert (caught.value.reply.status, caught.value.reply.text) == (503, "pool db is terminating\n")
                claim.release()
                await ending

    run_real(main)


def test_of_several_pools_the_last_one_ends_it(run_real):
    async def main():
        one, two = make_pool(name="one"), make_pool(name="two")
        async with one, two:
            server = await serve(one, two, port=0)
            async with qtop(server, "?pool=one") as first, qtop(server, "?pool=two") as second:
                await first.update()
                await one.terminate()
                assert_nothing_left(one)
                with pytest.raises(EOFError):
                    await first.to_the_end()
                assert (first.close_code, first.close_reason) == (1001, "pool one has ended")
                await second.update()
                read = (await get(f"{server.url}stats.json")).json()
                assert [pool["state"] for pool in read["pools"]] == ["terminated", "running"]
                await two.terminate()
                assert asyncio.all_tasks() == {asyncio.current_task()}

    run_real(main)


def test_it_can_be_closed_before_and_opened_again(run_real):
    async def main():
        async with make_pool() as pool:
            for _ in range(2):
                server = await serve(pool, port=0)
                async with qtop(server) as client:
                    await client.update()
                    await server.close()
                    await server.close()
                    with pytest.raises(EOFError):
                        await client.update()
                assert pool.state is PoolState.RUNNING
                await until(lambda: not [name for name in pool.ledger().tasks if "statistics" in name])

    run_real(main)


def test_abort_ends_it(run_real):
    async def main():
        async with make_pool() as pool:
            server = await serve(pool, port=0)
            async with qtop(server) as client:
                await client.update()
                pool.abort()
                await pool.terminate()
                assert asyncio.all_tasks() == {asyncio.current_task()}
        async with make_pool() as pool:
            server = await serve(pool, port=0)
            pool.abort()
            await pool.terminate()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    run_real(main)


def test_a_pool_that_is_dropped_is_noticed_and_takes_it_along(run_real):
    async def main():
        pool = make_pool()
        await pool.start()
        server = await serve(pool, port=0)
        async with qtop(server) as client:
            await client.update()
            held = [pool]
            del pool
            with pytest.warns(ResourceWarning, match="unterminated pool db"):
                held.clear()
            gc.collect()
            with pytest.raises(EOFError):
                await client.to_the_end()
            await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    run_real(main)


def test_a_loop_that_is_closed_leaves_no_socket(capfd):
    held = [make_pool()]

    async def begin():
        await held[0].start()
        return await serve(held[0], port=0)

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(begin())
    loop.close()
    with pytest.warns(ResourceWarning) as warned:
        held.clear()
    gc.collect()
    assert ["unterminated pool db" in str(warning.message) for warning in warned] == [True]
    port = int(server.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    assert capfd.readouterr().err == ""


def test_cancelled_while_it_opens_it_leaves_nothing(run_real):
    async def main():
        async with make_pool() as pool:
            for turns in range(4):
                opening = asyncio.ensure_future(serve(pool, port=0))
                for _ in range(turns):
                    await asyncio.sleep(0)
                opening.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await (await opening).close()
                await until(lambda: not [name for name in pool.ledger().tasks if "statistics" in name])

    run_real(main)


PROGRAM = """
import asyncio
from qorb import Pool
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector
from qorb.top import serve

async def main():
    async with Pool("db", FixedResolver(["a:1"]), FakeConnector()) as pool:
        print((await serve(pool, port=0)).url, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def test_ctrl_c_ends_the_program_and_it_with_clean_hands(run_real):
    async def main():
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-X", "dev", "-c", PROGRAM, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        url = (await program.stdout.readline()).decode().strip()
        async with Qtop(f"{url.replace('http', 'ws')}qtop/stats") as client:
            await client.update()
            program.send_signal(signal.SIGINT)
            _, said = await program.communicate()
        assert b"KeyboardInterrupt" in said
        for word in (b"Warning", b"never retrieved", b"destroyed", b"Event loop is closed"):
            assert word not in said, said

    run_real(main)


def test_without_websockets_it_is_said_what_to_install(run_real, monkeypatch):
    for name in list(sys.modules):
        if name == "qorb.top._websockets" or name.partition(".")[0] == "websockets":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "websockets", None)

    async def main():
        async with make_pool() as pool:
            with pytest.raises(ImportError, match=r'pip install "qorb\[stats\]"'):
                await serve(pool, port=0)

    run_real(main)


def test_no_secret_is_in_what_is_shown(run_real):
    secret = "hunter2-hunter2"

    class Telling(FakeConnector):
        async def connect(self, backend):
            raise ConnectionError(f"no way to postgresql://me:{secret}@{backend.host}/db")

    async def main():
        async with (
            Pool("db", ManualResolver(["a:1"]), Telling()) as pool,
            await serve(pool, port=0) as server,
            qtop(server, "?update_secs=0") as client,
        ):
            update = await client.update()
            while not update["sets"] or update["sets"]["a:1"]["last_error"] is None:
                update = await client.update()
            assert "postgresql://me:***@a" in json.dumps(update)
            assert secret not in json.dumps(update)
            assert secret not in (await get(f"{server.url}stats.json")).text

    run_real(main)


def test_sockets_are_not_passed_on_to_programs(run_real):
    async def main():
        async with make_pool() as pool, await serve(pool, port=0) as server:
            sockets = server._server.sockets
            assert sockets
            assert not any(socket.socket.get_inheritable(one._sock) for one in sockets if hasattr(one, "_sock"))

    run_real(main)
