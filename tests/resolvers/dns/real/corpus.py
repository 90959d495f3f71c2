"""Hostile answers, each with a name and with what is made of it. The scripted server sends them; see script().

What is made of an answer is one of

- "malformed": it is no answer, and says so; what is known stays;
- "failed": a well-formed answer that cannot be used; what is known stays;
- "ignored": it is as if it had not come: the right answer that comes after it counts;
- "nothing": it says that there are no usable records, which is believed when it is said twice;
- a number: so many records are used.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.resolvers.dns.real import wire
from tests.resolvers.dns.real.faults import TARGETS
from tests.resolvers.dns.real.scripted import Asked, Script, Sent
from tests.resolvers.dns.real.wire import (
    CNAME,
    GOOD,
    OPT,
    QUESTION,
    SOA,
    SRV,
    TXT,
    A,
    Answer,
    Query,
    name,
    record,
    srv,
    zone,
)

MOST = 65_535
"""The largest message over TCP."""


@dataclass(frozen=True)
class Hostile:
    """A hostile answer."""

    name: str
    build: Callable[[Query], bytes]
    outcome: str | int
    kind: Literal["SRV", "A"] = "SRV"
    tcp: bool = False

    @property
    def owner(self) -> str:
        """The question to which this is the answer, below a domain."""
        return "_pg._tcp" if self.kind == "SRV" else "a"


CORPUS: dict[str, Hostile] = {}


def hostile(
    outcome: str | int, *, kind: Literal["SRV", "A"] = "SRV", tcp: bool = False
) -> Callable[[Callable[[Query], Answer | bytes]], Callable[[Query], Answer | bytes]]:
    def enter(build: Callable[[Query], Answer | bytes]) -> Callable[[Query], Answer | bytes]:
        title = build.__name__.strip("_").replace("_", "-")
        CORPUS[title] = Hostile(title, lambda query: bytes(build(query)), outcome, kind, tcp)
        return build

    return enter


def domain(query: Query) -> str:
    return ".".join(query.name.split(".")[-2:])


def right(query: Query) -> Answer:
    return zone(query, domain(query), TARGETS)


def forged(query: Query) -> Answer:
    return zone(query, domain(query), {"evil": "192.0.2.66"})


def a(text: str = "192.0.2.1", *, owner: bytes = QUESTION, ttl: int = 1) -> bytes:
    return record(owner, A, wire.address(text), ttl=ttl)


def at(offset: int) -> bytes:
    """A pointer to this place in the message."""
    return struct.pack(">H", 0xC000 | offset)


def end(query: Query) -> int:
    """Where the answer section begins."""
    return 12 + len(query.question)


# Pointers.


@hostile("malformed")
def pointer_to_itself(query: Query) -> Answer:
    return Answer(query, (srv(name("a"), owner=at(end(query))),))


@hostile("malformed")
def target_that_points_to_itself(query: Query) -> Answer:
    return Answer(query, (srv(at(end(query) + 18)),))


@hostile("malformed")
def two_pointers_in_a_circle(query: Query) -> Answer:
    place = end(query) + 18
    return Answer(query, (srv(at(place + 2) + at(place)),))


@hostile("malformed")
def pointer_beyond_the_message(query: Query) -> Answer:
    return Answer(query, (srv(b"\xff\xff"),))


@hostile("malformed")
def pointer_into_the_future(query: Query) -> Answer:
    return Answer(query, (srv(at(end(query) + 40)), srv(name("later.test"))))


@hostile("malformed")
def half_a_pointer(query: Query) -> Answer:
    return Answer(query, (srv(b"\xc0"),))


@hostile("malformed")
def pointer_into_the_header(query: Query) -> Answer:
    return Answer(query, (srv(at(2)),))


@hostile("malformed")
def label_of_a_reserved_type(query: Query) -> Answer:
    return Answer(query, (srv(b"\x41abc\0"),))


@hostile("malformed")
def label_of_another_reserved_type(query: Query) -> Answer:
    return Answer(query, (srv(b"\x80abc\0"),))


def _bomb(query: Query, size: int) -> Answer:
    """A name of 127 labels, pointed at by as many records as fit, each by way of a chain of pointers."""
    long = b"\x01x" * 100
    first = srv(long + QUESTION)
    place, records, pointers = end(query) + 18, [first], 0
    length = end(query) + len(first)
    while length + 20 < size:
        records.append(srv(at(min(place + 2 * (pointers % 99), 0x3FFF))))
        length += len(records[-1])
        pointers += 1
    return Answer(query, tuple(records))


@hostile(46)
def pointer_bomb(query: Query) -> Answer:
    return _bomb(query, 1200)


@hostile(99, tcp=True)
def pointer_bomb_of_64_kb(query: Query) -> Answer:
    return _bomb(query, MOST)


def _chain_of_pointers(query: Query, most: int) -> Answer:
    """TXT data full of pointers, each to the one before it; and SRV records whose targets enter at their end."""
    begin = end(query) + 12
    chain = QUESTION
    while begin + len(chain) < 0x3FFE:
        chain += at(begin + len(chain) - 2)
    records = [record(QUESTION, TXT, chain)]
    length = begin + len(chain)
    last = at(begin + len(chain) - 2)
    while length + 22 < most:
        records.append(srv(last))
        length += len(records[-1])
    return Answer(query, tuple(records))


@hostile("malformed", tcp=True)
def eight_thousand_pointers_in_a_row(query: Query) -> Answer:
    return _chain_of_pointers(query, 0x4100)


@hostile("malformed", tcp=True)
def eight_thousand_pointers_in_a_row_two_thousand_times(query: Query) -> Answer:
    return _chain_of_pointers(query, MOST)


@hostile("malformed", tcp=True)
def only_pointers_in_64_kb(query: Query) -> bytes:
    head = bytes(Answer(query, counts=(1, 20_000, 0, 0)))
    return head + QUESTION * ((MOST - len(head)) // 2)


@hostile("malformed", tcp=True)
def owners_that_chain_through_64_kb(query: Query) -> bytes:
    """Every owner is a pointer to the owner before it."""
    message, place = bytes(Answer(query, counts=(1, 3_000, 0, 0))), 12
    while len(message) < 0x3F00:
        here = len(message)
        message += a(owner=at(place))
        place = here
    return message + a(owner=at(place)) * ((MOST - len(message)) // 16)


# Counts.


@hostile("malformed")
def count_of_ten_thousand(query: Query) -> Answer:
    return right(query).but(counts=(1, 10_000, 0, 0))


@hostile("malformed")
def all_counts_at_their_highest(query: Query) -> Answer:
    return right(query).but(counts=(MOST, MOST, MOST, MOST))


@hostile("malformed")
def one_record_less_than_counted(query: Query) -> Answer:
    return right(query).but(counts=(1, 3, 0, 0))


@hostile(1)
def one_record_more_than_counted(query: Query) -> Answer:
    return right(query).but(counts=(1, 1, 0, 0))


@hostile("nothing")
def count_of_none_before_records(query: Query) -> Answer:
    return right(query).but(counts=(1, 0, 0, 0))


@hostile("malformed")
def two_questions(query: Query) -> Answer:
    return right(query).but(question=query.question * 2, counts=(2, 2, 0, 0))


@hostile("malformed")
def questions_without_end(query: Query) -> Answer:
    return right(query).but(question=query.question * 40, counts=(40, 2, 0, 0))


@hostile("malformed")
def additional_records_that_are_missing(query: Query) -> Answer:
    return right(query).but(counts=(1, 2, 0, 9))


# Lengths.


@hostile("malformed")
def data_longer_than_the_message(query: Query) -> Answer:
    return Answer(query, (record(QUESTION, SRV, b"\0" * 6 + name("a.test"), length=999),))


@hostile("malformed")
def data_of_no_length(query: Query) -> Answer:
    return Answer(query, (record(QUESTION, SRV, b""),))


@hostile("malformed")
def srv_without_target(query: Query) -> Answer:
    return Answer(query, (record(QUESTION, SRV, b"\0\0\0\1\x15\x38"),))


@hostile("malformed")
def srv_with_half_a_port(query: Query) -> Answer:
    return Answer(query, (record(QUESTION, SRV, b"\0\0\0\1\x15"),))


@hostile("malformed")
def length_that_cuts_the_target(query: Query) -> Answer:
    return Answer(query, (record(QUESTION, SRV, b"\0" * 6 + name("abc.test"), length=9),))


@hostile(2)
def length_beyond_the_target(query: Query) -> Answer:
    """Nothing says that data may not be longer than what stands in it; the records after it are right."""
    first = record(QUESTION, SRV, struct.pack(">HHH", 0, 1, 5432) + name(f"a.{domain(query)}") + b"\0\0\0")
    return Answer(query, (first, srv(name(f"b.{domain(query)}"))))


@hostile("malformed", kind="A")
def address_of_three_octets(query: Query) -> Answer:
    return Answer(query, (record(QUESTION, A, b"\1\2\3"),))


@hostile("malformed", kind="A")
def address_of_no_octets(query: Query) -> Answer:
    return Answer(query, (record(QUESTION, A, b""),))


@hostile(1, kind="A")
def address_of_sixteen_octets(query: Query) -> Answer:
    return Answer(query, (record(QUESTION, A, wire.address("192.0.2.1") + b"\0" * 12),))


# Cut off.


@hostile("ignored")
def no_octet(query: Query) -> bytes:
    return b""


@hostile("malformed")
def id_alone(query: Query) -> bytes:
    return struct.pack(">H", query.id)


@hostile("malformed")
def half_a_header(query: Query) -> bytes:
    return bytes(right(query))[:7]


@hostile("malformed")
def header_alone(query: Query) -> bytes:
    return bytes(right(query))[:12]


@hostile("malformed")
def cut_in_the_question(query: Query) -> bytes:
    return bytes(right(query))[:20]


@hostile("malformed")
def cut_after_the_question(query: Query) -> bytes:
    return bytes(right(query))[: end(query)]


@hostile("malformed")
def cut_in_the_ttl(query: Query) -> bytes:
    return bytes(right(query))[: end(query) + 8]


@hostile("malformed")
def cut_in_the_last_name(query: Query) -> bytes:
    return bytes(right(query))[:-1]


@hostile("malformed", tcp=True)
def cut_over_tcp(query: Query) -> bytes:
    return bytes(right(query))[:-1]


# Names.


def _target(title: str, octets: Callable[[], bytes], outcome: str | int) -> None:
    CORPUS[title] = Hostile(title, lambda query: bytes(Answer(query, (srv(octets()),))), outcome)


def label(octets: bytes) -> bytes:
    return bytes([len(octets)]) + octets


for _title, _octets in {
    "target-with-a-zero-octet": b"a\0b",
    "target-with-a-space": b"a b",
    "target-with-a-dot-in-a-label": b"a.b",
    "target-with-a-slash": b"../../var/run/.s.PGSQL.5432",
    "target-with-escape-sequences": b"\x1b[2Jgone",
    "target-with-line-ends": b"a\r\nb",
    "target-with-a-percent-sign": b"fe80::1%eth0",
    "target-with-high-octets": b"\xff\xfe\x80",
    "target-in-utf-8": "grün".encode(),
    "target-with-a-backslash": b"\\000\\046",
    "target-with-a-quote": b"\"';--",
    "target-with-an-at-sign": b"user:pw@host",
}.items():
    _target(_title, lambda octets=_octets: label(octets) + name("test"), "failed")  # type: ignore[misc]

_target("target-is-the-root", lambda: b"\0", "nothing")
_target("label-of-63-octets", lambda: label(b"x" * 63) + name("test"), 1)
_target("name-of-253-octets", lambda: label(b"x" * 63) * 3 + label(b"x" * 61) + b"\0", 1)
_target("name-of-256-octets", lambda: label(b"x" * 63) * 4 + b"\0", "failed")
_target("name-of-1000-octets", lambda: label(b"x" * 63) * 16 + b"\0", "malformed")
_target("name-of-500-labels", lambda: b"\x01x" * 500 + b"\0", "malformed")


@hostile("nothing")
def owner_with_odd_octets(query: Query) -> Answer:
    return Answer(query, (srv(name("a.test"), owner=label(b"\0\xff\x1b.") + b"\0"),))


@hostile("nothing")
def port_0(query: Query) -> Answer:
    return Answer(query, (srv(name("a.test"), port=0),))


# TTLs.


@hostile(2)
def ttl_of_0(query: Query) -> Answer:
    return zone(query, domain(query), TARGETS, ttl=0)


@hostile(2)
def ttl_of_68_years(query: Query) -> Answer:
    return zone(query, domain(query), TARGETS, ttl=2**31 - 1)


@hostile(2)
def ttl_with_the_highest_bit(query: Query) -> Answer:
    return zone(query, domain(query), TARGETS, ttl=2**31)


@hostile(2)
def ttl_of_136_years(query: Query) -> Answer:
    return zone(query, domain(query), TARGETS, ttl=2**32 - 1)


# CNAMEs.


def _aliases(query: Query, links: Sequence[bytes]) -> Answer:
    return Answer(query, tuple(record(owner, CNAME, target) for owner, target in itertools.pairwise(links)))


@hostile("failed")
def cname_to_itself(query: Query) -> Answer:
    return _aliases(query, [QUESTION, QUESTION])


@hostile("failed")
def cnames_in_a_circle(query: Query) -> Answer:
    return _aliases(query, [QUESTION, name("b"), name("c"), QUESTION])


@hostile("failed")
def hundred_cnames(query: Query) -> Answer:
    return _aliases(query, [QUESTION, *(name(f"c{number}") for number in range(100))])


@hostile("failed", kind="A", tcp=True)
def three_thousand_cnames(query: Query) -> Answer:
    return _aliases(query, [QUESTION, *(name(f"c{number}") for number in range(2_700))])


@hostile("nothing", tcp=True)
def three_thousand_cnames_of_one_name(query: Query) -> Answer:
    return Answer(query, tuple(record(QUESTION, CNAME, name(f"c{number}")) for number in range(2_700)))


@hostile("nothing", kind="A")
def cname_to_nowhere(query: Query) -> Answer:
    return _aliases(query, [QUESTION, name("nowhere.test")])


# Many records.


@hostile(256, tcp=True)
def srv_900(query: Query) -> Answer:
    return Answer(query, tuple(srv(name(f"t{number}.many.test")) for number in range(900)))


@hostile(256, tcp=True)
def srv_1000(query: Query) -> Answer:
    return Answer(query, tuple(srv(label(b"t%d" % number) + QUESTION) for number in range(1_000)))


@hostile(1, tcp=True)
def srv_1000_that_are_equal(query: Query) -> Answer:
    return Answer(query, (srv(name("a.test")),) * 1_000)


@hostile(256, tcp=True)
def srv_in_64_kb(query: Query) -> Answer:
    return Answer(query, tuple(srv(QUESTION, port=1 + number) for number in range(3_250)))


@hostile(64, kind="A", tcp=True)
def addresses_1000(query: Query) -> Answer:
    return Answer(query, tuple(a(f"198.51.{number >> 8}.{number & 255}") for number in range(1_000)))


@hostile(64, kind="A", tcp=True)
def addresses_in_64_kb(query: Query) -> Answer:
    return Answer(query, tuple(a(f"198.51.{number >> 8}.{number & 255}") for number in range(4_090)))


@hostile(1, kind="A", tcp=True)
def addresses_that_are_equal_in_64_kb(query: Query) -> Answer:
    return Answer(query, (a(),) * 4_090)


@hostile("failed", kind="A", tcp=True)
def addresses_that_may_not_be_in_64_kb(query: Query) -> Answer:
    return Answer(query, tuple(a(f"224.0.{number >> 8}.{number & 255}") for number in range(4_090)))


@hostile("nothing", tcp=True)
def five_thousand_records_of_the_root(query: Query) -> Answer:
    return Answer(query, tuple(record(b"\0", A, b"\1\2\3\4") for _ in range(4_300)))


@hostile(2, tcp=True)
def four_thousand_additional_records(query: Query) -> Answer:
    answer = right(query)
    return answer.but(additional=tuple(a("192.0.2.66") for _ in range(4_000)))


@hostile("nothing", tcp=True)
def text_of_64_kb(query: Query) -> Answer:
    return Answer(query, (record(QUESTION, TXT, (b"\xff" + b"x" * 255) * 255),))


@hostile("nothing", tcp=True)
def thirty_thousand_texts_in_one_record(query: Query) -> Answer:
    return Answer(query, (record(QUESTION, TXT, b"\x01x" * 30_000),))


@hostile("nothing", tcp=True)
def sixty_thousand_empty_texts_in_one_record(query: Query) -> Answer:
    return Answer(query, (record(QUESTION, TXT, b"\0" * 60_000),))


# Other things that are wrong.


@hostile("failed", kind="A")
def addresses_that_may_not_be(query: Query) -> Answer:
    bad = ("0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1", "240.0.0.1", "255.255.255.255")
    return Answer(query, tuple(map(a, bad)))


@hostile("nothing")
def answer_of_another_kind(query: Query) -> Answer:
    return Answer(query, (a("192.0.2.66"),))


@hostile("nothing")
def answer_of_another_class(query: Query) -> Answer:
    return Answer(query, (record(QUESTION, SRV, b"\0\0\0\1\x15\x38" + name("a.test"), class_=3),))


@hostile("nothing")
def record_of_an_unknown_kind(query: Query) -> Answer:
    return Answer(query, (record(QUESTION, 65_280, b"whatever"),))


@hostile("malformed")
def soa_that_is_cut(query: Query) -> Answer:
    return Answer(query, (record(QUESTION, SOA, name("a") + b"\0"),))


@hostile("ignored")
def wrong_id(query: Query) -> Answer:
    return forged(query).but(id=query.id ^ 0x5555)


@hostile("ignored")
def wrong_question(query: Query) -> Answer:
    return forged(query).but(question=name("wrong.test") + query.question[-4:])


@hostile(1)
def reply_that_is_a_query(query: Query) -> Answer:
    """c-ares does not look at the bit. Who knows port, id and question, and has the server's address, can set it."""
    return forged(query).but(flags=GOOD & ~wire.QR)


@hostile("ignored")
def question_of_another_class(query: Query) -> Answer:
    return forged(query).but(question=query.question[:-1] + b"\x03")


@hostile("failed")
def unknown_code(query: Query) -> Answer:
    return right(query).but(code=15)


@hostile("failed")
def records_with_servfail(query: Query) -> Answer:
    return right(query).but(code=2)


@hostile("nothing")
def records_with_nxdomain(query: Query) -> Answer:
    return right(query).but(code=3)


@hostile(2)
def another_opcode(query: Query) -> Answer:
    return right(query).but(flags=GOOD | 5 << 11)


@hostile("malformed")
def two_edns_records(query: Query) -> Answer:
    edns = record(b"\0", OPT, b"", class_=1232, ttl=0)
    return right(query).but(additional=(edns, edns))


@hostile("malformed")
def edns_option_that_is_cut(query: Query) -> Answer:
    return right(query).but(additional=(record(b"\0", OPT, b"\0\x0a\0\x40abc", class_=1232, ttl=0),))


@hostile(2)
def edns_with_an_extended_code(query: Query) -> Answer:
    return right(query).but(additional=(record(b"\0", OPT, b"", class_=1232, ttl=0x0100_0000),))


@hostile("malformed")
def garbage(query: Query) -> bytes:
    return struct.pack(">HH", query.id, GOOD) + random.Random(1).randbytes(500)


@hostile("malformed", tcp=True)
def garbage_of_64_kb(query: Query) -> bytes:
    return struct.pack(">HH", query.id, GOOD) + random.Random(2).randbytes(MOST - 4)


@hostile("malformed")
def garbage_after_the_question(query: Query) -> bytes:
    return bytes(Answer(query, counts=(1, 10, 0, 0))) + random.Random(3).randbytes(500)


@hostile(2)
def garbage_behind_the_answer(query: Query) -> Answer:
    return right(query).but(tail=random.Random(4).randbytes(300))


@hostile(2, tcp=True)
def garbage_of_64_kb_behind_the_answer(query: Query) -> Answer:
    return right(query).but(tail=random.Random(5).randbytes(65_000))


@hostile("malformed", tcp=True)
def zeros_of_64_kb(query: Query) -> bytes:
    return bytes(Answer(query, counts=(1, MOST, 0, 0))) + bytes(65_000)


@hostile("malformed")
def text_of_http(query: Query) -> bytes:
    return struct.pack(">HH", query.id, GOOD) + b"HTTP/1.1 400 Bad Request\r\n\r\n"


# What the server does with them.


def script(domain_of_query: str) -> Script:
    """Give what is done when a domain is asked about.

    `NAME.at-once`: the hostile answer, and 20 ms later the right one; `NAME.later`: the right answer the first time,
    then the hostile one alone; any other: the right answer.
    """
    title, _, when = domain_of_query.rpartition(".")
    case = CORPUS.get(title)

    def answer(asked: Asked) -> Sequence[Sent | bytes]:
        well = bytes(right(asked.query))
        if case is None or asked.query.name.rpartition(f".{domain_of_query}")[0] != case.owner:
            return [well]
        if asked.query.kind != wire.TYPES[case.kind] or (when == "later" and asked.number == 0):
            return [well]
        if case.tcp and not asked.tcp:
            return [bytes(Answer(asked.query, flags=GOOD | wire.TC))]
        wrong = Sent(case.build(asked.query))
        return [wrong] if when == "later" else [wrong, Sent(well, delay=0.02)]

    return answer
