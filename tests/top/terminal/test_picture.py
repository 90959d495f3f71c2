import pytest

from qorb.top.terminal import picture
from qorb.top.terminal.board import Board
from qorb.top.terminal.following import Connecting, Trouble
from qorb.top.terminal.rates import Rates
from qorb.top.terminal.rows import Order
from tests.top.terminal.frames import FULL, counts, frame, histogram, read
from tests.top.terminal.test_words import HOSTILE


class Source:
    """Gives one reading a second."""

    def __init__(self):
        self.rates = Rates(1)
        self.now = 0.0

    def reading(self, sent):
        self.now += 1
        return self.rates.take(read(sent), self.now)


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def board():
    return Board("ws://db:8080")


def text(lines):
    return ["".join(part for part, _ in line).rstrip() for line in lines]


def names(board):
    return [row.name for row in board.rows]


def test_the_head_says_what_is_true_of_the_whole_pool(board, source):
    board.tell(source.reading({**FULL, "timings": {"wait": histogram(0, 0, 0)}}))
    board.tell(source.reading(FULL))
    assert text(picture.head(board, 0.0, 80)) == [
        " qorb top  main running                                      ws://db:8080  live",
        " claims/s     3.0              █   waiting 5   backends 1 of 2 online",
        " slots 4      █ 2 claimed   ░ 1 unclaimed   ▒ 0 checking   · 1 connecting",
        " wait half ≤ 1 ms, 99 % ≤ 10 ms",
    ]


def test_the_head_of_the_original_leaves_blank_what_is_not_known(board, source):
    board.tell(source.reading(frame(1, {"a": counts(1, claimed=1)})))
    assert text(picture.head(board, 0.0, 80)) == [
        " qorb top                                                    ws://db:8080  live",
        " claims/s                          backends 1",
        " slots 2      █ 1 claimed   ░ 1 unclaimed   ▒ 0 checking   · 0 connecting",
        "",
    ]


def test_a_backend_is_a_row_with_everything_that_is_known(board, source):
    board.tell(source.reading(FULL))
    board.tell(source.reading({**FULL, "sets": {**FULL["sets"], "db-1:5432": counts(1234, claimed=2, online=True)}}))
    assert text(picture.table(board, 100, 10, 0)) == [
        " backend▲     state   slots       claimed claims/s          fails last error",
        " db-1:5432    online  ██████░░░       2/3    1,224        █",
        " db-2:5432    OFFLINE ···             0/1        0        ▁     4 refused",
    ]


def test_the_arrow_stands_at_the_column_by_which_is_sorted(board):
    seen = []
    for order in Order:
        for backwards in (False, True):
            board.choose(order=order, backwards=backwards)
            (line,) = text(picture.table(board, 80, 10, 0))
            seen += [word for word in line.split() if word[-1] in "▲▼"]
    assert seen == [
        *("backend▲", "backend▼", "state▼", "state▲", "claimed▼", "claimed▲"),
        *("claims/s▼", "claims/s▲", "fail▼", "fail▲"),
    ]


@pytest.mark.parametrize("width", [1, 20, 40, 79, 80, 81, 109, 110, 120, 300])
@pytest.mark.parametrize("sent", [FULL, frame(1, {HOSTILE * 20: counts(2**64 - 1, claimed=2**64 - 1)}), frame()])
def test_every_line_is_as_wide_as_the_terminal(board, source, width, sent):
    board.tell(source.reading({**sent, "pool": HOSTILE * 9, "state": HOSTILE * 9}))
    board.tell(source.reading(sent))
    board.select(0)
    for trouble in (None, Trouble(HOSTILE * 9, 12.0)):
        board.trouble = trouble
        lines = [
            *picture.head(board, 10.0, width),
            *picture.table(board, width, 10, 0),
            *picture.detail(board, width),
            *([] if trouble is None else [picture.trouble(board, 10.0, width)]),
        ]
        for line in lines:
            drawn = "".join(part for part, _ in line)
            assert len(drawn) == width
            assert drawn.isprintable()


def test_only_the_rows_that_are_seen_are_drawn(board, source):
    board.tell(source.reading(frame(1, {f"b{number:05}": counts(1) for number in range(10_000)})))
    lines = text(picture.table(board, 80, 5, 9_000))
    assert [line.split()[0] for line in lines[1:]] == ["b09000", "b09001", "b09002", "b09003"]


def test_no_backend_is_said(board, source):
    board.tell(source.reading(frame()))
    assert text(picture.table(board, 80, 5, 0))[1] == " no backend"
    board.choose(wanted="x")
    assert text(picture.table(board, 80, 5, 0))[1] == " no backend matches 'x'"


def test_the_selected_backend_shows_all_of_its_last_error(board, source):
    sets = {"a": counts(7), "b": counts(7, last_error="no " * 30 + "more", failures=3)}
    board.tell(source.reading(frame(1, sets)))
    board.move(1)
    board.move(1)
    shown = text(picture.detail(board, 80))
    assert shown[0] == " b  1 unclaimed; 7 claims in all; 3 failures lately"
    assert (shown[1] + " " + shown[2]).split() == ["no"] * 30 + ["more"]


def test_while_none_is_selected_the_backend_with_the_most_failures_is_shown(board, source):
    sets = {"a": counts(1, failures=1), "b": counts(1, failures=2, last_error="refused"), "c": counts(1, failures=2)}
    board.tell(source.reading(frame(1, sets)))
    assert text(picture.detail(board, 80))[:2] == [
        " most failures: b  1 unclaimed; 1 claims in all; 2 failures lately",
        " refused",
    ]
    board.move(1)
    assert text(picture.detail(board, 80))[0].startswith(" a  ")
    board.deselect()
    board.tell(source.reading(frame(1, {"a": counts(1, failures=0), "b": counts(1)})))
    assert text(picture.detail(board, 80))[0].startswith(" 2 of 2 backends; ")


def test_trouble_says_what_and_when_it_goes_on(board, source):
    assert picture.trouble(board, 0.0, 80) is None
    board.tell(source.reading(FULL))
    board.tell(Trouble("it is gone", 14.0))
    assert "".join(part for part, _ in picture.trouble(board, 10.0, 40)).rstrip() == " it is gone; again in 4 s"
    assert text(picture.head(board, 10.0, 80))[0].endswith("no connection")
    board.tell(Connecting())
    assert "".join(part for part, _ in picture.trouble(board, 14.0, 40)).rstrip() == " it is gone; connecting again"
    assert names(board) == ["db-1:5432", "db-2:5432"]
    board.tell(source.reading(FULL))
    assert picture.trouble(board, 15.0, 80) is None
    assert text(picture.head(board, 15.0, 80))[0].endswith("live")


def test_before_the_first_reading_it_is_connecting(board):
    assert text(picture.head(board, 0.0, 80))[0].endswith("ws://db:8080  connecting")
    assert len(picture.table(board, 80, 10, 0)) == 1


def test_a_paused_board_shows_what_it_showed_and_then_the_newest(board, source):
    board.tell(source.reading(frame(0, {"a": counts(1)})))
    board.pause(10.0)
    board.tell(source.reading(frame(5, {"b": counts(1)})))
    board.tell(Trouble("gone", 20.0))
    assert names(board) == ["a"]
    assert text(picture.head(board, 13.0, 80))[0].endswith("paused for 3 s")
    assert picture.trouble(board, 13.0, 80) is not None
    board.pause(14.0)
    assert names(board) == ["b"]
    assert board.reading.samples == (5,)


def test_the_selection_stays_with_its_backend_and_goes_to_the_next_one_when_that_is_gone(board, source):
    def tell(*letters):
        board.tell(source.reading(frame(1, {name: counts(1) for name in letters})))

    def selected():
        return None if board.index is None else board.rows[board.index].name

    assert selected() is None
    board.move(1)
    assert selected() is None
    tell(*"bcd")
    board.move(1)
    assert selected() == "b"
    board.move(1)
    assert selected() == "c"
    tell(*"abcd")
    assert (selected(), board.index) == ("c", 2)
    board.choose(backwards=True)
    assert (selected(), board.index) == ("c", 1)
    tell(*"abd")
    assert selected() == "b"
    tell("a")
    assert selected() == "a"
    tell()
    assert selected() is None
    tell(*"ab")
    board.move(100)
    assert selected() == "a"
    board.move(-100)
    assert selected() == "b"
    board.deselect()
    assert selected() is None


def test_everything_that_may_change_the_picture_is_noticed(board, source):
    steps = [
        lambda: board.tell(Connecting()),
        lambda: board.tell(Trouble("gone", 1.0)),
        lambda: board.tell(source.reading(FULL)),
        lambda: board.pause(1.0),
        lambda: board.choose(wanted="x"),
        lambda: board.move(1),
        lambda: board.select(0),
        board.deselect,
    ]
    for step in steps:
        before = board.version
        step()
        assert board.version > before
