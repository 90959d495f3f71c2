"""The view by itself, through textual's pilot, and as a program on a terminal."""

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios

import pytest

from qorb.top.terminal._textual import Help, View
from qorb.top.terminal.board import Board
from qorb.top.terminal.following import Trouble
from qorb.top.terminal.rates import Rates
from qorb.top.terminal.rows import Order
from tests.top.terminal.frames import FULL, counts, frame, read
from tests.top.terminal.server import Server, steady
from tests.top.terminal.test_words import HOSTILE
from tests.words import without_slowness


class Watched:
    """A view of a board, and the board's source."""

    def __init__(self, size):
        self.now = 0.0
        self.board = Board("ws://db:8080")
        self.rates = Rates(1)
        self.view = View(self.board, lambda: self.now)
        self.size = size

    def tell(self, sent):
        self.now += 1
        self.board.tell(self.rates.take(read(sent), self.now))

    async def see(self):
        """Let it draw; give the lines on the screen."""
        self.view.look()
        await self.pilot.pause()
        strips = self.view.screen._compositor.render_strips()
        return ["".join(segment.text for segment in strip).rstrip() for strip in strips]

    async def press(self, *keys):
        await self.pilot.press(*keys)
        return await self.see()


@pytest.fixture
def watch(run_real):
    def run(play, size=(80, 24)):
        async def main():
            watched = Watched(size)
            async with watched.view.run_test(size=size) as watched.pilot:
                await play(watched)

        run_real(main)

    return run


MANY = frame(1, {f"b{number:03}": counts(number, claimed=number % 3, online=True) for number in range(100)})


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_all_of_it_is_on_the_screen(watch, size):
    async def play(watched):
        watched.tell(FULL)
        watched.tell(FULL)
        screen = await watched.see()
        assert len(screen) == size[1]
        assert screen[0].startswith(" qorb top  main running")
        assert screen[0].endswith("live")
        assert "waiting 5" in screen[1]
        assert screen[4].startswith(" backend▲")
        assert screen[5].startswith(" db-1:5432    online")
        assert screen[6].startswith(" db-2:5432    OFFLINE")
        assert screen[-1] == "q Quit s Sort r Reverse / Filter p Pause h Help"

    watch(play, size)


def test_keys_sort(watch):
    async def play(watched):
        watched.tell(MANY)
        assert (await watched.see())[5].startswith(" b000")
        assert (await watched.press("r"))[5].startswith(" b099")
        assert "state▼" in (await watched.press("s"))[4]
        assert (await watched.press("s"))[5].startswith(" b002")
        assert watched.board.choice.order is Order.CLAIMED
        await watched.press("S")
        assert watched.board.choice.order is Order.STATE

    watch(play)


def test_keys_choose_a_row_and_it_stays_in_sight(watch):
    async def play(watched):
        watched.tell(MANY)
        assert "100 of 100 backends" in (await watched.see())[-4]
        assert (await watched.press("down"))[-4].startswith(" b000 ")
        assert (await watched.press("down", "down", "up"))[-4].startswith(" b001 ")
        screen = await watched.press("end")
        assert screen[-4].startswith(" b099 ")
        assert screen[-5].startswith(" b099 ")
        screen = await watched.press("pageup")
        assert any(line.startswith(watched.board.rows[watched.board.index].name, 1) for line in screen[5:-4])
        screen = await watched.press("home")
        assert screen[5].startswith(" b000 ")
        assert "100 of 100 backends" in (await watched.press("escape"))[-4]

    watch(play)


def test_the_mouse_chooses_a_row(watch):
    async def play(watched):
        watched.tell(MANY)
        await watched.see()
        await watched.pilot.click("Table", offset=(3, 3))
        assert (await watched.see())[-4].startswith(" b002 ")
        await watched.pilot.click("Table", offset=(3, 0))
        assert (await watched.see())[-4].startswith(" b002 ")

    watch(play)


def test_a_key_filters_while_one_types(watch):
    async def play(watched):
        watched.tell(MANY)
        screen = await watched.press("slash", "b", "0", "9")
        assert [line.split()[0] for line in screen[5:15]] == [f"b09{digit}" for digit in range(10)]
        assert "10 of 100 backends, with 'b09' in name or error" in "\n".join(screen)
        # Keys are text meanwhile; afterwards they are keys again, and the filter stays.
        await watched.press("q", "backspace", "enter", "r")
        assert (await watched.see())[5].startswith(" b099")
        assert "100 of 100 backends" in (await watched.press("escape"))[-4]
        screen = await watched.press("slash", "x", "escape")
        assert "100 of 100 backends" in screen[-4]
        assert watched.board.choice.wanted == ""

    watch(play)


def test_a_key_pauses_and_goes_on(watch):
    async def play(watched):
        watched.tell(frame(0, {"old": counts(1)}))
        await watched.see()
        await watched.press("p")
        watched.tell(frame(0, {"new": counts(1)}))
        watched.now += 3
        screen = await watched.see()
        assert screen[0].endswith("paused for 4 s")
        assert screen[5].startswith(" old")
        screen = await watched.press("space")
        assert screen[0].endswith("live")
        assert screen[5].startswith(" new")

    watch(play)


@pytest.mark.parametrize("key", ["h", "question_mark"])
@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_a_key_explains_the_keys_and_any_key_closes_that(watch, key, size):
    async def play(watched):
        watched.tell(MANY)
        screen = "\n".join(await watched.press(key))
        for words in ("sort by the next column", "leave", "Any key closes this."):
            assert words in screen
        watched.tell(MANY)
        await watched.press("q")
        assert not isinstance(watched.view.screen, Help)
        assert watched.view.is_running
        await watched.press(key, "slash")
        assert not isinstance(watched.view.screen, Help)
        assert not watched.view.query(".there")

    watch(play, size)


@pytest.mark.parametrize(("key", "status"), [("q", 0), ("ctrl+c", 130)])
@pytest.mark.parametrize("before", [[], ["h"], ["slash", "x"]])
def test_a_key_leaves(watch, key, status, before):
    async def play(watched):
        if before and key == "q":
            return
        await watched.pilot.press(*before, key)
        await watched.pilot.pause()
        assert watched.view.return_code == status

    watch(play)


def test_trouble_has_a_line_of_its_own_while_it_lasts(watch):
    async def play(watched):
        watched.tell(FULL)
        watched.board.tell(Trouble("the connection is lost", watched.now + 4))
        screen = await watched.see()
        assert screen[0].endswith("no connection")
        assert screen[4] == " the connection is lost; again in 4 s"
        assert screen[6].startswith(" db-1:5432")
        watched.now += 3
        assert (await watched.see())[4] == " the connection is lost; again in 1 s"
        watched.tell(FULL)
        screen = await watched.see()
        assert screen[5].startswith(" db-1:5432")

    watch(play)


def test_hostile_names_and_errors_are_text(watch):
    async def play(watched):
        sets = {
            HOSTILE: counts(1, last_error=HOSTILE, failures=1),
            "[red]x[/red]": counts(1),
            "[@click=app.exit]": counts(1),
        }
        watched.tell(frame(1, sets, pool=HOSTILE, state=HOSTILE))
        await watched.press("down")
        screen = await watched.press("slash", "[", "r", "e", "d", "]")
        for line in screen:
            assert line.isprintable()
            assert re.search("[\u0590-\u08ff\u4e00-\u9fff\u0300-\u036f]", line) is None
        assert any(line.startswith(" [red]x[/red]") for line in screen)
        watched.board.tell(Trouble(HOSTILE, 100.0))
        assert all(line.isprintable() for line in await watched.see())

    watch(play, (120, 40))


def test_it_is_drawn_anew_when_the_terminal_gets_another_size(watch):
    async def play(watched):
        watched.tell(MANY)
        await watched.see()
        for size in ((120, 40), (40, 10), (3, 3), (1, 1), (80, 24)):
            await watched.pilot.resize_terminal(*size)
            screen = await watched.see()
            assert len(screen) == size[1]
        assert screen[5].startswith(" b000")

    watch(play)


def test_ten_thousand_backends_are_shown(watch):
    async def play(watched):
        for number in range(3):
            sets = {f"backend-{name}.example.com:5432": counts(name * number) for name in range(10_000)}
            watched.tell(frame(number, sets))
            await watched.see()
        assert (await watched.press("end"))[-5].startswith(" backend-9999.example.com")

    watch(play)


# The program on a terminal


QORB = (sys.executable, "-W", "error", "-m", "qorb.cli", "top")
CRASHING = """
import sys
from qorb.cli import main
from qorb.top.terminal import _textual
def crash(self):
    raise ZeroDivisionError("the view's own")
_textual.View.action_turn = crash
sys.exit(main(sys.argv[1:]))
"""
MISTAKEN = """
import sys
from qorb.cli import main
from qorb.top.terminal import rates
def mistake(self, frame, now):
    raise ZeroDivisionError("a mistake of ours")
rates.Rates.take = mistake
sys.exit(main(sys.argv[1:]))
"""


class Terminal:
    """A pseudo-terminal, seen from the side of who looks at it."""

    def __init__(self):
        self._seen, self.inside = pty.openpty()
        termios.tcsetwinsize(self.inside, (24, 80))
        self.settings = termios.tcgetattr(self.inside)
        self.screen = ""
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode

    def read_until(self, words, program):
        while words not in self.screen:
            ended = program.poll() is not None
            if select.select([self._seen], [], [], 0 if ended else 1)[0]:
                self.screen += self._decode(os.read(self._seen, 65536))
            else:
                assert not ended, f"{words!r} did not come:\n{self.screen!r}"

    def read_to_the_end(self, program):
        while program.poll() is None or select.select([self._seen], [], [], 0)[0]:
            if select.select([self._seen], [], [], 0.1)[0]:
                self.screen += self._decode(os.read(self._seen, 65536))

    def type(self, text):
        os.write(self._seen, text.encode())

    def hang_up(self):
        os.close(self._seen)
        self._seen = -1

    def close(self):
        if self._seen >= 0:
            os.close(self._seen)
        os.close(self.inside)


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.close()


def take_the_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def on_terminal(terminal, address, command=QORB):
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    process = subprocess.Popen(
        [*command, address],
        stdin=terminal.inside,
        stdout=terminal.inside,
        stderr=terminal.inside,
        start_new_session=True,
        preexec_fn=take_the_terminal,  # noqa: PLW1509 - nothing but one system call
        env={**environment, "TERM": "xterm-256color"},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def assert_restored(terminal):
    """The alternate screen is left, the cursor is seen, mouse and paste are as before, and keys are echoed again."""
    assert termios.tcgetattr(terminal.inside) == terminal.settings
    for mode, before in (("1049", "l"), ("25", "h"), ("1000", "l"), ("1003", "l"), ("1006", "l"), ("2004", "l")):
        switches = re.findall(rf"\x1b\[\?{mode}([hl])", terminal.screen)
        assert switches, mode
        assert switches[-1] == before, mode


@pytest.fixture
def server():
    with Server(steady(seconds=0.2)) as server:
        yield server


def after_the_screen(terminal):
    after = terminal.screen.rpartition("\x1b[?1049l")[2].replace("\r", "")
    return without_slowness(re.sub(r"\x1b\[[?>=<]?[\d;]*[a-zA-Z]", "", after))


@pytest.mark.parametrize(("key", "status"), [("q", 0), ("\x03", 130)], ids=["q", "Ctrl-C"])
def test_a_key_gives_the_terminal_back(terminal, server, key, status):
    with on_terminal(terminal, server.address) as top:
        terminal.read_until("db-1:5432", top)
        terminal.type(key)
        terminal.read_to_the_end(top)
    assert top.returncode == status
    assert_restored(terminal)
    assert after_the_screen(terminal).strip() == ""


def test_what_is_typed_quickly_after_the_filters_key_is_text(terminal, server):
    with on_terminal(terminal, server.address) as top:
        terminal.read_until("db-1:5432", top)
        terminal.type("/q/S")  # arrives at once; each of these is a key, too
        terminal.read_until("no backend matches 'q/S'", top)
        terminal.type("\x03")
        terminal.read_to_the_end(top)
    assert top.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_gives_the_terminal_back(terminal, server, number):
    with on_terminal(terminal, server.address) as top:
        terminal.read_until("db-1:5432", top)
        top.send_signal(number)
        terminal.read_to_the_end(top)
    assert top.returncode == 128 + number
    assert_restored(terminal)
    assert after_the_screen(terminal).strip() == ""


def test_a_crash_gives_the_terminal_back_and_does_not_show_the_token(terminal, server, monkeypatch):
    monkeypatch.setenv("QORB_TOP_TOKEN", "canary-of-this-test")
    with on_terminal(terminal, server.address, (sys.executable, "-c", CRASHING, "top")) as top:
        terminal.read_until("db-1:5432", top)
        terminal.type("r")
        terminal.read_to_the_end(top)
    assert top.returncode == 1
    assert_restored(terminal)
    assert "the view's own" in after_the_screen(terminal)
    assert "canary" not in terminal.screen


def test_a_mistake_behind_the_view_gives_the_terminal_back(terminal, server):
    with on_terminal(terminal, server.address, (sys.executable, "-c", MISTAKEN, "top")) as top:
        terminal.read_to_the_end(top)
    assert top.returncode == 1
    assert_restored(terminal)
    assert "a mistake of ours" in after_the_screen(terminal)


def test_a_terminal_that_is_gone_ends_it(terminal, server):
    with on_terminal(terminal, server.address) as top:
        terminal.read_until("db-1:5432", top)
        terminal.hang_up()
        top.wait(timeout=120)


def test_the_view_outlives_the_server_and_goes_on_with_the_next_one(terminal):
    with Server(steady()) as first:
        with on_terminal(terminal, first.address) as top:
            terminal.read_until("live", top)
            first.close()
            terminal.read_until("nobody listens there", top)
            terminal.screen = ""
            with Server(steady(), port=first.port):
                terminal.read_until("live", top)
                terminal.type("q")
                terminal.read_to_the_end(top)
        assert top.returncode == 0
        assert_restored(terminal)


@pytest.mark.parametrize(
    "script",
    [
        lambda connection: connection.hold(),
        lambda connection: connection.send(b"nonsense"),
        lambda connection: connection.raw(b"\xff" * 100),
        lambda connection: connection.send(frame(1, {f"\x1b]0;x\x07{n}": counts(n) for n in range(10_000)})),
    ],
    ids=["silent", "nonsense", "noise", "ten thousand"],
)
def test_whatever_the_server_does_a_key_leaves(terminal, script):
    with Server(script) as server, on_terminal(terminal, server.address) as top:
        server.wait_for_requests(1)
        terminal.read_until("Quit", top)
        terminal.type("q")
        terminal.read_to_the_end(top)
    assert top.returncode == 0
    assert_restored(terminal)
    assert "\x1b]0;x" not in terminal.screen
    assert after_the_screen(terminal).strip() == ""
