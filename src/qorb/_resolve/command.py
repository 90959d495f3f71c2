"""The options of `qorb resolve`, and its run."""

from __future__ import annotations

import argparse
import asyncio
import math
import re
import sys
from functools import partial
from typing import TYPE_CHECKING

from qorb._resolve.notes import Notes
from qorb._resolve.picture import News, Picture, news, picture
from qorb._resolve.words import as_json, changes, harmless, lines
from qorb.resolvers.dns import DnsPolicy, DnsResolver

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_PORT = 65_535
_MAX_DIGITS = 5
_SECONDS = re.compile(r"[\d.]+ s\b")
_FOUND, _NOTHING = 0, 1


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `resolve` to the commands."""
    parser = subparsers.add_parser(
        "resolve",
        help="show which backends DNS names, as a pool would be told",
        description=(
            "Asks DNS as DnsResolver does, and shows the backends that a pool would have, with priorities, weights and "
            "TTLs, who answered what, and what is odd: targets without an address, aliases, records that are left out "
            "and why, servers that fail or disagree. Nothing is connected to."
        ),
        epilog="Exit status: 0 when there is a backend, 1 when there is none, 2 for wrong options; 130 after Ctrl-C, "
        "which is how --watch ends.",
    )
    parser.add_argument("name", metavar="NAME", help="such as _pg._tcp.example.com; with --default-port a host name")
    parser.add_argument(
        "--nameserver",
        action="append",
        metavar="A",
        help="ask this server: 10.0.0.2, 127.0.0.1:5353 or [::1]:53; may be repeated (default: the system's)",
    )
    parser.add_argument(
        "--default-port",
        type=_port,
        metavar="N",
        help="NAME is a host name whose A and AAAA records are the backends, all at this port",
    )
    parser.add_argument(
        "--resolver-service", metavar="NAME", help="find more servers to ask through the SRV records of this name"
    )
    parser.add_argument("--family", choices=("any", "ipv4", "ipv6"), default="any", help="which addresses (any)")
    parser.add_argument(
        "--timeout", type=_seconds, default=10.0, metavar="S", help="for one round of questions (default: 10)"
    )
    parser.add_argument("--watch", action="store_true", help="go on, and show changes as they come")
    parser.add_argument(
        "--json", action="store_true", help="an object instead of text; with --watch one a line, at every change"
    )
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    try:
        policy = DnsPolicy(
            query_timeout=options.timeout, family=options.family, resolver_service=options.resolver_service
        )
        resolver = DnsResolver(options.name, options.nameserver, policy, default_port=options.default_port)
    except ValueError as error:
        parser.error(harmless(str(error)))
    except ImportError as error:
        print(f"qorb resolve: {error}", file=sys.stderr)
        return _NOTHING
    look = partial(picture, resolver.service, plain=options.default_port is not None, max_backends=policy.max_backends)
    return asyncio.run(_resolve(resolver, look, options))


async def _resolve(resolver: DnsResolver, look: Callable[[Notes], Picture], options: argparse.Namespace) -> int:
    """Show what the first round of questions finds; then, with --watch, what changes, until cancelled."""
    notes = Notes(resolver.service)
    following = asyncio.create_task(resolver.follow(notes.publish, notes), name="qorb resolve")
    following.add_done_callback(lambda _: notes.wake())
    try:
        await _next(notes, following)
        if not notes.backends and notes.knows_more_servers():
            await _next(notes, following)  # the servers that they name are asked in the second round
        shown = look(notes)
        _show(shown, options)
        while options.watch:
            await _next(notes, following)
            now = look(notes)
            found = news(shown, now)
            if found or _kind_of(now.reason) != _kind_of(shown.reason):
                _show_news(now, found, options)
            shown = now
    finally:
        following.cancel()
        await asyncio.wait([following])
    return _FOUND if shown.rows else _NOTHING


async def _next(notes: Notes, following: asyncio.Task[None]) -> None:
    await notes.news()
    if following.done():
        following.result()  # a mistake of ours: it goes on until it is cancelled


def _kind_of(reason: str | None) -> str | None:
    """Leave out of a reason how long something took: that differs from time to time."""
    return None if reason is None else _SECONDS.sub("", reason)


def _show(shown: Picture, options: argparse.Namespace) -> None:
    if options.json:
        _print(as_json(shown))
    elif shown.rows:
        _print(*lines(shown))
    elif options.watch:
        _print(f"{shown.service}: no backend: {shown.reason}")
    if not shown.rows and not options.watch:
        reason = shown.reason or ""
        for one in shown.oddities:
            if one.text not in reason:
                print(harmless(f"qorb resolve: {one.text}"), file=sys.stderr)
        print(harmless(f"qorb resolve: no backend found for {shown.service}: {reason}"), file=sys.stderr)


def _show_news(now: Picture, found: News, options: argparse.Namespace) -> None:
    if options.json:
        _print(as_json(now, found))
        return
    _print(*changes(found))
    if now.reason is not None and now.reason not in {one.text for one in found.odd}:
        _print(f"{now.service}: no backend: {now.reason}")


def _print(*texts: str) -> None:
    # Who reads a pipe sees it now.
    for text in texts:
        print(harmless(text))
    sys.stdout.flush()


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and 1 <= int(text) <= _MAX_PORT):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {_MAX_PORT}, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, more than 0, not {text!r}")
    return seconds
