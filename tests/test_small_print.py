"""The small print of the specification: what matters rarely and to few, each as a small test of its own."""

from __future__ import annotations

import asyncio
import copy
import pickle

import pytest

import qorb
from qorb import Ledger, TerminationError, errors
from qorb.testing import FakeConnector, run
from tests.pools import backends, opened

ONE = backends(1)


class InStep(FakeConnector):
    """A connector of which a clean release costs no recycling."""

    def needs_recycle(self, connection, outcome):
        return False


# Shrinking.


@pytest.mark.parametrize("checked", [False, True])
def test_shrinking_takes_a_used_connection_that_is_idle_for_longer_than_a_new_one(checked):
    async def main():
        policy = {
            "spares_wanted": 1,
            "max_slots": 4,
            "rebalance_interval": 60,
            "health_interval": 20 if checked else 1e6,
        }
        async with opened(ONE, InStep(), **policy) as watched:
            claims = await watched.claims(2)
            await asyncio.sleep(1)
            claims[0].release()
            await asyncio.sleep(1)
            claims[1].discard()  # its slot connects anew: that connection is idle for less long than all others
            await asyncio.sleep(1)
            assert watched.stats().unclaimed_slots == 3
            newest = max(watched.connector.connections, key=lambda one: one.id)
            await asyncio.sleep(62)
            return [one is newest for one in watched.connector.connections]

    assert run(main) == [True]


@pytest.mark.parametrize("checked", [False, True])
def test_shrinking_takes_a_connection_that_was_never_used_when_it_is_idle_for_longest(checked):
    async def main():
        policy = {
            "spares_wanted": 1,
            "max_slots": 4,
            "rebalance_interval": 60,
            "health_interval": 20 if checked else 1e6,
        }
        async with opened(ONE, InStep(), **policy) as watched:
            claims = await watched.claims(2)
            await asyncio.sleep(1)
            last = claims[1].connection
            for claim in claims:
                await asyncio.sleep(1)
                claim.release()
            assert watched.stats().unclaimed_slots == 3
            await asyncio.sleep(62)
            return [one is last for one in watched.connector.connections]

    assert run(main) == [True]


# Errors travel: to another process, or into a copy.

ERRORS = sorted(
    (kind for kind in vars(qorb).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    key=lambda kind: kind.__name__,
)
FIELDS = {
    "TerminationError": {"ledger": Ledger(("a task",), 1, 2, 3, 4)},
    "ResolveError": {"service": "_db._tcp.example.com"},
    "ConnectError": {"backend": "b0"},
    "PolicyError": {"field": "max_slots"},
}


@pytest.mark.parametrize("travel", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("kind", ERRORS)
def test_every_public_error_can_be_copied_and_pickled_with_its_fields(kind, travel):
    fields = FIELDS.get(kind.__name__, {})
    error = kind("what happened", **fields)
    error.add_note("and a note")
    arrived = travel(error)
    assert type(arrived) is kind
    assert str(arrived) == "what happened"
    assert arrived.args == error.args
    assert {name: getattr(arrived, name) for name in fields} == fields
    assert arrived.__notes__ == ["and a note"]
    assert arrived.__traceback__ is None


def test_the_errors_above_are_all_that_there_are():
    known = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert known == set(ERRORS)


def test_a_termination_error_that_a_pool_raised_arrives_as_it_was():
    async def main():
        async with opened(ONE, spares_wanted=1) as watched:
            claim = await watched.pool.claim()
            with pytest.raises(TerminationError) as caught:
                await watched.pool.terminate(grace=5, timeout=1)
            claim.release()
        arrived = pickle.loads(pickle.dumps(caught.value))
        assert str(arrived) == str(caught.value)
        assert arrived.ledger == caught.value.ledger
        assert arrived.ledger.connections == 1

    run(main)
