"""Chromium without a screen, told what to do over its own protocol."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess

import pytest
from websockets.asyncio.client import connect

from tests.top.clients import until

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


def find_chromium():
    """Give its path; without one, skip the test, save where all tests have to run."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        assert not os.environ.get("CI"), 'there is no Chromium; "make system-deps" installs it'
        pytest.skip('needs Chromium: "make system-deps" installs it')
    return found


class Page:
    """One page, in a profile of its own."""

    def __init__(self, folder, *, width=1280, height=900, scheme="light"):
        self.folder, self.width, self.height, self.scheme = folder, width, height, scheme
        self.complaints = []
        """What it has logged as a warning or an error."""
        self.requested = []
        self.loads = 0
        self.number = 0
        self.answers = {}

    async def __aenter__(self):
        self.program = subprocess.Popen(  # noqa: ASYNC220 - it waits in `until`
            [find_chromium(), *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={self.folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            await self.attach()
        except BaseException:
            await self.end()
            raise
        return self

    async def attach(self):
        port_file = self.folder / "DevToolsActivePort"
        await until(lambda: port_file.exists() and port_file.read_text().count("\n") >= 1)
        port, path = port_file.read_text().split("\n")[:2]
        self.socket = await connect(f"ws://127.0.0.1:{port}{path}", max_size=None, ping_interval=None)
        self.session = None
        self.reading = asyncio.ensure_future(self.read())
        targets = (await self.call("Target.getTargets"))["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self.session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        size = {"width": self.width, "height": self.height, "deviceScaleFactor": 1, "mobile": self.width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        media = [{"name": "prefers-color-scheme", "value": self.scheme}]
        await self.call("Emulation.setEmulatedMedia", features=media)

    async def __aexit__(self, *exc):
        await self.end()

    async def end(self):
        if hasattr(self, "reading"):
            await self.socket.close()
            await self.reading
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.program.pid, signal.SIGKILL)
        await until(lambda: self.program.poll() is not None)

    async def read(self):
        async for text in self.socket:
            message = json.loads(text)
            if "id" in message:
                self.answers.pop(message["id"]).set_result(message)
                continue
            kind, content = message["method"], message["params"]
            if kind == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(content["exceptionDetails"])[:500])
            elif kind == "Log.entryAdded" and content["entry"]["level"] in {"warning", "error"}:
                self.complaints.append(content["entry"]["text"] + " " + content["entry"].get("url", ""))
            elif kind == "Page.loadEventFired":
                self.loads += 1
            elif kind == "Network.requestWillBeSent":
                self.requested.append(content["request"]["url"])
            elif kind == "Network.webSocketCreated":
                self.requested.append(content["url"])

    async def call(self, method, **parameters):
        self.number += 1
        answer = self.answers[self.number] = asyncio.get_running_loop().create_future()
        message = {"id": self.number, "method": method, "params": parameters}
        await self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        answered = await answer
        assert "error" not in answered, answered
        return answered["result"]

    async def go(self, url):
        loads = self.loads
        await self.call("Page.navigate", url=url)
        await until(lambda: self.loads > loads)

    async def js(self, expression):
        """Give the value of an expression."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def text(self, selector):
        return await self.js(f"(document.querySelector({json.dumps(selector)}) || {{}}).innerText")

    async def sees(self, condition):
        """Wait until an expression is true."""
        seconds = 0.0
        while not await self.js(condition):
            await asyncio.sleep(0.05)
            seconds += 0.05
            assert seconds < 60, f"never: {condition}; the page says {await self.text('body')!r}"

    async def press(self, key, text=""):
        for kind in ("keyDown", "keyUp"):
            given = {"text": text} if text and kind == "keyDown" else {}
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, **given)

    async def write(self, text):
        await self.call("Input.insertText", text=text)

    async def picture(self, path):
        """Make a picture of all of it."""
        taken = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))
