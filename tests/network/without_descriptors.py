"""A program: a pool runs out of file descriptors, and gets them back. Prints what it saw, as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys

from qorb import Policy, Pool
from qorb.connectors import TcpConnector
from qorb.events import ConnectStart
from qorb.resolvers import FixedResolver
from tests.connectors.peers import eventually


async def main(address: str) -> dict[str, object]:
    attempts = 0

    def observe(event: object) -> None:
        nonlocal attempts
        attempts += isinstance(event, ConnectStart)

    policy = Policy(
        spares_wanted=20,
        max_slots=40,
        max_slots_per_backend=40,
        min_connection_backoff=0.01,
        max_connection_backoff=0.5,
    )
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The next descriptor would get this number. The pool may have five.
    resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0) + 5, most))
    async with (
        Pool("test", FixedResolver([address]), TcpConnector(), policy, observer=observe) as pool,
        pool.claim() as stream,
    ):
        await eventually(lambda: pool.stats().backends[address].last_error is not None)
        # Long enough for a pool without backoff to try thousands of times.
        await asyncio.sleep(1)
        stream.writer.write(b"ping")
        held_claim_works = await stream.reader.readexactly(4) == b"ping"
        last_error = pool.stats().backends[address].last_error
        attempts_without = attempts
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        await pool.ready()
        recovered = pool.stats().backends[address].unclaimed_slots >= policy.spares_wanted
    return {
        "last_error": last_error,
        "held_claim_works": held_claim_works,
        "attempts": attempts_without,
        "recovered": recovered,
    }


sys.stdout.write(json.dumps(asyncio.run(main(sys.argv[1]))))
