"""Playing plans: one, and a failing one made as short as it still fails."""

from __future__ import annotations

import copy
import functools
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qorb.testing import Deadlock, ForbiddenCallError, Livelock
from tests.simulation.laws import Law
from tests.simulation.world import World

if TYPE_CHECKING:
    from collections import Counter

    from tests.simulation.plan import Plan


@dataclass
class Run:
    """A run that broke no law."""

    trace: str
    """What was done, and what the connector was asked for."""
    situations: Counter[str]
    """Which of the rare situations came up, and how often."""


class Failure(AssertionError):  # noqa: N818 - that is what it is called
    """A run that broke a law: `law`, where it has a name. `kind` tells what went wrong, without numbers."""

    def __init__(self, plan: Plan, cause: BaseException, trace: str) -> None:
        self.trace = trace
        self.law = _law(cause)
        self.kind = "".join(letter for letter in f"{type(cause).__name__}: {cause}" if not letter.isdigit())
        lines = "".join(traceback.format_exception(cause)[-3:])
        name = "" if self.law is None else f"{self.law.name} ({self.law.value}) is broken: "
        super().__init__(
            f"seed {plan.seed}: {name}{type(cause).__name__}: {cause}\n{lines}"
            f"replay with its trace: python -m tests.simulation --seed {plan.seed}"
        )


def _law(cause: BaseException) -> Law | None:
    if isinstance(cause, ForbiddenCallError):
        return Law.END if "after forbid()" in str(cause) else Law.CALLS
    if isinstance(cause, Deadlock | Livelock):
        return Law.PROGRESS if isinstance(cause, Deadlock) else Law.QUIET
    return getattr(cause, "law", None)


def play(plan: Plan) -> Run:
    """Play a plan; raise Failure when it breaks a law."""
    world = World(plan)
    try:
        world.play()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as cause:
        raise Failure(plan, cause, world.told()) from cause
    return Run(world.told(), world.situations.seen)


@functools.cache
def corpus() -> dict[int, str]:
    """Read the seeds that are replayed besides the first five hundred, each with its reason."""
    lines = (Path(__file__).parent / "corpus.txt").read_text(encoding="utf-8").splitlines()
    entries = (line.partition(" ") for line in lines if line and not line.startswith("#"))
    return {int(seed): reason.strip() for seed, _, reason in entries}


def shrink(plan: Plan) -> Plan:
    """Leave out steps as long as the plan fails in the same way."""
    kind = _kind(plan)
    size = max(1, len(plan.steps) // 2)
    while size:
        place = 0
        while place < len(plan.steps):
            shorter = copy.deepcopy(plan)
            del shorter.steps[place : place + size]
            if _kind(shorter)[:40] == kind[:40]:
                plan = shorter
            else:
                place += size
        size //= 2
    return plan


def _kind(plan: Plan) -> str:
    try:
        play(plan)
    except Failure as failure:
        return failure.kind
    return ""
