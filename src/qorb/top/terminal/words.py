"""Numbers and names as text; a reading as plain text, or as JSON. Nothing that is sent moves a terminal's cursor."""

from __future__ import annotations

import json
import math
import time
import unicodedata
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING

from qorb.top.terminal.rows import rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qorb.top.terminal.rates import Latency, Reading
    from qorb.top.terminal.rows import Row

_HEAD = ("backend", "online", "connecting", "unclaimed", "checking", "claimed", "claims/s", "claims", "failures")
_LEFT_ALIGNED = {0, 1, len(_HEAD)}
_TEN = 10
_UNITS = ((10**18, "E"), (10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"))
_LONGEST = 1000


def harmless(text: str, most: int = _LONGEST) -> str:
    """Write as an escape what is no printable ASCII, and cut it."""
    return _cut("".join(one if one.isascii() and one.isprintable() else _escape(one) for one in text[:most]), most)


def legible(text: str, most: int = _LONGEST) -> str:
    """Write as an escape what does not take exactly one cell of a terminal, from left to right, and cut it.

    Besides control characters these are the invisible ones, those written from right to left, combining and wide ones.
    """
    return _cut("".join(map(_one_cell, text[:most])), most)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


@cache
def _one_cell(one: str) -> str:
    plain = (
        one.isprintable()
        and not unicodedata.category(one).startswith("M")
        and unicodedata.bidirectional(one) not in {"R", "AL", "AN"}
        and unicodedata.east_asian_width(one) not in {"W", "F"}
    )
    return one if plain else _escape(one)


def _escape(one: str) -> str:
    return one.encode("unicode_escape").decode()


def count(number: float | None) -> str:
    """Write a number in at most nine characters; nothing when it is unknown."""
    if number is None:
        return ""
    for unit, letter in _UNITS:
        if number >= _TEN * unit:
            return f"{number / unit:,.1f}{letter}"
    return f"{number:,.0f}"


def rate(per_second: float | None) -> str:
    """Write a rate: with a decimal when it is small."""
    if per_second is None or per_second >= _TEN or per_second == 0:
        return count(per_second)
    return f"{per_second:.1f}" if per_second >= 0.1 else f"{per_second:.2g}"  # noqa: PLR2004


def duration(seconds: float) -> str:
    """Write a time with its unit, in two or three digits."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    if seconds >= 1e-3:  # noqa: PLR2004
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} us"


def latency(latency: Latency) -> str:
    """Say how long something took, of half of them and of 99 %."""
    return f"half {_at_most(latency.half, latency)}, 99 % {_at_most(latency.most, latency)}"


def _at_most(quantile: float, latency: Latency) -> str:
    return f"> {duration(latency.longest)}" if math.isinf(quantile) else f"<= {duration(quantile)}"


def lines(reading: Reading) -> Iterator[str]:
    """Give all of it, for people, in ASCII."""
    frame = reading.frame
    who = "pool" if frame.pool is None else f"pool {harmless(frame.pool)}"
    state = "" if frame.state is None else f", {harmless(frame.state)}"
    parts = [f"{len(frame.backends)} backend{'' if len(frame.backends) == 1 else 's'}"]
    if any(counts.online is not None for counts in frame.backends.values()):
        parts.append(f"{sum(bool(counts.online) for counts in frame.backends.values())} online")
    if frame.waiting is not None:
        parts.append(f"{count(frame.waiting)} waiting")
    if reading.claims_per_second is not None:
        parts.append(f"{rate(reading.claims_per_second)} claims/s")
    yield f"{who}{state}: {', '.join(parts)}"
    for name, figures in reading.latencies.items():
        yield f"{name}: {latency(figures)}, mean {duration(figures.mean)}"
    if frame.backends:
        yield ""
        yield from _table([(*_HEAD, "last error"), *map(_cells, rows(reading))])


def _cells(row: Row) -> tuple[str, ...]:
    counts = row.counts
    online = "" if counts.online is None else "yes" if counts.online else "no"
    slots = (counts.connecting_slots, counts.unclaimed_slots, counts.checking_slots, counts.claimed_slots)
    numbers = (*map(count, slots), rate(row.per_second), count(counts.total_claims), count(counts.failures))
    return (harmless(row.name, 200), online, *numbers, harmless(counts.last_error or ""))


def _table(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (
            cell.ljust(width) if number in _LEFT_ALIGNED else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(padded).rstrip()


def as_json(reading: Reading) -> str:
    """Give all of it as an object on one line, for programs. Times are in seconds; null is what is not known."""
    frame = reading.frame
    written: dict[str, object] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "pool": frame.pool,
        "state": frame.state,
        "claims": frame.claims,
        "claims_per_second": reading.claims_per_second,
        "waiting": frame.waiting,
        "backends": [
            {"name": row.name, "claims_per_second": row.per_second, **asdict(row.counts)} for row in rows(reading)
        ],
        "timings": None
        if frame.timings is None
        else {name: _as_json(reading.latencies.get(name)) for name in frame.timings},
    }
    # Of the control characters, JSON lets only this one stand as it is.
    return json.dumps(written, allow_nan=False).replace("\x7f", "\\u007f")


def _as_json(latency: Latency | None) -> dict[str, float | None] | None:
    if latency is None:
        return None
    half, most = (None if math.isinf(one) else one for one in (latency.half, latency.most))
    return {"half_at_most": half, "99_percent_at_most": most, "mean": latency.mean}
