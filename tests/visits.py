"""Clients of a pool in virtual time: what each saw of it, and what the backends saw of them."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass

from qorb import ConnectError, Connector, Outcome
from qorb.testing import FakeConnection, FakeConnector
from tests.pools import now

SLACK = 1e-6
LATE = 0.005
"""So late a claim may fail."""
PROBE_CAP = 5.020
"""Seconds between two attempts at the most, while nothing is online: the cap, and the spread."""


@dataclass
class Visit:
    """One claim of a client and what became of it."""

    came: float
    wait: float = math.nan
    """Until it was served."""
    backend: str | None = None
    refused: BaseException | None = None
    """The error of claim()."""
    broken: BaseException | None = None
    """The error of the conversation."""
    connection: FakeConnection | None = None
    """While the client has it."""


class Bare(FakeConnector):
    """A FakeConnector that does nothing at claims and clean releases: what is handed out was looked at, not asked."""

    on_acquire = Connector.on_acquire

    def needs_recycle(self, connection, outcome):
        return outcome is not Outcome.CLEAN


async def use(pool, visits, seconds):
    """Claim a connection, keep it for so many seconds, or as `seconds` says of a backend's name, and talk."""
    visit = Visit(now())
    visits.append(visit)
    try:
        async with pool.claim() as connection:
            visit.wait, visit.backend, visit.connection = now() - visit.came, connection.backend.name, connection
            try:
                await asyncio.sleep(seconds(visit.backend) if callable(seconds) else seconds)
                await connection.request()
            except ConnectError as error:
                visit.broken = error
                raise
            finally:
                visit.connection = None
    except ConnectError:
        assert visit.broken is not None
    except Exception as error:  # noqa: BLE001 - that none comes is what the tests are about
        visit.refused = error


async def busy(pool, clients, until, seconds=0.01, visits=None):
    """Let so many clients use connections without a pause, until a moment."""
    visits = [] if visits is None else visits

    async def client():
        while now() < until:
            await use(pool, visits, seconds)

    await asyncio.wait([asyncio.create_task(client()) for _ in range(clients)])
    return visits


async def arrivals(pool, rate, until, seconds=0.01, visits=None):
    """Let clients come at a rate, whether those before them are served or not, until a moment."""
    visits = [] if visits is None else visits
    tasks = []
    while now() < until:
        tasks.append(asyncio.create_task(use(pool, visits, seconds)))
        await asyncio.sleep(1 / rate)
    await asyncio.wait(tasks)
    return visits


def since(visits, moment):
    """The visits that began at a moment or after it."""
    return [visit for visit in visits if visit.came >= moment - SLACK]


def shares(visits):
    """How many claims each backend served."""
    return Counter(visit.backend for visit in visits)


def assert_all_served(visits):
    refused = [visit for visit in visits if visit.refused is not None]
    assert visits
    assert not refused, refused[:3]


def calls(connector, operation, backend=None):
    """The calls of one operation, oldest first."""
    return [call for call in connector.calls if call.operation == operation and backend in (None, call.backend.name)]


def slowest(visits, share):
    """The wait that so great a share of the visits did not exceed."""
    waits = sorted(visit.wait for visit in visits)
    return waits[math.ceil(share * len(waits)) - 1]


def rounds(tries):
    """The first attempt of each round: attempts that run side by side are one."""
    return [call for n, call in enumerate(tries) if not n or call.started > max(one.ended for one in tries[:n])]
