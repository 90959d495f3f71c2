"""What this process has open and running, by the system's account: nothing that the pool says of itself."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_DESCRIPTORS = Path("/proc/self/fd")
_TASKS = Path("/proc/self/task")
_OF_PYCARES = "_run_safe_shutdown_loop"
"""What the one thread runs that pycares starts in a process and keeps, idle: it closes what c-ares has open."""


@dataclass(frozen=True, slots=True)
class Possessions:
    """Sockets, each by what identifies it as long as it is open, and threads by their system's number."""

    sockets: frozenset[str]
    threads: frozenset[int]


def possessions() -> Possessions:
    """Look now. Threads that C libraries have started count, too; the one that pycares keeps does not.

    Where the system does not tell (it is no Linux), only Python's threads are seen, and no sockets.
    """
    idle = {thread.native_id for thread in threading.enumerate() if _OF_PYCARES in thread.name}
    if _TASKS.exists():
        threads = {int(task.name) for task in _TASKS.iterdir()}
    else:
        threads = {thread.native_id for thread in threading.enumerate() if thread.native_id is not None}
    descriptors = [int(one.name) for one in _DESCRIPTORS.iterdir()] if _DESCRIPTORS.exists() else []
    return Possessions(sockets_among(descriptors), frozenset(threads - idle))


def sockets_among(descriptors: Iterable[int]) -> frozenset[str]:
    """Give the identities of those descriptors that are sockets."""
    return frozenset(found for one in descriptors if (found := _identity(one)).startswith("socket:"))


def _identity(descriptor: int) -> str:
    try:
        return str((_DESCRIPTORS / str(descriptor)).readlink())
    except OSError:  # closed meanwhile, as the one that lists the directory always is
        return ""
