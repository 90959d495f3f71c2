"""Several observers as one."""

from __future__ import annotations

import logging

import pytest

from qorb import Pool, events
from qorb.observers import combine
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector, run
from tests.pools import backends, hold


def test_each_is_told_of_everything_in_their_order():
    told: list[tuple[str, events.Event]] = []
    observer = combine(lambda event: told.append(("a", event)), lambda event: told.append(("b", event)))

    async def main():
        async with Pool("p", FixedResolver(backends(1)), FakeConnector(), observer=observer) as pool:
            await hold(pool, 0.01)

    run(main)
    assert [name for name, _ in told] == ["a", "b"] * (len(told) // 2)
    assert [event for name, event in told if name == "a"] == [event for name, event in told if name == "b"]
    assert isinstance(told[-1][1], events.PoolTerminateDone)


@pytest.mark.parametrize("error", [ValueError("a bug"), type("Odd", (BaseException,), {})("odd")])
def test_one_that_raises_is_reported_once_and_harms_neither_the_others_nor_the_pool(error, caplog):
    first: list[events.Event] = []
    last: list[events.Event] = []

    def broken(event: events.Event) -> None:
        raise error

    def broken_too(event: events.Event) -> None:
        raise RuntimeError("password=hunter2 was wrong")

    async def main():
        observer = combine(first.append, broken, broken_too, last.append)
        async with Pool("p", FixedResolver(backends(2)), FakeConnector(), observer=observer) as pool:
            for _ in range(20):
                await hold(pool, 0.01)
        return pool.stats().claims

    with caplog.at_level(logging.ERROR, "qorb"):
        assert run(main) == 20
    assert first == last
    assert len(first) > 100
    assert [record.message.partition(":")[0] for record in caplog.records] == ["pool p", "pool p"]
    assert f"the observer at place 2 raised, which is reported only once: {type(error).__name__}" in caplog.text
    assert "the observer at place 3 raised" in caplog.text
    assert "hunter2" not in caplog.text


def test_what_ends_the_program_passes():
    def interrupted(event: events.Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        combine(interrupted)(events.PoolTerminateStart("p", "nothing"))


def test_none_and_combinations_combine():
    told: list[events.Event] = []
    event = events.PoolTerminateStart("p", "nothing")
    combine()(event)
    combine(combine(told.append), combine(combine(), told.append))(event)
    assert told == [event, event]


@pytest.mark.parametrize("wrong", [None, "an observer", 1])
def test_what_cannot_be_called_is_refused(wrong):
    with pytest.raises(TypeError, match="observer must be callable"):
        combine(print, wrong)


def test_what_would_have_to_be_awaited_is_refused():
    async def observer(event: events.Event) -> None: ...

    with pytest.raises(TypeError, match="not an async one"):
        combine(observer)
