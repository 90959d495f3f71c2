"""Take the pictures of docs/observing.md: of `qorb top`, and of the page of the statistics server.

Servers and clients are those of `qorb demo`. When a server has been dead for some seconds, the pictures are taken:
the view as an SVG by textual, the page as PNGs by a Chromium without a window. It takes three minutes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import math
import os
import re
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from websockets.asyncio.client import connect

from qorb import Pool, top
from qorb._demo.clients import EchoClients
from qorb._demo.connector import EchoConnector
from qorb._demo.demo import DemoOptions, demo_policy
from qorb._demo.scenario import Stage
from qorb.top.terminal._textual import View
from qorb.top.terminal._websockets import connected
from qorb.top.terminal.address import read_address
from qorb.top.terminal.board import Board
from qorb.top.terminal.following import follow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from textual.pilot import Pilot

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
OPTIONS = DemoOptions(backends=5, clients=40)
DEAD = "echo-3"
WELL, ILL = 150.0, 15.0
"""Seconds before and after the server dies: the lines of the charts are that long."""
DRAWN = 2.0
"""Seconds after which the page has drawn itself anew, which it does when something comes."""
CELLS = 120, 18
DESK, PHONE = 1100, 390
BROWSERS = "chromium", "chromium-browser", "google-chrome"


class Browser:
    """A Chromium that is told what to do over its debugging protocol."""

    def __init__(self, program: str) -> None:
        """Start nothing yet."""
        self._program = program
        self._numbers = itertools.count(1)
        self._left = contextlib.AsyncExitStack()
        self._socket: Any = None

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as left:
            folder = left.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            self._socket = await left.enter_async_context(connect(await self._start(folder, left), max_size=None))
            self._left = left.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._left.aclose()

    async def _start(self, folder: str, left: contextlib.AsyncExitStack) -> str:
        """Start it, and give the address of its protocol."""
        options = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}", "--hide-scrollbars"]
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # it has none for root
        process = await asyncio.create_subprocess_exec(
            self._program, *options, "about:blank", stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
        )
        left.push_async_callback(_end, process)
        assert process.stderr is not None  # noqa: S101 - it is a pipe
        said = []
        async for line in process.stderr:
            said.append(line.decode(errors="replace"))
            if found := re.search(r"listening on (ws://\S+)", said[-1]):
                left.callback(asyncio.create_task(_drain(process.stderr)).cancel)
                return found[1]
        raise SystemExit(f"{self._program} does not start:\n{''.join(said)}")

    async def do(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401
        """Give a command, and its result. One at a time."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        await self._socket.send(json.dumps(message if session is None else {**message, "sessionId": session}))
        while True:
            answer = json.loads(await self._socket.recv())
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    async def open(self, url: str) -> str:
        """Open a page, and give the name of its session."""
        target = await self.do("Target.createTarget", url=url)
        session = await self.do("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        return str(session["sessionId"])

    async def take(self, session: str, name: str, width: int, *, dark: bool) -> None:
        """Take a picture of a page, from its top to its end, on a screen that is so wide and has fine dots."""
        await self.do(
            "Emulation.setEmulatedMedia",
            session,
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        screen = {"width": width, "height": 1, "deviceScaleFactor": 1.5, "mobile": width == PHONE}
        await self.do("Emulation.setDeviceMetricsOverride", session, **screen)
        await asyncio.sleep(DRAWN)
        page = (await self.do("Page.getLayoutMetrics", session))["cssContentSize"]
        screen["height"] = math.ceil(page["height"])
        await self.do("Emulation.setDeviceMetricsOverride", session, **screen)
        await asyncio.sleep(DRAWN)
        picture = await self.do("Page.captureScreenshot", session)
        (PICTURES / name).write_bytes(base64.b64decode(picture["data"]))


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    await process.wait()


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(4096):
        pass


@contextlib.asynccontextmanager
async def watched_pool() -> AsyncIterator[tuple[Stage, str]]:
    """Have a pool at work, and give its servers and the URL of its statistics."""
    async with Stage(OPTIONS.backends) as stage:
        pool = Pool("orders", stage.resolver(), EchoConnector(), demo_policy(OPTIONS))
        pool.measure()
        async with EchoClients(pool, stage.servers, count=OPTIONS.clients, seed=OPTIONS.seed) as clients, pool:
            clients.start()
            server = await top.serve(pool, port=0)
            yield stage, server.url


@contextlib.asynccontextmanager
async def view(url: str) -> AsyncIterator[Pilot[None]]:
    """Run the view of `qorb top` without a terminal, and give what presses its keys."""
    loop = asyncio.get_running_loop()
    address = read_address(url, interval=1)
    board = Board(address.shown)
    following = asyncio.create_task(follow(partial(connected, address), 1, board.tell))
    try:
        async with View(board, loop.time).run_test(size=CELLS) as pilot:
            yield pilot
    finally:
        following.cancel()
        await asyncio.wait([following])


async def take_view(pilot: Pilot[None], name: str) -> None:
    """Take a picture of the view, with the dead server chosen. Its font is the reader's, not one from elsewhere."""
    await pilot.press(*["down"] * int(DEAD.rpartition("-")[2]))
    await pilot.pause(1)
    drawn = pilot.app.export_screenshot(title="qorb top")
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    (PICTURES / name).write_text(drawn, encoding="utf-8")


async def take_pictures(program: str) -> None:
    """Have a server die, and take them all."""
    async with watched_pool() as (stage, url), Browser(program) as browser, view(url) as pilot:
        session = await browser.open(url)
        await asyncio.sleep(WELL)
        await stage.kill(DEAD)
        await asyncio.sleep(ILL)
        await take_view(pilot, "qorb-top.svg")
        await browser.take(session, "page-light.png", DESK, dark=False)
        await browser.take(session, "page-dark.png", DESK, dark=True)
        await browser.take(session, "page-phone.png", PHONE, dark=False)


def main() -> None:
    """Take the pictures, and say where they are."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        sys.exit(f"The pictures of the page need one of the programs {', '.join(BROWSERS)}.")
    PICTURES.mkdir(exist_ok=True)
    asyncio.run(take_pictures(program))
    for picture in sorted(PICTURES.iterdir()):
        print(f"{picture.relative_to(PICTURES.parent.parent)}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
