"""Explanation: why claims are served or not, as a value, and as a text that a person reads in an incident."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qorb.errors import GIVEN_BY_ASYNCIO, one_line, shown
from qorb.stats import PoolState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qorb.errors import Holder

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_GROUPS_LISTED = 8
_BACKENDS_LISTED = 10
_NAMES_LISTED = 3
_RANK = {"offline": 0, "failing": 1, "untried": 2, "leaving": 3, "online": 4}
"""In which order backends are listed."""
_LONGEST_ERROR = 200
_WIDEST_NAME = 40
_AT_ONCE = 0.05
_SERIAL = re.compile(r"[0-9a-fA-F]{8}[0-9a-fA-F-]*|\d+")
"""What tells the tasks of one kind from each other: a number, or what looks like a UUID."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The waiting line."""

    count: int
    limit: int
    """Policy.max_waiters."""
    longest: float | None = None
    """For how many seconds the first has been waiting; None when nobody waits, or when he would wait for ever."""
    next_timeout: float | None = None
    """Seconds until the first of those at the front gives up; None when none of them does."""
    tasks: tuple[str, ...] = ()
    """The names of the tasks at the front, ten at the most."""

    def __str__(self) -> str:
        """Say how many wait, for how long, and who."""
        if not self.count:
            return "nobody waits"
        text = f"{self.count} of at most {self.limit}"
        if self.longest is not None:
            text += f", the first for {duration(self.longest)}"
        if self.next_timeout is not None:
            text += f"; the next gives up in {duration(max(0.0, self.next_timeout))}"
        return f"{text}: {_listed([shown(name) for name in self.tasks], self.count)}"


@dataclass(frozen=True, slots=True)
class Standing:
    """How one backend stands. Times are in seconds."""

    backend: str
    state: str
    """"online"; "failing": online, and what was tried last came to nothing; "offline"; "untried": no attempt has ended
    yet; "leaving": the resolver does not name it any more."""
    claimed_slots: int
    unclaimed_slots: int
    checking_slots: int
    """Health check or recycling."""
    connecting_slots: int
    ending_slots: int
    """Told to end, and not closed yet."""
    wanted_slots: int
    """How many the plan gives it."""
    last_error: str | None
    """Of the last failed connect or check, without secrets."""
    last_error_age: float | None
    next_attempt: float | None
    """Until the next attempt to connect may begin, for a backend that is backing off; else None."""
    plight: str
    """What keeps it from being connected, in words; empty when nothing does."""
    under_way: str | None = None
    """The call of the connector that has lasted longest, if over a second: its name, for how long, and where it is."""

    def __str__(self) -> str:
        """Say it in one line, without the name."""
        counts = (
            (self.claimed_slots, "in use"),
            (self.unclaimed_slots, "idle"),
            (self.checking_slots, "being checked or recycled"),
            (self.connecting_slots, "not connected"),
            (self.ending_slots, "ending"),
        )
        slots = ", ".join(f"{count} {what}" for count, what in counts if count) or "no slot"
        if sum(count for count, _ in counts[:4]) < self.wanted_slots:
            slots += f" of {self.wanted_slots} planned"
        words = [slots]
        if self.plight:
            words.append(shortened(self.plight))
        if self.next_attempt is not None:
            words.append(
                f"next attempt in {duration(self.next_attempt)}" if self.next_attempt > _AT_ONCE else "to be tried"
            )
        if self.under_way is not None:
            words.append(f"its longest call: {self.under_way}")
        return f"{self.state}: {'; '.join(words)}"


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """How many slots the pool wants, and what keeps it from having them connected."""

    claims: int
    """Out or waiting."""
    limit: int
    """So many can be out at the most, as backends and policy are."""
    spares: int
    """Idle ones that the policy wants besides."""
    planned: int
    """How many slots there are to be, all backends together."""
    connected: int
    obstacles: tuple[str, ...]
    """What stands between what is wanted and what is there, in words."""

    def __str__(self) -> str:
        """Say it in one line, without the obstacles."""
        asked = f"{self.claims} for claims + {self.spares} spares"
        return f"{asked} wanted, {self.planned} slots planned, {self.connected} connected"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a pool serves claims, or does not, at one moment. `str()` of it is for people; `as_dict()` is for programs.

    It never changes and may be read, copied and pickled anywhere. No secret is in it: the texts of errors are those of
    `stats()`, and names of tasks are shown without what looks like a password.
    """

    pool: str
    state: PoolState
    verdict: str
    """The short answer."""
    holders: tuple[Holder, ...]
    """All claims that are out, the longest held first."""
    waiting: Waiting
    backends: tuple[Standing, ...]
    """By name."""
    plan: SlotPlan
    advice: tuple[str, ...] = ()
    """What may help."""

    def as_dict(self) -> dict[str, object]:
        """Give all of it as dictionaries, tuples, texts and numbers, fit for the json module."""
        fields: dict[str, object] = dataclasses.asdict(self)
        fields["state"] = self.state.value
        return fields

    def __str__(self) -> str:
        """Tell it to a person: the verdict, who holds, who waits, how the backends stand, the plan, what may help.

        Of many, those are listed that matter most: the largest groups of holders, the backends in trouble.
        """
        parts = [f"pool {self.pool}: {one_line(self.verdict)}"]
        if self.holders:
            most = f" of at most {self.plan.limit}" if len(self.holders) <= self.plan.limit else ""
            parts.append(_section(f"held: {len(self.holders)}{most}", _held(self.holders)))
        if self.waiting.count:
            parts.append(f"waiting: {self.waiting}")
        if self.backends:
            parts.append(_section(f"backends: {len(self.backends)}", _stand(self.backends)))
        if self.backends and self.state is PoolState.RUNNING:
            parts.append(_section(f"plan: {self.plan}", [f"- {one}" for one in self.plan.obstacles]))
        if self.advice:
            parts.append(_section("what may help:", [f"- {one}" for one in self.advice]))
        return "\n".join(map(one_line, "\n".join(parts).split("\n")))


def kind_of(holder: Holder) -> str:
    """Name what has a connection such that tasks which do the same have the same name: without their numbers.

    The function that the task runs, if nobody named the task.
    """
    if holder.task is None:
        return "a claim that is about to get it" if holder.handed_off else "a task that has ended"
    if holder.coroutine is not None and GIVEN_BY_ASYNCIO.fullmatch(holder.task):
        return holder.coroutine
    return _SERIAL.sub("*", holder.task)


def name_of(holders: Sequence[Holder]) -> str:
    """Name holders that are of one kind, by the task's own name where they all have the same."""
    first = holders[0]
    kind = kind_of(first)
    if first.task is None:
        return kind
    if any(holder.task != first.task for holder in holders):
        return _quoted(kind)
    if GIVEN_BY_ASYNCIO.fullmatch(first.task) and kind != first.task:
        return _quoted(kind) if first.task == "None" else f"{_quoted(kind)} ({first.task})"
    return _quoted(first.task)


def duration(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"  # noqa: PLR2004 - two digits are enough
    if seconds < 2 * _HOUR:
        return f"{seconds // _MINUTE:.0f} min"
    return f"{seconds // _HOUR:.0f} h" if seconds < 2 * _DAY else f"{seconds // _DAY:.0f} days"


def shortened(text: str) -> str:
    """Cut what an error says to what is read."""
    return text if len(text) <= _LONGEST_ERROR else text[: _LONGEST_ERROR - 1] + "…"


def _quoted(name: str) -> str:
    return f"`{shown(name)[1:-1]}`"


def _listed(names: Sequence[str], count: int) -> str:
    """List the first of so many."""
    few = ", ".join(names[:_NAMES_LISTED])
    return few if count <= len(names[:_NAMES_LISTED]) else f"{few}, ..."


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *[f"  {line}" for line in lines]])


def _held(holders: Sequence[Holder]) -> list[str]:
    """Describe who holds what: those of one kind that stand at the same place together, the longest held first."""
    groups: dict[tuple[object, ...], list[Holder]] = {}
    for holder in holders:
        groups.setdefault(
            (kind_of(holder), holder.now, holder.site, holder.asks, holder.preparing, holder.ended), []
        ).append(holder)
    largest = sorted(groups.values(), key=len, reverse=True)[:_GROUPS_LISTED]
    lines = [line for group in groups.values() if group in largest for line in _group(group)]
    rest = len(holders) - sum(map(len, largest))
    return [*lines, f"and {rest} more"] if rest else lines


def _group(group: Sequence[Holder]) -> list[str]:
    longest, shortest = duration(group[0].seconds), duration(group[-1].seconds)
    times = longest if longest == shortest else f"{shortest} to {longest}"
    names = sorted({holder.backend for holder in group})
    where = _listed([shown(name)[1:-1] for name in names[:_NAMES_LISTED]], len(names))
    of_one = max(holder.of_task for holder in group)
    own = f", {'which holds' if of_one == len(group) else 'one task up to'} {of_one}" if of_one > 1 else ""
    lines = [f"{len(group)} for {times} by {name_of(group)}{own}, on {where}"]
    if group[0].asks:
        lines.append("    and asks for another one meanwhile")
    if group[0].ended and group[0].task is not None:
        lines.append("    which has ended")
    if group[0].preparing:
        lines.append("    not handed over yet: the connector's on_acquire is under way")
    if group[0].now is not None:
        lines.append(f"    now in {group[0].now}")
    if group[0].site is not None:
        lines.append(f"    claimed at {group[0].site}")
    return lines


def _stand(backends: Sequence[Standing]) -> list[str]:
    """Describe the backends, those in trouble first; if there are many, the others are only counted."""
    by_trouble = sorted(backends, key=lambda one: (_RANK.get(one.state, 0), not one.plight))
    listed = by_trouble[:_BACKENDS_LISTED] if len(backends) > _BACKENDS_LISTED + 1 else by_trouble
    names = [shown(one.backend)[1:-1] for one in listed]
    width = min(max(map(len, names)), _WIDEST_NAME)
    lines = [f"{name:{width}}  {one}" for name, one in zip(names, listed, strict=True)]
    if len(listed) < len(backends):
        states = Counter(one.state for one in by_trouble[len(listed) :])
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        lines.append(f"and {len(backends) - len(listed)} more: {counts}")
    return lines
