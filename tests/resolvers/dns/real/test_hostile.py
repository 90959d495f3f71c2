"""Hostile answers, from a server in a process of its own: what is made of each, and what it costs. See corpus.py."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from qorb.resolvers import DnsPolicy, DnsResolver
from qorb.resolvers.dns._aiodns import AiodnsClient
from qorb.resolvers.dns._servers import read_servers
from qorb.resolvers.dns._sifting import Sieve
from qorb.resolvers.dns._values import Kind, NoRecords, Question, Records, Reply
from tests.conftest import RunReal
from tests.resolvers.dns.real.corpus import CORPUS, Hostile
from tests.resolvers.dns.real.faults import TARGETS
from tests.resolvers.dns.real.scripted import ScriptedServer
from tests.resolvers.dns.real.seeing import Found, Seen, watching
from tests.resolvers.dns.real.turns import longest_turn, run_measured, too_long

RIGHT = len(TARGETS)
TRIES = 3
"""So many times a turn may be measured: what is slow of itself is slow each time."""


def found_in(domain: str) -> Found:
    return {f"{target}.{domain}:5432": f"{address}:5432" for target, address in TARGETS.items()}


async def ask(server: ScriptedServer, name: str, kind: Kind) -> Reply:
    client = AiodnsClient(read_servers([server.address])[0], Sieve(b"a seed", 256))
    try:
        question = Question(name, kind)
        asked = client.ask(question)
        await asyncio.wait([asked])
        return await client.read(question, asked)
    finally:
        await client.close()


def outcome(reply: Reply) -> str | int:
    if isinstance(reply, Records):
        return len(reply.records)
    if isinstance(reply, NoRecords):
        return "nothing"
    return "malformed" if reply.reason == "malformed answer" else "failed"


@pytest.mark.parametrize("case", CORPUS.values(), ids=CORPUS)
def test_a_hostile_answer_is_what_it_is_and_never_keeps_the_loop_for_5_ms(
    hostile: ScriptedServer, case: Hostile
) -> None:
    async def main() -> None:
        await ask(hostile, "_pg._tcp.right.test", "SRV")  # what the first time costs is not the answer's doing
        turns = []
        for _ in range(TRIES):
            longest_turn()
            reply = await ask(hostile, f"{case.owner}.{case.name}.at-once", case.kind)
            await asyncio.sleep(0)
            turns.append(longest_turn())
            if case.outcome == "ignored":
                wanted: str | int = RIGHT
            else:
                wanted = case.outcome
            assert outcome(reply) == wanted, reply
            if not too_long(turns[-1]):
                return
        pytest.fail(f"the longest turns took {turns} s")

    run_measured(main)


def test_there_are_enough_hostile_answers() -> None:
    assert len(CORPUS) >= 60


def unusable() -> list[Hostile]:
    """Those of which nothing must come; that there are no records is believed when it is said twice."""
    return [case for case in CORPUS.values() if case.outcome in {"malformed", "failed", "ignored"}]


def assert_only_grew(seen: Seen, whole: Found) -> None:
    """The whole was published at last and stayed; before that only parts of it, when an answer took its time."""
    assert seen.sets.index(whole) == len(seen.sets) - 1
    assert all(found.items() <= whole.items() for found in seen.sets)


def test_no_hostile_answer_costs_what_was_known(hostile: ScriptedServer, run_real: RunReal) -> None:
    policy = DnsPolicy(max_ttl=1.0, query_timeout=0.7, retry_interval=1.0)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            all_seen: dict[str, Seen] = {}
            for case in unusable():
                domain = f"{case.name}.later"
                resolver = DnsResolver(f"_pg._tcp.{domain}", [hostile.address], policy)
                all_seen[domain] = await stack.enter_async_context(watching(resolver))
            for domain, seen in all_seen.items():
                await seen.until_published(found_in(domain))
                await seen.until(lambda seen=seen: seen.rounds >= 3)  # type: ignore[misc]
                assert_only_grew(seen, found_in(domain))
                assert seen.errors, domain

    run_real(main)


def test_a_good_server_serves_beside_each_hostile_one(
    hostile: ScriptedServer, faulty: ScriptedServer, run_real: RunReal
) -> None:
    """The second server, that of faults.py, answers well on domains of CORPUS."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            all_seen: dict[str, Seen] = {}
            for case in unusable():
                domain = f"{case.name}.at-once"
                resolver = DnsResolver(f"_pg._tcp.{domain}", [hostile.address, faulty.address])
                all_seen[domain] = await stack.enter_async_context(watching(resolver))
            for domain, seen in all_seen.items():
                await seen.until_published(found_in(domain))
                assert_only_grew(seen, found_in(domain))

    run_real(main)


@pytest.mark.parametrize("title", ["srv-900", "srv-1000"])
def test_a_big_answer_gives_max_backends_targets_and_each_is_looked_up(hostile: ScriptedServer, title: str) -> None:
    """The targets have no address: 512 more questions, and every answer counts in one round."""

    async def main() -> None:
        turns = []
        for _ in range(TRIES):
            longest_turn()
            resolver = DnsResolver(f"_pg._tcp.{title}.at-once", [hostile.address], DnsPolicy(max_concurrency=20))
            async with watching(resolver) as seen:
                await seen.until(lambda: seen.rounds == 1)
                asked = {question.name for question, _ in seen.replies if question.kind == "A"}
                assert len(asked) == 256
            turns.append(longest_turn())
            if not too_long(turns[-1]):
                return
        pytest.fail(f"the longest turns took {turns} s")

    run_measured(main)
