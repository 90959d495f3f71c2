"""The options of `qorb demo`, and which view shows it."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
from typing import TYPE_CHECKING

from qorb._demo.plain import PlainView
from qorb._demo.servers import NoPortError
from qorb.resolvers import DnsResolver

if TYPE_CHECKING:
    from collections.abc import Callable

    from qorb._demo.view import View

_LEAST_BACKENDS, _MOST_BACKENDS = 2, 64
_LEAST_CLIENTS, _MOST_CLIENTS = 1, 1000
_LEAST_SECONDS, _MOST_SECONDS = 3.0, 3600.0


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `demo` to the commands."""
    parser = subparsers.add_parser(
        "demo",
        help="watch a pool on real sockets while its servers fail",
        description=(
            "Starts echo servers on loopback, a DNS server that names them, a pool that finds them through it, and "
            "clients that use it without pause. Kills a server, revives it, hangs another, heals it, takes one out of "
            "DNS, silences DNS, puts a new one into it, and at last terminates the pool under load and counts what is "
            "left. What is shown comes from Pool.stats() and from the clients' and servers' "
            "own counts. A terminal gets a live table (if rich is installed), anything else plain lines."
        ),
        epilog="Exit status: 0 when nothing was left, no claim failed and no echo was wrong; 1 otherwise; "
        "130 after Ctrl-C and 143 after SIGTERM, when all was well until then.",
    )
    parser.add_argument(
        "--backends",
        type=_whole(_LEAST_BACKENDS, _MOST_BACKENDS),
        default=3,
        metavar="N",
        help=f"echo servers, {_LEAST_BACKENDS} to {_MOST_BACKENDS} (default: 3)",
    )
    parser.add_argument(
        "--clients",
        type=_whole(_LEAST_CLIENTS, _MOST_CLIENTS),
        default=20,
        metavar="N",
        help=f"clients, {_LEAST_CLIENTS} to {_MOST_CLIENTS} (default: 20)",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=30.0,
        metavar="S",
        help=f"how long, {_LEAST_SECONDS:g} to {_MOST_SECONDS:g} (default: 30); below 20 there is little to see",
    )
    parser.add_argument(
        "--seed",
        type=_whole(0, 2**32 - 1),
        default=1,
        metavar="N",
        help="for the chances that clients and pool take (default: 1); the sockets' timing is real and differs",
    )
    parser.add_argument("--plain", action="store_true", help="plain lines on a terminal too")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        from qorb._demo.demo import DemoOptions, play  # noqa: PLC0415 - its DNS server needs an optional package

        DnsResolver("demo.test")
    except ImportError as error:
        if _missing(error) not in {"aiodns", "pycares", "dns"}:
            raise
        print('qorb demo: it needs aiodns and dnspython; run: pip install "qorb[demo]"', file=sys.stderr)
        return 1
    chosen = DemoOptions(options.backends, options.clients, options.seconds, options.seed)
    view = PlainView() if options.plain else _view()
    try:
        return asyncio.run(play(chosen, view))
    except NoPortError as error:
        print(f"qorb demo: {error}. Nothing is left running; try again, or with fewer --backends.", file=sys.stderr)
        return 1


def _missing(error: ImportError) -> str:
    """Give the package that was not found; "" when the error is another one."""
    cause = error if error.__cause__ is None else error.__cause__
    return (cause.name or "").partition(".")[0] if isinstance(cause, ModuleNotFoundError) else ""


def _view() -> View:
    """Choose the live table where it can be shown."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return PlainView()
    try:
        from qorb._demo._rich import LiveView  # noqa: PLC0415 - it needs an optional package
    except ModuleNotFoundError as error:
        if _missing(error) != "rich":
            raise
        print('The live table needs rich: pip install "qorb[demo]". Here are plain lines instead.', flush=True)
        return PlainView()
    return LiveView()


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, not {text!r}")
        return number

    return read


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not _LEAST_SECONDS <= seconds <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(
            f"must be a number of seconds from {_LEAST_SECONDS:g} to {_MOST_SECONDS:g}, not {text!r}"
        )
    return seconds
