"""Machines on their bad days: rows M1 to M4 of the catalogue, each by its number."""

from __future__ import annotations

import ast
import asyncio
import datetime as dt
import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from qorb import AllClaimsUsedError, Backend, ClaimTimeoutError, Connector, Policy, Pool
from qorb.resolvers import FixedResolver
from qorb.testing import run
from tests.pools import backends, hold, opened
from tests.test_layers import SRC
from tests.test_processes import GIVE_UP, ROOT, EchoServer, server

__all__ = ["server"]

STOP = 3.0
"""Seconds for which the process is stopped: longer than every time that its pool knows, but for the connect timeout."""


# M1: no more file descriptors.


def test_m1_without_file_descriptors_the_pool_backs_off_says_why_keeps_what_it_has_and_recovers(server):
    program = [sys.executable, "-m", "tests.network.without_descriptors", f"127.0.0.1:{server.port}"]
    ended = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=GIVE_UP, check=True)
    seen = json.loads(ended.stdout)
    assert "Too many open files" in seen["last_error"]
    assert seen["held_claim_works"]
    assert seen["attempts"] < 100
    assert seen["recovered"]


# M2: the process is stopped, and goes on.

STOPPED = """
import asyncio, json, os, signal, sys
from qorb import Policy, Pool, PoolError
from qorb.connectors import TcpConnector
from qorb.resolvers import FixedResolver

class Counting(TcpConnector):
    connects = 0
    checks = {}

    async def connect(self, backend):
        Counting.connects += 1
        return await super().connect(backend)

    async def validate(self, connection):
        self.checks.setdefault(id(connection), []).append(asyncio.get_running_loop().time())

    def needs_recycle(self, connection, outcome):
        return outcome.value != "clean"

async def main(port):
    loop = asyncio.get_running_loop()
    loop.slow_callback_duration = 1e6  # debug mode would tell how long the process stood still
    policy = Policy(
        spares_wanted=4, max_slots=4, claim_timeout=1.0, health_interval=0.3, spread=0.1, health_check_timeout=0.2,
        rebalance_interval=0.5, min_connection_backoff=0.01, max_connection_backoff=0.2, close_timeout=0.2,
    )
    errors = []

    async def use(pool):
        try:
            async with pool.claim() as stream:
                stream.writer.write(b"hello\\n")
                assert await stream.reader.readline() == b"hello\\n"
        except PoolError as error:
            errors.append(repr(error))

    async with Pool("main", FixedResolver([("127.0.0.1", port)]), Counting(), policy) as pool:
        await pool.ready()
        claims = [await pool.claim() for _ in range(4)]
        waiting = [asyncio.ensure_future(use(pool)) for _ in range(4)]
        await asyncio.sleep(0)
        assert pool.stats().waiting == 4
        # Both come while the process is stopped: first the deadline of those who wait, then what they wait for.
        for claim in claims:
            loop.call_later(1.2, claim.release)
        before = loop.time()
        os.kill(os.getpid(), signal.SIGSTOP)
        stopped = loop.time() - before
        await asyncio.wait(waiting)
        while loop.time() < before + stopped + 1:  # and some checks later
            await use(pool)
            await asyncio.sleep(0.05)
        stats = pool.stats().backends[f"127.0.0.1:{port}"]
        claims = pool.stats().claims
    pauses = [later - earlier for one in Counting.checks.values() for earlier, later in zip(one, one[1:])]
    print(json.dumps({
        "stopped": stopped, "errors": errors, "claims": claims, "connects": Counting.connects,
        "checks": sum(map(len, Counting.checks.values())), "shortest": min(pauses, default=1),
        "failures": stats.failures,
    }))

asyncio.run(main(int(sys.argv[1])))
"""


def test_m2_a_process_that_was_stopped_serves_whom_it_can_and_starts_no_storm(server: EchoServer):
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", STOPPED, str(server.port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            _, status = os.waitpid(program.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), program.stderr.read()
            time.sleep(STOP)
            program.send_signal(signal.SIGCONT)
            out, err = program.communicate(timeout=GIVE_UP)
        finally:
            program.kill()
    assert (program.returncode, err) == (0, "")
    seen: dict[str, Any] = json.loads(out)
    assert seen["stopped"] >= STOP - 0.5
    assert seen["errors"] == []
    assert seen["claims"] >= 4 + 4
    assert seen["connects"] == server.accepted == 4
    assert seen["failures"] == 0
    assert seen["checks"] >= 1
    assert seen["shortest"] >= 0.3 - 0.01
    server.wait_until_all_have_ended(4)


# M3: the wall clock jumps.


class Jumping:
    """Clocks on the wall that go back or forth by up to a year whenever somebody looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = random.Random(1)
        self.asked = 0

        def jump() -> float:
            self.asked += 1
            return 1.7e9 + rng.uniform(-1, 1) * 365 * 86400

        class JumpingDateTime(dt.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return cls.fromtimestamp(jump(), tz)

        monkeypatch.setattr(time, "time", jump)
        monkeypatch.setattr(time, "time_ns", lambda: int(jump() * 1e9))
        monkeypatch.setattr(dt, "datetime", JumpingDateTime)


async def some_life() -> list[tuple[float, str]]:
    """Claims, refused connects, checks, timeouts, rebalances, the end; return what was seen of it, and when."""
    async with opened(backends(3), observed=True, spares_wanted=4, max_slots=6, max_lifetime=300) as watched:
        await asyncio.gather(*(hold(watched.pool, 0.1 * number) for number in range(20)))
        watched.connector.refuse("b1")
        watched.connector.drop("b1")
        await asyncio.sleep(100)
        watched.connector.heal()
        claims = await watched.claims(6)
        with pytest.raises(AllClaimsUsedError):
            await watched.pool.claim(timeout=2.5)
        await asyncio.sleep(400)
        for claim in claims:
            claim.release()
        await asyncio.sleep(1000)
    return [(moment, type(event).__name__) for moment, event in watched.events]


@pytest.mark.parametrize("seed", [0, 1])
def test_m3_a_wall_clock_that_jumps_by_years_changes_nothing(seed, monkeypatch):
    undisturbed = run(some_life, seed=seed)
    assert len(undisturbed) > 200
    jumping = Jumping(monkeypatch)
    assert time.time() != time.time()
    assert run(some_life, seed=seed) == undisturbed
    assert jumping.asked >= 2


def test_m3_on_a_real_loop_too_deadlines_are_none_of_the_wall_clock_s_affair(run_real, monkeypatch):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pool = Pool("main", FixedResolver(["10.0.0.1:1"]), Bare(), Policy(spares_wanted=1, max_slots=1))
        async with pool, pool.claim():
            began = loop.time()
            with pytest.raises(ClaimTimeoutError):
                await pool.claim(timeout=0.1)
            assert loop.time() - began >= 0.1

    Jumping(monkeypatch)
    run_real(main)


WALL_CLOCKS = {
    ("time", name) for name in ("time", "time_ns", "localtime", "gmtime", "ctime", "asctime", "strftime", "mktime")
} | {(kind, name) for kind in ("datetime", "date") for name in ("now", "utcnow", "today")}


def wall_clocks(source: str) -> list[str]:
    """Name the readings of a wall clock in a source text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            found += [f"{owner}.{node.attr}"] if (owner, node.attr) in WALL_CLOCKS else []
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [f"time.{name.name}" for name in node.names if ("time", name.name) in WALL_CLOCKS]
    return found


def test_m3_nothing_in_src_reads_a_wall_clock():
    assert wall_clocks("import time\ntime.time()") == ["time.time"]
    assert wall_clocks("import datetime\ndatetime.datetime.now()") == ["datetime.now"]
    assert wall_clocks("from time import time_ns") == ["time.time_ns"]
    # These write for people, or for OpenTelemetry, when something was. They decide nothing by it.
    tellers = {("_resolve", "words"), ("terminal", "words"), ("observers", "otel_sdk")}
    files = [file for file in sorted(Path(SRC).rglob("*.py")) if (file.parent.name, file.stem) not in tellers]
    assert len(files) > 30
    assert {str(file): wall_clocks(file.read_text()) for file in files if wall_clocks(file.read_text())} == {}


# M4: memory.


class Bare(Connector[object]):
    """Connects at once, and keeps no books that would grow."""

    async def connect(self, backend: Backend) -> object:
        await asyncio.sleep(0)
        return object()


class Hooked(Bare):
    """Has every hook, so that claims and releases take the long way."""

    async def validate(self, connection: object) -> None:
        await asyncio.sleep(0)

    async def on_acquire(self, connection: object) -> None:
        await asyncio.sleep(0)

    def is_closed(self, connection: object) -> bool:
        return False


async def many_claims(pool: Pool[object], count: int) -> None:
    """Claims of every kind: at hand, from the line, by hand, given up, discarded, after a failure."""

    async def use(number: int) -> None:
        if number % 5 == 0:
            claim = await pool.claim()
            claim.discard() if number % 50 == 0 else claim.release()
            return
        try:
            async with pool.claim(timeout=0 if number % 7 == 0 else None):
                await asyncio.sleep(0)
                if number % 11 == 0:
                    raise ValueError(number)
        except (ClaimTimeoutError, ValueError):
            pass

    for start in range(0, count, 20):
        users = [asyncio.ensure_future(use(number)) for number in range(start, start + 20)]
        await asyncio.sleep(0)
        users[1].cancel()
        await asyncio.wait(users)
        assert [user.exception() for user in users if not user.cancelled()] == [None] * sum(
            not user.cancelled() for user in users
        )


@pytest.mark.parametrize("connector", [Bare, Hooked])
def test_m4_memory_does_not_grow_with_the_number_of_claims(connector):
    async def main() -> list[int]:
        sizes: list[int] = []
        policy = Policy(spares_wanted=3, max_slots=3, min_connection_backoff=0)
        async with Pool("main", FixedResolver(["10.0.0.1:1"]), connector(), policy) as pool:
            await pool.ready()
            tracemalloc.start()
            for _ in range(5):
                await many_claims(pool, 2_000)
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
        return sizes

    try:
        with asyncio.Runner(debug=False) as runner:
            sizes = runner.run(main())
    finally:
        tracemalloc.stop()
    # 8,000 claims after the first round: four bytes for each would be seen.
    assert sizes[-1] - sizes[0] <= 32_000, sizes
