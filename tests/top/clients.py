"""Clients of the statistics, written by hand: what they send and what they understand is seen byte by byte."""

import asyncio
import base64
import contextlib
import json
import os
import socket
import struct
from urllib.parse import urlsplit


class Reply:
    """What a server says over HTTP."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def text(self):
        return self.body.decode()

    def json(self):
        return json.loads(self.body)


async def read_head(reader):
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.lower(): value for name, value in headers.items()}


async def get(url, *, method="GET", **headers):
    """Ask, with `Host` and whatever headers are given (`_` stands for `-`, None for none)."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    sent = {"Host": parts.netloc, "Connection": "close"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        head = [
            f"{method} {target} HTTP/1.1",
            *(f"{name}: {value}" for name, value in sent.items() if value is not None),
        ]
        writer.write("\r\n".join([*head, "", ""]).encode("latin-1"))
        status, answered = await read_head(reader)
        return Reply(status, answered, await reader.read())
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class RefusedError(Exception):
    """The server did not open the WebSocket; `reply` is what it said."""

    def __init__(self, reply):
        super().__init__(reply.status)
        self.reply = reply


class Qtop:
    """What the original's qtop does: it opens the WebSocket that it is given, offers no extension, and reads JSON from
    binary frames. It answers pings, for the library that it is built on does.
    """

    BINARY, CLOSE, PING, PONG = 2, 8, 9, 10

    def __init__(self, url, *, receive_buffer=None, **headers):
        self.url, self.receive_buffer, self.headers = url, receive_buffer, headers
        self.close_code = None
        self.kinds = []

    async def __aenter__(self):
        parts = urlsplit(self.url)
        connection = socket.socket(socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET)
        if self.receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (parts.hostname, parts.port))
        self.reader, self.writer = await asyncio.open_connection(sock=connection, limit=2**20)
        sent = {
            "Host": parts.netloc,
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        }
        sent |= {name.replace("_", "-"): value for name, value in self.headers.items()}
        head = [f"GET {parts.path}{'?' * bool(parts.query)}{parts.query} HTTP/1.1"]
        head += [f"{name}: {value}" for name, value in sent.items()]
        self.writer.write("\r\n".join([*head, "", ""]).encode())
        self.status, self.answered = await read_head(self.reader)
        if self.status != 101:
            reply = Reply(self.status, self.answered, await self.reader.read())
            await self.end()
            raise RefusedError(reply)
        return self

    async def __aexit__(self, *exc):
        await self.end()

    async def end(self):
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def update(self):
        """Read the next update as qtop does: whole numbers in `claims` and `sets`; what else there is it ignores."""
        read = json.loads(await self.frame())
        names = ("connecting_slots", "unclaimed_slots", "checking_slots", "claimed_slots", "total_claims")
        numbers = [read["claims"], *(own[name] for own in read["sets"].values() for name in names)]
        assert all(type(number) is int and number >= 0 for number in numbers)
        return read

    async def claims(self, number):
        """Read until so many claims have been told of, one interval after the other, and no more; give that update."""
        told = 0
        while told < number:
            update = await self.update()
            told += update["claims"]
        assert told == number
        return update

    async def to_the_end(self):
        """Read until the server closes, which raises EOFError."""
        while True:
            await self.update()

    async def frame(self):
        while True:
            kind, content = await self.raw()
            self.kinds.append(kind)
            if kind == self.PING:
                self.send(self.PONG, content)
            elif kind == self.CLOSE:
                self.close_code = struct.unpack("!H", content[:2])[0] if content else 1005
                self.close_reason = content[2:].decode()
                self.send(self.CLOSE, content[:2])
                raise EOFError(self.close_code)
            else:
                return content

    async def raw(self):
        first, length = await self.reader.readexactly(2)
        assert first & 0x80, "in one piece"
        assert not first & 0x70, "without extensions"
        assert not length & 0x80, "a server masks nothing"
        if length == 126:
            (length,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
        return first & 0x0F, await self.reader.readexactly(length)

    def send(self, kind, content):
        size = bytes([0x80 | len(content)]) if len(content) < 126 else b"\xfe" + struct.pack("!H", len(content))
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(content))
        self.writer.write(bytes([0x80 | kind]) + size + mask + masked)


async def until(condition):
    """Wait until something has happened of which nobody tells."""
    seconds = 0.0
    while not condition():
        await asyncio.sleep(0.02)
        seconds += 0.02
        assert seconds < 60, "never"
