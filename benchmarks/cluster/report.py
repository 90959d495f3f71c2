"""The figures as tables to read, and between two marks in the documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.cluster.account import Account
from benchmarks.cluster.contestants import CONNECT_TIMEOUT, SIZE, Contestant
from benchmarks.cluster.load import GIVE_UP, PATIENCE, TASKS
from benchmarks.cluster.scenarios import Scenario
from benchmarks.report import BUSY, _machine, _python, _table, _today

if TYPE_CHECKING:
    from pathlib import Path

START, END = "<!-- compare:start -->", "<!-- compare:end -->"
_MARKED = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
_HEADER = [
    "",
    "led there before",
    "claims",
    "failed: open as it struck",
    "failed: no server there",
    "failed later: no connection",
    "failed later: with it",
    "well again after",
    "longest wait",
    "used again after",
]


@dataclass(frozen=True, slots=True)
class Run:
    """Everything one run found out."""

    command: str
    postgres: str
    """Which PostgreSQL it was."""
    others: float
    """How many other programs wanted to run when it began."""
    contestants: Sequence[Contestant]
    accounts: Mapping[tuple[Scenario, str], Account]
    """By the scenario, and the name of the contestant."""


def markdown(run: Run) -> str:
    """Write tables for people: how it was measured, the settings, and each scenario."""
    scenarios = list(dict.fromkeys(scenario for scenario, _ in run.accounts))
    return "\n\n".join(
        [_conditions(run), _settings(run), *(_of(run, scenario) for scenario in scenarios), _sessions(run)]
    )


def write_into(page: Path, text: str) -> None:
    """Put `text` between the two marks in the file, in place of what stands there. Raises as check_marks() does."""
    check_marks(page)
    written = _MARKED.sub(lambda _: f"{START}\n\n{text}\n\n{END}", page.read_text(encoding="utf-8"))
    page.write_text(written, encoding="utf-8")


def check_marks(page: Path) -> None:
    """Raise ValueError when the file does not say in exactly one place where the tables go, OSError without a file."""
    if len(_MARKED.findall(page.read_text(encoding="utf-8"))) != 1:
        raise ValueError(f"{page.name} needs one pair of the marks {START} and {END} to say where the tables go")


def _conditions(run: Run) -> str:
    versions = dict.fromkeys(text for contestant in run.contestants for text in contestant.versions)
    busy = f"\nOn a busy machine: {run.others:.1f} other programs were running." if run.others >= BUSY else ""
    return (
        f"Measured on {_today()} with `{run.command}`: {_machine()}, {_python()}, {run.postgres}; "
        f"{', '.join(versions)}.\n"
        f"One run of each. {TASKS} tasks claim from {SIZE} connections, over and over. The pool's own setting gives a\n"
        f"claim {PATIENCE:g} s for its connection, and after {GIVE_UP:g} s it is cancelled; its queries have "
        f"{PATIENCE:g} s. Connecting may take {CONNECT_TIMEOUT:g} s.{busy}"
    )


def _settings(run: Run) -> str:
    return _table(["pool", "its settings"], [[one.name, one.settings] for one in run.contestants]).replace(
        "---:", "---"
    )


def _of(run: Run, scenario: Scenario) -> str:
    accounts = {name: one for (of, name), one in run.accounts.items() if of is scenario}
    rows = [_HEADER, *([name, *_row(one, scenario)] for name, one in accounts.items())]
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    header, *rows = (list(row) for row in zip(*columns, strict=True))
    said = [f"{name}: {words}" for name, one in accounts.items() if (words := _words(one))]
    parts = [f"### {scenario.title}", scenario.story, _table(header, rows)]
    if said:
        parts.append("The later failures: " + "; ".join(said) + ".")
    return "\n\n".join(parts)


def _row(one: Account, scenario: Scenario) -> list[str]:
    watched = max(each.begun for each in one.tries)
    return [
        "" if one.led_there is None else f"{one.led_there * 100:.0f} %",
        f"{len(one.tries):,}",
        f"{one.open_failed:,}",
        "" if scenario.served_meanwhile else f"{len(one.meanwhile):,}",
        f"{one.unserved:,}",
        f"{one.broken:,}",
        _seconds(one.well_after, watched - (one.marks.mended or one.marks.strikes[-1][1])),
        _seconds(one.longest),
        ""
        if one.marks.mended is None or one.marks.returning is None
        else _seconds(one.used_after, watched - one.marks.mended),
    ]


def _seconds(value: float | None, watched: float = 0.0) -> str:
    if value is None:
        return f"not in {watched:.0f} s"
    return f"{value * 1e3:.0f} ms" if value < 0.9995 else f"{value:.1f} s"


def _words(one: Account) -> str:
    kinds = [(each.error or "").partition(":")[0] for each in one.late]
    return ", ".join(f"{kinds.count(kind):,} `{kind}`" for kind in dict.fromkeys(kinds))


def _sessions(run: Run) -> str:
    left = {
        f"{name} ({scenario.title}): {one.left}": None for (scenario, name), one in run.accounts.items() if one.left
    }
    return f"Sessions in `pg_stat_activity` after the pool was closed: {'; '.join(left) or 'none of any pool'}."
