"""What the server sends, read and checked. The original's frames have less in them: what is missing is None."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST = 2**64
"""Counters are below."""
_MOST_BOUNDS = 1000
_TIMED = ("wait", "use", "connect")


class FrameError(ValueError):
    """What came is no reading. The message says why; what strangers wrote stands in it as repr() shows it, cut."""


@dataclass(frozen=True, slots=True)
class Counts:
    """One backend's numbers."""

    connecting_slots: int
    unclaimed_slots: int
    checking_slots: int
    claimed_slots: int
    total_claims: int
    online: bool | None = None
    failures: int | None = None
    last_error: str | None = None

    @property
    def slots(self) -> int:
        """Count them, whatever their state."""
        return self.connecting_slots + self.unclaimed_slots + self.checking_slots + self.claimed_slots


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often something took how long, since the start."""

    bounds: tuple[float, ...]
    """Seconds; the upper ends of all buckets but the last, which has none."""
    counts: tuple[int, ...]
    """Of each bucket by itself."""
    sum: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One reading of a pool, as it was sent."""

    claims: int
    """Since the frame before on the same connection."""
    backends: Mapping[str, Counts]
    pool: str | None = None
    state: str | None = None
    waiting: int | None = None
    timings: Mapping[str, Histogram] | None = None


def read_frame(message: bytes) -> Frame:
    """Read a message of the server. Raises FrameError."""
    try:
        sent: Any = json.loads(message, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # digits without end and wrong UTF-8 are ValueErrors, too
        what = "it is nested too deeply" if isinstance(error, RecursionError) else "it is no JSON"
        raise FrameError(f"{what}: {_short(message)}") from None
    sent = _object(sent, "it")
    sets = _mapping(sent, "sets", "")
    timings = sent.get("timings")
    return Frame(
        claims=_whole(sent, "claims", ""),
        backends={name: _counts(name, counts) for name, counts in sets.items()},
        pool=_optional(sent, "pool", str, ""),
        state=_optional(sent, "state", str, ""),
        waiting=None if sent.get("waiting") is None else _whole(sent, "waiting", ""),
        timings=None if timings is None else _timings(sent),
    )


def _counts(name: str, counts: Any) -> Counts:  # noqa: ANN401 - as below
    where = f" of {_short(name)}"
    counts = _object(counts, f"the entry{where}")
    return Counts(
        connecting_slots=_whole(counts, "connecting_slots", where),
        unclaimed_slots=_whole(counts, "unclaimed_slots", where),
        checking_slots=_whole(counts, "checking_slots", where),
        claimed_slots=_whole(counts, "claimed_slots", where),
        total_claims=_whole(counts, "total_claims", where),
        online=_optional(counts, "online", bool, where),
        failures=None if counts.get("failures") is None else _whole(counts, "failures", where),
        last_error=_optional(counts, "last_error", str, where),
    )


def _timings(sent: Mapping[str, Any]) -> dict[str, Histogram]:
    timings = _mapping(sent, "timings", "")
    return {name: _histogram(timings, name) for name in _TIMED if timings.get(name) is not None}


def _histogram(timings: Mapping[str, Any], name: str) -> Histogram:
    where = f" of the timings of {name}"
    written = _mapping(timings, name, "")
    bounds = _numbers(written, "bounds", where)
    counts = _numbers(written, "counts", where)
    total = written.get("sum")
    if any(after <= before for before, after in pairwise(bounds)):
        raise FrameError(f"the bounds{where} do not grow: {_short(bounds)}")
    if len(counts) != len(bounds) + 1 or not all(isinstance(one, int) for one in counts):
        raise FrameError(f"the counts{where} are not whole numbers, one more than there are bounds: {_short(counts)}")
    if not _is_number(total):
        raise FrameError(f"the sum{where} is no number of seconds: {_short(total)}")
    return Histogram(tuple(map(float, bounds)), tuple(map(int, counts)), float(total))


def _numbers(where_from: Mapping[str, Any], key: str, where: str) -> list[float]:
    numbers = where_from.get(key)
    if not isinstance(numbers, list) or len(numbers) > _MOST_BOUNDS or not all(map(_is_number, numbers)):
        raise FrameError(f"the {key}{where} are no list of at most {_MOST_BOUNDS} numbers: {_short(numbers)}")
    return numbers


def _mapping(sent: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    if key not in sent:
        raise FrameError(f"it has no {key!r}{where}")
    return _object(sent[key], f"{key!r}{where}")


def _object(value: Any, what: str) -> dict[str, Any]:  # noqa: ANN401 - what JSON has
    if not isinstance(value, dict):
        raise FrameError(f"{what} is no JSON object: {_short(value)}")
    return value


def _whole(sent: Mapping[str, Any], key: str, where: str) -> int:
    value = sent.get(key)
    if not _is_number(value) or not isinstance(value, int):
        raise FrameError(f"{key!r}{where} must be a whole number from 0 to 2**64 - 1, not {_short(value)}")
    return value


def _optional(sent: Mapping[str, Any], key: str, kind: type[Any], where: str) -> Any:  # noqa: ANN401 - what JSON has
    value = sent.get(key)
    if value is not None and not isinstance(value, kind):
        what = "a string" if kind is str else "true or false"
        raise FrameError(f"{key!r}{where} must be {what}, not {_short(value)}")
    return value


def _is_number(value: object) -> TypeGuard[float]:
    # 1e999 is infinite without being written as Infinity, and whole numbers may be too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MOST


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _short(value: object) -> str:
    if isinstance(value, str | bytes):
        value = value[:60]
    elif isinstance(value, int) and abs(value) >= _MOST:
        return "a number beyond that"
    text = ascii(value) if isinstance(value, str | bytes | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - as above
