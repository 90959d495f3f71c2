"""Ending while DNS is asked: what is left, and what is said."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qorb import Policy, Pool
from qorb.connectors import TcpConnector
from qorb.resolvers import DnsResolver
from tests.conftest import RunReal
from tests.resolvers.dns.real.scripted import ScriptedServer
from tests.resolvers.dns.real.seeing import watching
from tests.resolvers.dns.real.test_faults import found_in
from tests.words import without_slowness

ROOT = Path(__file__).parents[4]
GIVE_UP = 120.0
"""Seconds after which a program hangs. No test asserts how long one takes."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc to count descriptors in")


def sockets() -> set[str]:
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(descriptor.readlink()))
    return {one for one in found if one.startswith("socket:")}


def tasks() -> set[str]:
    """Threads as the system sees them, those of c-ares included."""
    return {thread.name for thread in Path("/proc/self/task").iterdir()}


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A DNS server that does not answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        yield server


async def until_asked(silent: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    asked = loop.create_future()
    loop.add_reader(silent, asked.set_result, None)
    await asked
    loop.remove_reader(silent)


def test_terminating_a_pool_during_a_query_leaves_no_socket(silent: socket.socket, run_real: RunReal) -> None:
    async def main() -> None:
        before = sockets()
        resolver = DnsResolver("_pg._tcp.example.test", [f"127.0.0.1:{silent.getsockname()[1]}"])
        pool = Pool("pg", resolver, TcpConnector(), Policy(spares_wanted=1))
        await pool.start()
        await until_asked(silent)
        assert len(sockets() - before) == 1, "a query has a socket"
        await pool.terminate()
        assert sockets() == before

    run_real(main)


def test_nothing_is_left_of_a_query_over_tcp(faulty: ScriptedServer, run_real: RunReal) -> None:
    async def main() -> None:
        before = sockets()
        async with watching(DnsResolver("_pg._tcp.truncated.test", [faulty.address])) as seen:
            await seen.until_published(found_in("truncated.test"))
        assert sockets() == before

    run_real(main)


def test_no_thread_is_left_but_the_one_that_pycares_keeps(silent: socket.socket, run_real: RunReal) -> None:
    """That of c-ares ends a moment after its query; that of pycares is a daemon, and there is one per process."""

    async def main() -> None:
        address = f"127.0.0.1:{silent.getsockname()[1]}"

        async def watch_for_a_moment() -> None:
            async with watching(DnsResolver("_pg._tcp.example.test", [address])):
                await until_asked(silent)
            silent.recv(1232)

        before = tasks()
        for _ in range(5):
            await watch_for_a_moment()
        kept = [thread for thread in threading.enumerate() if "shutdown_loop" in thread.name]
        assert [thread.daemon for thread in kept] == [True]
        await until_no_threads_but(before | {str(kept[0].native_id)})

    run_real(main)


async def until_no_threads_but(these: set[str]) -> None:
    while not tasks() <= these:  # noqa: ASYNC110 - nobody tells when a thread has ended
        await asyncio.sleep(0.001)


def test_a_dropped_watch_leaves_no_socket(silent: socket.socket, asyncio_log, run_real: RunReal) -> None:
    async def main() -> None:
        before = sockets()
        resolver = DnsResolver("_pg._tcp.example.test", [f"127.0.0.1:{silent.getsockname()[1]}"])
        watch = resolver.watch(lambda backends: None)
        task = asyncio.create_task(watch)
        await until_asked(silent)
        task.cancel()
        await asyncio.wait([task])
        del task, watch, resolver
        gc.collect()
        assert sockets() == before

    run_real(main)


@pytest.mark.parametrize(
    "program",
    [
        "the_loop_is_closed_before_the_watch_ends",
        "an_answer_comes_after_the_loop_was_closed",
        "the_interpreter_ends_during_a_query",
        "a_child_is_forked_during_a_query",
        "a_child_watches_itself",
    ],
)
def test_nothing_is_said_and_nothing_hangs_when(program: str) -> None:
    ends_well(program)


def test_without_file_descriptors_the_reason_is_told() -> None:
    ends_well("no_descriptors_are_left")


def ends_well(program: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.resolvers.dns.real.programs", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=GIVE_UP,
        check=False,
    )
    assert without_slowness(ended.stderr) == ""
    assert ended.stdout == "done\n"
    assert ended.returncode == 0
