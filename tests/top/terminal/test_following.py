"""Connections that come and go, in virtual time."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from qorb.testing import run
from qorb.top.terminal.following import PATIENCE, Connecting, Trouble, TroubleError, follow, read_once
from qorb.top.terminal.frame import FrameError
from qorb.top.terminal.rates import Reading
from tests.top.terminal.frames import counts, frame


class Wire:
    """Gives connections; each plays the next part: (seconds to wait, what comes then), again and again."""

    def __init__(self, *parts):
        self.parts = list(parts)
        self.opened = self.closed = 0

    @asynccontextmanager
    async def connect(self):
        part = self.parts.pop(0) if self.parts else [(0, TroubleError("nobody there"))]
        steps = iter(part)

        async def receive():
            seconds, message = next(steps, (1e9, None))
            await asyncio.sleep(seconds)
            if isinstance(message, Exception):
                raise message
            return message if isinstance(message, bytes) else json.dumps(message).encode()

        if part and part[0][0] is None:
            raise part[0][1]
        self.opened += 1
        try:
            yield receive
        finally:
            self.closed += 1


def refused():
    return [(None, TroubleError("the connection is refused"))]


def followed(wire, seconds, interval=1):
    """Follow for so long; give (moment, news)."""

    async def main():
        loop = asyncio.get_running_loop()
        began = loop.time()
        told = []
        task = asyncio.create_task(
            follow(wire.connect, interval, lambda news: told.append((round(loop.time() - began, 3), news)))
        )
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        return began, told

    return run(main, seed=1)


def test_every_frame_is_told_as_a_reading():
    wire = Wire([(0, frame(0, {"a": counts(0)})), (1, frame(5, {"a": counts(5)})), (1, frame(7, {"a": counts(12)}))])
    _, told = followed(wire, 5)
    assert told[0] == (0, Connecting())
    assert [(at, news.claims_per_second) for at, news in told[1:]] == [(0, None), (1, 5), (2, 7)]
    assert (wire.opened, wire.closed) == (1, 1)


def test_while_there_is_no_server_the_pauses_grow_to_a_bound():
    began, told = followed(Wire(*[refused()] * 100), 60)
    troubles = [(at, news) for at, news in told if isinstance(news, Trouble)]
    moments = [at for at, _ in troubles]
    assert moments[:7] == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 23.5]
    assert [round(news.again_at - began, 3) for _, news in troubles[:6]] == moments[1:7]
    assert {news.reason for _, news in troubles} == {"the connection is refused"}
    assert [at for at, news in told if news == Connecting()] == moments


def test_after_a_reading_the_pauses_begin_anew_and_rates_do_too():
    good = [(0, frame(100, {"a": counts(100)})), (1, frame(1, {"a": counts(101)})), (0, TroubleError("it is lost"))]
    _, told = followed(Wire(refused(), refused(), refused(), good, good), 8)
    shown = [(at, news.reason if isinstance(news, Trouble) else "") for at, news in told if news != Connecting()]
    assert shown[3:] == [
        (3.5, ""),
        (4.5, ""),
        (4.5, "it is lost"),
        (5.0, ""),
        (6.0, ""),
        (6.0, "it is lost"),
        *shown[9:],
    ]
    assert [news.claims_per_second for _, news in told if isinstance(news, Reading)] == [None, 1, None, 1]


def test_a_server_that_never_sends_is_left_after_a_while():
    wire = Wire([], [])
    _, told = followed(wire, 12)
    assert told[1][0] == PATIENCE
    assert told[1][1].reason == "the server has sent nothing for 10 s"
    assert wire.closed == 2


@pytest.mark.parametrize("interval", [1, 60])
def test_a_server_that_falls_silent_is_left_when_a_frame_is_long_overdue(interval):
    _, told = followed(Wire([(0, frame())]), 100, interval)
    at, trouble = next((at, news) for at, news in told if isinstance(news, Trouble))
    assert at == interval + PATIENCE
    assert trouble.reason == f"the server has sent nothing for {interval + 10} s"


def test_what_is_no_reading_ends_the_connection_and_it_goes_on():
    wire = Wire([(0, frame()), (1, b"nonsense")], [(0, frame(1))])
    _, told = followed(wire, 3)
    reasons = [news.reason for _, news in told if isinstance(news, Trouble)]
    assert reasons == ["what the server sent is no reading: it is no JSON: b'nonsense'"]
    assert wire.opened == 2
    assert isinstance(told[-1][1], Reading)


def test_others_run_while_a_server_sends_without_end():
    class Endless(Wire):
        @asynccontextmanager
        async def connect(self):
            async def receive():
                self.opened += 1
                return b'{"claims": 1, "sets": {}}'

            yield receive

    async def main():
        wire = Endless()
        task = asyncio.create_task(follow(wire.connect, 1, lambda _: None))
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return wire.opened

    assert 5 < run(main, seed=1) < 30


def once(wire, interval=1):
    return run(lambda: read_once(wire.connect, interval), seed=1)


def test_one_reading_takes_as_many_frames_as_are_needed_for_rates():
    parts = [(0, frame(9, {"a": counts(9)})), (0.1, frame(1, {"a": counts(10)})), (0.9, frame(4, {"a": counts(14)}))]
    wire = Wire([*parts, (1, frame(100))])
    reading = once(wire)
    # 0.9 s before it there was a frame, and that is nearly an interval.
    assert (reading.claims_per_second, reading.per_second) == (pytest.approx(4 / 0.9), {"a": pytest.approx(4 / 0.9)})
    assert wire.closed == 1


@pytest.mark.parametrize("end", [[], [(0.5, TroubleError("lost"))]])
def test_one_reading_has_no_rates_when_the_server_sends_no_more(end):
    assert once(Wire([(0, frame(9)), *end])).claims_per_second is None


def test_one_reading_fails_when_there_is_none():
    with pytest.raises(TroubleError, match="nothing for 10 s"):
        once(Wire([]))
    with pytest.raises(TroubleError, match="refused"):
        once(Wire(refused()))
    with pytest.raises(FrameError):
        once(Wire([(0, b"")]))
    with pytest.raises(FrameError):
        once(Wire([(0, frame()), (1, b"")]))
