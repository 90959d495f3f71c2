import json

import pytest

from qorb.top.terminal.frame import Counts, Frame, FrameError, Histogram, read_frame
from tests.top.terminal.frames import FULL, counts, frame, histogram, read


def test_a_frame_of_the_original_leaves_blank_what_it_does_not_have():
    assert read(frame(4, {"a": counts(9, claimed=2)})) == Frame(4, {"a": Counts(0, 1, 0, 2, 9)})


def test_a_frame_of_ours_has_more():
    one = read(FULL)
    assert (one.pool, one.state, one.waiting) == ("main", "running", 5)
    assert one.timings["wait"] == Histogram((0.001, 0.01), (4, 1, 0), 0.01)
    down = one.backends["db-2:5432"]
    assert (down.online, down.failures, down.last_error, down.slots) == (False, 4, "refused", 1)


def test_null_is_as_good_as_missing_and_what_is_unknown_is_left_alone():
    sent = frame(
        1,
        {"a": counts(online=None, failures=None, last_error=None, mood="good")},
        pool=None,
        state=None,
        waiting=None,
        timings=None,
        weather=["rain"],
    )
    assert read(sent) == Frame(1, {"a": Counts(0, 1, 0, 0, 0)})
    assert read(frame(timings={"wait": None, "dream": 3})).timings == {}


def with_count(key, value):
    return frame(1, {"a": {**counts(), key: value}})


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "it is no JSON: b''"),
        (b"\xff\xfe\xfd", "it is no JSON"),
        (b"{", "it is no JSON: b'{'"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"claims": NaN, "sets": {}}', "it is no JSON"),
        (b'{"claims": %s, "sets": {}}' % (b"9" * 10_000), "it is no JSON"),
        (b'{"claims": 1e999, "sets": {}}', "'claims' must be a whole number from 0 to 2**64 - 1, not inf"),
        (b"[]", "it is no JSON object: a list"),
        (b"null", "it is no JSON object: None"),
        ({"sets": {}}, "'claims' must be a whole number"),
        ({"claims": 1}, "it has no 'sets'"),
        ({"claims": 1, "sets": []}, "'sets' is no JSON object: a list"),
        (frame(-1), "'claims' must be a whole number from 0 to 2**64 - 1, not -1"),
        (frame(True), "'claims' must be a whole number"),
        (frame("1"), "'claims' must be a whole number from 0 to 2**64 - 1, not '1'"),
        (frame(1.5), "'claims' must be a whole number"),
        (frame(2**64), "not a number beyond that"),
        (frame(waiting=-1), "'waiting' must be a whole number"),
        (frame(pool=3), "'pool' must be a string, not 3"),
        (frame(state={}), "'state' must be a string, not a dict"),
        ({"claims": 1, "sets": {"a": 3}}, "the entry of 'a' is no JSON object: 3"),
        ({"claims": 1, "sets": {"a": {}}}, "'connecting_slots' of 'a' must be"),
        (with_count("claimed_slots", -1), "'claimed_slots' of 'a' must be a whole number from 0 to 2**64 - 1, not -1"),
        (with_count("total_claims", None), "'total_claims' of 'a' must be"),
        (with_count("online", 1), "'online' of 'a' must be true or false, not 1"),
        (with_count("failures", "many"), "'failures' of 'a' must be a whole number"),
        (with_count("last_error", 3), "'last_error' of 'a' must be a string, not 3"),
        (frame(timings=[]), "'timings' is no JSON object: a list"),
        (frame(timings={"wait": 3}), "'wait' is no JSON object: 3"),
        (frame(timings={"wait": {}}), "the bounds of the timings of wait are no list"),
        (frame(timings={"use": histogram(1, 2)}), "the counts of the timings of use are not whole numbers, one more"),
        (frame(timings={"use": histogram(1, 2, -1)}), "the counts of the timings of use are no list"),
        (frame(timings={"use": histogram(1, 2, 1.5)}), "the counts of the timings of use are not whole numbers"),
        (frame(timings={"use": histogram(1, 2, 3, bounds=(2, 1))}), "the bounds of the timings of use do not grow"),
        (frame(timings={"use": histogram(*[0] * 1002, bounds=range(1001))}), "at most 1000 numbers"),
        (frame(timings={"use": histogram(1, 2, 3, total=None)}), "the sum of the timings of use is no number"),
    ],
)
def test_what_is_no_reading_is_said_in_one_short_line(sent, words):
    with pytest.raises(FrameError) as refused:
        read_frame(sent if isinstance(sent, bytes) else json.dumps(sent).encode())
    said = str(refused.value)
    assert words in said
    assert len(said) < 250
    assert said.isprintable()


def test_what_is_quoted_of_a_wrong_frame_is_cut_and_harmless():
    with pytest.raises(FrameError) as refused:
        read(frame(1, {"\x1b[2J\u202e" + "x" * 10_000: 3}))
    said = str(refused.value)
    assert said.isascii()
    assert said.isprintable()
    assert len(said) < 150


def test_ten_thousand_backends_are_read():
    assert len(read(frame(1, {f"backend-{number}": counts(number) for number in range(10_000)})).backends) == 10_000
