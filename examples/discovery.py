"""A client of a service that DNS names: `python examples/discovery.py _http._tcp.example.com --nameserver 10.0.0.2`.

A plain host name does as well: `python examples/discovery.py example.com --default-port 80`. It claims connections
without pause, and says once a second how many claims each backend served and what DNS has changed. With `--echo` it
sends a line in each claim and expects the same line back, for services that do that. Needs `pip install "qorb[dns]"`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

from qorb import ClaimError, ConnectError, Policy, Pool, events
from qorb.connectors import TcpConnector
from qorb.resolvers import DnsResolver

if TYPE_CHECKING:
    from qorb import Event
    from qorb.connectors import TcpStream

LINE = b"hello\n"


def tell(event: Event) -> None:
    """Say what the resolver finds, and what it does not."""
    match event:
        case events.ResolverUpdated(added=added, removed=removed, changed=changed):
            for sign, names in (("+", added), ("-", removed), ("~", changed)):
                for name in names:
                    print(f"DNS: {sign} {name}", flush=True)
        case events.ResolverFailed(reason=reason):
            print(f"DNS: nothing newer: {reason}", flush=True)
        case _:
            pass


async def use(pool: Pool[TcpStream], failures: list[str], *, echo: bool) -> None:
    """Claim, hold for a moment, release, again and again until cancelled."""
    while True:
        try:
            async with pool.claim() as stream:
                await asyncio.sleep(0.01)
                if echo:
                    stream.writer.write(LINE)
                    if await stream.reader.readline() != LINE:
                        raise ConnectError("that was no echo")
        except (ClaimError, ConnectError, OSError) as error:
            failures.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.1)


async def main(options: argparse.Namespace) -> int:
    """Use the service for so many seconds, or until Ctrl-C. Give 1 when no claim was served, else 0."""
    resolver = DnsResolver(options.service, options.nameserver, default_port=options.default_port)
    policy = Policy(spares_wanted=2, max_slots=8, claim_timeout=5.0, connect_timeout=2.0)
    failures: list[str] = []
    async with Pool(options.service, resolver, TcpConnector(), policy, observer=tell) as pool:
        clients = [asyncio.create_task(use(pool, failures, echo=options.echo)) for _ in range(options.clients)]
        try:
            async with asyncio.timeout(options.seconds):
                while True:
                    await asyncio.sleep(1)
                    stats = pool.stats()
                    for name, backend in stats.backends.items():
                        print(f"  {name}: {'online' if backend.online else 'offline'}, {backend.total_claims} claims")
                    print(f"{stats.claims} claims, {len(failures)} failures {failures[-1:]}", flush=True)
        except TimeoutError:
            return 0 if pool.stats().claims else 1
        finally:
            for client in clients:
                client.cancel()
            await asyncio.wait(clients)
            claims = pool.stats().claims
            await pool.terminate()
            print(f"{claims} claims, {len(failures)} failures; left of the pool: {pool.ledger()}")


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Use a service that DNS names.")
    parser.add_argument("service", help="such as _http._tcp.example.com; with --default-port a host name")
    parser.add_argument("--nameserver", action="append", help="such as 10.0.0.2 or 127.0.0.1:5353; may be repeated")
    parser.add_argument("--default-port", type=int, help="the service is a host name; its port")
    parser.add_argument("--clients", type=int, default=8, help="how many at once (8)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long (10)")
    parser.add_argument("--echo", action="store_true", help="send a line in each claim, and expect it back")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(read_options())))
    except KeyboardInterrupt:
        sys.exit(130)
