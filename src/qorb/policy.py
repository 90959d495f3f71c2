"""Policy: the limits and times that a pool keeps to, checked at birth."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields

from qorb.errors import PolicyError, shown

_COUNTS = frozenset({"spares_wanted", "max_slots", "max_slots_per_backend", "max_waiters"})
_POSITIVE = frozenset(
    {
        "max_slots",
        "max_slots_per_backend",
        "rebalance_interval",
        "health_interval",
        "connect_timeout",
        "health_check_timeout",
        "close_timeout",
        "max_lifetime",
        "max_connection_backoff",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The limits and times that a pool keeps to. Durations are in seconds; math.inf means never.

    Every value is checked when the policy is made: PolicyError names the field that is wrong.
    """

    spares_wanted: int = 8
    """Idle connections to keep ready, over all backends."""
    max_slots: int = 16
    """Hard cap over all backends, whatever state the slots are in."""
    max_slots_per_backend: int = 16
    """Hard cap for each backend."""
    rebalance_interval: float = 60.0
    """How often the slots are shared out anew and surplus ones are given up."""
    claim_timeout: float = 30.0
    """For the whole claim() call, on_acquire and retries included. 0: only what is at hand."""
    max_waiters: int = 10_000
    """More than this many waiting claims: QueueFullError at once. 0: never wait."""
    connect_timeout: float = 10.0
    """For one connect() in total."""
    min_connection_backoff: float = 0.020
    """The pause after the first failed attempt; it doubles with every further one."""
    max_connection_backoff: float = 30.0
    """The longest pause between attempts."""
    spread: float = 0.020
    """The random part added to health intervals and backoffs, so that they do not fall together."""
    health_interval: float = 30.0
    """How often an idle connection is checked. math.inf: no periodic checks."""
    health_check_timeout: float = 3.0
    """Bounds validate, on_acquire and on_recycle."""
    close_timeout: float = 5.0
    """A close() that takes longer is followed by abort()."""
    max_lifetime: float = math.inf
    """A connection older than this (less up to 10 % jitter) is replaced when idle."""
    long_claim_warning: float = 60.0
    """A claim held longer than this is logged once, with where it was claimed."""

    def __post_init__(self) -> None:
        """Raise PolicyError for the first field whose value is not usable."""
        for field in fields(self):
            _check(field.name, getattr(self, field.name))


def _check(name: str, value: object) -> None:
    usable = is_count(value) if name in _COUNTS else is_duration(value)
    if usable and not (value == 0 and name in _POSITIVE):
        return
    if name in _COUNTS:
        wanted = f"a whole number from {1 if name in _POSITIVE else 0} to {sys.maxsize}"
    else:
        wanted = f"a number of seconds, {'more than 0' if name in _POSITIVE else '0 or more'} (math.inf: never)"
    raise PolicyError(f"{name} must be {wanted}, not {shown(value)}", name)


def is_count(value: object) -> bool:
    """Whether it is a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= sys.maxsize


def is_duration(value: object) -> bool:
    """Whether it is a number of seconds from 0 to math.inf."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return float(value) >= 0  # NaN is not
    except OverflowError:
        return False
