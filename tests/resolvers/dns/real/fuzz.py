"""Mutated answers: `python -m tests.resolvers.dns.real.fuzz --seconds 60 --seed 1`, or `make fuzz`.

What the server answers is a function of the name that it is asked for, which holds seed and number; a failure is seen
again by `--seed SEED --number NUMBER`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from qorb.resolvers.dns._aiodns import AiodnsClient
from qorb.resolvers.dns._servers import read_servers
from qorb.resolvers.dns._sifting import MAX_ADDRESSES, Sieve
from qorb.resolvers.dns._values import Failed, Kind, NoRecords, Question, Records, Reply, Srv
from tests.resolvers.dns.real import wire
from tests.resolvers.dns.real.corpus import CORPUS, GOOD, right
from tests.resolvers.dns.real.scripted import Asked, Script, ScriptedServer, Sent, scripted_server
from tests.resolvers.dns.real.turns import longest_turn, run_measured, too_long
from tests.resolvers.dns.real.wire import Answer, Query

MOST_TARGETS = 256
_HEAD = 12
_AT_ONCE = 20
_TRIES = 3
_INTERESTING = (0x00, 0x01, 0x3F, 0x40, 0x7F, 0x80, 0xC0, 0xC1, 0xFF)


def mutate(message: bytes, rng: random.Random) -> bytes:
    """Change a few things. The id stays as it is in most cases: the rest would not be looked at."""
    octets = bytearray(message)
    for _ in range(rng.choice((1, 1, 2, 3, 8, 30))):
        if len(octets) <= _HEAD:
            break
        place = rng.randrange(2 if rng.random() < 0.95 else 0, len(octets))
        length = rng.randrange(1, 1 + min(40, len(octets) - place))
        match rng.randrange(8):
            case 0:
                octets[place] ^= 1 << rng.randrange(8)
            case 1:
                octets[place] = rng.choice(_INTERESTING)
            case 2:
                octets[place : place + 2] = struct.pack(">H", 0xC000 | rng.randrange(len(octets)) & 0x3FFF)
            case 3:
                octets[place : place + length] = b""
            case 4:
                octets[place:place] = octets[place : place + length] * rng.choice((1, 2, 50))
            case 5:
                octets[place:place] = rng.randbytes(length)
            case 6:
                count = 4 + 2 * rng.randrange(4)
                octets[count : count + 2] = struct.pack(">H", rng.choice((0, 1, 2, 100, 65_535)))
            case _:
                del octets[place:]
    return bytes(octets[:65_535])


@dataclass(frozen=True)
class Case:
    """One mutated answer."""

    seed: int
    number: int

    @property
    def rng(self) -> random.Random:
        return random.Random(f"{self.seed}/{self.number}")

    @property
    def kind(self) -> Kind:
        return self.rng.choice(("SRV", "SRV", "A", "AAAA"))

    @property
    def question(self) -> Question:
        owner = "_pg._tcp" if self.kind == "SRV" else "a"
        return Question(f"{owner}.s{self.seed}n{self.number}.fuzz", self.kind)

    def answer(self, query: Query) -> tuple[bytes, bool]:
        """Give what is sent, and whether over TCP."""
        rng = self.rng
        rng.random()
        base = rng.choice([None, None, *CORPUS.values()])
        message = bytes(right(query)) if base is None else base.build(query)
        if query.kind == wire.AAAA and base is None:
            message = bytes(Answer(query, (wire.record(wire.QUESTION, wire.AAAA, rng.randbytes(16)),)))
        return mutate(message, rng), rng.random() < 0.3 or len(message) > 4_000


def script(domain: str) -> Script:
    """Give the mutated answer, and 20 ms later the right one: what is ignored costs no time then."""

    def answer(asked: Asked) -> Sequence[Sent | bytes]:
        seed, _, number = domain.partition(".")[0].removeprefix("s").partition("n")
        message, tcp = Case(int(seed), int(number)).answer(asked.query)
        if tcp and not asked.tcp:
            return [bytes(Answer(asked.query, flags=GOOD | wire.TC))]
        return [Sent(message), Sent(bytes(right(asked.query)), delay=0.02)] if message else [bytes(right(asked.query))]

    return answer


class BrokenError(Exception):
    """An answer has done what none may."""

    def __init__(self, case: Case, what: str) -> None:
        query = Query(0, case.question.name, wire.TYPES[case.kind], _question(case), None)
        message, tcp = case.answer(query)
        super().__init__(
            f"{what}\nanswer ({'TCP' if tcp else 'UDP'}, id 0): {message.hex()}\n"
            f"again: python -m tests.resolvers.dns.real.fuzz --seed {case.seed} --number {case.number}"
        )


def _question(case: Case) -> bytes:
    return wire.name(case.question.name) + struct.pack(">HH", wire.TYPES[case.kind], 1)


def objection(reply: Reply) -> str | None:
    """Say what is wrong with a reply, if anything."""
    if isinstance(reply, NoRecords | Failed):
        return None if reply.reason.isprintable() else f"an unprintable reason: {reply.reason!r}"
    if not isinstance(reply, Records) or not reply.records:
        return f"no reply: {reply!r}"
    srvs = [one for one in reply.records if isinstance(one, Srv)]
    most = MOST_TARGETS if srvs else MAX_ADDRESSES
    if len(reply.records) > most or len(srvs) not in {0, len(reply.records)}:
        return f"too many records, or of several kinds: {len(reply.records)}"
    if any(not 1 <= one.port <= 65_535 or not one.target.isprintable() for one in srvs):
        return f"a target that can be none: {srvs}"
    return None if 0 <= reply.ttl < 2**32 else f"a TTL of {reply.ttl}"


async def try_out(server: ScriptedServer, case: Case) -> None:
    """Raise BrokenError when the answer does what none may."""
    client = AiodnsClient(read_servers([server.address])[0], Sieve(b"a seed", MOST_TARGETS))
    try:
        asked = client.ask(case.question)
        await asyncio.wait([asked])
        reply = await client.read(case.question, asked)
    except Exception as error:
        raise BrokenError(case, f"it raised {error!r}") from error
    finally:
        await client.close()
    if (what := objection(reply)) is not None:
        raise BrokenError(case, what)


async def check_turns(server: ScriptedServer, cases: Sequence[Case]) -> None:
    """Try these again, one by one, several times each: what is slow of itself is slow each time."""
    for case in cases:
        turns = []
        for _ in range(_TRIES):
            longest_turn()
            await try_out(server, case)
            await asyncio.sleep(0)
            turns.append(longest_turn())
        if too_long(min(turns)):
            raise BrokenError(case, f"it kept the loop from its next turn for {min(turns)} s")


async def fuzz(server: ScriptedServer, seed: int, *, numbers: range, until: float = float("inf")) -> int:
    """Try out these numbers, some at once, until the clock says so; give how many there were."""
    await try_out(server, Case(seed, 0))  # what the first time costs is not the answer's doing
    done = 0
    for first in numbers[::_AT_ONCE]:
        cases = [Case(seed, number) for number in range(first, min(first + _AT_ONCE, numbers.stop))]
        longest_turn()
        async with asyncio.TaskGroup() as group:
            for case in cases:
                group.create_task(try_out(server, case))
        if too_long(longest_turn()):
            await check_turns(server, cases)
        done += len(cases)
        if time.monotonic() >= until:
            break
    return done


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description="Try mutated DNS answers out.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="which answers (default: chosen by chance, and printed)")
    parser.add_argument("--number", type=int, default=None, help="only this one of them")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    numbers = range(10**9) if arguments.number is None else range(arguments.number, arguments.number + 1)
    sys.stdout.write(f"seed {seed}\n")
    sys.stdout.flush()
    failures: list[BaseException] = []
    done = 0
    with scripted_server("tests.resolvers.dns.real.fuzz") as server:
        try:
            done = run_measured(lambda: fuzz(server, seed, numbers=numbers, until=time.monotonic() + arguments.seconds))
        except* BrokenError as broken:
            failures.extend(broken.exceptions)
    for failure in failures:
        sys.stderr.write(f"FAILED: {failure}\n")
    if not failures:
        sys.stdout.write(f"{done} answers, none of which did what none may\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
