"""Pictures in words: lines for people, JSON for programs. Nothing that DNS says moves a terminal's cursor."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qorb._resolve.picture import News, Picture, Row, Said

_HEAD = ("name", "address", "port", "priority", "weight", "TTL", "server_name")
_MOST_SAID = 20
_MOST_ODDITIES = 20


def lines(picture: Picture) -> Iterator[str]:
    """Give all of it, for people."""
    count = len(picture.rows)
    yield f"{picture.service}: {count} backend{'' if count == 1 else 's'}"
    yield ""
    yield from _table([_HEAD, *map(_cells, picture.rows)])
    yield ""
    yield "who answered"
    said = [_said(one) for one in picture.said[:_MOST_SAID]]
    yield from (f"  {line}" for line in _table(said))
    if len(picture.said) > _MOST_SAID:
        yield f"  and {len(picture.said) - _MOST_SAID} more answers; --json has all"
    if picture.oddities:
        yield ""
        yield "warnings"
        yield from (f"  {one.text}" for one in picture.oddities[:_MOST_ODDITIES])
        if len(picture.oddities) > _MOST_ODDITIES:
            yield f"  and {len(picture.oddities) - _MOST_ODDITIES} more; --json has all"


def changes(found: News) -> Iterator[str]:
    """Give what is new, for people: + came, - went, ~ changed, ! odd."""
    clock = time.strftime("%H:%M:%S")
    for row in found.added:
        place = f"[{row.address}]:{row.port}" if ":" in row.address else f"{row.address}:{row.port}"
        yield f"{clock}  + {row.name}  {place} priority {row.priority} weight {row.weight} TTL {_ttl(row.ttl)}"
    for row in found.removed:
        yield f"{clock}  - {row.name}"
    for row, words in found.changed:
        yield f"{clock}  ~ {row.name}  {words}"
    for one in found.odd:
        yield f"{clock}  ! {one.text}"
    for one in found.no_longer_odd:
        yield f"{clock}  . no longer so: {one.text}"


def as_json(picture: Picture, found: News | None = None) -> str:
    """Give all of it as an object on one line, and what is new in it, for programs."""
    written: dict[str, object] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "service": picture.service,
        "backends": [asdict(row) for row in picture.rows],
        "answers": [asdict(one) for one in picture.said],
        "warnings": [one.text for one in picture.oddities],
        "reason": picture.reason,
    }
    if found is not None:
        written["added"] = [row.name for row in found.added]
        written["removed"] = [row.name for row in found.removed]
        written["changed"] = [row.name for row, _ in found.changed]
    # Of the control characters, JSON lets only this one stand as it is.
    return json.dumps(written).replace("\x7f", "\\u007f")


def harmless(text: str) -> str:
    """Write as an escape what is no printable ASCII: names in DNS may consist of any octets."""
    return "".join(
        one if one.isascii() and one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _cells(row: Row) -> tuple[str, ...]:
    numbers = (str(row.port), str(row.priority), str(row.weight), _ttl(row.ttl))
    return (row.name, row.address, *numbers, row.server_name or "")


def _said(one: Said) -> tuple[str, ...]:
    milliseconds = f"{1000 * one.seconds:.1f} ms"
    if one.outcome == "records":
        what = f"{one.records} record{'' if one.records == 1 else 's'}, TTL {_ttl(one.ttl)}"
        if one.cnames:
            what += f", through {one.cnames} CNAME{'' if one.cnames == 1 else 's'}"
    else:
        what = one.reason or "no answer yet"
    return one.nameserver, f"{one.name} {one.kind}", milliseconds, what


def _ttl(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.0f} s"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Align the columns."""
    escaped = [[harmless(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*escaped, strict=True)]
    for row in escaped:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
