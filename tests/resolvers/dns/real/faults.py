"""What the scripted server does wrong, by the domain of the service; `good.test` is a zone without a fault."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tests.resolvers.dns.real import wire
from tests.resolvers.dns.real.scripted import CLOSE, Asked, Script, Sent
from tests.resolvers.dns.real.wire import CNAME, QUESTION, SRV, Answer, name, record, srv, zone

TARGETS = {"a": "192.0.2.1", "b": "192.0.2.2"}
EVIL = {"evil": "192.0.2.66"}


def good(asked: Asked) -> Answer:
    return zone(asked.query, asked.domain, TARGETS)


def well(asked: Asked) -> Sequence[Sent | bytes]:
    return [bytes(good(asked))]


def truncated(asked: Asked) -> Sequence[Sent | bytes]:
    if asked.tcp:
        return well(asked)
    return [bytes(Answer(asked.query, flags=wire.GOOD | wire.TC))]


def truncated_in_mid_record(asked: Asked) -> Sequence[Sent | bytes]:
    return well(asked) if asked.tcp else [bytes(good(asked).but(flags=wire.GOOD | wire.TC))[:-3]]


def in_pieces(asked: Asked) -> Sequence[Sent | bytes]:
    if not asked.tcp:
        return truncated(asked)
    message = bytes(good(asked))
    message = len(message).to_bytes(2, "big") + message
    return [Sent(bytes([octet]), 0.0005, raw=True) for octet in message]


def closed_half_way(asked: Asked) -> Sequence[Sent | bytes]:
    """Over TCP the first answer stops half-way; the next one is whole. The addresses come as they should."""
    if asked.query.kind != SRV:
        return well(asked)
    if not asked.tcp or asked.number > 1:
        return truncated(asked)
    message = bytes(good(asked))
    return [Sent(len(message).to_bytes(2, "big") + message[:20], raw=True), Sent(CLOSE)]


def first_lost(asked: Asked) -> Sequence[Sent | bytes]:
    return well(asked) if asked.number else []


def silent(asked: Asked) -> Sequence[Sent | bytes]:
    return []


def says(code: int) -> Script:
    return lambda asked: [bytes(Answer(asked.query, code=code))]


def without_edns(asked: Asked) -> Sequence[Sent | bytes]:
    """A server from before EDNS0 (RFC 6891, 7)."""
    return well(asked) if asked.query.payload is None else [bytes(Answer(asked.query, code=1))]


def forged(asked: Asked) -> Answer:
    return zone(asked.query, asked.domain, EVIL | TARGETS if asked.query.kind != SRV else EVIL)


def after(wrong: bytes, asked: Asked, **how: bool) -> Sequence[Sent | bytes]:
    return [Sent(wrong, **how), Sent(bytes(good(asked)), delay=0.05)]


def wrong_id(asked: Asked) -> Sequence[Sent | bytes]:
    return after(bytes(forged(asked).but(id=asked.query.id ^ 1)), asked)


def wrong_name(asked: Asked) -> Sequence[Sent | bytes]:
    question = name("other.test") + asked.query.question[-4:]
    return after(bytes(forged(asked).but(question=question)), asked)


def wrong_kind(asked: Asked) -> Sequence[Sent | bytes]:
    question = asked.query.question[:-4] + b"\0\x10\0\x01"
    return after(bytes(forged(asked).but(question=question)), asked)


def no_question(asked: Asked) -> Sequence[Sent | bytes]:
    return after(bytes(forged(asked).but(question=b"")), asked)


def wrong_sender(asked: Asked) -> Sequence[Sent | bytes]:
    return after(bytes(forged(asked)), asked, from_elsewhere=True)


def queries(asked: Asked) -> Sequence[Sent | bytes]:
    return after(bytes(forged(asked).but(flags=wire.GOOD & ~wire.QR)), asked)


def chain(links: int) -> Script:
    """SRV behind so many CNAMEs."""

    def answer(asked: Asked) -> Sequence[Sent | bytes]:
        if asked.query.kind != SRV:
            return well(asked)
        records, owner = [], QUESTION
        for number in range(links):
            target = name(f"c{number}.{asked.domain}")
            records.append(record(owner, CNAME, target))
            owner = target
        records += [srv(name(f"{target}.{asked.domain}"), owner=owner) for target in TARGETS]
        return [bytes(Answer(asked.query, tuple(records)))]

    return answer


def loop(links: int) -> Script:
    def answer(asked: Asked) -> Sequence[Sent | bytes]:
        names = [QUESTION, *(name(f"c{number}.{asked.domain}") for number in range(1, links)), QUESTION]
        records = [record(owner, CNAME, target) for owner, target in itertools.pairwise(names)]
        return [bytes(Answer(asked.query, tuple(records)))]

    return answer


def target_is_alias(asked: Asked) -> Sequence[Sent | bytes]:
    """The addresses of the targets stand behind a CNAME (RFC 2782 forbids it, the world does it)."""
    if asked.query.kind != wire.A:
        return well(asked)
    alias = name(f"alias.{asked.domain}")
    address = wire.address(TARGETS[asked.query.name.partition(".")[0]])
    return [bytes(Answer(asked.query, (record(QUESTION, CNAME, alias), record(alias, wire.A, address))))]


def records_of_others(asked: Asked) -> Sequence[Sent | bytes]:
    """Records that nobody asked for, in the answer and beside it."""
    stranger = name(f"other.{asked.domain}")
    answer = good(asked)
    evil = (
        srv(name(f"evil.{asked.domain}"), owner=stranger),
        record(stranger, wire.A, wire.address("192.0.2.66")),
        record(name(f"a.{asked.domain}"), wire.A, wire.address("192.0.2.66")),
    )
    if asked.query.kind != SRV:
        evil = evil[:2]
    return [bytes(answer.but(records=(*evil, *answer.records), additional=evil))]


def shouting(asked: Asked) -> Sequence[Sent | bytes]:
    return [bytes(good(asked).but(question=asked.query.question[:-4].upper() + asked.query.question[-4:]))]


def one_target_fails(asked: Asked) -> Sequence[Sent | bytes]:
    return says(2)(asked) if asked.query.name.startswith("b.") else well(asked)


SCRIPTS: dict[str, Script] = {
    "good.test": well,
    "truncated.test": truncated,
    "truncated-in-mid-record.test": truncated_in_mid_record,
    "in-pieces.test": in_pieces,
    "closed-half-way.test": closed_half_way,
    "first-lost.test": first_lost,
    "silent.test": silent,
    "formerr.test": says(1),
    "servfail.test": says(2),
    "nxdomain.test": says(3),
    "notimp.test": says(4),
    "refused.test": says(5),
    "without-edns.test": without_edns,
    "wrong-id.test": wrong_id,
    "wrong-name.test": wrong_name,
    "wrong-kind.test": wrong_kind,
    "no-question.test": no_question,
    "wrong-sender.test": wrong_sender,
    "queries.test": queries,
    "chain-8.test": chain(8),
    "chain-9.test": chain(9),
    "chain-100.test": chain(100),
    "loop-1.test": loop(1),
    "loop-2.test": loop(2),
    "loop-20.test": loop(20),
    "target-is-alias.test": target_is_alias,
    "records-of-others.test": records_of_others,
    "shouting.test": shouting,
    "one-target-fails.test": one_target_fails,
}


def script(domain: str) -> Script:
    """What the server does when it is asked about this domain."""
    return SCRIPTS.get(domain, well)
