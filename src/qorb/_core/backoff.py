"""Backoff: how long to leave a backend alone after failures. One for each backend, not one for each slot."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

_MAX_DOUBLINGS = 1000
"""2.0 ** 1000 is still a float; by then every sensible maximum has been reached."""
LEAST_PAUSE = 0.001
"""Seconds between what has failed, or was given up, and the next try, even where the policy wants none.

What fails without waiting would be repeated for ever within one turn of the loop, or one moment of its clock.
"""


class Backoff:
    """Counts failed rounds and says before which moment the next attempt must not begin.

    Attempts that run side by side are one round: each remembers `round` when it begins, and only the first failure of
    a round makes the pause longer.
    """

    __slots__ = ("_floor", "_least", "_rng", "_spread", "longest", "not_before", "round", "steps")

    def __init__(self, least: float, most: float, spread: float, rng: Random) -> None:
        """Take the first pause, the longest one and the random part, in seconds."""
        if math.isinf(spread):  # as endless as by the other two: only a cap ends such pauses
            least, most, spread = math.inf, math.inf, 0.0
        self._least = least
        self.longest = most
        self._spread = spread
        self._rng = rng
        self.steps = 0
        """Failed rounds since the last success."""
        self.round = 0
        self.not_before = -math.inf
        self._floor = -math.inf
        """What `not_before` is not brought down under."""

    def failed(self, began_in: int, now: float, cap: float = math.inf, least: float = 0.0) -> bool:
        """Note that an attempt of round `began_in` failed. False when its round had failed already.

        The pause is drawn under `cap`, and is at least `least`.
        """
        if began_in != self.round:
            return False
        self.round += 1
        self.steps += 1
        self._floor = now + least
        self.not_before = max(now + self._pause(cap), self._floor)
        return True

    def succeeded(self) -> None:
        """Start over: the next failure pauses for the first pause again."""
        self.steps = 0
        self.round += 1
        self.not_before = self._floor = -math.inf

    def shorten(self, now: float, cap: float) -> bool:
        """Bring a pause that would last longer than `cap` down to one drawn under it; say whether that was needed."""
        if self.not_before <= max(now + cap + self._spread, self._floor):
            return False
        self.not_before = max(now + self._draw(cap), self._floor)
        return True

    @property
    def pause(self) -> float:
        """The longest pause, in seconds, that the last failure may have brought, chance and cap set aside."""
        return min(self._least * 2.0 ** min(self.steps - 1, _MAX_DOUBLINGS), self.longest) if self.steps else 0.0

    def _pause(self, cap: float) -> float:
        return self._draw(min(self.pause, cap))

    def _draw(self, pause: float) -> float:
        if math.isinf(pause):
            return math.inf
        spread = self._rng.random() * self._spread
        return self._rng.uniform(pause / 2, pause) + spread
