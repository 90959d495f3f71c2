"""What LoggingObserver writes, how often, and at which level."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import json
import logging

import pytest

from qorb import Pool, events
from qorb.observers.logging import LoggingObserver
from qorb.resolvers import FixedResolver, ManualResolver
from qorb.testing import FakeConnector, run
from tests.pools import backends, hold
from tests.test_events import everything


class Records(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__()
        self.logger = logging.Logger("events of a test", level)  # noqa: LOG001 - nobody else is to have it
        self.logger.addHandler(self)
        self.kept: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record)

    def of(self, kind: type[events.Event]) -> list[logging.LogRecord]:
        return [record for record in self.kept if record.qorb_event == kind.__name__]


@functools.cache
def a_day() -> list[events.Event]:
    return everything()


def kinds() -> list[type[events.Event]]:
    public = [kind for name, kind in vars(events).items() if isinstance(kind, type) and not name.startswith("_")]
    return [kind for kind in public if issubclass(kind, events.Event) and kind is not events.Event]


def failures(count: int, backend: str = "b0") -> list[events.Event]:
    return [events.ConnectFailed("p", number, backend, "OSError: refused") for number in range(count)]


def at_times(records: Records, *told: tuple[float, list[events.Event]]) -> None:
    async def main():
        observer = LoggingObserver(records.logger)
        for pause, some in told:
            await asyncio.sleep(pause)
            for event in some:
                observer(event)

    run(main)


@pytest.mark.parametrize("kind", kinds())
def test_every_event_has_a_text_and_its_fields_at_debug(kind):
    records = Records(logging.DEBUG)
    event = next(event for event in a_day() if type(event) is kind)
    LoggingObserver(records.logger)(event)

    (record,) = records.kept
    assert record.getMessage().startswith("pool main: ")
    assert record.qorb_event == kind.__name__
    said = {name: value for name, value in vars(record).items() if name.startswith("qorb_")}
    assert json.dumps(said)
    assert set(said) == {f"qorb_{field.name}" for field in dataclasses.fields(event)} | {
        "qorb_event",
        "qorb_suppressed",
    }
    assert "%(" not in record.getMessage()
    assert kind.__name__ not in record.getMessage(), "it has a sentence of its own"


def test_an_event_that_it_does_not_know_is_named():
    @dataclasses.dataclass(frozen=True, slots=True)
    class Later(events.Event):
        reason: str

    records = Records(logging.DEBUG)
    LoggingObserver(records.logger)(Later("p", "why"))
    assert [(r.levelno, r.getMessage(), r.qorb_reason) for r in records.kept] == [
        (logging.DEBUG, "pool p: Later", "why")
    ]


def test_a_quiet_day_says_when_backends_come_and_when_the_pool_ends():
    records = Records(logging.INFO)

    async def main():
        observer = LoggingObserver(records.logger)
        async with Pool("p", FixedResolver(backends(2)), FakeConnector(), observer=observer) as pool:
            for _ in range(100):
                await hold(pool, 1)

    run(main)
    assert [(record.levelname, record.getMessage()) for record in records.kept] == [
        ("INFO", "pool p: backends added: ('b0', 'b1'), removed: (), changed: ()"),
        ("INFO", "pool p: b0 is online"),
        ("INFO", "pool p: b1 is online"),
        ("INFO", records.of(events.PoolTerminateStart)[0].getMessage()),
        ("INFO", "pool p: b0 is offline: its last connection is gone"),
        ("INFO", "pool p: b1 is offline: its last connection is gone"),
        ("INFO", "pool p: the termination is over; left: nothing"),
    ]


def test_a_backend_that_fails_is_a_warning():
    records = Records(logging.WARNING)

    async def main():
        connector = FakeConnector()
        observer = LoggingObserver(records.logger)
        async with Pool("p", ManualResolver(backends(2)), connector, observer=observer) as pool:
            await pool.ready()
            connector.refuse("b1")
            connector.drop()
            await hold(pool, 0)
            await asyncio.sleep(1)

    run(main)
    seen = {(record.qorb_event, record.qorb_backend) for record in records.kept if hasattr(record, "qorb_backend")}
    assert ("SlotSetOffline", "b1") in seen
    assert ("ConnectFailed", "b1") in seen
    assert ("ConnectFailed", "b0") not in seen


@pytest.mark.parametrize(
    "event",
    [
        events.ConnectFailed("p", 1, "b0", "given up: the slot ends or the backend moved"),
        events.ClaimFailed("p", 1, 0.5, "CancelledError"),
        events.ClaimFailed("p", 1, 0.5, "PoolTerminatedError: pool p is terminating"),
    ],
)
def test_what_nobody_wants_any_longer_is_no_failure(event):
    records = Records(logging.INFO)
    LoggingObserver(records.logger)(event)
    assert records.kept == []


def test_a_connector_that_cancels_itself_has_failed():
    records = Records(logging.INFO)
    LoggingObserver(records.logger)(events.ConnectFailed("p", 1, "b0", "CancelledError"))
    assert [record.levelname for record in records.kept] == ["WARNING"]


def test_a_flood_is_one_record_a_second_for_each_backend_with_the_number_of_those_left_out():
    records = Records(logging.INFO)
    flood = failures(100) + failures(10, "b1")
    at_times(records, (0, flood), (0.5, flood), (0.6, failures(1) + failures(1, "b1")))

    told = [(r.qorb_backend, r.qorb_suppressed) for r in records.kept]
    assert told == [("b0", 0), ("b1", 0), ("b0", 199), ("b1", 19)]
    assert records.kept[2].getMessage() == (
        "pool p: slot 0 could not connect to b0: OSError: refused (and 199 more times since the last such record)"
    )


def test_never_more_than_one_record_a_second_of_a_kind_about_a_backend():
    records = Records(logging.INFO)
    times: list[float] = []

    async def main():
        observer = LoggingObserver(records.logger)
        for number in range(200):
            for event in (failures(3), failures(3, "b1"), [events.ClaimFailed("p", 1, 0.1, "X")] * (number % 2)):
                for each in event:
                    before = len(records.of(events.ConnectFailed))
                    observer(each)
                    times.extend([asyncio.get_running_loop().time()] * (len(records.of(events.ConnectFailed)) - before))
            await asyncio.sleep(0.05)

    run(main)
    of_both = records.of(events.ConnectFailed)
    for backend in ("b0", "b1"):
        moments = [t for t, record in zip(times, of_both, strict=True) if record.qorb_backend == backend]
        assert 8 <= len(moments) <= 11
        assert min(later - earlier for earlier, later in itertools.pairwise(moments)) >= 0.99
    counted = sum(1 + r.qorb_suppressed for r in of_both if "more times ConnectFailed" not in r.getMessage())
    counted += sum(r.qorb_suppressed for r in of_both if "more times ConnectFailed" in r.getMessage())
    assert 1200 - 2 * 60 <= counted <= 1200, "all but those of the last second are told of"


def test_what_was_left_out_is_told_even_if_no_other_comes():
    records = Records(logging.INFO)
    at_times(records, (0, failures(5)), (3, [events.SlotSetOnline("p", "b1", True)]), (5, failures(1)))

    assert [record.getMessage() for record in records.kept] == [
        "pool p: slot 0 could not connect to b0: OSError: refused",
        "pool p: b1 is online",
        "pool p: 4 more times ConnectFailed of b0",
        "pool p: slot 0 could not connect to b0: OSError: refused",
    ]
    assert records.kept[2].levelno == logging.WARNING
    assert records.kept[2].qorb_backend == "b0"


def test_what_was_left_out_of_a_name_server_is_not_said_of_a_backend():
    records = Records(logging.INFO)
    unanswered = [events.ResolverQueryFailed("p", "10.0.0.53:53", "_db._tcp SRV", "timeout")] * 3
    at_times(records, (0, unanswered), (3, [events.SlotSetOnline("p", "b1", True)]))

    told = records.kept[-1]
    assert told.getMessage() == "pool p: 2 more times ResolverQueryFailed of 10.0.0.53:53"
    assert told.qorb_server == "10.0.0.53:53"
    assert not hasattr(told, "qorb_backend")


def test_what_was_left_out_is_told_at_the_end_of_the_pool():
    records = Records(logging.INFO)
    end = [events.PoolTerminateDone("p", "nothing")]
    at_times(records, (0, failures(5)), (0.1, end))

    assert [record.getMessage() for record in records.kept][1:] == [
        "pool p: the termination is over; left: nothing",
        "pool p: 4 more times ConnectFailed of b0",
    ]


def test_what_is_long_over_takes_no_memory():
    records = Records(logging.INFO)
    observer = LoggingObserver(records.logger)

    async def main():
        for number in range(100):
            for event in failures(1, f"b{number}"):
                observer(event)
            await asyncio.sleep(0.5)

    run(main)
    assert len(observer._windows) < 5


def test_without_a_running_loop_it_logs_too():
    records = Records(logging.INFO)
    LoggingObserver(records.logger)(failures(1)[0])
    assert len(records.kept) == 1


def test_the_logger_is_qorb_events_or_the_one_that_is_named(caplog):
    with caplog.at_level(logging.INFO):
        LoggingObserver()(failures(1)[0])
        LoggingObserver("mine")(failures(1)[0])
    assert [record.name for record in caplog.records] == ["qorb.events", "mine"]


def test_no_secret_is_in_what_it_writes(caplog):
    async def main():
        connector = FakeConnector()
        connector.fail("connect", lambda: OSError("postgres://me:hunter2@host/ password=hunter2"))
        async with Pool("p", FixedResolver(backends(1)), connector, observer=LoggingObserver()):
            await asyncio.sleep(1)

    with caplog.at_level(logging.DEBUG):
        run(main)
    assert any("could not connect" in record.getMessage() for record in caplog.records)
    for record in caplog.records:
        assert "hunter2" not in record.getMessage() + repr(vars(record))
