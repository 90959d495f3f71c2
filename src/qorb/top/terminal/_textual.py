"""The view that stays open, by textual."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Footer, Input, Static

from qorb.top.terminal import picture
from qorb.top.terminal.board import Board
from qorb.top.terminal.following import follow

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual import events

    from qorb.top.terminal.following import Connect
    from qorb.top.terminal.picture import Line

_STYLES = {
    "": "",
    "title": "bold reverse",
    "columns": "reverse",
    "strong": "bold",
    "dim": "dim",
    "good": "ansi_green",
    "warn": "bold ansi_yellow",
    "bad": "bold ansi_red",
    "trouble": "bold reverse ansi_red",
    "spark": "ansi_cyan",
    "claimed": "ansi_blue",
    "unclaimed": "ansi_green",
    "checking": "ansi_cyan",
    "connecting": "bold ansi_yellow",
}
_LOOKS = 0.1
"""Seconds. So often the view looks whether there is anything new to draw, however often something comes."""
_BY_SIGNAL = 128
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")

_HELP = """\
 s S          sort by the next column, or by the one before
 r            turn the order round
 /            show only backends with a text in name or error;
              Enter keeps it, Esc drops it
 p Space      stop showing what is new, and go on; reading goes on
 ↑ ↓ PgUp PgDn Home End
              choose a backend, and see all of its last error;
              Esc chooses none
 h ?          this
 q Ctrl-C     leave

 slots        █ claimed   ░ unclaimed   ▒ being checked
              · connecting, or pausing before the next try
 claims/s     by this machine's clock, over one interval;
              all sparklines of backends have the same scale
 half, 99 %   of the last interval; times are counted in ranges,
              so it is known that it was at most so long
 fails        failed connects and checks of the last minutes
 Any key closes this."""


async def watch(connect: Connect, interval: float, shown: str) -> int:
    """Show the view until it is left, and return the exit status. The terminal is as before when that is known.

    SIGINT, SIGTERM, SIGHUP and SIGQUIT leave it, too. Cancellation closes the connection; the terminal is textual's to
    restore.
    """
    loop = asyncio.get_running_loop()
    board = Board(shown)
    view = View(board, loop.time)
    following = asyncio.create_task(follow(connect, interval, board.tell), name="qorb top: follow")
    following.add_done_callback(lambda _: view.exit(return_code=1))  # only a mistake of ours ends it
    signals = [number for number in map(_number, _SIGNALS) if number is not None and _leave_at(number, view, loop)]
    try:
        await view.run_async()
        if following.done():
            following.result()
        return view.return_code or 0
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        following.cancel()
        await asyncio.wait([following])


def _number(name: str) -> signal.Signals | None:
    return getattr(signal, name, None)  # there are neither SIGHUP nor SIGQUIT on Windows


def _leave_at(number: signal.Signals, view: View, loop: asyncio.AbstractEventLoop) -> bool:
    # A program that is to outlive its terminal (nohup) has SIGHUP ignored.
    if number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
        return False
    try:
        loop.add_signal_handler(number, lambda: view.exit(return_code=_BY_SIGNAL + number))
    except (NotImplementedError, ValueError, RuntimeError):  # on Windows, and outside the main thread
        return False
    return True


class Table(Widget, can_focus=True):
    """The backends; it draws the lines that are seen and no others, however many there are."""

    DEFAULT_CSS = "Table { height: 1fr; text-wrap: nowrap; text-overflow: clip; }"

    def __init__(self, board: Board) -> None:
        """Show what is on the board."""
        super().__init__()
        self._board = board
        self._top = 0

    def render(self) -> Content:
        """Draw it, with the selected row in sight."""
        height = max(1, self.size.height - 1)
        index = self._board.index
        if index is not None:
            self._top = min(max(self._top, index - height + 1), index)
        self._top = max(0, min(self._top, len(self._board.rows) - height))
        lines = picture.table(self._board, self.size.width, self.size.height, self._top)
        drawn = list(map(_content, lines))
        if index is not None and 0 <= index - self._top < len(drawn) - 1:
            drawn[1 + index - self._top] = drawn[1 + index - self._top].stylize("reverse")
        return Content("\n").join(drawn)

    @property
    def page(self) -> int:
        """How many rows are seen at once."""
        return max(1, self.size.height - 2)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Go down."""
        event.stop()
        self._board.move(3)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Go up."""
        event.stop()
        self._board.move(-3)

    def on_click(self, event: events.Click) -> None:
        """Choose a row."""
        row = event.y - 1 + self._top
        if event.y >= 1 and row < len(self._board.rows):
            self._board.select(row)


class Help(ModalScreen[None]):
    """What the keys do; any key closes it."""

    DEFAULT_CSS = """
    Help { align: center middle; background: transparent; }
    Help Static { width: 70; height: auto; border: round; padding: 0 1; background: ansi_default; }
    """

    def compose(self) -> ComposeResult:
        """Show the text."""
        yield Static(Content(_HELP))

    def on_key(self, event: events.Key) -> None:
        """Close it; Ctrl-C leaves all the same."""
        if event.key != "ctrl+c":
            event.stop()
            event.prevent_default()
            self.dismiss()


class View(App[None]):
    """Draws the board, and turns keys into choices."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; background: ansi_default; color: ansi_default; }
    .lines { height: auto; text-wrap: nowrap; text-overflow: clip; }
    #trouble { display: none; height: 1; }
    #trouble.there { display: block; }
    Footer, FooterKey, FooterKey .footer-key--description {
        background: ansi_default; color: ansi_default; text-style: none;
    }
    FooterKey .footer-key--key { background: ansi_default; color: ansi_default; text-style: bold reverse; }
    #wanted { display: none; height: 1; border: none; padding: 0 1; }
    #wanted.there { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "leave", "Quit"),
        Binding("ctrl+c", "interrupt", "Quit", show=False, priority=True),
        Binding("s", "sort(1)", "Sort"),
        Binding("S,shift+s", "sort(-1)", "Sort back", show=False),
        Binding("r", "turn", "Reverse"),
        Binding("slash", "filter", "Filter", key_display="/", priority=True),  # before the next key is looked at
        Binding("p,space", "pause", "Pause"),
        Binding("h,question_mark", "explain", "Help"),
        Binding("down", "go(1)", "Down", show=False),
        Binding("up", "go(-1)", "Up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("home", "go(-1000000000)", "First", show=False),
        Binding("end", "go(1000000000)", "Last", show=False),
        Binding("escape", "drop", "Choose none", show=False),
    ]

    def __init__(self, board: Board, clock: Callable[[], float]) -> None:
        """Show the board. The clock is that by which frames come."""
        super().__init__(ansi_color=True)
        self.board = board
        self._clock = clock
        self._drawn: tuple[int, int] | None = None

    def compose(self) -> ComposeResult:
        """Lay it out."""
        yield Static(classes="lines", id="head")
        yield Static(classes="lines", id="trouble")
        yield Table(self.board)
        yield Static(classes="lines", id="detail")
        yield Input(placeholder="a text in name or last error", id="wanted", disabled=True)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to look."""
        self.query_one(Table).focus()
        self.set_interval(_LOOKS, self.look)
        self.call_after_refresh(self.look)

    def on_resize(self) -> None:
        """Draw anew."""
        self._drawn = None

    def look(self) -> None:
        """Draw what is new; what stands there counts seconds, too."""
        now = self._clock()
        state = (self.board.version, int(now) if self.board.trouble or self.board.paused_at is not None else 0)
        if state == self._drawn or not self.screen_stack:
            return
        self._drawn = state
        screen = self.screen_stack[0]
        width = self.size.width
        screen.query_one("#head", Static).update(_lines(picture.head(self.board, now, width)))
        trouble = picture.trouble(self.board, now, width)
        shown = screen.query_one("#trouble", Static)
        shown.set_class(trouble is not None, "there")
        if trouble is not None:
            shown.update(_content(trouble))
        screen.query_one(Table).refresh()
        screen.query_one("#detail", Static).update(_lines(picture.detail(self.board, width)))

    # What the keys do.

    def action_leave(self) -> None:
        """End it."""
        self.exit()

    def action_interrupt(self) -> None:
        """End it as SIGINT does."""
        self.exit(return_code=_BY_SIGNAL + signal.SIGINT)

    def action_sort(self, step: int) -> None:
        """Sort by another column, in its own direction."""
        self.board.choose(order=self.board.choice.order.next(step), backwards=False)
        self.look()

    def action_turn(self) -> None:
        """Turn the order round."""
        self.board.choose(backwards=not self.board.choice.backwards)
        self.look()

    def action_pause(self) -> None:
        """Stop, or go on."""
        self.board.pause(self._clock())
        self.look()

    def action_explain(self) -> None:
        """Show the help."""
        self.push_screen(Help())

    def action_go(self, rows: int) -> None:
        """Choose a row further down or up."""
        self.board.move(rows)
        self.look()

    def action_page(self, pages: int) -> None:
        """The same by as many rows as are seen."""
        self.board.move(pages * self.query_one(Table).page)
        self.look()

    def action_drop(self) -> None:
        """Choose no row; or, when none is chosen, show all backends again."""
        wanted = self.query_one("#wanted", Input)
        if wanted.has_class("there"):
            wanted.value = ""
            self._close_filter(wanted)
        elif self.board.index is not None:
            self.board.deselect()
        else:
            wanted.value = ""
            self.board.choose(wanted="")
        self.look()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Say whether a key does this now: the filter's does not while it is text, nor where there is only the help."""
        del parameters
        return action != "filter" or any(not wanted.has_class("there") for wanted in self.screen.query(Input))

    def action_filter(self) -> None:
        """Ask for what is to be in the names. What is typed from now on is that, however quickly it comes."""
        wanted = self.query_one("#wanted", Input)
        wanted.add_class("there")
        wanted.disabled = False
        self.screen.set_focus(wanted)  # focus() takes some turns of the loop

    def on_input_changed(self, event: Input.Changed) -> None:
        """Show what matches so far."""
        self.board.choose(wanted=event.value)
        self.look()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keep it."""
        self._close_filter(event.input)

    def _close_filter(self, wanted: Input) -> None:
        wanted.remove_class("there")
        wanted.disabled = True
        self.query_one(Table).focus()


def _content(line: Line) -> Content:
    # Made of parts, not of markup: what is sent stays text.
    return Content.assemble(*((text, _STYLES[meaning]) for text, meaning in line if text))


def _lines(lines: list[Line]) -> Content:
    return Content("\n").join(map(_content, lines))
