"""Observers that come with qorb, and `combine`. Each lives in a module of its own, which imports what it needs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from qorb.errors import describe
from qorb.events import check_observer

if TYPE_CHECKING:
    from qorb.events import Event, Observer

__all__ = ["combine"]

_logger = logging.getLogger("qorb")


def combine(*observers: Observer) -> Observer:
    """Make one observer of several, which are told of every event in this order.

    What one of them raises is logged, once for each of them, and harms neither the others nor the pool;
    KeyboardInterrupt and SystemExit pass. Raises TypeError for what cannot be an observer.
    """
    for observer in observers:
        check_observer(observer)
    return _Combined(observers)


class _Combined:
    __slots__ = ("_observers", "_reported")

    def __init__(self, observers: tuple[Observer, ...]) -> None:
        self._observers = observers
        self._reported: set[int] = set()
        """Places of those that have raised."""

    def __call__(self, event: Event) -> None:
        for place, observer in enumerate(self._observers):
            try:
                observer(event)
            except (KeyboardInterrupt, SystemExit, GeneratorExit):
                raise
            except BaseException as error:  # noqa: BLE001 - user code
                self._report(place, event, error)

    def _report(self, place: int, event: Event, error: BaseException) -> None:
        if place not in self._reported:
            self._reported.add(place)
            _logger.error(
                "pool %s: the observer at place %d raised, which is reported only once: %s",
                event.pool,
                place + 1,
                describe(error),
            )
