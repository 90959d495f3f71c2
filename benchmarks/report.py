"""What was measured, as a table to read, as JSON, and between two marks in the README."""

import dataclasses
import datetime as dt
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.alone import Figure
from benchmarks.databases import CROWDS, Contest, Pace, Standing
from benchmarks.peers import Peer
from benchmarks.scenarios import Waits

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
BUSY = 0.5
"""Other programs running, on average of the last minute, from which on the figures say so."""
_MARKED = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Result:
    """One contestant in one scenario."""

    peer: str
    seconds: float
    """For one claim and release, median of the rounds."""
    spread: float
    """Half the distance between the quartiles, relative to the median."""
    beside_qorb: float | None
    """Median of the ratios to qorb's time of the same round."""
    waits: Waits | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Everything one run found out."""

    command: str
    peers: Sequence[Peer]
    contests: Mapping[str, Sequence[Result]]
    """By the number of tasks, as text; "idle" for one task."""
    figures: Sequence[Figure]
    others: float
    """How many other programs wanted to run when it began: more than a few tenths disturb the figures."""
    database: Contest | None = None


def markdown(run: Run) -> str:
    """Write tables for people."""
    parts = [_conditions(run)]
    if run.contests:
        parts += [_times(run.contests)]
    if any(result.waits for results in run.contests.values() for result in results):
        parts += [_waits(run.contests)]
    if run.database is not None:
        parts += [_database_conditions(run.database), _paces(run.database)]
    if run.figures:
        parts += [_figures(run.figures)]
    return "\n\n".join(parts)


def to_json(run: Run) -> str:
    """Write the same for programs; times in seconds."""
    return json.dumps(
        {
            "command": run.command,
            "date": _today(),
            "machine": _machine(),
            "python": _python(),
            "others": run.others,
            "versions": {peer.name: peer.version for peer in run.peers},
            "contests": {
                name: [dataclasses.asdict(result) for result in results] for name, results in run.contests.items()
            },
            "database": None if run.database is None else dataclasses.asdict(run.database),
            "figures": [dataclasses.asdict(figure) | {"met": figure.met} for figure in run.figures],
        },
        indent=2,
        ensure_ascii=False,
    )


def write_into(readme: Path, text: str) -> None:
    """Put `text` between the two marks in the file, in place of what stands there. Raises as check_marks() does."""
    check_marks(readme)
    page = _MARKED.sub(lambda _: f"{START}\n\n{text}\n\n{END}", readme.read_text(encoding="utf-8"))
    readme.write_text(page, encoding="utf-8")


def check_marks(readme: Path) -> None:
    """Raise ValueError when the file does not say in exactly one place where the tables go, OSError without a file."""
    if len(_MARKED.findall(readme.read_text(encoding="utf-8"))) != 1:
        raise ValueError(f"{readme.name} needs one pair of the marks {START} and {END} to say where the tables go")


def _conditions(run: Run) -> str:
    versions = dict.fromkeys(f"{peer.distribution} {peer.version}" for peer in run.peers if peer.version)
    busy = f"\nOn a busy machine: {run.others:.1f} other programs were running." if run.others >= BUSY else ""
    return (
        f"Measured on {_today()} with `{run.command}`: {_machine()}, {_python()}; {', '.join(versions)}.\n"
        "One process, pools by turns, medians. Connections do nothing, so what is seen is the pools' own cost, in\n"
        "processor time. The crowds hold a connection for one turn of the loop; that turn is in the figures, and the\n"
        "bare deque tells what it costs. Places lost: how much later than its turn the most overtaken claim was served."
        f"{busy}"
    )


def _times(contests: Mapping[str, Sequence[Result]]) -> str:
    header = ["µs for one claim + release", *(_title(name) for name in contests)]
    rows = [[peer, *(_time(_of(results, peer)) for results in contests.values())] for peer in _peers(contests.values())]
    return _table(header, rows)


def _time(result: Result | None) -> str:
    if result is None:
        return ""
    beside = "" if result.beside_qorb is None or result.peer == "qorb" else f" ({result.beside_qorb:.2g} x)"
    return f"{result.seconds * 1e6:.2f}{beside}"


def _waits(contests: Mapping[str, Sequence[Result]]) -> str:
    crowds = {
        name: results for name, results in contests.items() if any(result.waits is not None for result in results)
    }
    header = ["ms of waiting: median / 99 % / longest; places lost", *(_title(name) for name in crowds)]
    rows = [[peer, *(_wait(_of(results, peer)) for results in crowds.values())] for peer in _peers(crowds.values())]
    return _table(header, rows)


def _wait(result: Result | None) -> str:
    if result is None or result.waits is None:
        return ""
    waits = result.waits
    seconds = " / ".join(f"{wait * 1e3:.2f}" for wait in (waits.median, waits.p99, waits.longest))
    return f"{seconds}; {waits.places_lost:,}"


def _database_conditions(contest: Contest) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in contest.versions.items())
    return (
        f"The same on PostgreSQL {contest.server}, which runs beside it on the same machine ({versions}).\n"
        "A unit is to claim a connection, ask `SELECT 1`, and release it: one query, but for pools that make more by\n"
        "default. Clock: the whole run, shared out among the units; the less, the more throughput. 99 %: what so many\n"
        "units took at the most, waiting included. Processor: of the client alone. In brackets: beside qorb."
    )


def _paces(contest: Contest) -> str:
    header = ["µs for one unit: clock / 99 % / processor", *CROWDS]
    rows = [
        [f"{driver}: {client}", *(_pace(_standing(contest, driver, client, crowd)) for crowd in CROWDS)]
        for driver, client in dict.fromkeys((one.driver, one.client) for one in contest.standings)
    ]
    return _table(header, rows)


def _standing(contest: Contest, driver: str, client: str, crowd: str) -> Standing:
    wanted = driver, client, crowd
    return next(one for one in contest.standings if (one.driver, one.client, one.crowd) == wanted)


def _pace(standing: Standing) -> str:
    times = " / ".join(f"{seconds * 1e6:,.0f}" for seconds in _values(standing.pace))
    if standing.beside_qorb is None or standing.client == "qorb":
        return times
    return f"{times} ({' / '.join(f'{times:.2f}' for times in _values(standing.beside_qorb))} x)"


def _values(pace: Pace) -> tuple[float, float, float]:
    return pace.clock, pace.p99, pace.processor


def _figures(figures: Iterable[Figure]) -> str:
    header = ["qorb alone", "measured", "at most", "verdict"]
    rows = [
        [
            figure.what,
            f"{figure.value:.3g} {figure.unit}" if figure.value < 1_000 else f"{figure.value:,.0f} {figure.unit}",
            "" if figure.target is None else f"{figure.target:,g} {figure.unit}",
            figure.verdict,
        ]
        for figure in figures
    ]
    return _table(header, rows)


def _title(name: str) -> str:
    return "1 task, idle pool" if name == "idle" else f"{int(name):,} tasks, 16 connections"


def _of(results: Sequence[Result], peer: str) -> Result | None:
    return next((result for result in results if result.peer == peer), None)


def _peers(contests: Iterable[Sequence[Result]]) -> list[str]:
    return list(dict.fromkeys(result.peer for results in contests for result in results))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _today() -> str:
    return dt.datetime.now(tz=dt.UTC).date().isoformat()


def _python() -> str:
    return f"{platform.python_implementation()} {platform.python_version()}"


def _machine() -> str:
    return f"{_processor()}, {os.cpu_count()} cores, {platform.system()}"


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", listing.read_text(), re.MULTILINE) if listing.exists() else None
    return named[1] if named else platform.processor() or platform.machine()
