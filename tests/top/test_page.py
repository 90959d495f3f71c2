"""The page, in a browser without a screen."""

import asyncio
import json
import random
import sys

import pytest

from qorb import Backend, Policy, Pool
from qorb.resolvers import ManualResolver
from qorb.testing import FakeConnector
from qorb.top import serve
from tests.top.browser import Page

TOKEN = "correct-horse-battery"
EVIL = "<img src=x onerror=document.title=1>"

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="a process group of its own ends the browser"),
    pytest.mark.xdist_group("chromium"),  # each one takes as much of the machine as all else together
]


class Service:
    """A pool in use, and a connector that goes wrong on demand."""

    def __init__(self, name="orders", backends=("a:1", "b:1", "c:1")):
        self.connector = FakeConnector()
        self.resolver = ManualResolver(backends)
        self.pool = Pool(name, self.resolver, self.connector, Policy(max_slots=9, spares_wanted=3))
        self.rng = random.Random(1)

    async def __aenter__(self):
        await self.pool.start()
        await self.pool.ready()
        self.work = [asyncio.ensure_future(self.use()) for _ in range(4)]
        return self

    async def __aexit__(self, *exc):
        for task in self.work:
            task.cancel()
        await asyncio.wait(self.work)
        await self.pool.terminate()

    async def use(self):
        while True:
            async with self.pool.claim():
                await asyncio.sleep(self.rng.random() * 0.05)
            await asyncio.sleep(self.rng.random() * 0.05)


def offline(page):
    """What the page has asked for elsewhere."""
    return [
        url for url in page.requested if not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "about:"))
    ]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
def test_it_shows_the_pool_live(run_real, tmp_path, scheme, width):
    async def main():
        async with Service() as service, await serve(service.pool, port=0) as server:
            service.connector.refuse("c:1")
            service.resolver.set(["a:1", "b:1", "c:1", Backend(EVIL, "d", 1)])
            async with Page(tmp_path / "profile", width=width, scheme=scheme) as page:
                await page.go(server.url)
                await page.sees("document.querySelectorAll('#rows tr').length === 4")
                await page.sees("Number(document.querySelector('#rate').textContent) > 1")
                assert await page.text("#state") == "live"
                assert await page.js("document.querySelector('#plot-rate path.line').getAttribute('d').length > 10")
                service.resolver.set(["a:1", "b:1", "c:1", Backend(EVIL, "d", 1), "e:1"])
                await page.sees("document.querySelectorAll('#rows tr').length === 5")
                # Names are text, whatever they look like.
                assert await page.js("document.querySelectorAll('#rows img').length") == 0
                assert EVIL in await page.text("#rows")
                assert await page.js("document.title") == "orders – qorb"
                # Nothing reaches over the edge, in neither layout.
                assert await page.js("document.documentElement.scrollWidth <= innerWidth")
                background = await page.js("getComputedStyle(document.body).backgroundColor")
                assert (background == "rgb(15, 18, 22)") == (scheme == "dark")
                await page.picture(tmp_path / f"{scheme}-{width}.png")
                assert page.complaints == []
                assert offline(page) == []
                assert any(url.startswith("ws:") for url in page.requested)

    run_real(main)


def test_it_reconnects_by_itself_and_says_meanwhile_that_it_is_old(run_real, tmp_path):
    async def main():
        async with Service() as service, Page(tmp_path / "profile") as page:
            async with await serve(service.pool, port=0) as server:
                port = int(server.url.rstrip("/").rpartition(":")[2])
                await page.go(server.url)
                await page.sees("document.querySelector('#state').textContent === 'live'")
            await page.sees("document.querySelector('#state').textContent === 'reconnecting'")
            assert await page.text("#notice")
            async with await serve(service.pool, port=port):
                await page.sees("document.querySelector('#state').textContent === 'live'")
                await page.sees("document.querySelector('#notice').hidden")
                await page.sees("Number(document.querySelector('#rate').textContent) > 1")

    run_real(main)


def test_it_asks_for_the_token_and_takes_it_from_the_fragment(run_real, tmp_path):
    async def main():
        async with Service() as service, await serve(service.pool, port=0, token=TOKEN) as server:
            async with Page(tmp_path / "profile") as page:
                await page.go(server.url)
                await page.sees("!document.querySelector('#ask').hidden")
                assert await page.js("document.activeElement.id") == "token"
                await page.write("wrong-wrong-wrong-wrong")
                await page.press("Enter", "\r")
                await page.sees("document.querySelector('#notice').textContent.includes('does not know this token')")
                assert await page.js("document.querySelector('#live').hidden")
                await page.write(TOKEN)
                await page.press("Enter", "\r")
                await page.sees("document.querySelectorAll('#rows tr').length === 3")
                assert await page.js("document.querySelector('#ask').hidden")
            async with Page(tmp_path / "other") as page:
                await page.go(f"{server.url}#token={TOKEN}")
                await page.sees("document.querySelectorAll('#rows tr').length === 3")
                assert TOKEN not in await page.js("location.href")
                assert not any(TOKEN in url for url in page.requested[1:])

    run_real(main)


def test_it_is_used_with_the_keyboard(run_real, tmp_path):
    async def main():
        async with (
            Service() as service,
            await serve(service.pool, port=0) as server,
            Page(tmp_path / "profile") as page,
        ):
            await page.go(server.url)
            await page.sees("document.querySelectorAll('#rows tr').length === 3")
            first = "document.querySelector('#rows tr .text').textContent"
            assert await page.js(first) == "a:1"
            await page.js("document.querySelector('th button').focus()")
            await page.press("Enter", "\r")
            await page.sees(f"{first} === 'c:1'")
            assert await page.js("document.querySelector('th').getAttribute('aria-sort')") == "descending"
            await page.press("/", "/")
            assert await page.js("document.activeElement.id") == "filter"
            await page.write("b:")
            await page.sees("document.querySelectorAll('#rows tr').length === 1")
            await page.press("Escape")
            await page.sees("document.querySelectorAll('#rows tr').length === 3")
            await page.js("document.querySelector('#plot-rate').focus()")
            await page.press("Home")
            await page.sees("/ago|now/.test(document.querySelector('#read-rate').textContent)")
            await page.js("document.activeElement.blur()")
            await page.press("p", "p")
            assert await page.js("document.querySelector('#pause').getAttribute('aria-pressed')") == "true"
            assert page.complaints == []

    run_real(main)


def test_it_is_sorted_where_there_is_no_room_for_titles(run_real, tmp_path):
    async def main():
        async with (
            Service() as service,
            await serve(service.pool, port=0) as server,
            Page(tmp_path / "profile", width=390) as page,
        ):
            service.connector.refuse("b:1")
            service.resolver.set(["a:1", "b:1"])
            await page.go(server.url)
            first = "document.querySelector('#rows tr .text').textContent"
            await page.sees("document.querySelector('#rows td.fails.some') !== null")
            assert await page.js(first) == "a:1"
            assert await page.js("document.querySelector('#order').getBoundingClientRect().height > 30")
            await page.js("document.querySelector('#order').value = 'fails'")
            await page.js("document.querySelector('#order').dispatchEvent(new Event('change'))")
            assert await page.js(first) == "b:1"
            assert await page.js("document.querySelector('#order').selectedOptions[0].textContent") == "By failures"
            assert page.complaints == []

    run_real(main)


def test_it_shows_one_of_several_pools(run_real, tmp_path):
    async def main():
        async with (
            Service() as one,
            Service("stock", ["z:1"]) as other,
            await serve(one.pool, other.pool, port=0) as server,
            Page(tmp_path / "profile") as page,
        ):
            await page.go(server.url)
            await page.sees("document.querySelectorAll('#rows tr').length === 3")
            await page.js("pools.length")
            await page.js(
                "document.querySelector('#pools').value = 'stock',"
                "document.querySelector('#pools').dispatchEvent(new Event('change'))"
            )
            await page.sees("document.querySelector('#rows').textContent.includes('z:1')")
            assert await page.js("document.querySelectorAll('#rows tr').length") == 1
            assert await page.js("location.hash") == "#pool=stock"
            assert page.complaints == []

    run_real(main)


WAITS = [
    ([(0, [9, 0, 0])], ""),
    ([(0, [9000, 0, 0]), (1, [9000, 98, 2])], "waited: 50 % ≤ 20 ms, 99 % > 20 ms"),
    ([(0, [0, 0, 0]), (40, [9000, 0, 0]), (100, [9000, 1, 0])], "waited: 50 % ≤ 20 ms, 99 % ≤ 20 ms"),
    ([(0, [0, 9, 0]), (1, None), (2, [0, 9000, 0]), (3, [1, 9000, 0])], "waited: 50 % ≤ 100 µs, 99 % ≤ 100 µs"),
    ([(0, [9, 0, 0]), (1, [0, 0, 0])], ""),
    ([(0, [9, 0, 0]), (1, None)], ""),
]
"""How often claims had waited for how long, at which second, None where that is not known; and what is said of it."""


def test_how_long_claims_waited_is_that_of_the_last_minute(run_real, tmp_path):
    async def main():
        async with (
            Service() as service,
            await serve(service.pool, port=0) as server,
            Page(tmp_path / "profile") as page,
        ):
            await page.go(server.url)
            await page.sees("past.length > 0")
            for waits, words in WAITS:
                past = [
                    {"time": time, "waits": None if counts is None else {"bounds": [0.0001, 0.02], "counts": counts}}
                    for time, counts in waits
                ]
                assert await page.js(f"past = {json.dumps(past)}, latency()") == words, waits

    run_real(main)


def test_of_a_pool_that_does_not_run_it_says_so(run_real, tmp_path):
    notice = "document.querySelector('#notice').textContent"

    async def main():
        async with (
            Service() as one,
            Service("stock", ["z:1"]) as other,
            await serve(one.pool, other.pool, port=0) as server,
            Page(tmp_path / "profile") as page,
        ):
            await page.go(f"{server.url}#pool=stock")
            await page.sees("document.querySelector('#rows').textContent.includes('z:1')")
            await other.pool.terminate()
            await page.sees(f"{notice} === 'The pool has ended.'")
            assert await page.text("#state") == "reconnecting"
            assert page.complaints == []

    run_real(main)


def test_a_pool_without_a_backend_is_said(run_real, tmp_path):
    async def main():
        async with (
            Pool("orders", ManualResolver(), FakeConnector()) as pool,
            await serve(pool, port=0) as server,
            Page(tmp_path / "profile") as page,
        ):
            await page.go(server.url)
            await page.sees("document.querySelector('#notice').textContent === 'The resolver knows no backend.'")
            assert await page.text("#empty") == "There are none."

    run_real(main)
