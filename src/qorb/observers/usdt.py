"""UsdtObserver: the events as USDT probes, for bpftrace, bcc, SystemTap and gdb, on Linux.

A probe is a place in a running program that such a tool can watch, without the program being started anew or having
been prepared for it. The provider is "qorb", and the probes have the names and arguments of the original's; those that
the original does not have follow the same pattern.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import sys
from typing import TYPE_CHECKING, NamedTuple

from qorb import events
from qorb.observers._probe_library import MACHINES, SEMAPHORES, probe_library, symbol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qorb.events import Event

ARGUMENTS: Mapping[type[Event], tuple[str, ...]] = {
    events.ClaimStart: ("pool", "claim_id"),
    events.ClaimDone: ("pool", "claim_id", "slot_id"),
    events.ClaimFailed: ("pool", "claim_id", "reason"),
    events.ClaimAcquireFailed: ("pool", "claim_id", "slot_id", "reason"),
    events.PoolClaimStart: ("pool", "claim_id"),
    events.PoolClaimDone: ("pool", "claim_id", "slot_id"),
    events.PoolClaimFailed: ("pool", "claim_id"),
    events.SlotSetClaimStart: ("pool", "claim_id", "backend"),
    events.SlotSetClaimDone: ("pool", "claim_id", "slot_id"),
    events.SlotSetClaimFailed: ("pool", "claim_id", "reason"),
    events.HandleClaimed: ("pool", "claim_id", "slot_id", "backend"),
    events.HandleReturned: ("pool", "slot_id"),
    events.ConnectStart: ("pool", "slot_id", "backend"),
    events.ConnectDone: ("pool", "slot_id", "backend"),
    events.ConnectFailed: ("pool", "slot_id", "backend", "reason"),
    events.SlotSetOnline: ("pool", "backend", "has_unclaimed_slots"),
    events.SlotSetOffline: ("pool", "backend", "has_unclaimed_slots"),
    events.SlotStateChange: ("pool", "slot_id", "backend", "old", "new"),
    events.HealthCheckStart: ("pool", "slot_id", "backend"),
    events.HealthCheckDone: ("pool", "slot_id"),
    events.HealthCheckFailed: ("pool", "slot_id", "reason"),
    events.RecycleStart: ("pool", "slot_id", "backend"),
    events.RecycleDone: ("pool", "slot_id"),
    events.RecycleFailed: ("pool", "slot_id", "reason"),
    events.RebalanceStart: ("pool",),
    events.RebalanceDone: ("pool",),
    events.ResolverUpdated: ("pool", "added", "removed", "changed"),
    events.ResolverFailed: ("pool", "reason"),
    events.ResolverQueryStart: ("pool", "server", "question"),
    events.ResolverQueryDone: ("pool", "server", "question", "records"),
    events.ResolverQueryFailed: ("pool", "server", "question", "reason"),
    events.PoolTerminateStart: ("pool", "left"),
    events.PoolTerminateDone: ("pool", "left"),
}
"""The fields of each event that are its probe's arguments, in their order."""

NUMBERS = frozenset({"claim_id", "slot_id", "has_unclaimed_slots", "records"})
"""The fields that are numbers of 64 bits; the others are texts in UTF-8 that end in a zero byte."""


class UsdtObserver:
    """Fires an event's probe when a tool watches it; when none does, looks at one number.

    The probes are there from the first UsdtObserver that a process makes, and until its end; they are the same for all
    pools. A forked child has them, too. Raises OSError where there can be none: on other systems than Linux, on other
    processors than x86-64 and AArch64, and where /proc is missing or code may not be loaded from memory.
    """

    __slots__ = ("_probes", "_watchers", "path")

    path: str
    """The file of the probes, for tools that want one: "/proc/<process>/fd/<number>"; it has no other name."""

    def __init__(self) -> None:
        probes = _load()
        self.path = probes.path
        self._probes = probes.by_event
        self._watchers = probes.watchers

    def __call__(self, event: Event) -> None:
        """Fire the probe of `event`, if it is watched."""
        probe = self._probes.get(type(event))
        if probe is not None and self._watchers[probe.number]:
            probe.fire(event)


class _Probe(NamedTuple):
    number: int
    fire: Callable[[Event], None]


class _Probes(NamedTuple):
    path: str
    by_event: Mapping[type[Event], _Probe]
    watchers: ctypes.Array[ctypes.c_uint16]
    """By how many each probe is watched. The kernel or the tool counts here, at any time."""


def probe_name(event: type[Event]) -> str:
    """Give the name of the probe of such events: "claim-start" for ClaimStart."""
    return re.sub("(?<!^)(?=[A-Z])", "-", event.__name__).lower()


@functools.cache
def _load() -> _Probes:
    """Make the library of the probes and load it: once for a process."""
    machine = MACHINES.get(platform.machine())
    if sys.platform != "linux" or sys.byteorder != "little" or sys.maxsize < 2**32 or machine is None:
        here = f"{sys.platform} on {platform.machine()}"
        raise OSError(f"USDT probes need 64-bit Linux on x86-64 or AArch64, and this is {here}: leave UsdtObserver out")
    library = probe_library("qorb", {probe_name(event): len(names) for event, names in ARGUMENTS.items()}, machine)
    # Memory, unlike any folder, can be written everywhere and leaves nothing behind. It stays open for the tools; and
    # the path has this process's number, for "self" would mean the tool's own process to it.
    descriptor = os.memfd_create("qorb-usdt")
    path = f"/proc/{os.getpid()}/fd/{descriptor}"
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(library)
        # To hand the interpreter's lock over and get it back would take longer than a probe does.
        loaded = ctypes.PyDLL(path)
    except BaseException:
        os.close(descriptor)
        raise
    by_event = {
        event: _Probe(number, _firing(loaded, probe_name(event), names))
        for number, (event, names) in enumerate(ARGUMENTS.items())
    }
    return _Probes(path, by_event, (ctypes.c_uint16 * len(ARGUMENTS)).in_dll(loaded, SEMAPHORES))


def _firing(library: ctypes.PyDLL, probe: str, names: tuple[str, ...]) -> Callable[[Event], None]:
    function = library[symbol(probe)]
    function.argtypes = [ctypes.c_uint64 if name in NUMBERS else ctypes.c_char_p for name in names]
    function.restype = None

    def fire(event: Event) -> None:
        function(*[_argument(getattr(event, name)) for name in names])

    return fire


def _argument(value: int | str | tuple[str, ...]) -> int | bytes:
    if isinstance(value, int):
        return value
    text = value if isinstance(value, str) else " ".join(value)
    return text.encode(errors="backslashreplace")
