import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qorb.top.terminal.rates import Latency, Rates
from qorb.top.terminal.words import as_json, count, duration, harmless, latency, legible, lines, rate
from tests.top.terminal.frames import FULL, counts, frame, histogram, read

HOSTILE = "a\x1b[2Jb\r\n\t\x9b31mc\u202ed\u2066e\u200bf\x7f\u0301g\u05d0h\u4e2di\ud800[bold]j[/]\\"


@given(st.text())
def test_harmless_text_is_printable_ascii(text):
    said = harmless(text)
    assert said.isascii()
    assert said.isprintable()
    assert len(said) <= 1000


def test_legible_text_takes_one_cell_a_character_from_left_to_right():
    said = legible("Zeitüberschreitung: не удалось [bold]" + HOSTILE)
    assert said.startswith("Zeitüberschreitung: не удалось [bold]a\\x1b[2Jb\\r\\n\\t\\x9b31mc\\u202ed\\u2066e\\u200bf")
    assert "\\u0301g\\u05d0h\\u4e2di\\ud800[bold]j[/]\\" in said
    assert said.isprintable()


@given(st.text(alphabet=st.characters()))
def test_legible_text_has_nothing_that_a_terminal_obeys(text):
    said = legible(text, 40)
    assert said.isprintable()
    assert len(said) <= 40
    said.encode()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, ""),
        (0, "0"),
        (999, "999"),
        (1_234_567, "1,234,567"),
        (12_345_678, "12.3M"),
        (12_345_678_901, "12.3G"),
        (9_999_999_999, "10,000.0M"),
        (2**64 - 1, "18.4E"),
    ],
)
def test_numbers_are_short(number, text):
    assert count(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(None, ""), (0, "0"), (0.01234, "0.012"), (3.25, "3.2"), (1234.5, "1,234")]
)
def test_small_rates_have_decimals(number, text):
    assert rate(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.00005, "50 us"), (0.0025, "2.5 ms"), (0.3, "300 ms"), (12.0, "12 s")])
def test_times_have_units(seconds, text):
    assert duration(seconds) == text


def test_a_latency_says_what_is_known_of_it():
    assert latency(Latency(0.001, 0.05, 1.0, 0.002)) == "half <= 1 ms, 99 % <= 50 ms"
    assert latency(Latency(0.001, math.inf, 1.0, 0.002)) == "half <= 1 ms, 99 % > 1 s"


def reading_of(sent, before=None):
    rates = Rates(1)
    rates.take(read(before or sent), 0.0)
    return rates.take(read(sent), 1.0)


def test_a_reading_as_text_has_all_of_it():
    before = {**FULL, "timings": {"wait": histogram(0, 0, 0)}}
    assert list(lines(reading_of(FULL, before))) == [
        "pool main, running: 2 backends, 1 online, 5 waiting, 3.0 claims/s",
        "wait: half <= 1 ms, 99 % <= 10 ms, mean 2 ms",
        "",
        "backend    online  connecting  unclaimed  checking  claimed  claims/s  claims  failures  last error",
        "db-1:5432  yes              0          1         0        2         0      10         0",
        "db-2:5432  no               1          0         0        0         0       7         4  refused",
    ]


def test_a_reading_of_the_original_as_text_leaves_blank_what_is_not_known():
    first = Rates(1).take(read(frame(0, {"a": counts(3)})), 0.0)
    assert list(lines(first)) == [
        "pool: 1 backend",
        "",
        "backend  online  connecting  unclaimed  checking  claimed  claims/s  claims  failures  last error",
        "a                         0          1         0        0                 3",
    ]
    assert list(lines(Rates(1).take(read(frame()), 0.0))) == ["pool: 0 backends"]


def test_a_reading_as_json_is_one_line_with_null_for_what_is_not_known():
    before = {**FULL, "timings": {"wait": histogram(0, 0, 0), "use": FULL["timings"]["use"]}}
    said = as_json(reading_of(FULL, before))
    assert "\n" not in said
    read_again = json.loads(said)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", read_again.pop("time"))
    assert read_again == {
        "pool": "main",
        "state": "running",
        "claims": 3,
        "claims_per_second": 3.0,
        "waiting": 5,
        "backends": [
            {"name": "db-1:5432", "claims_per_second": 0.0, **FULL["sets"]["db-1:5432"]},
            {"name": "db-2:5432", "claims_per_second": 0.0, **FULL["sets"]["db-2:5432"]},
        ],
        "timings": {
            "wait": {"half_at_most": 0.001, "99_percent_at_most": 0.01, "mean": 0.002},
            "use": None,
            "connect": None,
        },
    }


def test_hostile_names_and_errors_are_text_in_both():
    hostile = frame(1, {HOSTILE: counts(1, last_error=HOSTILE)}, pool=HOSTILE, state=HOSTILE)
    reading = reading_of(hostile)
    for line in (*lines(reading), as_json(reading)):
        assert line.isascii()
        assert line.isprintable()
    assert json.loads(as_json(reading))["backends"][0]["name"] == HOSTILE
