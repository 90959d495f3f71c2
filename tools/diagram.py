"""Draw the state diagram of docs/how-it-works.md from the table of moves."""

from __future__ import annotations

from pathlib import Path

from qorb._core.states import diagram

PAGE = Path(__file__).parent.parent / "docs" / "how-it-works.md"
START, END = "<!-- states:start -->\n", "<!-- states:end -->"


def main() -> None:
    """Put the diagram between its marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}```mermaid\n{diagram()}```\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
