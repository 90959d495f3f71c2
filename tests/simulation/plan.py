"""Plan: everything that is to happen in one run, as plain values that can be written down and played again.

A plan follows from its seed. It says when each thing happens either in seconds or by a timer of the pool that is due at
that time ("just before the third timer from now"): faults at random times rarely hit the windows that matter.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from random import Random
from typing import Any, Self

NAMES = "abcdefghijkl"

OPERATIONS = ("connect", "validate", "on_acquire", "on_recycle", "close")
OPTIONAL = ("validate", "on_acquire", "on_recycle", "close", "is_closed", "needs_recycle")
ERRORS = ("refused", "value", "base", "cancelled", "timeout", "unprintable", "ours")


@dataclass
class Step:
    """One thing that happens."""

    when: list[Any]
    """["after", seconds], ["turn"] (the next of the loop), or ["timer", which from now, seconds before or after]."""
    what: str
    how: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.what} {self.how}"


@dataclass
class Plan:
    """One run."""

    seed: int
    unit: float
    """The time, in seconds, by which all others of the plan are measured."""
    order: int
    """The seed of the loop: 0 is asyncio's own order."""
    policy: dict[str, float]
    latency: float
    overridden: list[str]
    """The methods that the connector has of its own, besides connect and abort."""
    recycles: str
    """What its needs_recycle says: "always", "never", or "unclean"."""
    observer: str
    """"none", "quiet", "raising" or "asking"."""
    resolver: str
    """"manual" or "unruly"."""
    debug: bool
    backends: list[dict[str, Any]]
    steps: list[Step]
    finale: dict[str, Any]
    ending: dict[str, Any]

    @property
    def hopeless(self) -> bool:
        """Whether operations take too long even when everything is healthy."""
        limits = [self.policy[name] for name in ("connect_timeout", "health_check_timeout", "close_timeout")]
        return self.latency > 0.5 * min(limits)

    def to_json(self) -> str:
        """Write the plan down."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a plan that was written down."""
        values = json.loads(text)
        values["steps"] = [Step(**step) for step in values["steps"]]
        return cls(**values)


def draw(seed: int) -> Plan:
    """Make the plan of a seed."""
    return _Draw(seed).plan()


class _Draw:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.unit = self.rng.choice([0.01, 0.1, 1.0, 1.0, 10.0])
        self.names = NAMES[: self.rng.choice([1, 1, 2, 2, 3, 3, 4, 6, 12])]
        self.published: list[dict[str, Any]] = []

    def plan(self) -> Plan:
        rng = self.rng
        policy = self._policy()
        # What fails at once must not be tried again at once: that would be the plan's busy loop, not the pool's.
        eager = policy["min_connection_backoff"] + policy["spread"] < self.unit * 0.005
        latency = self.unit * rng.choice([0.05, 0.2] if eager else [0.001, 0.001, 0.01, 0.1])
        if rng.random() < 0.95:  # else all operations may take too long, however healthy everything is
            limits = [policy[name] for name in ("connect_timeout", "health_check_timeout", "close_timeout")]
            latency = min(latency, 0.4 * min(limits))
        overridden = list(OPTIONAL) if rng.random() < 0.4 else [one for one in OPTIONAL if rng.random() < 0.4]
        backends = self._set_of_backends() if rng.random() < 0.85 else []
        steps: list[Step] = []
        for _ in range(rng.choice([8, 15, 30, 30, 45, 60])):
            steps += self._steps()
        return Plan(
            seed=self.seed,
            unit=self.unit,
            order=0 if rng.random() < 0.25 else rng.randrange(1, 1 << 30),
            policy=policy,
            latency=latency,
            overridden=overridden,
            recycles=rng.choice(["always", "unclean", "unclean", "never"]),
            observer=rng.choice(["none", "none", "none", "quiet", "quiet", "raising", "asking"]),
            resolver=rng.choice(["manual", "manual", "unruly"]),
            debug=rng.random() < 0.05,
            backends=backends,
            steps=steps,
            finale=self._finale(),
            ending=self._ending(),
        )

    def _policy(self) -> dict[str, float]:
        rng, unit = self.rng, self.unit
        max_slots = rng.choice([1, 1, 2, 3, 4, 5, 8, 12, 24])
        return {
            "spares_wanted": rng.choice([0, 0, 1, 2, 3, 8, max_slots, max_slots + 5]),
            "max_slots": max_slots,
            "max_slots_per_backend": rng.choice([1, 2, 3, 5, 16, 16, 16]),
            "rebalance_interval": rng.choice([unit, 5 * unit, 20 * unit, math.inf]),
            "claim_timeout": rng.choice([0, 0.5 * unit, 3 * unit, 3 * unit, 30 * unit, math.inf]),
            "max_waiters": rng.choice([0, 1, 5, 10_000, 10_000, 10_000, 10_000]),
            "connect_timeout": rng.choice([0.05 * unit, unit, unit, 10 * unit, math.inf]),
            "min_connection_backoff": rng.choice([0, 0.01 * unit, 0.1 * unit, 0.1 * unit, unit, 100 * unit]),
            "max_connection_backoff": rng.choice([0.1 * unit, unit, unit, 10 * unit, 1e6 * unit, math.inf]),
            "spread": rng.choice([0, 0.01 * unit, 0.1 * unit]),
            "health_interval": rng.choice([0.2 * unit, unit, 5 * unit, math.inf]),
            "health_check_timeout": rng.choice([0.05 * unit, 0.5 * unit, 3 * unit, math.inf]),
            "close_timeout": rng.choice([0.05 * unit, 0.5 * unit, 3 * unit]),
            "max_lifetime": rng.choice([0.5 * unit, 3 * unit, 20 * unit, math.inf, math.inf, math.inf]),
            "long_claim_warning": rng.choice([0, 0.2 * unit, 5 * unit, math.inf]),
        }

    # Backends.

    def _backend(self, name: str) -> dict[str, Any]:
        rng = self.rng
        return {
            "name": name,
            "host": f"10.0.0.{NAMES.index(name) + 1}",
            "port": 5432,
            "priority": rng.choice([0, 0, 0, 0, 1, 2]),
            "weight": rng.choice([1, 1, 1, 1, 2, 5, 0]),
        }

    def _set_of_backends(self) -> list[dict[str, Any]]:
        chosen = [name for name in self.names if self.rng.random() < 0.8] or [self.names[0]]
        self.published = [self._backend(name) for name in chosen]
        return self.published

    def _changed_backends(self) -> list[Step]:
        rng = self.rng
        backends = [dict(backend) for backend in self.published]
        kind = rng.choice(["new", "vanish", "return", "return", "move", "move", "rank", "empty", "shuffle"])
        if kind == "new" or not backends:
            backends = self._set_of_backends()
        elif kind == "vanish":
            backends.pop(rng.randrange(len(backends)))
        elif kind == "return":
            rest = list(backends)
            gone = rest.pop(rng.randrange(len(rest)))
            if rng.random() < 0.3:
                backends[backends.index(gone)] = self._moved(gone)
            return [
                Step(self._moment(), "backends", {"backends": rest}),
                Step(self._soon(), "backends", {"backends": backends}),
            ]
        elif kind == "move":
            place = rng.randrange(len(backends))
            backends[place] = self._moved(backends[place])
        elif kind == "rank":
            place = rng.randrange(len(backends))
            fresh = self._backend(backends[place]["name"])
            backends[place] |= {"priority": fresh["priority"], "weight": fresh["weight"]}
        elif kind == "empty":
            backends = []
        else:
            rng.shuffle(backends)
        if backends:
            self.published = backends
        return [Step(self._moment(), "backends", {"backends": backends})]

    def _moved(self, backend: dict[str, Any]) -> dict[str, Any]:
        if self.rng.random() < 0.2:
            return backend | {"server_name": self.rng.choice(["x.test", "y.test"])}
        return backend | {"host": f"10.0.{self.rng.randrange(1, 9)}.{NAMES.index(backend['name']) + 1}"}

    # Moments.

    def _moment(self) -> list[Any]:
        chance = self.rng.random()
        if chance < 0.45:
            which = self.rng.choice([0, 0, 0, 1, 2, 3, 5])
            return ["timer", which, self.rng.choice([-1e-6, 0, 0, 0, 1e-6, -1e-3 * self.unit, 1e-3 * self.unit])]
        return self._soon() if chance < 0.65 else ["after", self._time(1e-3, 3)]

    def _soon(self) -> list[Any]:
        chance = self.rng.random()
        if chance < 0.35:
            return ["after", 0]
        if chance < 0.65:
            return ["turn"]
        return ["after", self._time(1e-4, 0.3)]

    def _time(self, least: float, most: float) -> float:
        """Draw a time between two multiples of the unit, short ones as often as long ones."""
        return self.unit * math.exp(self.rng.uniform(math.log(least), math.log(most)))

    # What happens.

    def _steps(self) -> list[Step]:  # noqa: C901, PLR0911 - one kind of step after another
        rng = self.rng
        kind = rng.choices(
            [
                *("client", "crowd", "cancel", "backends", "fault", "heal", "drop", "block", "nonsense", "manners"),
                *("look", "give_back", "tie"),
            ],
            [24, 8, 12, 12, 20, 12, 5, 3, 3, 3, 4, 4, 3],
        )[0]
        if kind == "client":
            return [Step(self._moment(), "client", {"claims": self._claims()})]
        if kind == "crowd":
            claims = self._claims()
            first = Step(self._moment(), "client", {"claims": claims})
            return [first] + [Step(["after", 0], "client", {"claims": claims}) for _ in range(rng.choice([2, 5, 9]))]
        if kind == "cancel":
            return [self._cancel() for _ in range(rng.choice([1, 1, 1, 3]))]
        if kind == "tie":
            return self._tie()
        if kind == "backends":
            return self._changed_backends()
        if kind == "fault":
            return self._fault()
        how: dict[str, Any] = {}
        if kind == "heal":
            how = {"backend": rng.choice([None, None, *self.names])}
        elif kind == "drop":
            how = {"backend": rng.choice([None, *self.names])}
        elif kind == "block":
            how = {"seconds": rng.choice([self._time(1e-3, 1), self._time(1, 5), 1.5])}
        elif kind == "nonsense":
            how = {
                "kind": rng.choice(["twice", "text", "none", "raises", "raises base", "watch raises", "watch returns"])
            }
        elif kind == "manners":
            how = {"method": rng.choice(["is_closed", "needs_recycle", "abort", "observer"]), "error": self._error()}
        elif kind == "look":
            how = {"timeout": rng.choice([None, 0, self._time(0.01, 3)])}
        return [Step(self._moment(), kind, how)]

    def _cancel(self) -> Step:
        how = {"client": self.rng.randrange(100), "at": self.rng.choice(["once", "once", "grant", "grant", "twice"])}
        return Step(self._moment() if self.rng.random() < 0.6 else self._soon(), "cancel", how)

    def _tie(self) -> list[Step]:
        """Let a connection come back at the very moment at which the time of one who waits is over."""
        rng = self.rng
        keep = {"form": "claim", "timeout": None, "hold": 0, "asks": False, "end": "keep", "pause": 0}
        timeout = self._time(0.01, 1)
        steps = [Step(self._moment(), "client", {"claims": [keep] * rng.choice([1, 2, 5])})]
        steps.append(Step(["after", self._time(0.01, 1)], "client", {"claims": [keep | {"timeout": timeout}]}))
        return [*steps, Step(["after", timeout], "give_back")]

    def _error(self) -> str:
        return self.rng.choice(ERRORS)

    def _fault(self) -> list[Step]:
        rng = self.rng
        backend = rng.choice([None, *self.names])
        operation = rng.choice([None, *OPERATIONS, "connect", "on_acquire"])
        verb = rng.choices(
            ["refuse", "stall", "slow", "invalidate", "fail", "during", "deafen", "return_none", "return_same"],
            [6, 6, 4, 3, 4, 2, 2, 1, 1],
        )[0]
        how: dict[str, Any] = {"verb": verb, "backend": backend}
        if verb in ("stall", "slow", "fail", "during", "deafen"):
            how["operation"] = operation
        if verb in ("slow", "deafen"):
            how["seconds"] = self._time(1e-3, 3)
        elif verb == "fail":
            how["error"] = self._error()
        elif verb == "during":
            how |= {"action": rng.choice(["block", "claim", "stats", "backends"]), "seconds": self._time(1e-2, 2)}
            if how["action"] == "backends":
                how["backends"] = self._set_of_backends()
        steps = [Step(self._moment(), "fault", how)]
        if verb == "deafen" and rng.random() < 0.6:  # or it would hardly ever be cancelled
            how = {"verb": "stall", "backend": backend, "operation": how["operation"]}
            steps.append(Step(["after", 0], "fault", how))
        if verb in ("during", "deafen") or rng.random() < 0.3:
            steps.append(Step(["after", self._time(1e-2, 3)], "heal", {"backend": backend}))
        return steps

    def _claims(self, depth: int = 0) -> list[dict[str, Any]]:
        return [self._claim(depth) for _ in range(self.rng.choice([1, 1, 1, 2, 3, 6] if not depth else [1]))]

    def _claim(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        form = rng.choice(["async with", "async with", "claim", "with"])
        claim: dict[str, Any] = {
            "form": form,
            "timeout": rng.choice([None, None, None, None, 0, "inf", self._time(0.01, 1), self._time(0.01, 1)]),
            "hold": rng.choice([0, 0, self._time(1e-3, 0.1), self._time(0.05, 3)]),
            "asks": rng.random() < 0.4,
            "end": rng.choice(["clean", "clean", "clean", "clean", "raise", "cancel itself"]),
            "pause": rng.choice([0, 0, self._time(1e-3, 0.3)]),
        }
        if form == "claim":
            claim["end"] = rng.choice(
                ["clean", "clean", "raise", "discard", "twice", "forget", "careless", "keep", "keep"]
            )
        if rng.random() < 0.25:
            claim["wrap"] = rng.choice(["timeout", "timeout all", "wait_for"])
            claim["within"] = rng.choice([0, self._time(1e-3, 0.1), self._time(0.01, 3)])
        if depth < 2 and rng.random() < 0.08:
            claim["inner"] = self._claims(depth + 1)
        return claim

    def _finale(self) -> dict[str, Any]:
        rng = self.rng
        return {"backends": self._set_of_backends() if rng.random() < 0.3 else None, "clients": rng.choice([1, 5, 20])}

    def _ending(self) -> dict[str, Any]:
        rng, unit = self.rng, self.unit
        kind = rng.choice(["terminate"] * 7 + ["abort", "dropped", "outside"])
        return {
            "kind": kind,
            "faults": [
                step.how for _ in range(rng.choice([0, 0, 1, 2])) for step in self._fault() if step.what == "fault"
            ],
            "holders": [rng.choice([0.01 * unit, unit, 100 * unit]) for _ in range(rng.choice([0, 0, 1, 3, 6]))],
            "detour": rng.choice([0, self._time(1e-3, 1)]),
            "grace": rng.choice([0, 0.01 * unit, unit, 5.0, math.inf]),
            "held": rng.choice(["revoke", "detach"]),
            "callers": rng.choice([1, 1, 2, 5]),
            "cancelled": rng.choice([0, 0, 1, 2]),
            "timeout": rng.choice([None, None, 0, 0.01 * unit, unit]),
            "early": rng.random() < 0.3,
            "vanishing": rng.random() < 0.3,
            "waiting": rng.choice([0, 0, 0, 1, 5]),
        }
