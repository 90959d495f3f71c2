"""Playing plans: one, and a failing one made as short as it still fails."""

from __future__ import annotations

import copy
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.plan import Plan

CORPUS = Path(__file__).parent / "corpus"


class Failure(AssertionError):  # noqa: N818 - that is what it is called
    """A run that broke a law. `trace` tells what happened, `kind` what went wrong, without numbers."""

    def __init__(self, plan: Plan, cause: BaseException, trace: str) -> None:
        self.trace = trace
        self.kind = "".join(letter for letter in f"{type(cause).__name__}: {cause}" if not letter.isdigit())
        lines = "".join(traceback.format_exception(cause)[-3:])
        super().__init__(
            f"seed {plan.seed}: {type(cause).__name__}: {cause}\n{lines}"
            f"replay with its trace: python -m tests.simulation --seed {plan.seed}"
        )


def play(plan: Plan) -> str:
    """Play a plan and return its trace; raise Failure when it breaks a law."""
    world = World(plan)
    try:
        world.play()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as cause:
        raise Failure(plan, cause, world.told()) from cause
    return world.told()


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
