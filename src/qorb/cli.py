"""The command `qorb`.

Each subcommand is one function in `_COMMANDS`: it adds its own parser, whose default `run` takes the parsed options and
returns the exit status.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from qorb._demo import command as demo
from qorb._resolve import command as resolve
from qorb.top.terminal import command as top

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse has no public name for it

_COMMANDS: tuple[Callable[[Subparsers], None], ...] = (demo.add_command, resolve.add_command, top.add_command)

_INTERRUPTED = 130
_READER_GONE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status. Wrong options end in SystemExit(2), with a sentence on stderr."""
    options = _parser().parse_args(argv)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        # Only where a command has not yet, or no longer, a way of its own to end: nothing is left running there.
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`qorb demo | head`). Python would complain once more on its last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qorb",
        description="Connection pools over many backends, for asyncio.",
        epilog="`qorb COMMAND --help` explains a command and its options.",
    )
    parser.add_argument("--version", action="version", version=f"qorb {version('qorb')}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_command in _COMMANDS:
        add_command(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
