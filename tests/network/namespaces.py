"""Two hosts with a cable between them: network namespaces, whose traffic touches no real network.

The addresses are those that RFC 5737 and RFC 3849 keep for documentation.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT = "192.0.2.1"
SERVER = "192.0.2.2"
SERVER_V6 = "fe80::2%cable"

_CLONE_NEWNET = 0x4000_0000
_numbers = itertools.count()


class NotPermittedError(Exception):
    """Network namespaces are not to be had here."""


class Network:
    """A client and a server host. Within `with`, this thread is at the client: its new sockets are there."""

    def __init__(self) -> None:
        name = f"qorb-{os.getpid()}-{next(_numbers)}"
        self._client = f"{name}-client"
        self._server = f"{name}-server"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self._remove)
            self._build()
            undo.enter_context(_inside(self._client))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def _build(self) -> None:
        _ip(f"netns add {self._client}")
        _ip(f"netns add {self._server}")
        _ip(f"-n {self._client} link add cable type veth peer name cable netns {self._server}")
        for host, own, other in ((self._client, 1, 2), (self._server, 2, 1)):
            _ip(f"-n {host} link set lo up")
            _ip(f"-n {host} link set cable address 02:00:00:00:00:0{own} up")
            _ip(f"-n {host} address add 192.0.2.{own}/24 dev cable")
            _ip(f"-n {host} address add fe80::{own}/64 dev cable nodad")
            # The two know each other for good: a lost cable means silence, not "no route to host".
            _ip(f"-n {host} neighbour replace 192.0.2.{other} lladdr 02:00:00:00:00:0{other} nud permanent dev cable")

    def _remove(self) -> None:
        for host in (self._client, self._server):
            if Path("/run/netns", host).exists():
                _ip(f"netns delete {host}")

    @contextlib.contextmanager
    def at_server(self) -> Iterator[None]:
        """Within `with`, this thread is at the server: its new sockets are there, and stay there."""
        with _inside(self._server):
            yield

    def cut(self) -> None:
        """Take the cable out: from here on neither host hears anything of the other."""
        _ip(f"-n {self._server} link set cable down")

    def mend(self) -> None:
        """Put the cable back."""
        _ip(f"-n {self._server} link set cable up")

    def have_client_choose(self, port: int) -> None:
        """Leave the client one single port for the near ends of its connections."""
        subprocess.run(
            ["ip", "netns", "exec", self._client, "sysctl", "-qw", f"net.ipv4.ip_local_port_range={port} {port}"],
            check=True,
        )


def reason_against() -> str | None:
    """Say why there can be no Network here; None when there can."""
    if shutil.which("ip") is None:
        return "needs the program ip, of iproute2"
    try:
        with Network():
            return None
    except NotPermittedError as error:
        return f"needs network namespaces: {error}"


def _ip(arguments: str) -> None:
    done = subprocess.run(["ip", *arguments.split()], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise NotPermittedError(f"ip {arguments}: {done.stderr.strip()}")


@contextlib.contextmanager
def _inside(host: str) -> Iterator[None]:
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        inside = os.open(f"/run/netns/{host}", os.O_RDONLY)
        try:
            _enter(inside)
        finally:
            os.close(inside)
        try:
            yield
        finally:
            _enter(before)
    finally:
        os.close(before)


def _enter(namespace: int) -> None:
    # os.setns() came with Python 3.12.
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise NotPermittedError(f"setns: {os.strerror(number)}")
