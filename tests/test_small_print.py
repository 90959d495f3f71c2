"""The small print of the specification: what matters rarely and to few, each as a small test of its own."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import dataclasses
import logging
import math
import pickle
import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest

import qorb
from qorb import (
    AllClaimsUsedError,
    Backend,
    ClaimError,
    Ledger,
    Policy,
    PolicyError,
    Pool,
    TerminationError,
    WrongLoopError,
    errors,
)
from qorb.errors import Holder
from qorb.resolvers import ManualResolver
from qorb.testing import FakeConnector, run
from tests.phases import at_once
from tests.pools import backends, hold, opened

if TYPE_CHECKING:
    from collections.abc import Callable

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
POOL = {"pool": "main"}
FIELDS = {
    "NoBackendsError": {**POOL, "last_error": "OSError: no"},
    "NoBackendsOnlineError": {**POOL, "errors": {"b0": "OSError: no", "b1": None}},
    "AllClaimsUsedError": {**POOL, "holders": (Holder("b0", 1, 2.5, "t", None),), "limit": 1, "waiting": 2},
    "QueueFullError": {**POOL, "waiting": 3, "limit": 3},
    "PoolTerminatedError": POOL,
    "PoolNotStartedError": POOL,
    "ClaimReleasedError": {**POOL, "backend": "b0"},
    "ClaimRevokedError": {**POOL, "backend": "b0"},
    "TerminationError": {**POOL, "ledger": Ledger(("a task",), 1, 2, 3, 4)},
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


# Numbers that are none.

ABSURD = {
    "10**400": 10**400,
    "-10**400": -(10**400),
    "10**5000": 10**5000,  # Python refuses to write that out
    "nan": math.nan,
    "-inf": -math.inf,
    "-1": -1,
    "True": True,
    "False": False,
    "text": "7",
    "None": None,
    "complex": 1j,
    "list": [],
    "password": "postgres://me:hunter2@db/x",
}
SHOWN = {
    "10**400": "not 10**400 or so",
    "-10**400": "not -10**400 or so",
    "10**5000": "not 10**5000 or so",
    "text": "not '7'",
    "password": "not 'postgres://me:***@db/x'",
}
TOO_MUCH_OF_A_COUNT = {"inf": math.inf, "1e300": 1e300, "2**63": 2**63, "1.0": 1.0}
COUNTS = ("spares_wanted", "max_slots", "max_slots_per_backend", "max_waiters")
POLICY_FIELDS = tuple(field.name for field in dataclasses.fields(Policy))
REFUSED = [(field, ABSURD, key) for field in POLICY_FIELDS for key in ABSURD]
REFUSED += [(field, TOO_MUCH_OF_A_COUNT, key) for field in COUNTS for key in TOO_MUCH_OF_A_COUNT]


def refused(kind: type[ValueError], make: Callable[..., object], field: str, values: dict[str, Any], key: str) -> str:
    """Make something with an absurd value in a field; give the text of the error."""
    with pytest.raises(kind) as caught:
        make(**{field: values[key]})
    text = str(caught.value)
    assert field in text
    assert (SHOWN[key] if key in SHOWN else f"not {values[key]!r}") in text
    assert len(text) < 250
    return text


@pytest.mark.parametrize(("field", "values", "key"), REFUSED)
def test_a_policy_refuses_every_absurd_number_and_says_which_field_what_value_and_what_to_write(field, values, key):
    text = refused(PolicyError, Policy, field, values, key)
    assert ("a whole number from" if field in COUNTS else "(math.inf: never)") in text


@pytest.mark.parametrize("field", ["port", "priority", "weight"])
@pytest.mark.parametrize("key", [*ABSURD, *TOO_MUCH_OF_A_COUNT])
def test_a_backend_refuses_every_absurd_number_and_says_which_field_what_value_and_what_to_write(field, key):
    def make(**given: object) -> object:
        return Backend("db", "10.0.0.1", **{"port": 1} | given)

    text = refused(ValueError, make, field, ABSURD | TOO_MUCH_OF_A_COUNT, key)
    assert "must be a whole number from" in text
    assert "65535" in text


def test_a_port_of_five_thousand_digits_is_none():
    with pytest.raises(ValueError, match=r"has no usable port; it must be a number from 1 to 65535$"):
        Backend.parse("10.0.0.1:" + "1" * 5000)


@pytest.mark.parametrize("key", [key for key in ABSURD if key not in ("None", "True", "False")])
@pytest.mark.parametrize("field", ["timeout", "grace"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(field, key):
    pool = Pool("p", ManualResolver(), FakeConnector())
    make = pool.claim if field == "timeout" else lambda **given: at_once(pool.terminate(**given))
    assert "must be a number of seconds, 0 or more" in refused(ValueError, make, field, ABSURD, key)


def test_a_pool_with_the_greatest_numbers_that_are_allowed_works():
    durations = {field: 10**308 for field in POLICY_FIELDS if field not in COUNTS}
    counts = dict.fromkeys(COUNTS, sys.maxsize) | {"spares_wanted": 2}

    async def main():
        connector = FakeConnector()
        async with opened(backends(2), connector, **durations | counts) as watched:
            claims = await watched.claims(5)
            await asyncio.sleep(1e5)
            claims.pop().discard()
            connector.refuse("b0")
            connector.drop()
            await asyncio.sleep(1e5)
            assert watched.stats("b0").failures == 1
            for claim in claims:
                claim.release()

    run(main)


# Who waits.


@pytest.mark.parametrize("others", [0, 1, 4])
@pytest.mark.parametrize("timeout", [0, 1])
def test_an_error_counts_the_others_that_still_wait_and_not_the_claim_that_gives_up(others, timeout):
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=1) as watched:
            async with watched.pool.claim():
                waiters = [asyncio.create_task(hold(watched.pool, 0), name=f"w{i}") for i in range(others)]
                await asyncio.sleep(1)
                with pytest.raises(AllClaimsUsedError) as caught:
                    await watched.pool.claim(timeout=timeout)
                assert watched.pool.stats().waiting == others
            await asyncio.gather(*waiters)
        return str(caught.value)

    text = run(main)
    assert text.count("waiting: ") == (others > 0)
    assert f"; others still waiting: {others} ('w0'" in text or not others


# Other threads, and other people's contexts.


def test_a_manual_resolver_that_is_set_from_another_thread_keeps_its_set_and_says_what_to_write(run_real):
    async def main():
        loop, resolver = asyncio.get_running_loop(), ManualResolver(ONE)
        async with resolver.monitor() as first, resolver.monitor() as second:
            await first.changed()
            with pytest.raises(WrongLoopError, match=r"write loop\.call_soon_threadsafe\(resolver\.set, backends\)$"):
                await asyncio.to_thread(resolver.set, backends(3))
            assert list(first.backends) == list(second.backends) == ["b0"]
            async with resolver.monitor() as late:
                assert list(await late.changed()) == ["b0"]
            change = asyncio.create_task(first.changed())
            await asyncio.sleep(0)
            await asyncio.to_thread(loop.call_soon_threadsafe, resolver.set, backends(2))
            assert list(await change) == ["b0", "b1"]
        await asyncio.to_thread(resolver.set, backends(3))  # nobody watches
        async with resolver.monitor() as later:
            assert len(await later.changed()) == 3

    run_real(main)


secret = contextvars.ContextVar("secret", default="none")


@pytest.mark.parametrize("end", ["pool dropped", "claim dropped", "abort from a thread"])
def test_what_the_garbage_collector_or_a_thread_sets_off_runs_in_nobodys_context(end, run_real):
    seen = []

    class Looking(FakeConnector):
        def abort(self, connection):
            seen.append(secret.get())
            super().abort(connection)

        def needs_recycle(self, connection, outcome):
            seen.append(secret.get())
            return super().needs_recycle(connection, outcome)

    async def main():
        pool = Pool("p", ManualResolver(ONE), Looking())
        await pool.start()
        await pool.ready()
        secret.set("of the application")
        if end == "pool dropped":
            dropped = [pool]
            del pool
            with pytest.warns(ResourceWarning, match="unterminated pool p"):
                dropped.clear()
        elif end == "claim dropped":
            dropped = [await pool.claim()]
            with pytest.warns(ResourceWarning, match="unreleased claim"):
                dropped.clear()
        else:
            await asyncio.to_thread(pool.abort)
        for _ in range(10):
            await asyncio.sleep(0)
        if end == "claim dropped":
            await pool.terminate()
            assert seen[0] == "none"
        else:
            assert set(seen) == {"none"}

    run_real(main)


# What has not ended.


@pytest.mark.parametrize("operation", ["connect", "on_acquire"])
@pytest.mark.parametrize(("count", "more"), [(3, None), (500, 480)])
def test_of_what_has_not_ended_twenty_are_named_and_the_rest_is_counted(operation, count, more, caplog):
    async def main():
        connector = FakeConnector()
        policy = {
            "max_slots": 501,
            "max_slots_per_backend": 501,
            "spares_wanted": 0 if operation == "connect" else count,
        }
        known = backends(count) if operation == "connect" else ONE
        async with opened(known, connector, ready=operation != "connect", **policy) as watched:
            connector.stall(operation)
            connector.deafen(9, operation)
            claims = (
                [] if operation == "connect" else [asyncio.create_task(hold(watched.pool, 1)) for _ in range(count)]
            )
            await asyncio.sleep(1)
            with pytest.raises(TerminationError) as caught:
                await watched.pool.terminate(grace=0, timeout=7)
            await asyncio.gather(*claims, return_exceptions=True)
        return str(caught.value)

    with caplog.at_level(logging.WARNING, "qorb"):
        error = run(main)
    (warning,) = [record.getMessage() for record in caplog.records if "has not ended after" in record.getMessage()]
    for text in (error, warning):
        assert text.count("; ") == (min(count, 20) - 1 if more is None else 20)
        assert text.count(" s in " if operation == "connect" else ": on_acquire for ") == min(count, 20)
        left = text.removesuffix(". Call terminate() again to go on waiting")
        assert left.endswith(f"; and {more} more") is (more is not None)


# What the loop's exception handler is told.


@pytest.mark.parametrize("operation", ["connect", "validate", "on_recycle", "on_acquire", "close"])
def test_an_exception_that_is_none_is_reported_without_its_secrets_and_frames(operation):
    class Odd(BaseException):
        pass

    def odd():
        password = "hunter2"
        error = Odd(f"no way to postgres://me:{password}@db/x")
        error.__cause__ = ValueError(f"password={password}")
        return error

    told = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        connector = FakeConnector()
        policy = {"spares_wanted": 1, "health_interval": 5, "claim_timeout": 1}
        async with opened(ONE, connector, ready=operation != "connect", **policy) as watched:
            connector.fail(operation, odd)
            for _ in range(10):
                with contextlib.suppress(ClaimError):
                    (await watched.pool.claim()).release()
                await asyncio.sleep(1)
            if operation == "close":
                connector.drop()
                (await watched.pool.claim()).discard()
                await asyncio.sleep(1)
            connector.heal()
            await asyncio.sleep(10)

    run(main)
    assert told
    for context in told:
        printed = traceback.TracebackException.from_exception(context["exception"], capture_locals=True)
        text = str(context) + "".join(printed.format())
        assert "hunter2" not in text
        assert "Odd: no way to postgres://me:***@db/x" in text
