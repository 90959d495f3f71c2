"""What the view shows, and what its user has chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qorb.top.terminal.following import Connecting, Trouble
from qorb.top.terminal.rows import Choice, rows

if TYPE_CHECKING:
    from qorb.top.terminal.following import News
    from qorb.top.terminal.rates import Reading
    from qorb.top.terminal.rows import Row


class Board:
    """Keeps the newest of everything. While it is paused, it shows what it showed before, and reads on."""

    def __init__(self, shown: str) -> None:
        """Know nothing yet of the server, which is called so for people."""
        self.address = shown
        self.reading: Reading | None = None
        """What is shown."""
        self.latest: Reading | None = None
        self.connecting: bool = True
        """There is no connection, and one is being opened."""
        self.trouble: Trouble | None = None
        """Why there is no connection; it stays while another one is being opened."""
        self.paused_at: float | None = None
        self.version: int = 0
        """Grows with everything that may change the picture."""
        self._choice = Choice()
        self._rows: list[Row] | None = None
        self._selected: str | None = None
        self._index: int | None = None

    @property
    def choice(self) -> Choice:
        """What is shown, and how."""
        return self._choice

    @property
    def rows(self) -> list[Row]:
        """The backends that are shown."""
        if self._rows is None:
            self._rows = [] if self.reading is None else rows(self.reading, self._choice)
        return self._rows

    @property
    def index(self) -> int | None:
        """Which of the rows is selected: the same backend's wherever that goes, and the next one's when it is gone."""
        if self._selected is None or self._index is None or not self.rows:
            return None
        if self._index >= len(self.rows) or self.rows[self._index].name != self._selected:
            where = (index for index, row in enumerate(self.rows) if row.name == self._selected)
            self._index = next(where, min(self._index, len(self.rows) - 1))
            self._selected = self.rows[self._index].name
        return self._index

    def tell(self, news: News) -> None:
        """Take something new."""
        self.version += 1
        if isinstance(news, Connecting):
            self.connecting = True
        elif isinstance(news, Trouble):
            self.connecting, self.trouble = False, news
        else:
            self.connecting, self.trouble = False, None
            self.latest = news
            if self.paused_at is None:
                self._show(news)

    def pause(self, now: float) -> None:
        """Show the same from now on; or, when that is so already, the newest again."""
        self.version += 1
        self.paused_at = now if self.paused_at is None else None
        if self.paused_at is None:
            self._show(self.latest)

    def choose(self, **changes: object) -> None:
        """Change what is shown: `order`, `backwards`, `wanted`."""
        self.version += 1
        self._choice = replace(self._choice, **changes)  # type: ignore[arg-type] # the names stand in Choice
        self._rows = None

    def move(self, rows: int) -> None:
        """Select so many rows further down; with none selected, from above the uppermost one."""
        before = self.index
        self.select((-1 if before is None else before) + rows)

    def select(self, index: int) -> None:
        """Select a row, or the nearest that there is."""
        self.version += 1
        if self.rows:
            self._index = max(0, min(index, len(self.rows) - 1))
            self._selected = self.rows[self._index].name

    def deselect(self) -> None:
        """Select none."""
        self.version += 1
        self._selected = self._index = None

    def _show(self, reading: Reading | None) -> None:
        self.reading = reading
        self._rows = None
