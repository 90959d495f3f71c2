"""What DNS has said so far of one service, what of it is believed, and for how long.

Pure: answers and the time go in, backends come out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, cast

from qorb.backend import Backend
from qorb.resolvers.dns._values import Kind, NoRecords, Question, Records, Srv

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from qorb.resolvers.dns._values import Reply
    from qorb.resolvers.dns.policy import DnsPolicy

_FAMILIES: dict[str, tuple[Kind, ...]] = {"any": ("A", "AAAA"), "ipv4": ("A",), "ipv6": ("AAAA",)}

_LEAST_STALE = 2.0
"""A shorter stale_limit is taken for this: rounds are a second apart, and a new answer must have time to come."""
_LOOK_AT = 16
"""So many times as many addresses as may be used are looked at: every target may have the same ones."""


@dataclass(slots=True)
class _Known:
    """What is known of one question."""

    records: tuple[Srv, ...] | tuple[str, ...] = ()
    since: float = -math.inf
    """When the last good answer came."""
    tried: float = -math.inf
    """When a round last settled on a reply, good or not."""
    denied_at: float | None = None
    """When it was first said, with no good answer since, that there is nothing."""
    denied: bool = False
    """That there is nothing is believed."""
    reason: str | None = None
    """Why there is nothing, or nothing newer."""


class Knowledge:
    """What is known of one service."""

    def __init__(self, service: str, default_port: int | None, policy: DnsPolicy, most: int) -> None:
        """Know nothing yet. `service` is in canonical form; at most `most` backends are used."""
        self.service = service
        self._policy = policy
        self._most = most
        self._stale_limit = max(policy.stale_limit, _LEAST_STALE)
        self._kinds = _FAMILIES[policy.family]
        self._srv = _Known()
        self._plain = default_port is not None
        if default_port is not None:
            self._srv.records = (Srv(0, 1, default_port, service),)
        self._former: tuple[Srv, ...] = ()
        """Targets that DNS no longer names, while nothing can be found out about those that it names now."""
        self._known: dict[Question, _Known] = {}
        self._names: dict[tuple[str, str, int], str] = {}
        self._backends: dict[str, Backend] = {}
        """What backends() gave last, by name: making one anew costs more than comparing."""

    # What to ask.

    def first_questions(self) -> list[Question]:
        """Give what a round begins with."""
        return self.address_questions() if self._plain else [Question(self.service, "SRV")]

    def address_questions(self) -> list[Question]:
        """Give what is asked about the targets that are known now: first what was not asked for longest.

        A round may be too short for all of them.
        """
        targets = dict.fromkeys(srv.target for srv in self._targets)
        questions = [Question(target, kind) for target in targets for kind in self._kinds]
        return sorted(questions, key=self._tried)

    def _tried(self, question: Question) -> float:
        known = self._known.get(question)
        return -math.inf if known is None else known.tried

    def is_what_is_known(self, question: Question, reply: Reply) -> bool:
        """Whether the reply says the same as the last good answer."""
        known = self._srv if question.kind == "SRV" else self._known.get(question)
        return known is not None and known.denied_at is None and set(known.records) == set(self._used(question, reply))

    # What was answered.

    def take(self, question: Question, reply: Reply, now: float, *, certain: bool = False) -> None:
        """Learn from the reply on which a round has settled.

        That what was known is gone is believed when it is said again retry_interval after it was first said, and no
        good answer came between. `certain`: it is a good answer, because the server that says it has addresses of the
        other family.
        """
        known = self._srv if question.kind == "SRV" else self._known.setdefault(question, _Known())
        known.reason = None if certain or isinstance(reply, Records) else reply.reason
        known.tried = now
        before = self._targets
        if certain or isinstance(reply, Records):
            known.records = self._used(question, reply)
            known.since, known.denied_at, known.denied = now, None, not known.records
        elif isinstance(reply, NoRecords):
            if known.denied_at is None:
                known.denied_at = now
            elif now >= known.denied_at + self._policy.retry_interval:
                known.records, known.denied = (), True
        if question.kind == "SRV":
            self._former = before if self._has_addresses(before) else self._former
            self._forget_other_targets()
        if self._former and (self._has_addresses(self._targets) or self._is_denied()):
            self._former = ()
            self._forget_other_targets()

    def _used(self, question: Question, reply: Reply) -> tuple[Srv, ...] | tuple[str, ...]:
        """Give the records that are used: the sieve does not know whose targets it sifts, and may let more pass."""
        if not isinstance(reply, Records):
            return ()
        return reply.records[: self._most] if question.kind == "SRV" else reply.records

    def _has_addresses(self, targets: Iterable[Srv]) -> bool:
        return any(self._addresses(srv.target) for srv in targets)

    def _is_denied(self) -> bool:
        """Whether it is believed that there are no backends."""
        asked = [self._known.get(question) for question in self.address_questions()] if self._targets else [self._srv]
        return all(known is not None and known.denied for known in asked)

    def expire(self, now: float) -> bool:
        """Drop what has gone without a good answer for as long as stale_limit, and tell whether there was any."""
        stale = [known for known in self._perishable() if known.since + self._stale_limit <= now]
        for known in stale:
            known.records = ()
        self._forget_other_targets()
        return bool(stale)

    def stale_at(self) -> float:
        """Give when expire() has something to do; math.inf: never."""
        return min((known.since + self._stale_limit for known in self._perishable()), default=math.inf)

    def _perishable(self) -> list[_Known]:
        answered = list(self._known.values()) if self._plain else [self._srv, *self._known.values()]
        return [known for known in answered if known.records]

    def _forget_other_targets(self) -> None:
        targets = {srv.target for srv in (*self._targets, *self._former)}
        for question in [question for question in self._known if question.name not in targets]:
            del self._known[question]

    @property
    def _targets(self) -> tuple[Srv, ...]:
        return cast("tuple[Srv, ...]", self._srv.records)

    # What follows.

    def missing(self) -> list[tuple[Question, str]]:
        """Give the questions to which there is nothing, or nothing newer, each with the reason."""
        asked = (
            [*self._known.items()]
            if self._plain
            else [(Question(self.service, "SRV"), self._srv), *self._known.items()]
        )
        return [(question, known.reason) for question, known in asked if known.reason is not None]

    def backends(self) -> tuple[Backend, ...]:
        """Give the backends, sorted by name.

        One for each (address, port): when several targets have it, that of the lowest priority value, then of the first
        target by name. At most `most` are used: lower priority values first; of equals, first one address of each.
        """
        chosen: dict[tuple[str, int], Srv] = {}
        for srv, address in islice(self._in_order_of_choice(), _LOOK_AT * self._most):
            other = chosen.get((address, srv.port))
            if other is None and len(chosen) == self._most:
                break
            if other is None or (srv.priority, srv.target) < (other.priority, other.target):
                chosen[address, srv.port] = srv
        self._names = self._named(chosen)
        made = [
            self._made(self._names[srv.target, address, port], address, port, srv)
            for (address, port), srv in chosen.items()
        ]
        self._backends = {backend.name: backend for backend in made}
        return tuple(sorted(made, key=lambda backend: backend.name))

    def _made(self, name: str, address: str, port: int, srv: Srv) -> Backend:
        old = self._backends.get(name)
        is_like = (address, port, srv.target, srv.priority, srv.weight)
        if old is not None and (old.host, old.port, old.server_name, old.priority, old.weight) == is_like:
            return old
        return Backend(name, *is_like)

    def _in_order_of_choice(self) -> Iterator[tuple[Srv, str]]:
        for _, group in groupby(self._former or self._targets, lambda srv: srv.priority):
            ranked = [(srv, self._addresses(srv.target)) for srv in group]
            for rank in range(max((len(addresses) for _, addresses in ranked), default=0)):
                for srv, addresses in ranked:
                    if rank < len(addresses):
                        yield srv, addresses[rank]

    def _addresses(self, target: str) -> list[str]:
        found = [self._known.get(Question(target, kind)) for kind in self._kinds]
        return list(chain.from_iterable(cast("tuple[str, ...]", known.records) for known in found if known is not None))

    def _named(self, chosen: dict[tuple[str, int], Srv]) -> dict[tuple[str, str, int], str]:
        """Name the chosen ones: as before while they stay, else target:port if the target has one address."""
        names: dict[tuple[str, str, int], str] = {}
        taken: set[str] = set()
        wanted = [(srv.target, address, port) for (address, port), srv in chosen.items()]
        for one in wanted:
            if one in self._names:
                names[one] = self._names[one]
                taken.add(names[one])
        for target, address, port in wanted:
            if (target, address, port) not in names:
                short = f"{target}:{port}"
                plain = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
                name = short if len(self._addresses(target)) == 1 and short not in taken else plain
                if name in taken:
                    name = f"{target}/{plain}"
                names[target, address, port] = name
                taken.add(name)
        return names
