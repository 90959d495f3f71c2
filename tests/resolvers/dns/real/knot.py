"""A real DNS server, knot, on a free port of loopback, with a zone that is changed by dynamic updates (RFC 2136)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.update

DOMAIN = "example.test"
SERVICE = f"_pg._tcp.{DOMAIN}"
_TRIES = 400
_PAUSE = 0.05
"""Seconds for which one question is waited for while the server starts."""

_CONFIGURATION = """
server:
    rundir: "{folder}"
    pidfile: "{folder}/pid"
    listen: {listen}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: "{folder}/database"
log:
  - target: stderr
    any: error
acl:
  - id: everybody
    address: 127.0.0.0/8
    action: update
zone:
  - domain: {domain}
    file: "{folder}/zone"
    acl: everybody
    zonefile-sync: -1
    zonefile-load: whole
    journal-content: changes
"""
_ZONE = f"""
$ORIGIN {DOMAIN}.
$TTL 1
@ SOA ns hostmaster 1 3600 3600 3600 1
@ NS ns
ns A 127.0.0.1
"""


def find_knotd() -> str | None:
    """Give where the program is; /usr/sbin is not on everybody's path."""
    return shutil.which("knotd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin"]))


class Knot:
    """A knot of our own. What it was told by update() it still knows when it is started again."""

    def __init__(self, folder: Path) -> None:
        """Start it, with a zone that has no backend."""
        self._folder = folder
        (folder / "zone").write_text(_ZONE)
        (folder / "database").mkdir()
        while True:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
                free.bind(("127.0.0.1", 0))
                self.port: int = free.getsockname()[1]
            if self.start():
                break

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> bool:
        """Start it, and wait until it answers. Gives False when somebody else has taken the port."""
        configuration = self._folder / "knot.conf"
        listen = f"127.0.0.1@{self.port}"
        configuration.write_text(_CONFIGURATION.format(folder=self._folder, listen=listen, domain=DOMAIN))
        program = find_knotd()
        assert program is not None
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [program, "-c", str(configuration)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        question = dns.message.make_query(DOMAIN, "SOA")
        for _ in range(_TRIES):
            if self._process.poll() is not None:
                said = (self._folder / "log").read_text()
                assert "address already in use" in said.lower(), said
                return False
            try:
                answer = dns.query.udp(question, "127.0.0.1", timeout=_PAUSE, port=self.port)
            except OSError:
                self._wait()
                continue
            except dns.exception.Timeout:
                continue
            if answer.rcode() == dns.rcode.NOERROR:
                return True
            self._wait()
        raise AssertionError(f"knotd does not answer: {(self._folder / 'log').read_text()}")

    def _wait(self) -> None:
        """Wait for a moment, or for its end."""
        try:
            self._process.wait(_PAUSE)
        except subprocess.TimeoutExpired:
            return

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def update(self, *, remove: dict[str, str] | None = None, add: dict[str, list[str]] | None = None) -> None:
        """Change records, all at once.

        Both are by "name kind"; what is removed is one record, or with "" all of that name and kind.
        """
        change = dns.update.UpdateMessage(DOMAIN)
        for key, data in (remove or {}).items():
            owner, kind = key.split()
            change.delete(owner, kind, *([data] if data else []))
        for key, all_data in (add or {}).items():
            owner, kind = key.split()
            for data in all_data:
                change.add(owner, 1, kind, data)
        answer = dns.query.tcp(change, "127.0.0.1", timeout=30, port=self.port)
        assert answer.rcode() == dns.rcode.NOERROR, answer
