import pytest
from hypothesis import given
from hypothesis import strategies as st

from qorb.top.terminal.frame import Counts
from qorb.top.terminal.rates import Rates
from qorb.top.terminal.rows import Choice, Order, bar, rows, sparkline
from tests.top.terminal.frames import counts, frame, read


@pytest.fixture
def reading():
    def sent(factor):
        return frame(
            1,
            {
                "b": counts(10 * factor, claimed=3, online=True, failures=0),
                "a": counts(30 * factor, claimed=1, online=True, failures=2, last_error="Timeout of [A]"),
                "d": counts(0, claimed=0, online=False, failures=9, last_error="refused"),
                "c": counts(20 * factor, claimed=2),
            },
        )

    rates = Rates(1)
    rates.take(read(sent(0)), 0.0)
    return rates.take(read(sent(1)), 1.0)


@pytest.mark.parametrize(
    ("order", "backwards", "names"),
    [
        (Order.NAME, False, "abcd"),
        (Order.NAME, True, "dcba"),
        (Order.STATE, False, "dabc"),
        (Order.STATE, True, "abdc"),
        (Order.CLAIMED, False, "bcad"),
        (Order.CLAIMED, True, "dacb"),
        (Order.CLAIMS_PER_SECOND, False, "acbd"),
        (Order.CLAIMS_PER_SECOND, True, "dbca"),
        (Order.FAILURES, False, "dabc"),
        (Order.FAILURES, True, "badc"),
    ],
)
def test_rows_are_sorted_with_the_unknown_last_and_equal_ones_by_name(reading, order, backwards, names):
    assert "".join(row.name for row in rows(reading, Choice(order, backwards))) == names


@pytest.mark.parametrize(
    ("wanted", "names"), [("", "abcd"), ("REF", "d"), ("timeout of [", "a"), ("C", "c"), ("zz", "")]
)
def test_rows_are_those_with_the_text_in_name_or_error(reading, wanted, names):
    chosen = rows(reading, Choice(wanted=wanted))
    assert "".join(row.name for row in chosen) == names


def test_the_orders_come_one_after_the_other_both_ways():
    order, seen = Order.NAME, []
    for _ in Order:
        seen.append(order)
        order = order.next()
    assert order is Order.NAME
    assert seen == list(Order)
    assert Order.NAME.next(-1) is Order.FAILURES


def test_a_bar_has_the_same_number_of_cells_for_each_slot_while_there_is_room():
    assert bar(Counts(1, 2, 0, 3, 0), 10, 10) == (3, 2, 0, 1)
    assert bar(Counts(1, 2, 0, 0, 0), 3, 10) == (0, 6, 0, 3)
    assert bar(Counts(0, 1, 0, 1, 0), 2, 100) == (4, 4, 0, 0)
    assert bar(Counts(0, 0, 0, 0, 0), 0, 10) == (0, 0, 0, 0)


slots = st.integers(0, 2**64 - 1)


@given(slots, slots, slots, slots, slots, st.integers(4, 60))
def test_a_bar_fits_and_shows_every_state_that_occurs(claimed, unclaimed, checking, connecting, more, width):
    numbers = (claimed, unclaimed, checking, connecting)
    cells = bar(Counts(connecting, unclaimed, checking, claimed, 0), sum(numbers) + more, width)
    assert sum(cells) <= width
    assert [cell > 0 for cell in cells] == [number > 0 for number in numbers]


def test_a_bar_is_in_proportion_to_the_largest():
    assert bar(Counts(0, 50, 0, 50, 0), 100, 10) == (5, 5, 0, 0)
    assert bar(Counts(0, 25, 0, 25, 0), 200, 20) == (2, 2, 0, 0)


def test_a_sparkline_has_the_newest_at_its_right_end_and_gaps_where_nothing_is_known():
    assert sparkline((0, None, 1, 50, 100), 100, 8) == "   ▁ ▂▅█"
    assert sparkline((0, None, 1, 50, 100), 100, 2) == "▅█"
    assert sparkline((), 0, 3) == "   "
    assert sparkline((0.0, 0.0), 0.0, 2) == "▁▁"
    assert sparkline((1, 2), 2, 0) == ""
