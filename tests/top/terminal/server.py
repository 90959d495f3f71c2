"""A statistics server that does as it is told: it sends what a script says, be it right or wrong."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import socketserver
import struct
import threading

from tests.top.terminal.frames import counts, frame

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455
_CLOSE = 8


class Connection:
    """One client's, after the handshake."""

    def __init__(self, wire):
        self._wire = wire

    def send(self, message, opcode=2):
        """Send a whole message: what is no bytes as JSON; binary, unless another opcode is given."""
        payload = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.raw(header(opcode, len(payload)) + payload)

    def raw(self, octets):
        self._wire.sendall(octets)

    def hold(self):
        """Return when the client has gone; answer its farewell."""
        with contextlib.suppress(OSError):
            while octets := self._wire.recv(4096):
                if octets[0] & 15 == _CLOSE:
                    self._wire.sendall(bytes([128 | _CLOSE, 0]))

    def reset(self):
        """Go without a word."""
        self._wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def header(opcode, length):
    if length < 126:
        return bytes([128 | opcode, length])
    if length < 65536:
        return bytes([128 | opcode, 126]) + length.to_bytes(2)
    return bytes([128 | opcode, 127]) + length.to_bytes(8)


class Server:
    """Does for each connection what `script(connection)` does; with `answer`, it answers each request with that."""

    def __init__(self, script=None, *, answer=None, port=0):
        self.script, self.answer = script, answer
        self.requests = []
        self._wires = []
        self._came = threading.Condition()
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                outer._wires.append(self.request)
                with contextlib.suppress(OSError):
                    outer.converse(self.request)

        class Threads(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = False

        self._server = Threads(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.address = f"127.0.0.1:{self.port}"

    def converse(self, wire):
        request = b""
        while b"\r\n\r\n" not in request:
            received = wire.recv(4096)
            if not received:
                return
            request += received
        with self._came:
            self.requests.append(request.decode())
            self._came.notify_all()
        if self.answer is not None:
            wire.sendall(self.answer)
            return
        headers = dict(line.lower().split(": ", 1) for line in request.decode().split("\r\n")[1:] if ": " in line)
        key = next(line for line in request.decode().split("\r\n") if line.lower().startswith("sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key.partition(": ")[2].encode() + _GUID).digest())
        assert headers["upgrade"] == "websocket"
        wire.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        self.script(Connection(wire))

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        """End it, and every connection."""
        self._server.shutdown()
        self._thread.join()
        for wire in self._wires:
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def wait_for_requests(self, number):
        with self._came:
            assert self._came.wait_for(lambda: len(self.requests) >= number, timeout=120)


def steady(per_second=10, seconds=0.05, **more):
    """Make a script that sends frames as often as it likes until the client has gone."""

    def script(connection):
        gone = threading.Event()
        listener = threading.Thread(target=lambda: (connection.hold(), gone.set()))
        listener.start()
        total = 0
        while True:
            with contextlib.suppress(OSError):
                connection.send(frame(per_second, {"db-1:5432": counts(total, online=True)}, pool="main", **more))
            total += per_second
            if gone.wait(seconds):
                break
        listener.join()

    return script
