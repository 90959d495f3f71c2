"""FileResolver: backends as a file lists them, now and as that changes."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import stat
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qorb.backend import Backend, check_names
from qorb.errors import ResolveError, masked, shown
from qorb.publishing import publisher_of
from qorb.resolver import Resolver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from qorb.publishing import Publisher

_logger = logging.getLogger("qorb.file")

_MAX_BYTES = 1_000_000
"""A longer file is refused: it is read within one turn of the loop."""
_SLICE = 100
"""So many backends are made of it within one turn."""
_SETTLED = 0.05
"""Seconds for which lines must not have changed before they are believed."""
_SHORTEST = 0.01
_LONGEST = 86_400.0
"""Event loops differ in how far away a timer may be."""
_REPEAT = 60.0
"""Seconds after which the same failure is told again."""
_JSON = re.compile(r"\s*(\{|\[\s*([\[\]{\"]|$))")
"""How JSON begins; a line such as [::1]:5432 begins with a bracket, too."""
_FIELDS = frozenset(field.name for field in fields(Backend))


class FileResolver(Resolver):
    """Knows the backends that a file lists, and reads it again when it changes. Several pools may share one.

    The file is UTF-8 and at most 1 MB long. It is a JSON list, of "host:port" texts or of objects with the fields of a
    Backend (`name` may be left out and is the textual address then); or it has one host:port a line, where blank lines
    do not count, nor what follows a `#`.

    A file that is not there, or cannot be read or understood, or names no backend changes nothing: the last good set
    stays, and the reason is told. Only the JSON list [] says that there are no backends. A JSON list is complete when
    it can be read; lines are believed when they have not changed for 50 ms, since a file that is still being written
    may end anywhere. Who writes another file beside it and renames it is always safe.
    """

    def __init__(self, path: str | os.PathLike[str], *, interval: float = 1.0) -> None:
        """Take the path, and how many seconds apart to look whether the file has changed. Reads nothing yet.

        A relative path is taken from the current directory of this moment. Raises TypeError for what is no path or no
        number, ValueError for a path that cannot be one and for an interval under 0.01 s.
        """
        self._path = _check_path(path)
        self._interval = _check_interval(interval)

    async def watch(self, publish: Callable[[Iterable[Backend]], None]) -> None:
        """Publish what the file lists, whenever that changes, until cancelled. Nothing stays open meanwhile.

        Looking and reading block the event loop for as long as the file system takes: it should be a local one.
        """
        reader = _Reader(self._path, publisher_of(publish))
        while True:
            changing = await reader.look(asyncio.get_running_loop().time())
            await asyncio.sleep(min(_SETTLED, self._interval) if changing else self._interval)


@dataclass(frozen=True, slots=True)
class _Version:
    """What tells one state of the file from another without reading it.

    Of two changes within a tick of the file system's clock it may not tell the second.
    """

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Version:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class _Reader:
    """Reads the file for one watch()."""

    def __init__(self, path: Path, publisher: Publisher) -> None:
        self._path = path
        self._publisher = publisher
        self._version: _Version | None = None
        """That of the last look."""
        self._text: bytes | None = None
        self._settled = False
        """It was the same at two looks in a row, and so was the text: nothing is left to be seen of it."""
        self._published: tuple[Backend, ...] | None = None
        self._failure = ""
        self._told_at = -math.inf

    async def look(self, now: float) -> bool:
        """Read the file if it has changed, and publish or tell what comes of that; say whether to look again soon."""
        try:
            if self._read_if_changed():
                await self._believe_or_not(now)
            elif self._failure:
                self._fail(self._failure, now)
        except OSError as error:
            self._version = self._text = None
            self._settled = True  # as far as it goes: whatever comes in its place is a change
            self._fail(_reason(error), now)
        return not self._settled

    def _read_if_changed(self) -> bool:
        """Take note of the file's text and of whether it is settled; False when there is nothing left to be seen."""
        status = self._path.stat()
        if self._settled and _Version.of(status) == self._version:
            return False
        if not stat.S_ISREG(status.st_mode):  # to open a pipe means something to whoever is at its other end
            raise OSError("it is no regular file")
        version, text = _read(self._path)
        self._settled = (version, text) == (self._version, self._text)
        self._version, self._text = version, text
        return True

    async def _believe_or_not(self, now: float) -> None:
        try:
            backends = await _understand(self._text or b"", settled=self._settled)
        except (ValueError, RecursionError) as error:
            if self._settled:  # otherwise it may be in the midst of being written
                self._fail(_reason(error), now)
            return
        if backends is not None and (self._failure or backends != self._published):
            if self._failure:
                _logger.info("%s: it can be used again", self._path)
            self._failure = ""
            self._published = backends
            self._publisher(backends)

    def _fail(self, reason: str, now: float) -> None:
        """Tell it, but not again and again."""
        if reason == self._failure and now < self._told_at + _REPEAT:
            return
        self._failure, self._told_at = reason, now
        kept = "" if self._published is None else "; the last backends it listed stay"
        _logger.warning("%s: %s%s", self._path, reason, kept)
        self._publisher.failed(ResolveError(f"{self._path}: {reason}{kept}"))


def _read(path: Path) -> tuple[_Version, bytes]:
    """Read the file, which may change meanwhile: the next look will tell. Never waits for a pipe or a device."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
        status = os.fstat(descriptor)
        text = file.read(_MAX_BYTES + 1) if status.st_size <= _MAX_BYTES else None
    if text is None or len(text) > _MAX_BYTES:
        raise OSError(f"it is longer than {_MAX_BYTES:,} bytes")
    return _Version.of(status), text


async def _understand(text: bytes, *, settled: bool) -> tuple[Backend, ...] | None:
    """Read the backends from it; None when it may be cut off. Raises ValueError or RecursionError."""
    content = text.decode("utf-8-sig")
    if _JSON.match(content):
        backends = await _read_json(content)
    elif settled:
        backends = await _read_lines(content)
    else:
        return None
    check_names(backends)
    return backends


async def _read_json(content: str) -> tuple[Backend, ...]:
    try:
        entries = json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no complete JSON: {error}") from None
    if not isinstance(entries, list):
        raise ValueError("its JSON is no list; write [...]")  # noqa: TRY004 - one class of error for all that is in a file
    backends: list[Backend] = []
    for number, entry in enumerate(entries, 1):
        try:
            backends.append(_backend_of(entry))
        except ValueError as error:
            raise ValueError(f"entry {number}: {error}") from None
        await _breathe(number)
    return tuple(backends)


def _backend_of(entry: object) -> Backend:
    if isinstance(entry, str):
        return Backend.parse(entry)
    if not isinstance(entry, dict):
        raise ValueError(f"{shown(entry)} is neither a host:port text nor an object")  # noqa: TRY004 - as above
    given: dict[str, Any] = entry
    unknown = given.keys() - _FIELDS
    if unknown:
        raise ValueError(f"a backend has no field {shown(min(unknown))}, but only {', '.join(sorted(_FIELDS))}")
    missing = {"host", "port"} - given.keys()
    if missing:
        raise ValueError(f"it has no {min(missing)}")
    host, port, server_name = given["host"], given["port"], given.get("server_name")
    if server_name is not None and not isinstance(server_name, str):
        raise ValueError(f"server_name must be a text or null, not {shown(server_name)}")
    values: dict[str, Any] = {"name": f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}", **given}
    return Backend(**values)


async def _read_lines(content: str) -> tuple[Backend, ...]:
    backends: list[Backend] = []
    for number, line in enumerate(content.split("\n"), 1):
        await _breathe(number)
        address = line.partition("#")[0].strip()
        if not address:
            continue
        try:
            backends.append(Backend.parse(address))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    if not backends:
        raise ValueError("it names no backend; write [] to say that there are none")
    return tuple(backends)


async def _breathe(done: int) -> None:
    """Let others have their turn now and then."""
    if done % _SLICE == 0:
        await asyncio.sleep(0)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError):
        return masked(error.strerror or str(error))
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 at byte {error.start}"
    if isinstance(error, RecursionError):
        return "its JSON is nested too deeply"
    return masked(str(error))


def _check_path(path: object) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a text or a path, not {shown(path)}")
    text: object = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"path must be a text or a path, not {shown(text)}")
    if not text or "\0" in text:
        raise ValueError(f"{shown(text)} can be no path of a file")
    return Path(text).absolute()


def _check_interval(interval: object) -> float:
    if not isinstance(interval, int | float) or isinstance(interval, bool):
        raise TypeError(f"interval must be a number of seconds, not {shown(interval)}")
    if not interval >= _SHORTEST:
        raise ValueError(f"interval must be at least {_SHORTEST:g} seconds, not {shown(interval)}")
    return min(interval, _LONGEST)
