"""The options of `qorb top`, and its run."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from qorb.top.terminal.address import read_address
from qorb.top.terminal.following import Connecting, Trouble, TroubleError, follow, read_once, sentence
from qorb.top.terminal.frame import FrameError
from qorb.top.terminal.words import as_json, harmless, lines

if TYPE_CHECKING:
    from qorb.top.terminal.address import Address
    from qorb.top.terminal.following import Connect, News

_MOST_SECONDS = 255
_MOST_DIGITS = 3
_READ, _FAILED = 0, 1
_VARIABLE = "QORB_TOP_TOKEN"


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `top` to the commands."""
    parser = subparsers.add_parser(
        "top",
        help="watch a pool through its statistics server",
        description=(
            "Shows a pool live, as its statistics server tells: each backend with its connections, claims per second, "
            "failures and last error, and what is true of the whole pool. It waits for a server that is away. In the "
            "view, h explains the keys. --once and --json are for scripts."
        ),
        epilog="Exit status: 0 when it was left by q, or the reading was had; 1 when nothing could be read; 2 for "
        "wrong options; 130 after Ctrl-C, 143 after SIGTERM.",
    )
    parser.add_argument(
        "url",
        metavar="URL",
        help="host:port, http://..., https://..., ws://... or wss://...; a path says where the server is mounted",
    )
    parser.add_argument(
        "--token",
        metavar="T",
        help=f"what the server asks for; better given by the environment variable {_VARIABLE}, for the list of "
        "processes shows options",
    )
    parser.add_argument("--pool", metavar="NAME", help="which of several pools (default: the first)")
    parser.add_argument(
        "--interval",
        type=_whole_seconds,
        default=1,
        metavar="S",
        help=f"whole seconds between two readings, 1 to {_MOST_SECONDS} (default: 1)",
    )
    parser.add_argument(
        "--once", action="store_true", help="print one reading as plain text; it takes an interval to know rates"
    )
    parser.add_argument(
        "--json", action="store_true", help="print an object a line, at every reading; with --once a single one"
    )
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    token = options.token or os.environ.get(_VARIABLE) or None
    try:
        address = read_address(options.url, interval=options.interval, pool=options.pool, token=token)
    except ValueError as error:
        parser.error(harmless(str(error)))
    live = not (options.once or options.json)
    if live and not _is_terminal():
        parser.error("the view needs a terminal; give --once or --json to print what is read")
    try:
        from qorb.top.terminal._websockets import connected  # noqa: PLC0415 - it needs an optional package

        connect = partial(connected, address)
        if live:
            from qorb.top.terminal._textual import watch  # noqa: PLC0415 - as above

            return asyncio.run(watch(connect, options.interval, address.shown))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in {"websockets", "textual"}:
            raise
        print(f'qorb top: it needs {missing}; run: pip install "qorb[top]"', file=sys.stderr)
        return _FAILED
    if options.once:
        return asyncio.run(_once(connect, address, options))
    return asyncio.run(follow(connect, options.interval, partial(_print_news, address)))


async def _once(connect: Connect, address: Address, options: argparse.Namespace) -> int:
    try:
        reading = await read_once(connect, options.interval)
    except (TroubleError, FrameError) as error:
        _complain(address, sentence(error))
        return _FAILED
    _print(*([as_json(reading)] if options.json else lines(reading)))
    return _READ


def _print_news(address: Address, news: News) -> None:
    match news:
        case Connecting():
            pass
        case Trouble():
            _complain(address, news.reason)
        case _:
            _print(as_json(news))


def _print(*texts: str) -> None:
    # Who reads a pipe sees it now.
    for text in texts:
        print(text)
    sys.stdout.flush()


def _complain(address: Address, reason: str) -> None:
    print(harmless(f"qorb top: {address.shown}: {reason}"), file=sys.stderr, flush=True)


def _is_terminal() -> bool:
    # Keys come from the first, and the view is drawn on the last.
    everything = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    return everything and os.environ.get("TERM", "dumb") != "dumb"


def _whole_seconds(text: str) -> int:
    wrong = not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS)
    if wrong or not 1 <= int(text) <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"must be a whole number of seconds from 1 to {_MOST_SECONDS}, not {text!r}")
    return int(text)
