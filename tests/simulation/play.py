"""Playing plans: one, and a failing one made as short as it still fails."""

from __future__ import annotations

import copy
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qorb.testing import Deadlock, ForbiddenCallError, Livelock
from tests.simulation.laws import Law
from tests.simulation.world import World

if TYPE_CHECKING:
    from collections import Counter

    from tests.simulation.plan import Plan

LAWS = {Deadlock: Law.PROGRESS, Livelock: Law.QUIET, ForbiddenCallError: Law.CALLS}
"""What is broken when qorb.testing finds something wrong by itself."""


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
        self.law: Law | None = getattr(cause, "law", None) or LAWS.get(type(cause))
        self.kind = "".join(letter for letter in f"{type(cause).__name__}: {cause}" if not letter.isdigit())
        lines = "".join(traceback.format_exception(cause)[-3:])
        name = "" if self.law is None else f"{self.law.name} ({self.law.value}) is broken: "
        super().__init__(
            f"seed {plan.seed}: {name}{type(cause).__name__}: {cause}\n{lines}"
            f"replay with its trace: python -m tests.simulation --seed {plan.seed}"
        )


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
