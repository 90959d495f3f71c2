"""Why a claim could not be served, in words that help."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from qorb._holders import task_name, task_of
from qorb._look import Look, blank, remedies
from qorb._plight import outdated, plight, unconnected, unresolved, unused
from qorb._tasks import thread_place
from qorb.errors import AllClaimsUsedError, ClaimTimeoutError, Holder, NoBackendsError, NoBackendsOnlineError, describe

if TYPE_CHECKING:
    from qorb._desk import Attempt
    from qorb._engine import Engine
    from qorb.explanation import Explanation

_BACKENDS_LISTED = 10
_HOLDERS_LISTED = 3
_WAITERS_LISTED = 3
_REST = 250e-6
"""Seconds for each backend and each claim out until the next explanation is taken: fifty times what it costs."""
_LOOKS = 100
"""From another thread it is looked so many times at a pool that changes meanwhile."""


class Diagnosis:
    """Why claims cannot be served at this moment; one for all that fail in the same turn."""

    def __init__(
        self,
        kind: type[ClaimTimeoutError],
        reason: str,
        look: Look,
        cause: BaseException | None = None,
        **facts: Any,  # noqa: ANN401 - what the class of the error wants
    ) -> None:
        """Take the class of the error, its text, how the pool looks, what it is chained to, and its attributes."""
        self._kind = kind
        self._facts = facts
        self._reason = reason
        self._cause = cause
        self._held = look.held
        self._explanation = _explanation(look, kind)

    def error(self, attempt: Attempt, missing: str = "no connection") -> ClaimTimeoutError:
        """Make the error for one claim; `missing` says what there was not in time."""
        text = self._reason
        if attempt.timeout > 0:
            text = f"{missing} within {attempt.timeout:g} s: {text}"
        own = self._held.get(attempt.task, []) if attempt.task is not None else []
        explanation = self._explanation
        if own:
            count = "a connection" if len(own) == 1 else f"{len(own)} connections"
            itself = f"This task itself already holds {count} of this pool: it may be waiting for itself"
            text += f". {itself}"
            explanation = dataclasses.replace(explanation, verdict=f"{explanation.verdict}. {itself}")
        if attempt.failure is not None:
            text += (
                f". on_acquire refused every connection that it was given, at last with: {describe(attempt.failure)}"
            )
        error = self._kind(text, **self._facts)
        error.explanation = explanation
        error.__cause__ = attempt.failure if attempt.failure is not None else self._cause
        return error


_latest: WeakKeyDictionary[Engine[Any], tuple[type[ClaimTimeoutError], float, Explanation]] = WeakKeyDictionary()
"""The last explanation of each pool, with the kind of error and the moment that it was taken for."""


def _explanation(look: Look, kind: type[ClaimTimeoutError]) -> Explanation:
    """Explain, or give the last explanation: claims that fail one by one must not take the pool's time."""
    size = len(look.sets) + len(look.claimed)
    latest, moment, explanation = _latest.get(look.engine, (None, 0.0, None))
    if explanation is None or latest is not kind or look.now - moment > size * _REST:
        explanation = look.explanation()
        _latest[look.engine] = (kind, look.now, explanation)
    return explanation


def diagnose(engine: Engine[Any]) -> Diagnosis:
    """Look at the pool and say what keeps it from serving a claim."""
    look = Look(engine)
    if not engine.backends:
        return _no_backends(look)
    if not any(engine.sets[name].online for name in engine.backends):
        return _none_online(look)
    return _all_used(look)


def explain(engine: Engine[Any]) -> Explanation:
    """Say how the pool stands; from another thread than the pool's, at moments that may differ a little."""
    if threading.get_ident() == engine.desk.thread:
        return Look(engine).explanation()
    for _ in range(_LOOKS):
        try:
            return Look(engine, thread_place(engine.desk.thread)).explanation()
        except (
            RuntimeError,
            LookupError,
            AttributeError,
            TypeError,
            ValueError,
        ):  # something changed while it was gone through
            continue
    verdict = "not to be seen from another thread, so fast does it change; ask in its own"
    return blank(engine.name, engine.state, verdict, engine.policy)


def _no_backends(look: Look) -> Diagnosis:
    engine = look.engine
    last_error = engine.resolver_error_text
    text = f"pool {engine.name}: {unresolved(engine)}"
    return Diagnosis(NoBackendsError, text, look, engine.resolver_error, pool=engine.name, last_error=last_error)


def _none_online(look: Look) -> Diagnosis:
    engine, now = look.engine, look.now
    sets = [engine.sets[name] for name in sorted(engine.backends)]
    listed = [f"{slots.backend.name}: {plight(slots, now)}" for slots in sets[:_BACKENDS_LISTED]]
    if len(sets) > _BACKENDS_LISTED:
        listed.append(f"and {len(sets) - _BACKENDS_LISTED} more")
    newest = max(sets, key=lambda slots: slots.last_error_time)
    text = f"pool {engine.name}: {unconnected(len(sets))} ({'; '.join(listed)}){outdated(engine)}"
    errors = {slots.backend.name: slots.last_error_text for slots in sets}
    return Diagnosis(NoBackendsOnlineError, text, look, newest.last_error, pool=engine.name, errors=errors)


def _all_used(look: Look) -> Diagnosis:
    engine, claimed, waiting = look.engine, look.claimed, look.waiting
    text = f"pool {engine.name}: {len(claimed)} of at most {look.limit} connections are in use"
    if len(claimed) < look.limit:
        text += f"; the others: {unused(look)}"
    if claimed:
        text += "; held longest: " + "; ".join(_longest(look))
    if waiting:
        names = [_task_name(attempt) for attempt in look.front[:_WAITERS_LISTED]]
        more = ", ..." if waiting > len(names) else ""
        text += f"; others still waiting: {waiting} ({', '.join(names)}{more})"
    text += "".join([f". {one}" for one in remedies(look)])
    facts: dict[str, Any] = {"pool": engine.name, "holders": look.holders, "limit": look.limit, "waiting": waiting}
    return Diagnosis(AllClaimsUsedError, text, look, **facts)


def _longest(look: Look) -> list[str]:
    """Describe the claims that are held longest, those of one task together."""
    texts: dict[object, str] = {}
    longest = list(zip(look.claimed, look.holders, strict=True))[:_HOLDERS_LISTED]
    for slot, holder in longest:
        task = task_of(slot)
        if task is None or holder.of_task == 1:
            texts[slot] = str(holder)
        elif task not in texts:
            texts[task] = _describe_hoarder([other for one, other in longest if task_of(one) is task])
    return list(texts.values())


def _describe_hoarder(own: list[Holder]) -> str:
    """Say what a task with several connections holds: how many, how long those of the longest held ones, and where."""
    times = ", ".join(f"{holder.seconds:.1f} s" for holder in own)
    text = f"{times} by {own[0].who}, which holds {own[0].of_task} of them"
    sites = dict.fromkeys(holder.site for holder in own if holder.site is not None)
    if sites:
        text += f", claimed at {' and '.join(sites)}"
    return text if own[0].now is None else f"{text}, now in {own[0].now}"


def _task_name(attempt: Attempt) -> str:
    return repr(task_name(attempt.task)) if attempt.task is not None else "a task"
