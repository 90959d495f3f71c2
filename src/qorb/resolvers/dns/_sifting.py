"""Which records of an answer are used. Answers may be big, so it is done in slices, a turn of the loop between them."""

from __future__ import annotations

import asyncio
import re
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar

from qorb.resolvers.dns._addresses import judge
from qorb.resolvers.dns._names import MAX_NAME
from qorb.resolvers.dns._values import Failed, NoRecords, Records, Srv

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from qorb.resolvers.dns._values import Question, Reply

T = TypeVar("T")

MAX_ADDRESSES = 64
"""More addresses of one target than this are not used."""
_SLICE = 100
"""Records to look at before the loop has its turn."""
_HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_NO_SERVICE = "no such service"
"""What the target "." says (RFC 2782)."""
_NO_PORT = "port 0"
_MAX_NOTES = 20
"""Of so many records left out the reason is kept."""


class Sieve:
    """Sifts answers for one resolver: `seed` makes its choice among too many stable, and different from others'."""

    def __init__(self, seed: bytes, max_targets: int) -> None:
        """Use at most so many targets of an SRV answer."""
        self._seed = seed
        self._max_targets = max_targets

    async def targets(self, found: Sequence[Srv], ttl: float, cnames: int) -> Reply:
        """Choose among SRV records: lower priority values first, then by hash; equal (target, port) count once."""
        best: dict[tuple[str, int], tuple[int, bytes, Srv]] = {}
        refused: list[str] = []
        async for srv in in_slices(found):
            reason = _reason_against(srv)
            if reason is not None:
                _note(refused, f"{srv.target or '.'}:{srv.port}: {reason}")
                continue
            key = (srv.target, srv.port)
            rank = (srv.priority, self._hash(f"{srv.target}:{srv.port}"), srv)
            if key not in best or rank < best[key]:
                best[key] = rank
        chosen = sorted(best.values())[: self._max_targets]
        if len(chosen) < len(best):
            _note(refused, f"{len(best) - len(chosen)} more: only {self._max_targets} are used")
        return _reply(tuple(srv for _, _, srv in chosen), ttl, cnames, len(found), refused)

    async def addresses(
        self, question: Question, found: Sequence[str], ttl: float, cnames: int, *, loopback: bool
    ) -> Reply:
        """Choose among a target's addresses, by hash. `loopback`: those of this machine may be used."""
        best: dict[str, bytes] = {}
        refused: list[str] = []
        async for text in in_slices(found):
            address, reason, on_loopback = judge(text)
            if reason is None and on_loopback and not loopback:
                reason = "loopback, and not from a DNS server on loopback that was given by its address"
            if reason is not None:
                _note(refused, f"{address}: {reason}")
            else:
                best[address] = self._hash(f"{question.name} {address}")
        chosen = sorted(best, key=best.__getitem__)[:MAX_ADDRESSES]
        if len(chosen) < len(best):
            _note(refused, f"{len(best) - len(chosen)} more: only {MAX_ADDRESSES} addresses of a target are used")
        return _reply(tuple(chosen), ttl, cnames, len(found), refused)

    def _hash(self, text: str) -> bytes:
        return blake2b(text.encode(), digest_size=8, key=self._seed).digest()


def _reason_against(srv: Srv) -> str | None:
    if not srv.target:
        return _NO_SERVICE
    if len(srv.target) > MAX_NAME or not _HOST.fullmatch(srv.target):
        return "no host name"
    return _NO_PORT if srv.port == 0 else None


def _note(refused: list[str], text: str) -> None:
    if len(refused) < _MAX_NOTES:
        refused.append(text)


def _reply(chosen: tuple[Srv, ...] | tuple[str, ...], ttl: float, cnames: int, total: int, refused: list[str]) -> Reply:
    """Records that all must not be used are no answer: a filter that says 0.0.0.0 must not empty a pool."""
    if chosen:
        return Records(chosen, ttl, cnames, total, tuple(refused))
    if not refused:
        return NoRecords("no records")
    text = "no record that can be used: " + "; ".join(refused)
    denied = all(one.endswith((_NO_SERVICE, _NO_PORT)) for one in refused)
    return NoRecords(text) if denied else Failed(text)


async def in_slices(found: Sequence[T]) -> AsyncIterator[T]:
    """Go through what was found, and let the loop have its turn after every so many."""
    for number, one in enumerate(found, 1):
        yield one
        if number % _SLICE == 0:
            await asyncio.sleep(0)
