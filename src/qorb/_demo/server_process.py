"""The process of a server to try things out on: in a directory that vanishes with it, started, frozen and killed.

Everything here blocks for a moment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from types import TracebackType
    from typing import Self

_PATIENCE = 30.0
"""Seconds after which a server that does not start or stop is given up; it takes a tenth of one."""
_POLL = 0.005
LOG_TAIL = 2000


class ServerProcess(ABC):
    """One server, at one address, that can be stopped, killed and frozen. `with` makes, starts and removes it."""

    kind = "the server"
    """What it is called in errors, and in the name of its directory."""
    error: type[RuntimeError] = RuntimeError
    """What is raised when it does not do what it is asked for; the text has the end of what it said."""

    def __init__(self, host: str, port: int | None) -> None:
        """Choose where; a port of None is one that is free there."""
        self.host = host
        self.port = _free_port(host) if port is None else port
        self._as_whom: dict[str, Any] = {}
        self._home: Path | None = None
        self._process: subprocess.Popen[Any] | None = None

    @property
    def address(self) -> str:
        """Where it is to be reached, as "host:port"."""
        return f"{self.host}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the server's process is there, be it frozen."""
        return self._process is not None and self._process.poll() is None

    @property
    def home(self) -> Path:
        """The directory with everything that it writes. Raises `error` before the server was made."""
        if self._home is None:
            use = f"use `with {type(self).__name__}()`"
            raise self.error(f"this server has not been made, or has been removed; {use}")
        return self._home

    @property
    def log(self) -> str:
        """What the server has said since it was made."""
        path = self.home / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def __enter__(self) -> Self:
        try:
            with signals_wait():
                self.make()
                self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()

    def make(self) -> None:
        """Make its directory, if there is none."""
        if self._home is None:
            self._home = Path(tempfile.mkdtemp(prefix=f"qorb-{self.kind.lower()}-"))

    def remove(self) -> None:
        """Kill the server and remove everything it has written."""
        self.kill()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    # Its life.

    @abstractmethod
    def _prepare(self) -> Sequence[str | Path]:
        """Have what it reads when it starts in its place, and give the command."""

    @abstractmethod
    def stop(self) -> None:
        """Shut it down in order."""

    @abstractmethod
    def _lets_clients_in(self) -> bool:
        """Whether it has started."""

    def start(self) -> None:
        """Start it, and wait until it lets clients in."""
        if self.running:
            raise self.error(f"the server at {self.address} is running already")
        command = self._prepare()
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - of a package that was installed for this
                command,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the program that started it
                **self._as_whom,
            )
        self._wait_until(self._lets_clients_in, "did not start")

    def _wait_until(self, condition: Callable[[], bool], otherwise: str) -> None:
        until = time.monotonic() + _PATIENCE
        while not condition():
            if not self.running or time.monotonic() > until:
                raise self._failure(otherwise)
            time.sleep(_POLL)

    def _end_by(self, number: signal.Signals) -> None:
        """Have it end in order, also when it is frozen."""
        if self._process is None:
            return
        self.resume()
        self._process.send_signal(number)
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            raise self._failure("did not stop") from None
        self._process = None

    def _failure(self, what: str) -> RuntimeError:
        return self.error(f"{self.kind} at {self.address} {what}; it said:\n{self.log[-LOG_TAIL:]}")

    def restart(self) -> None:
        """Shut it down and start it again."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """Kill all its processes at once, as `kill -9` does, and wait until they are gone."""
        if self._process is None:
            return
        processes = self.processes()
        for number in processes:
            _send(number, signal.SIGKILL)
        self._process.wait()
        self._process = None
        for number in processes:  # they are not our children: nobody but the system can wait for them
            while _lives(number):
                time.sleep(_POLL)

    def pause(self) -> None:
        """Freeze all its processes: connections stay, nothing is answered, and the system accepts new ones for it."""
        for number in self.processes():
            _send(number, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        for number in self.processes():
            _send(number, signal.SIGCONT)

    def processes(self) -> list[int]:
        """Give the numbers of the server's processes, its first one first."""
        if self._process is None or self._process.poll() is not None:
            return []
        return [self._process.pid, *_children(self._process.pid)]


@contextlib.contextmanager
def signals_wait() -> Generator[None]:
    """Let the signals that Python handles wait until what is begun meanwhile is there, and can be ended.

    KeyboardInterrupt in the midst of Popen() would leave a process that nobody ends. Signals come in the main thread
    alone.
    """
    came: list[int] = []
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):
                previous[number] = signal.signal(number, lambda which, _: came.append(which))
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        if came:
            signal.raise_signal(came[0])


def _free_port(host: str) -> int:
    with socket.socket() as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def _children(parent: int) -> list[int]:
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [number for number in numbers if _state(number)[1] == str(parent)]


def _lives(number: int) -> bool:
    return _state(number)[0] not in {"", "Z"}  # a zombie is waiting for its parent alone


def _state(number: int) -> tuple[str, str]:
    """Give the state of a process, and the number of its parent; "" when there is none."""
    try:
        # "pid (name) state ppid ...": the name may hold blanks and parentheses.
        state, parent = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return "", ""
    return state, parent


def _send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
