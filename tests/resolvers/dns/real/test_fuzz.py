"""A short run of what `make fuzz` does for longer."""

from __future__ import annotations

import pytest

from qorb.resolvers.dns._values import Failed, NoRecords, Records, Srv
from tests.resolvers.dns.real import fuzz
from tests.resolvers.dns.real.scripted import scripted_server
from tests.resolvers.dns.real.turns import run_measured


def test_no_mutated_answer_does_what_none_may() -> None:
    with scripted_server(fuzz.__name__) as server:
        assert run_measured(lambda: fuzz.fuzz(server, 1, numbers=range(500))) == 500


@pytest.mark.parametrize(
    "reply",
    [
        None,
        Records((), 1.0),
        Records((Srv(0, 1, 0, "a.test"),), 1.0),
        Records((Srv(0, 1, 1, "a.test"), "192.0.2.1"), 1.0),  # type: ignore[arg-type]
        Records(tuple(Srv(0, 1, port, "a.test") for port in range(1, 300)), 1.0),
        Records(("192.0.2.1",) * 65, 1.0),
        Records(("192.0.2.1",), -1.0),
        Failed("\x1b[2J"),
        NoRecords("\n"),
    ],
)
def test_what_none_may_do_is_noticed(reply: Records) -> None:
    assert fuzz.objection(reply) is not None


def test_an_answer_is_a_function_of_seed_and_number() -> None:
    case, again, other = fuzz.Case(7, 3), fuzz.Case(7, 3), fuzz.Case(8, 3)
    query = fuzz.Query(1, case.question.name, fuzz.wire.TYPES[case.kind], fuzz._question(case), None)
    assert case.answer(query) == again.answer(query) != other.answer(query)
