"""Programs that end, or fork, while DNS is asked: `python -m tests.resolvers.dns.real.programs NAME`.

Each says "done" when it got to its end; test_ending.py looks at its exit code and at stderr. The DNS server is a socket
of the program's own that answers when the program says so.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import socket
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pycares

from qorb import Backend
from qorb.publishing import Publisher
from qorb.resolvers import DnsPolicy, DnsResolver

kept: list[Any] = []
"""What lives until the interpreter ends."""


def silent_server() -> socket.socket:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    kept.append(server)
    return server


SERVER = silent_server()


def ignore(backends: Iterable[Backend]) -> None:
    """Publish to nobody."""


def begin(loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
    """Watch until the first query is under way."""
    resolver = DnsResolver("_pg._tcp.example.test", [f"127.0.0.1:{SERVER.getsockname()[1]}"])
    task = loop.create_task(resolver.watch(ignore))
    loop.run_until_complete(loop.run_in_executor(None, SERVER.recvfrom, 1232, socket.MSG_PEEK))
    loop.run_until_complete(loop.shutdown_default_executor())
    return task


def end(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()


def drop(task: asyncio.Task[None]) -> None:
    """What a pool does with its tasks when their loop was closed."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine = task.get_coro()
    assert coroutine is not None
    coroutine.close()


def the_loop_is_closed_before_the_watch_ends() -> None:
    loop = asyncio.new_event_loop()
    task = begin(loop)
    loop.close()
    drop(task)


def an_answer_comes_after_the_loop_was_closed() -> None:
    loop = asyncio.new_event_loop()
    task = begin(loop)
    loop.close()
    query, peer = SERVER.recvfrom(1232)
    SERVER.sendto(query[:2] + bytes([query[2] | 0x80]) + query[3:], peer)
    until(lambda: not pycares._handle_to_channel)
    drop(task)


def the_interpreter_ends_during_a_query() -> None:
    loop = asyncio.new_event_loop()
    kept.extend([loop, begin(loop)])
    kept[-1]._log_destroy_pending = False
    loop.close()


def fork() -> int:
    """Fork as os.fork() does. pycares keeps a thread, and from 3.12 on Python warns of every fork beside one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def a_child_is_forked_during_a_query() -> None:
    """Neither parent nor child says anything, and the parent's watch goes on."""
    loop = asyncio.new_event_loop()
    task = begin(loop)
    child = fork()
    if child == 0:
        drop(task)
        del task
        gc.collect()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not task.done()
    end(loop, task)


def a_child_watches_itself() -> None:
    """In the child what is closed ends as well: it needs no more descriptors and threads after ten watches than one."""
    loop = asyncio.new_event_loop()
    task = begin(loop)
    child = fork()
    if child == 0:
        drop(task)
        watch_once()
        until(lambda: count()[1] == 2)
        before = count()
        for _ in range(10):
            watch_once()
        until(lambda: all(now <= then for now, then in zip(count(), before, strict=True)))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    end(loop, task)


def no_descriptors_are_left() -> None:
    resolver = DnsResolver("example.test", ["127.0.0.1:1"], DnsPolicy(query_timeout=1), default_port=1)

    async def main() -> None:
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        publisher = Publisher(ignore).instead(ignore, lambda error: told.done() or told.set_result(str(error)))
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0), most))
        task = asyncio.create_task(resolver.watch(publisher))
        reason = await told
        task.cancel()
        await asyncio.wait([task])
        assert "Too many open files" in reason, reason

    logging.disable()  # aiodns says at length what it makes of it
    asyncio.run(main())


def watch_once() -> None:
    loop = asyncio.new_event_loop()
    task = begin(loop)
    end(loop, task)


def count() -> tuple[int, int]:
    return tuple(len(list(Path(f"/proc/self/{what}").iterdir())) for what in ("fd", "task"))  # type: ignore[return-value]


def until(true: Any) -> None:
    """Wait until this is true; give up where nothing else would end this process, which may be a child."""
    give_up = time.monotonic() + 60
    while not true():
        if time.monotonic() > give_up:
            os._exit(3)
        time.sleep(0.001)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    sys.stdout.write("done\n")
