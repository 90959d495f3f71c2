"""Programs that use a pool and end in all sorts of ways: `python -m tests.programs NAME PORT`.

PORT is that of an echo server on loopback. A program prints a line when others may go on, and at the end "done" when it
got there. What test_processes.py looks at besides is the exit code, stderr, and what the server sees.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

from qorb import Backend, Claim, Connector, Outcome, Policy, Pool, PoolForkedError, PoolState
from qorb.connectors import TcpConnector
from qorb.events import PoolTerminateStart
from qorb.resolvers import FixedResolver

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qorb.connectors import TcpStream
    from qorb.events import Event

if os.environ.get("QORB_TEST_LOOP") == "uvloop":
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

PORT = int(sys.argv[2])

kept: list[Any] = []
"""What lives until the interpreter ends."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def make_pool(observer: Callable[[Event], None] | None = None) -> Pool[TcpStream]:
    policy = Policy(spares_wanted=3, max_slots=4)
    return Pool("main", FixedResolver([("127.0.0.1", PORT)]), TcpConnector(), policy, observer=observer)


async def begin(pool: Pool[TcpStream]) -> None:
    # Debug mode reports slow callbacks by the clock; on a busy machine that says nothing.
    asyncio.get_running_loop().slow_callback_duration = math.inf
    await pool.start()
    await pool.ready()


async def echo(pool: Pool[TcpStream]) -> None:
    """Have every connection of the pool answer."""
    claims = [await pool.claim() for _ in range(pool.policy.max_slots)]
    for claim in claims:
        claim.connection.writer.write(b"hello\n")
        assert await claim.connection.reader.readline() == b"hello\n"
        claim.release()


async def say_at_rest(text: str, pool: Pool[TcpStream], connections: int) -> None:
    """Say it when the pool has so many connections, nothing to do, and the loop sleeps.

    A signal that finds the loop at work, and whose handler raises, may hit asyncio between taking a callback from its
    list and running it: that callback is lost, whoever's it was.
    """
    while pool.ledger().connections != connections:  # noqa: ASYNC110 - no event tells that there is no more to come
        await asyncio.sleep(0.001)
    threading.Timer(0.1, say, (text,)).start()


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


# A pool that is terminated.


def terminated() -> None:
    async def main() -> None:
        pool = make_pool()
        async with pool:
            await begin(pool)
            await echo(pool)
        assert pool.ledger().empty

    asyncio.run(main())


def terminated_with_a_host_name() -> None:
    """Such names are looked up on threads."""

    async def main() -> None:
        pool = Pool("main", FixedResolver([("localhost", PORT)]), TcpConnector(), Policy(spares_wanted=3, max_slots=4))
        async with pool:
            await begin(pool)
            await echo(pool)
        await asyncio.sleep(0)
        assert threading.active_count() == 1
        async with Pool("second", FixedResolver([("localhost", PORT)]), TcpConnector()) as second:
            await second.start()  # and ends while they are looked up

    asyncio.run(main())


# Pools that nobody terminates.


def dropped() -> None:
    async def main() -> None:
        pool = make_pool()
        await begin(pool)
        del pool
        await asyncio.sleep(0.01)

    asyncio.run(main())


def dropped_when_the_loop_is_closed() -> None:
    loop = asyncio.new_event_loop()
    pool = make_pool()
    loop.run_until_complete(begin(pool))
    loop.close()
    del pool
    gc.collect()


def kept_when_the_loop_is_closed() -> None:
    loop = asyncio.new_event_loop()
    kept.append(make_pool())
    loop.run_until_complete(begin(kept[0]))
    loop.close()


def loop_closed_while_it_is_being_terminated() -> None:
    async def end(pool: Pool[TcpStream]) -> None:
        await begin(pool)
        kept.append(await pool.claim())
        try:
            async with asyncio.timeout(0.01):
                await pool.terminate(grace=math.inf)
        except TimeoutError:
            assert pool.state is PoolState.TERMINATING

    loop = asyncio.new_event_loop()
    pool = make_pool()
    loop.run_until_complete(end(pool))
    loop.close()
    kept.clear()
    del pool
    gc.collect()


def body_returns() -> None:
    async def main() -> None:
        pool = make_pool()
        await begin(pool)
        await echo(pool)

    asyncio.run(main())


def body_returns_and_the_pool_is_kept() -> None:
    async def main() -> None:
        kept.append(make_pool())
        await begin(kept[0])

    asyncio.run(main())
    assert kept[0].state is PoolState.TERMINATED


def body_returns_with_claims_out_and_claims_waiting() -> None:
    async def hold(pool: Pool[TcpStream]) -> None:
        async with pool.claim():
            await forever()

    async def main() -> None:
        pool = make_pool()
        await begin(pool)
        kept.extend(asyncio.ensure_future(hold(pool)) for _ in range(10))
        await asyncio.sleep(0.05)

    asyncio.run(main())


def body_raises() -> None:
    async def main() -> None:
        pool = make_pool()
        await begin(pool)
        raise ZeroDivisionError("the body's own")

    asyncio.run(main())


def block_raises() -> None:
    async def main() -> None:
        async with make_pool() as pool:
            await begin(pool)
            raise ZeroDivisionError("the body's own")

    asyncio.run(main())


# Signals.


async def wait_in_a_block(pool: Pool[TcpStream]) -> None:
    async with pool:
        await begin(pool)
        async with pool.claim():
            await say_at_rest("ready", pool, pool.policy.max_slots)
            await forever()


def interrupted() -> None:
    try:
        asyncio.run(wait_in_a_block(make_pool()))
    except KeyboardInterrupt:
        say("done")
        sys.exit(130)


def interrupted_without_a_block() -> None:
    async def main() -> None:
        pool = make_pool()
        await begin(pool)
        say("ready")
        await forever()

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        say("done")
        sys.exit(130)


def interrupted_twice() -> None:
    def tell(event: Event) -> None:
        if isinstance(event, PoolTerminateStart):
            kept.append(asyncio.ensure_future(say_at_rest("terminating", pool, 1)))

    async def hold(pool: Pool[TcpStream]) -> None:
        async with pool.claim():
            await forever()

    pool = make_pool(tell)

    async def main() -> None:
        kept.append(asyncio.ensure_future(wait_in_a_block(pool)))
        await pool.start()
        kept.append(asyncio.ensure_future(hold(pool)))
        await kept[0]

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        say("done")
        sys.exit(130)


def killed() -> None:
    asyncio.run(wait_in_a_block(make_pool()))


def killed_with_a_handler_of_the_loop() -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await wait_in_a_block(make_pool())

    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        say("done")
        sys.exit(143)


def killed_with_a_handler_that_raises() -> None:
    def leave(*_: object) -> NoReturn:
        sys.exit(143)

    signal.signal(signal.SIGTERM, leave)
    asyncio.run(wait_in_a_block(make_pool()))


# fork().


def leave(pool: Pool[TcpStream]) -> Callable[[], Awaitable[None]]:
    return lambda: pool.__aexit__(None, None, None)


async def assert_forked(pool: Pool[TcpStream], *claims: Claim[TcpStream]) -> None:
    for call in (pool.claim, pool.ready, pool.start, pool.terminate, pool.__aenter__, leave(pool)):
        try:
            await call()
        except PoolForkedError as error:
            if error.pool == "main":
                continue
        raise AssertionError(f"{call} did not raise PoolForkedError with the pool's name")
    for now in (
        pool.abort,
        pool.stats,
        pool.ledger,
        pool.explain,
        *(functools.partial(getattr, one, "connection") for one in claims),
    ):
        try:
            now()
        except PoolForkedError as error:
            if error.pool == "main":
                continue
        raise AssertionError(f"{now} did not raise PoolForkedError with the pool's name")
    for claim in claims:
        claim.release()
        claim.discard()


def wait_for_child(child: int) -> None:
    """Say how the child has ended. It gets ten seconds, which only matters when it hangs."""
    for _ in range(1000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            say(f"child {os.waitstatus_to_exitcode(status)}")
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    say("child hung")


def forked(child_ends: Callable[[Pool[TcpStream]], object]) -> None:
    """Fork in the midst of a block with a claim; the child tries every call and ends, the parent goes on."""

    async def main() -> None:
        pool = make_pool()
        await begin(pool)
        claim = await pool.claim()
        async with pool.claim() as connection:
            child = os.fork()
            if not child:
                await assert_forked(pool, claim)
                child_ends(pool)
                return
        wait_for_child(child)
        claim.release()
        await echo(pool)
        del connection
        await pool.terminate()

    asyncio.run(main())


def child_returns() -> None:
    forked(lambda _pool: None)


def child_exits() -> None:
    forked(lambda _pool: os._exit(0))


def child_raises() -> None:
    def fail(_pool: object) -> NoReturn:
        raise ZeroDivisionError("the child's own")

    forked(fail)


def child_calls_sys_exit() -> None:
    forked(lambda _pool: sys.exit(7))


def child_collects_garbage() -> None:
    def collect(_pool: object) -> NoReturn:
        kept.clear()
        gc.collect()
        os._exit(0)

    forked(collect)


def child_of_a_loop_that_does_not_run() -> None:
    """Fork while the pool's loop stands still; the child drops the pool and the loop, and ends like any program."""
    loop = asyncio.new_event_loop()
    pool = make_pool()
    loop.run_until_complete(begin(pool))
    child = os.fork()
    if not child:
        asyncio.run(assert_forked(pool))
        del pool, loop
        gc.collect()
        return
    wait_for_child(child)
    loop.run_until_complete(echo(pool))
    loop.run_until_complete(pool.terminate())
    loop.close()


def child_goes_on_with_the_loop() -> None:
    """The child lets the loop of the parent run on, which it should not; still the parent must not notice."""
    loop = asyncio.new_event_loop()
    pool = make_pool()
    loop.run_until_complete(begin(pool))
    child = os.fork()
    if not child:
        loop.run_until_complete(asyncio.sleep(0.1))
        os._exit(0)
    wait_for_child(child)
    loop.run_until_complete(echo(pool))
    loop.run_until_complete(pool.terminate())
    loop.close()


class ForkingConnector(TcpConnector):
    """Forks, once asked to, while a claim is under way."""

    forks = False
    child: int | None = None

    async def on_acquire(self, connection: TcpStream) -> None:
        await super().on_acquire(connection)
        if self.forks:
            self.forks = False
            self.child = os.fork()


def child_in_on_acquire() -> None:
    """The claim that is under way in the child has forked there, and says so; what it was given is the parent's."""

    async def main() -> None:
        connector = ForkingConnector()
        async with Pool("main", FixedResolver([("127.0.0.1", PORT)]), connector, Policy(spares_wanted=3)) as pool:
            await begin(pool)
            connector.forks = True
            try:
                async with pool.claim():
                    assert connector.child
            except PoolForkedError:
                assert not connector.child
                os._exit(0)
            wait_for_child(connector.child)
            await echo(pool)

    asyncio.run(main())


def child_of_a_hand_off() -> None:
    """Fork when a connection is on its way to a claim that waited, and let the child go on."""

    async def main() -> None:
        pool = make_pool()
        await begin(pool)
        claims = [await pool.claim() for _ in range(4)]
        waiting = asyncio.ensure_future(pool.claim())
        await asyncio.sleep(0)
        claims.pop().release()
        child = os.fork()
        try:
            claims.append(await waiting)
        except PoolForkedError:
            assert not child
            os._exit(0)
        wait_for_child(child)
        for claim in claims:
            claim.release()
        await echo(pool)
        await pool.terminate()

    asyncio.run(main())


class TellingConnector(Connector[object]):
    """Says what is called in a child process. Everything takes a little."""

    def __init__(self) -> None:
        self.process = os.getpid()

    def tell(self, called: str) -> None:
        if os.getpid() != self.process:
            say(f"{called} in the child")

    async def connect(self, backend: Backend) -> object:
        self.tell("connect")
        await asyncio.sleep(0.001)
        return object()

    async def validate(self, connection: object) -> None:
        self.tell("validate")

    async def on_acquire(self, connection: object) -> None:
        self.tell("on_acquire")

    async def on_recycle(self, connection: object, outcome: Outcome) -> None:
        self.tell("on_recycle")

    async def close(self, connection: object) -> None:
        self.tell("close")

    def abort(self, connection: object) -> None:
        self.tell("abort")

    def is_closed(self, connection: object) -> bool:
        self.tell("is_closed")
        return False

    def needs_recycle(self, connection: object, outcome: Outcome) -> bool:
        self.tell("needs_recycle")
        return True


def child_calls_nothing() -> None:
    """The child lets the loop go on, beyond releases and checks, and then cancels the tasks.

    When it begins, one connection is about to be closed, and another to be recycled.
    """

    def observe(event: object) -> None:
        if os.getpid() != connector.process:
            say(f"{type(event).__name__} in the child")

    async def set_up() -> tuple[Pool[object], list[Claim[object]]]:
        pool = Pool("main", FixedResolver([("127.0.0.1", PORT)]), connector, policy, observer=observe)
        await pool.start()
        await pool.ready()
        return pool, [await pool.claim() for _ in range(4)]

    async def let_go(claims: list[Claim[object]]) -> None:
        for claim in claims[1:]:
            claim.release()
        claims[0].discard()
        await asyncio.sleep(0.1)  # beyond the next check

    connector = TellingConnector()
    policy = Policy(spares_wanted=3, max_slots=4, health_interval=0.05, spread=0)
    loop = asyncio.new_event_loop()
    pool, claims = loop.run_until_complete(set_up())
    claims.pop().discard()
    claims.pop().release()
    child = os.fork()
    if not child:
        loop.run_until_complete(let_go(claims))
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        return
    wait_for_child(child)
    loop.run_until_complete(let_go(claims))
    loop.run_until_complete(pool.terminate())
    loop.close()


# A loop in a thread.


def loop_in_a_daemon_thread() -> None:
    running = threading.Event()

    async def main() -> None:
        kept.append(make_pool())
        await begin(kept[0])
        running.set()
        while True:
            await echo(kept[0])

    threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
    running.wait()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    say("done")
