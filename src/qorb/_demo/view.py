"""What a view of the demo is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

    from qorb._demo.frame import Moment
    from qorb._demo.journal import Entry


F = TypeVar("F", bound="Moment")
_F_contra = TypeVar("_F_contra", bound="Moment", contravariant=True)


class View(Protocol[_F_contra]):
    """Shows the demo while it runs. It owns the terminal within its `with`, and gives it back as it was."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

    def open(self, heading: list[str]) -> None:
        """Say what this is, once, before anything else. The lines are 80 columns at most."""

    def tell(self, entry: Entry) -> None:
        """Show a line of the journal."""

    def show(self, frame: _F_contra) -> None:
        """Show how things are."""

    def conclude(self, lines: list[str]) -> None:
        """Print the report, after the `with`."""
