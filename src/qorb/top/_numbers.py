"""The numbers of a pool as JSON."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from qorb.pool import Pool
    from qorb.stats import BackendStats, PoolStats

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


def snapshot(pool: Pool[Any]) -> dict[str, Json]:
    """Give everything about a pool."""
    stats = pool.stats()
    return {
        "name": stats.name,
        "state": stats.state.value,
        "claims": stats.claims,
        "waiting": stats.waiting,
        "timeouts": stats.timeouts,
        "policy": plain(pool.policy),
        "backends": {name: _backend(backend) for name, backend in stats.backends.items()},
        "timings": _timings(pool),
    }


def frame(pool: Pool[Any], stats: PoolStats, claims: int) -> bytes:
    """Give what the original sends, and a little more; `claims` are those since the last frame."""
    content: dict[str, Json] = {
        "claims": claims,
        "sets": {name: _backend(backend) for name, backend in stats.backends.items()},
        "pool": stats.name,
        "state": stats.state.value,
        "waiting": stats.waiting,
        "timings": _timings(pool),
    }
    return encoded(content)


def encoded(content: Json) -> bytes:
    """Give JSON that any parser reads: without NaN and infinity."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def plain(value: object) -> Json:
    """Give a value as JSON has it. Infinity, which JSON has not, is null: never, or no limit."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    raise TypeError(f"cannot be shown as JSON: a {type(value).__name__}")


def _backend(stats: BackendStats) -> dict[str, Json]:
    return {
        "online": stats.online,
        "connecting_slots": stats.connecting_slots,
        "unclaimed_slots": stats.unclaimed_slots,
        "checking_slots": stats.checking_slots,
        "claimed_slots": stats.claimed_slots,
        "total_claims": stats.total_claims,
        "failures": stats.failures,
        "last_error": stats.last_error,
    }


def _timings(pool: Pool[Any]) -> Json:
    timings = getattr(pool, "timings", None)
    return plain(timings()) if timings is not None else None
