"""How an application that uses a pool is tested: run it with `python -m pytest examples/test_application.py`.

The application stands at the top; in real life it would be imported. Everything below is its tests. They need no
server, no network and no waiting: a service that is away for an hour is away for no time at all.
"""

# ruff: noqa: D103, PLR2004, S101 - a test's name is its sentence, and it asserts what it expects

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from qorb import ClaimTimeoutError, ConnectError, Policy, Pool
from qorb.resolvers import FixedResolver
from qorb.testing import Attempt, FakeConnector, assert_nothing_left, at_every_await, run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Accounts:
    """Looks up accounts at a service, and asks a second time when a connection breaks."""

    def __init__(self, pool: Pool[Any]) -> None:
        """Use a pool whose connections have a coroutine method request(text)."""
        self.pool = pool
        self.in_progress = 0

    async def look_up(self, name: str) -> str:
        """Return what the service knows about an account. Raises ClaimTimeoutError when it is out of reach for 2 s."""
        self.in_progress += 1
        try:
            try:
                return await self._ask(name)
            except ConnectError:
                return await self._ask(name)
        finally:
            self.in_progress -= 1

    async def _ask(self, name: str) -> str:
        async with self.pool.claim(timeout=2.0) as connection:
            answer: str = await connection.request(name)
            return answer


def with_accounts(
    test: Callable[[Accounts, FakeConnector], Awaitable[None]], seed: int = 0, max_slots: int = 4
) -> Callable[[], Awaitable[None]]:
    """Build the world that each test needs, and see that nothing of it is left at the end."""

    async def main() -> None:
        service = FakeConnector(latency=0.010)
        backends = FixedResolver(["10.0.0.1:7000", "10.0.0.2:7000"])
        policy = Policy(spares_wanted=2, max_slots=max_slots)
        # The pool draws lots, too; with a generator of our own it does so in the same way each time.
        pool = Pool("accounts", backends, service, policy, rng=random.Random(seed))
        async with pool:
            await pool.ready()
            await test(Accounts(pool), service)
        assert_nothing_left(pool)

    return main


def test_an_account_is_found() -> None:
    async def test(accounts: Accounts, _service: FakeConnector) -> None:
        assert await accounts.look_up("ada") == "ada"

    run(with_accounts(test))


def test_a_server_that_hangs_up_in_between_is_not_noticed() -> None:
    async def test(accounts: Accounts, service: FakeConnector) -> None:
        look_up = asyncio.create_task(accounts.look_up("ada"))
        await asyncio.sleep(0.015)  # the request is on its way
        assert service.drop() > 0
        assert await look_up == "ada"

    run(with_accounts(test))


def test_an_outage_of_an_hour_is_told_after_two_seconds_and_over_within_six() -> None:
    async def test(accounts: Accounts, service: FakeConnector) -> None:
        clock = asyncio.get_running_loop().time
        service.refuse()
        service.drop()
        for _ in range(10):
            await asyncio.sleep(360.0)
            asked = clock()
            with pytest.raises(ClaimTimeoutError):
                await accounts.look_up("ada")
            assert clock() - asked == pytest.approx(2.0)
        service.heal()
        back = clock()
        while True:
            try:
                await accounts.look_up("ada")
                break
            except ClaimTimeoutError:
                assert clock() - back < 6
        assert clock() - back < 6

    run(with_accounts(test))


@pytest.mark.parametrize("seed", range(20))
def test_each_of_many_clients_gets_the_answer_to_its_own_question(seed: int) -> None:
    async def test(accounts: Accounts, service: FakeConnector) -> None:
        names = [f"account {number}" for number in range(50)]
        look_ups = [asyncio.create_task(accounts.look_up(name)) for name in names]
        assert await asyncio.gather(*look_ups) == names
        assert service.peak <= 4

    run(with_accounts(test, seed), seed=seed)


def test_a_look_up_that_is_cancelled_anywhere_leaves_no_trace() -> None:
    async def scene(attempt: Attempt) -> None:
        async def test(accounts: Accounts, _service: FakeConnector) -> None:
            await attempt.cancel(accounts.look_up("ada"))
            assert accounts.in_progress == 0
            # The only connection must be at hand again, and must not give the answer to what was asked before.
            assert await accounts.look_up("grace") == "grace"

        await with_accounts(test, max_slots=1)()

    report = at_every_await(scene)
    assert report.points >= 2  # on_acquire, and the answer


def test_the_application_ends_while_it_is_busy() -> None:
    async def test(accounts: Accounts, service: FakeConnector) -> None:
        service.stall()  # nothing answers any more
        look_ups = [asyncio.create_task(accounts.look_up(str(number))) for number in range(20)]
        await asyncio.sleep(1.0)
        await accounts.pool.terminate(grace=1.0)
        outcomes = await asyncio.gather(*look_ups, return_exceptions=True)
        assert all(isinstance(outcome, Exception) for outcome in outcomes)

    run(with_accounts(test))
