"""The statistics mounted in a web application, as people mount them: in Starlette, run by uvicorn."""

import asyncio
import contextlib

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from qorb import Policy, Pool, top
from qorb.resolvers import ManualResolver
from qorb.testing import FakeConnector, assert_nothing_left
from tests.top.clients import Qtop, RefusedError, Reply, get, until

TOKEN = "correct-horse-battery"


def make_pool(*backends, name="db"):
    resolver = ManualResolver(backends or ["a:1", "b:1"])
    return Pool(name, resolver, FakeConnector(), Policy(max_slots=4, spares_wanted=2))


def application(statistics):
    async def home(request):
        return PlainTextResponse("the application's own")

    return Starlette(routes=[Route("/", home), Mount("/internal/pools", statistics)])


@contextlib.asynccontextmanager
async def running(app, **settings):
    """Run an application as uvicorn does; give its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="on", **settings))
    server.capture_signals = contextlib.nullcontext
    serving = asyncio.ensure_future(server.serve())
    await until(lambda: server.started)
    host, port = server.servers[0].sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await serving


def ask(app, path, *, client, host="localhost", **headers):
    """Call an application as a server would whose client has that address."""
    said = []

    async def send(message):
        said.append(message)

    sent = [(name.encode(), value.encode()) for name, value in {"host": host, **headers}.items()]
    where = {"path": path, "root_path": "", "query_string": b"", "client": (client, 1), "server": ("127.0.0.1", 80)}
    asyncio.run(app({"type": "http", "method": "GET", "headers": sent} | where, None, send))
    return Reply(said[0]["status"], dict(said[0]["headers"]), said[1]["body"])


def test_everything_is_there_below_where_it_is_mounted(run_real):
    async def main():
        async with make_pool() as pool, running(application(top.app(pool))) as url:
            assert (await get(f"{url}/")).text == "the application's own"
            below = f"{url}/internal/pools"
            page = await get(f"{below}/")
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            assert page.headers["content-security-policy"].startswith("default-src 'none'")
            (read,) = (await get(f"{below}/stats.json")).json()["pools"]
            assert read["name"] == "db"
            await pool.ready()
            assert (await get(f"{below}/healthz")).text == "ok\n"
            assert (await get(f"{below}/x")).status == 404
            assert (await get(f"{below}/stats.json", method="POST")).status == 405
            assert (await get(f"{below}/stats.json", Host="evil.com")).status == 403
            assert (await get(f"{below}/stats.json", Origin="http://evil.com")).status == 403

    run_real(main)


def test_a_root_path_of_the_server_is_heeded(run_real):
    async def main():
        async with make_pool() as pool, running(top.app(pool), root_path="/behind/a/proxy") as url:
            # A proxy may strip it, or not: uvicorn puts it before the path.
            assert (await get(f"{url}/stats.json")).status == 200
            async with Qtop(f"{url.replace('http', 'ws')}/qtop/stats") as client:
                await client.update()

    run_real(main)


def test_the_originals_client_gets_its_frames(run_real):
    async def main():
        async with make_pool() as pool, running(application(top.app(pool))) as url:
            await pool.ready()
            async with Qtop(f"{url.replace('http', 'ws')}/internal/pools/qtop/stats?update_secs=1") as client:
                assert (await client.update())["claims"] == 0
                async with pool.claim():
                    pass
                await client.claims(1)
                assert set(client.kinds) == {client.BINARY}

    run_real(main)


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("", {"Host": "evil.com"}, 403),
        ("", {"Origin": "http://evil.com"}, 403),
        ("?update_secs=256", {}, 400),
        ("?pool=other", {}, 404),
    ],
)
def test_a_refusal_is_said_before_the_socket_opens(run_real, query, headers, status):
    async def main():
        async with make_pool() as pool, running(application(top.app(pool))) as url:
            with pytest.raises(RefusedError) as caught:
                async with Qtop(f"{url.replace('http', 'ws')}/internal/pools/qtop/stats{query}", **headers):
                    pass
            assert caught.value.reply.status == status

    run_real(main)


def test_the_ninth_client_is_refused_until_one_goes(run_real):
    async def main():
        statistics = None
        async with make_pool() as pool:
            statistics = top.app(pool)
            async with running(application(statistics)) as url, contextlib.AsyncExitStack() as stack:
                address = f"{url.replace('http', 'ws')}/internal/pools/qtop/stats?update_secs=255"
                clients = [await stack.enter_async_context(Qtop(address)) for _ in range(8)]
                with pytest.raises(RefusedError) as caught:
                    async with Qtop(address):
                        pass
                assert caught.value.reply.status == 503
                await clients[3].end()
                await until(lambda: len(statistics._site._feeds) == 7)
                async with Qtop(address) as client:
                    await client.update()

    run_real(main)


def test_the_pool_ends_under_open_sockets_and_the_application_goes_on(run_real):
    async def main():
        pool, other = make_pool(name="db"), make_pool(name="other")
        async with pool, other, running(application(top.app(pool, other))) as url:
            async with Qtop(f"{url.replace('http', 'ws')}/internal/pools/qtop/stats?update_secs=255") as client:
                await client.update()
                await pool.terminate()
                assert_nothing_left(pool)
                with pytest.raises(EOFError):
                    await client.update()
                assert (client.close_code, client.close_reason) == (1001, "pool db has ended")
            reply = await get(f"{url}/internal/pools/healthz")
            assert (reply.status, reply.text.splitlines()[0]) == (503, "pool db is terminated")
            with pytest.raises(RefusedError) as caught:
                async with Qtop(f"{url.replace('http', 'ws')}/internal/pools/qtop/stats"):
                    pass
            assert caught.value.reply.status == 503

    run_real(main)


def test_the_application_ends_under_open_sockets_and_the_pool_goes_on(run_real):
    async def main():
        async with make_pool() as pool:
            async with contextlib.AsyncExitStack() as stack:
                async with running(application(top.app(pool)), timeout_graceful_shutdown=1) as url:
                    address = f"{url.replace('http', 'ws')}/internal/pools/qtop/stats?update_secs=255"
                    client = await stack.enter_async_context(Qtop(address))
                    await client.update()

                    async def listen():
                        with contextlib.suppress(EOFError):
                            await client.update()

                    listening = asyncio.ensure_future(listen())
                await listening
            await until(lambda: not [name for name in pool.ledger().tasks if "statistics" in name])
            async with pool.claim():
                pass

    run_real(main)


def test_whoever_is_not_on_this_machine_needs_a_token():
    pool, path, far = make_pool(), "/internal/pools/stats.json", "10.0.0.1"
    assert ask(application(top.app(pool)), path, client=far).status == 403
    statistics = application(top.app(pool, token=TOKEN, hosts=["stats.example.com"]))
    assert ask(statistics, path, client=far, host="stats.example.com").status == 401
    reply = ask(statistics, path, client=far, host="stats.example.com", authorization=f"Bearer {TOKEN}")
    assert reply.json()["pools"][0]["state"] == "new"
    assert ask(application(top.app(pool, trusted=["10.0.0.0/8"])), path, client=far).status == 200


def test_a_pool_that_was_dropped_is_shown_no_more():
    statistics = top.app(make_pool(name="gone"), kept := make_pool(name="kept"))
    read = ask(statistics, "/stats.json", client="127.0.0.1").json()
    assert [pool["name"] for pool in read["pools"]] == ["kept"]
    assert ask(statistics, "/healthz", client="127.0.0.1").text == "pool gone is gone\npool kept is new\n"
    assert kept.name == "kept"


def test_a_server_that_knows_no_refusals_closes():
    async def main():
        said = []

        async def receive():
            return {"type": "websocket.connect"}

        async def send(message):
            said.append(message)

        scope = {"type": "websocket", "path": "/qtop/stats", "headers": [(b"host", b"evil.com")], "query_string": b""}
        await top.app(make_pool())(scope, receive, send)
        return said

    assert asyncio.run(main()) == [{"type": "websocket.close"}]


def test_what_it_does_not_know_is_an_error():
    with pytest.raises(ValueError, match="'smtp' is none"):
        asyncio.run(top.app(make_pool())({"type": "smtp"}, None, None))
