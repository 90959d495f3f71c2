"""LoggingObserver: what happens, as log records that people can read and programs can sort."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Final

from qorb import events
from qorb.observers._failures import given_up
from qorb.stats import BackendStats

if TYPE_CHECKING:
    from qorb.events import Event

__all__ = ["LoggingObserver"]

_PAUSE: Final = 1.0
"""Seconds between two records of one kind about one backend."""

_DEBUG, _INFO, _WARNING = logging.DEBUG, logging.INFO, logging.WARNING

_RECORDS: Final[Mapping[type[Event], tuple[int, str]]] = {
    events.ClaimStart: (_DEBUG, "claim %(claim_id)d asks for a connection"),
    events.ClaimDone: (_DEBUG, "claim %(claim_id)d has slot %(slot_id)d after %(wait).6f s"),
    events.ClaimFailed: (_WARNING, "claim %(claim_id)d failed after %(wait).3f s: %(reason)s"),
    events.ClaimAcquireFailed: (_WARNING, "on_acquire failed for claim %(claim_id)d, slot %(slot_id)d: %(reason)s"),
    events.PoolClaimStart: (_DEBUG, "claim %(claim_id)d looks for an idle connection"),
    events.PoolClaimDone: (_DEBUG, "claim %(claim_id)d found slot %(slot_id)d"),
    events.PoolClaimFailed: (_DEBUG, "claim %(claim_id)d waits: no connection is idle"),
    events.SlotSetClaimStart: (_DEBUG, "claim %(claim_id)d tries %(backend)s"),
    events.SlotSetClaimDone: (_DEBUG, "claim %(claim_id)d got slot %(slot_id)d to %(backend)s"),
    events.SlotSetClaimFailed: (_INFO, "%(backend)s had nothing for claim %(claim_id)d: %(reason)s"),
    events.ConnectStart: (_DEBUG, "slot %(slot_id)d connects to %(backend)s"),
    events.ConnectDone: (_DEBUG, "slot %(slot_id)d is connected to %(backend)s"),
    events.ConnectFailed: (_WARNING, "slot %(slot_id)d could not connect to %(backend)s: %(reason)s"),
    events.SlotSetOnline: (_INFO, "%(backend)s is online"),
    events.SlotSetOffline: (_WARNING, "%(backend)s is offline: its last connection is gone"),
    events.SlotStateChange: (_DEBUG, "slot %(slot_id)d to %(backend)s: %(old)s -> %(new)s"),
    events.HandleClaimed: (_DEBUG, "slot %(slot_id)d to %(backend)s is set aside for claim %(claim_id)d"),
    events.HandleReturned: (_DEBUG, "slot %(slot_id)d to %(backend)s is back from claim %(claim_id)d"),
    events.HealthCheckStart: (_DEBUG, "slot %(slot_id)d to %(backend)s is checked"),
    events.HealthCheckDone: (_DEBUG, "slot %(slot_id)d to %(backend)s is good"),
    events.HealthCheckFailed: (_WARNING, "slot %(slot_id)d to %(backend)s failed its check: %(reason)s"),
    events.RecycleStart: (_DEBUG, "slot %(slot_id)d to %(backend)s is recycled"),
    events.RecycleDone: (_DEBUG, "slot %(slot_id)d to %(backend)s is fit again"),
    events.RecycleFailed: (_WARNING, "slot %(slot_id)d to %(backend)s could not be recycled: %(reason)s"),
    events.RebalanceStart: (_DEBUG, "slots are about to be started and stopped: %(plan)s"),
    events.RebalanceDone: (_DEBUG, "slots are being started and stopped: %(plan)s"),
    events.ResolverUpdated: (_INFO, "backends added: %(added)s, removed: %(removed)s, changed: %(changed)s"),
    events.ResolverFailed: (_WARNING, "there is no newer set of backends: %(reason)s"),
    events.ResolverQueryStart: (_DEBUG, "%(server)s is asked for %(question)s"),
    events.ResolverQueryDone: (_DEBUG, "%(server)s has %(records)d records of %(question)s for %(ttl).1f s"),
    events.ResolverQueryFailed: (_INFO, "%(server)s has no answer for %(question)s: %(reason)s"),
    events.PoolTerminateStart: (_INFO, "the termination begins with: %(left)s"),
    events.PoolTerminateDone: (_INFO, "the termination is over; left: %(left)s"),
}
_UNKNOWN: Final = (_DEBUG, "%(event)s")

_ABOUT: Final = ("backend", "server")
"""Fields that say whom an event is about."""

_Key = tuple[str, str, str, str]
"""Of what there is one record a second: the event's class, the pool, and, if any, one of _ABOUT and what it says."""


class _Window:
    """The time in which there is one record of a kind, and how many there would have been besides."""

    __slots__ = ("level", "opened", "suppressed")

    def __init__(self, opened: float, level: int) -> None:
        self.opened = opened
        self.level = level
        self.suppressed = 0


class LoggingObserver:
    """Tells the standard logging module what happens: `Pool(..., observer=LoggingObserver())`.

    A failing connect, check, recycling, claim or resolver, and a backend that goes offline, are warnings; backends that
    come and go, and the end of the pool, are INFO; everything else, above all what every claim does, is DEBUG. Of one
    kind about one backend there is at most one record a second, so that a broken backend floods nothing; a later record
    says how many there would have been besides. DEBUG is not limited.

    Each record has, besides its text, `qorb_event`, the name of the event's class, each of its fields under its name
    with `qorb_` before it, and `qorb_suppressed`, for formatters that write fields. No secret is in them: reasons come
    masked. One observer may serve several pools of one event loop.
    """

    __slots__ = ("_ending", "_logger", "_looked", "_now", "_windows")

    def __init__(self, logger: logging.Logger | str = "qorb.events") -> None:
        """Log to this logger."""
        self._logger = logging.getLogger(logger) if isinstance(logger, str) else logger
        self._windows: dict[_Key, _Window] = {}
        self._ending: set[str] = set()
        """Pools whose backends go offline because they end."""
        self._now = 0.0
        self._looked = 0.0
        """When what was suppressed was looked through last."""

    def __call__(self, event: Event) -> None:
        """Log an event, unless its level is off or there were too many of its kind."""
        level, text = _RECORDS.get(type(event), _UNKNOWN)
        if level > _DEBUG:
            level = self._level_of(event, level)
        if not self._logger.isEnabledFor(level):
            return
        if level == _DEBUG:
            self._log(level, text, event)
        else:
            self._log_within_limits(level, text, event)

    def _level_of(self, event: Event, level: int) -> int:
        if isinstance(event, events.PoolTerminateStart):
            self._ending.add(event.pool)
        elif isinstance(event, events.PoolTerminateDone):
            self._ending.discard(event.pool)
        elif isinstance(event, events.SlotSetOffline):
            return _INFO if event.pool in self._ending else level
        elif given_up(event):
            return _DEBUG
        return level

    def _log_within_limits(self, level: int, text: str, event: Event) -> None:
        now = self._time()
        field = next((name for name in _ABOUT if hasattr(event, name)), "")
        key = (type(event).__name__, event.pool, field, str(getattr(event, field)) if field else "")
        window = self._windows.get(key)
        if window is None or now - window.opened >= _PAUSE:
            self._windows[key] = _Window(now, level)
            self._log(level, text, event, 0 if window is None else window.suppressed)
        else:
            window.suppressed += 1
        if now - self._looked >= _PAUSE or isinstance(event, events.PoolTerminateDone):
            self._looked = now
            self._tell_suppressed(now, event)

    def _time(self) -> float:
        """Give the loop's time; where none runs, as in an abort() after its end, time stands still."""
        with contextlib.suppress(RuntimeError):
            self._now = asyncio.get_running_loop().time()
        return self._now

    def _tell_suppressed(self, now: float, event: Event) -> None:
        """Say how much was suppressed that has had no successor since, and forget what is over."""
        ended = event.pool if isinstance(event, events.PoolTerminateDone) else None
        for key, window in tuple(self._windows.items()):
            if now - window.opened < _PAUSE and key[1] != ended:
                continue
            del self._windows[key]
            if window.suppressed:
                self._windows[key] = _Window(now, window.level)  # this is the record of the next second
                self._log_suppressed(key, window)
        if ended is not None:
            self._windows = {key: window for key, window in self._windows.items() if key[1] != ended}

    def _log_suppressed(self, key: _Key, window: _Window) -> None:
        name, pool, field, about = key
        said = {"event": name, "pool": pool, "about": f" of {about}" if about else "", "suppressed": window.suppressed}
        text = "pool %(pool)s: %(suppressed)d more times %(event)s%(about)s"
        extra = {"qorb_event": name, "qorb_pool": pool, "qorb_suppressed": window.suppressed}
        self._logger.log(window.level, text, said, extra=extra | ({f"qorb_{field}": about} if field else {}))

    def _log(self, level: int, text: str, event: Event, suppressed: int = 0) -> None:
        said: dict[str, object] = {field.name: _plain(getattr(event, field.name)) for field in fields(event)}
        said |= {"event": type(event).__name__, "suppressed": suppressed}
        more = " (and %(suppressed)d more times since the last such record)" if suppressed else ""
        extra = {f"qorb_{name}": value for name, value in said.items()}
        text = f"pool %(pool)s: {text}{more}"
        self._logger.log(level, text, said, extra=extra)


def _plain(value: object) -> object:
    """Give what a formatter for JSON can write."""
    if isinstance(value, BackendStats):
        return {
            field.name: str(getattr(value, field.name)) if field.name == "backend" else getattr(value, field.name)
            for field in fields(value)
        }
    return dict(value) if isinstance(value, Mapping) else value
