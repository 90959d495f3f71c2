"""What reading the pool line by line against its specification has found, each as a small test of its own."""

from __future__ import annotations

import asyncio
import math
import traceback

import pytest

from qorb import (
    AllClaimsUsedError,
    Backend,
    ClaimTimeoutError,
    NoBackendsOnlineError,
    Policy,
    Pool,
    PoolTerminatedError,
)
from qorb.connector import Connector
from qorb.errors import masked
from qorb.resolvers import FixedResolver, ManualResolver
from qorb.testing import FakeConnector, run, settle

ONE = ["10.0.0.1:5432"]
SECRET = "hunter2"


class Plain(Connector[object]):
    """A connector of which every short cut may be taken."""

    async def connect(self, backend):
        await asyncio.sleep(0.001)
        return object()


def quiet(**policy):
    """Give a policy with which nothing happens by itself."""
    return Policy(**{"health_interval": math.inf, "rebalance_interval": math.inf, "spread": 0} | policy)


def test_a_claim_does_not_wait_when_the_only_one_in_line_was_cancelled_before_the_release():
    async def main():
        policy = quiet(spares_wanted=1, max_slots=1)
        async with Pool("p", FixedResolver(ONE), Plain(), policy) as pool:
            await pool.ready()

            async def wait():
                async with pool.claim():
                    pass

            async with pool.claim():
                waiter = asyncio.create_task(wait())
                await settle()
                waiter.cancel()
            async with pool.claim(timeout=1):
                return True

    assert run(main)


def test_checking_all_idle_connections_at_once_sets_no_second_timer_for_each():
    async def main():
        connector = FakeConnector()
        policy = Policy(
            spares_wanted=4,
            max_slots=4,
            health_interval=10,
            rebalance_interval=math.inf,
            spread=1,
            max_connection_backoff=1,
        )
        async with Pool("p", FixedResolver(ONE), connector, policy) as pool:
            await pool.ready()
            await asyncio.sleep(5)
            before = pool.ledger().timers
            for _ in range(3):
                broken = next(iter(connector.connections))
                connector.during("validate", lambda _, broken=broken: setattr(broken, "closed", True))
                await asyncio.sleep(11)  # by then it was checked
                assert broken.closed
                connector.heal()
                await asyncio.sleep(5)
            await asyncio.sleep(3)
            assert pool.stats().backends[ONE[0]].unclaimed_slots == 4
            return before, pool.ledger().timers

    before, after = run(main)
    assert after <= before


def test_a_connection_whose_turn_to_be_checked_came_while_another_was_checked_is_checked_after_its_next_claim():
    async def main():
        policy = quiet(spares_wanted=2, max_slots=2, max_lifetime=100)
        connector = FakeConnector()
        connector.needs_recycle = lambda _connection, _outcome: False
        async with Pool("p", FixedResolver(ONE), connector, policy) as pool:
            await pool.ready()
            slots = list(pool._engine.sets[ONE[0]].slots)
            first, second = slots
            second._expires = first._expires = math.inf
            connector.stall("validate")
            first.fall_due()
            await settle()
            second.fall_due()  # has to wait for the first one's check
            await settle()
            async with pool.claim():
                connector.heal()
                await asyncio.sleep(1)
            await asyncio.sleep(1)
            return connector.count["validate"]

    assert run(main) == 2


def test_of_two_claims_that_go_back_to_the_front_of_the_line_the_earlier_one_does_not_fail_late():
    async def main():
        connector = FakeConnector()
        policy = quiet(spares_wanted=2, max_slots=2, claim_timeout=30)
        loop = asyncio.get_running_loop()
        ends = {}
        async with Pool("p", FixedResolver(ONE), connector, policy) as pool:
            await pool.ready()

            async def claim(name):
                began = loop.time()
                with pytest.raises(ClaimTimeoutError):
                    await pool.claim()
                ends[name] = loop.time() - began

            connector.slow(2, "on_acquire")
            connector.fail("on_acquire", lambda: ValueError("no"))
            connector.refuse()
            first = asyncio.create_task(claim("first"))
            await asyncio.sleep(1)
            second = asyncio.create_task(claim("second"))
            await asyncio.wait([first, second])
        return ends

    assert run(main) == {"first": pytest.approx(30, abs=0.005), "second": pytest.approx(30, abs=0.005)}


def _moved(host):
    return [Backend("db", host, 5432)]


def test_a_connection_that_is_checked_while_its_backend_moves_is_replaced_as_well():
    async def main():
        connector = FakeConnector()
        resolver = ManualResolver(_moved("10.0.0.1"))
        policy = quiet(spares_wanted=1, max_slots=2, health_interval=10)
        async with Pool("p", resolver, connector, policy) as pool:
            await pool.ready()
            connector.slow(1, "validate")
            await asyncio.sleep(10)
            assert pool.stats().backends["db"].checking_slots == 1
            resolver.set(_moved("10.0.0.2"))
            await asyncio.sleep(5)
            return {connection.backend.host for connection in connector.connections}

    assert run(main) == {"10.0.0.2"}


@pytest.mark.parametrize("outage", [1, 200])
def test_all_connections_move_to_a_new_address_however_late_it_answers(outage):
    async def main():
        connector = FakeConnector()
        resolver = ManualResolver(_moved("10.0.0.1"))
        policy = quiet(spares_wanted=4, max_slots=8, rebalance_interval=10)
        async with Pool("p", resolver, connector, policy) as pool:
            await pool.ready()
            connector.refuse()
            resolver.set(_moved("10.0.0.2"))
            await asyncio.sleep(outage)
            connector.heal()
            await asyncio.sleep(61)
            return [connection.backend.host for connection in connector.connections]

    assert run(main) == ["10.0.0.2"] * 4


def test_failures_of_a_backend_that_came_back_are_forgotten_like_any_others():
    async def main():
        connector = FakeConnector()
        resolver = ManualResolver(ONE)
        policy = quiet(spares_wanted=1, max_slots=2, max_connection_backoff=5)
        async with Pool("p", resolver, connector, policy) as pool:
            claim = await pool.claim()
            await settle()
            connector.refuse()
            (await pool.claim()).discard()
            await asyncio.sleep(1)
            connector.heal()
            assert pool._engine.sets[ONE[0]].load > 1
            resolver.set([])
            await settle()
            resolver.set(ONE)
            await asyncio.sleep(100)
            slots = pool._engine.sets[ONE[0]]
            assert pool.stats().backends[ONE[0]].failures == 0
            load, claimed = slots.load, slots.claimed
            claim.release()
            return load, claimed

    assert run(main) == (1, 1)


def test_ready_hears_of_a_backend_less():
    async def main():
        connector = FakeConnector()
        connector.refuse("10.0.0.2:5432")
        resolver = ManualResolver(["10.0.0.1:5432", "10.0.0.2:5432"])
        policy = quiet(spares_wanted=4, max_slots=8, max_slots_per_backend=2)
        async with Pool("p", resolver, connector, policy) as pool:
            waiting = asyncio.create_task(pool.ready())
            await asyncio.sleep(1)
            assert not waiting.done()
            resolver.set(ONE)
            await settle()
            assert waiting.done()
            await waiting

    run(main)


@pytest.mark.parametrize("make", [Plain, FakeConnector])
def test_ready_hears_of_a_claim_less(make):
    async def main():
        connector = make()
        connect, made = connector.connect, []

        async def a_few(backend):
            if len(made) == 3:
                raise ConnectionRefusedError("too many connections")
            made.append(None)
            return await connect(backend)

        connector.connect = a_few
        async with Pool("p", FixedResolver(ONE), connector, quiet(spares_wanted=2, max_slots=8)) as pool:
            await pool.ready()
            async with pool.claim(), pool.claim():
                waiting = asyncio.create_task(pool.ready())
                await asyncio.sleep(1)
                assert not waiting.done()
            await asyncio.sleep(0.01)
            assert waiting.done()
            await waiting

    run(main)


def test_a_connector_that_fails_without_waiting_and_no_backoff_at_all_do_not_block_the_loop():
    class Failing(Plain):
        attempts = 0

        async def connect(self, backend):
            type(self).attempts += 1
            if self.attempts > 10_000:
                raise SystemExit("the loop is blocked")
            raise ConnectionRefusedError

    async def main():
        policy = quiet(spares_wanted=1, min_connection_backoff=0)
        async with Pool("p", FixedResolver(ONE), Failing(), policy) as pool:
            with pytest.raises(NoBackendsOnlineError):
                await pool.claim(timeout=0.1)

    run(main)


@pytest.mark.parametrize("field", ["rebalance_interval", "health_interval", "max_lifetime", "long_claim_warning"])
def test_an_interval_that_is_shorter_than_the_clock_can_tell_does_not_stop_the_time(field):
    class Instant(Plain):
        async def connect(self, backend):
            return object()

    async def main():
        async with Pool("p", FixedResolver(ONE), Instant(), quiet(spares_wanted=2, **{field: 1e-300})) as pool:
            await asyncio.sleep(0.01)
            async with pool.claim(timeout=0.1):
                pass

    run(main, patience=1000)


@pytest.mark.parametrize("useless", ["on_acquire", "is_closed"])
def test_connections_that_are_of_no_use_and_no_backoff_at_all_do_not_block_the_loop(useless):
    class Useless(Plain):
        attempts = asked = 0

        async def connect(self, backend):
            self.attempts += 1
            if self.attempts > 10_000:
                raise SystemExit("the loop is blocked")
            return object()

    class Refusing(Useless):
        async def on_acquire(self, connection):
            raise OSError("not fit")

    class Closing(Useless):
        def is_closed(self, connection):
            self.asked += 1
            return self.asked % 2 == 0  # open when it is made, closed when it is handed out

    async def main():
        policy = quiet(spares_wanted=1, min_connection_backoff=0, spread=0)
        connector = Refusing() if useless == "on_acquire" else Closing()
        async with Pool("p", FixedResolver(ONE), connector, policy) as pool:
            with pytest.raises(ClaimTimeoutError):
                await pool.claim(timeout=0.1)
        assert 1 < connector.attempts <= 2 * 102  # two slots, and a millisecond between the attempts of each

    run(main, patience=1000)


def shown(error):
    """Give all that a crash reporter prints of an exception, the local variables of its frames included."""
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


def test_a_claim_that_ends_with_the_pool_does_not_show_what_on_acquire_raised_on_the_way():
    class Clumsy(FakeConnector):
        async def on_acquire(self, connection):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise ValueError(f"cannot log in, password={SECRET}") from None

    async def main():
        async with Pool("p", FixedResolver(ONE), Clumsy(), quiet(spares_wanted=1)) as pool:
            await pool.ready()
            claim = asyncio.ensure_future(pool.claim())
            await asyncio.sleep(1)
            await pool.terminate()
            with pytest.raises(PoolTerminatedError) as caught:
                await claim
            return shown(caught.value)

    assert SECRET not in run(main)


def failing_with_a_note(text):
    error = OSError("cannot log in")
    error.add_note(text)
    raise error


def failing_in_a_group(text):
    dsn = text
    errors = []
    for number in range(2):
        try:
            raise OSError(f"attempt {number} of {len(dsn)}")
        except OSError as error:
            errors.append(error)
    raise ExceptionGroup("no address worked", errors)


def failing_after_another(text):
    try:
        raise KeyError(text)
    except KeyError:
        raise OSError("cannot log in") from None


@pytest.mark.parametrize("fail", [failing_with_a_note, failing_in_a_group, failing_after_another])
def test_what_is_chained_to_an_error_of_the_pool_shows_nothing_beside_its_own_text(fail):
    class Failing(FakeConnector):
        async def connect(self, backend):
            fail(f"password={SECRET}")

    async def main():
        async with Pool("p", FixedResolver(ONE), Failing(), quiet(spares_wanted=1)) as pool:
            with pytest.raises(NoBackendsOnlineError) as caught:
                await pool.claim(timeout=1)
            error = caught.value
            assert error.__cause__ is not None
            cause = error.__cause__.__cause__
            assert cause is not None
            assert cause.__context__ is None
            return shown(error)

    assert SECRET not in run(main)


@pytest.mark.parametrize(
    "text",
    [
        f"db_password={SECRET}",
        f"PGPASSWORD={SECRET}",
        f"DB_PASSWORD='{SECRET} and more'",
        f"{{'client_secret': b'{SECRET} and more'}}",
        f"auth-token: {SECRET}",
        f"api_key={SECRET}",
        f"postgres://user:pass/{SECRET}@db/orders",
        f'password="a\\" {SECRET}"',
    ],
)
def test_passwords_are_masked_under_whatever_name_and_however_quoted(text):
    assert SECRET not in masked(f"cannot connect: {text}, giving up")
    assert "giving up" in masked(f"cannot connect: {text}, giving up")


def test_a_url_where_an_address_is_expected_is_refused_without_its_password():
    with pytest.raises(ValueError, match=r"is a URL; write host:port") as caught:
        FixedResolver([f"postgres://user:{SECRET}@db.local:5432/orders"])
    assert SECRET not in str(caught.value)


def test_a_connection_string_where_a_connector_is_expected_is_not_repeated_in_the_error():
    with pytest.raises(TypeError, match="connector must be a Connector, not a str") as caught:
        Pool("p", FixedResolver(ONE), f"host=db password={SECRET}")
    assert SECRET not in str(caught.value)


def test_an_error_names_a_task_that_holds_several_connections_once_with_all_that_matters():
    async def main():
        async with Pool("p", FixedResolver(ONE), Plain(), quiet(spares_wanted=4, max_slots=4)) as pool:
            await pool.ready()

            async def hoard():
                claims = []
                for _ in range(3):
                    claims.append(await pool.claim())
                    await asyncio.sleep(1)
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    for claim in claims:
                        claim.release()

            hoarder = asyncio.create_task(hoard(), name="orders.load")
            await asyncio.sleep(4)
            async with pool.claim():
                patient = asyncio.create_task(wait_for_one(pool, 60), name="patient")
                with pytest.raises(AllClaimsUsedError) as caught:
                    await wait_for_one(pool, 1)
            hoarder.cancel()
            await patient
            return str(caught.value)

    text = run(main)
    assert text.startswith("no connection within 1 s: pool p: 4 of at most 4 connections are in use; held longest: ")
    assert "5.0 s, 4.0 s, 3.0 s by task 'orders.load', which holds 3 of them, claimed at " in text
    assert text.count("orders.load") == 1
    assert text.count("now in ") == 1
    assert "; others still waiting: 1 ('patient')." in text  # and not the one that gave up


async def wait_for_one(pool, timeout):
    async with pool.claim(timeout=timeout):
        pass


def test_an_error_of_ready_says_what_is_connected_already():
    async def main():
        connector = FakeConnector()
        connector.refuse("10.0.0.2:5432")
        names = ["10.0.0.1:5432", "10.0.0.2:5432"]
        policy = quiet(spares_wanted=4, max_slots=8, max_slots_per_backend=2)
        async with Pool("p", FixedResolver(names), connector, policy) as pool:
            with pytest.raises(AllClaimsUsedError) as caught:
                await pool.ready(timeout=1)
            return str(caught.value)

    assert run(main) == (
        "not ready within 1 s: pool p: 0 of at most 4 connections are in use; the others: 2 idle, 2 connecting "
        "(10.0.0.2:5432: ConnectionRefusedError: 10.0.0.2:5432 refuses connections)"
    )


def test_a_task_that_has_just_handed_its_connection_over_is_not_told_that_it_holds_one():
    async def main():
        async with Pool("p", FixedResolver(ONE), Plain(), quiet(spares_wanted=1, max_slots=1)) as pool:

            async def wait():
                async with pool.claim():
                    pass

            async with pool.claim():
                waiter = asyncio.create_task(wait())
                await asyncio.sleep(5)
            with pytest.raises(AllClaimsUsedError) as caught:
                await pool.claim(timeout=0)
            await waiter
            return str(caught.value)

    text = run(main)
    assert "itself" not in text
    assert "5.0 s" not in text
    assert "being handed off" in text


def test_an_observer_may_replace_the_backends_while_it_is_told_how_others_go():
    async def main():
        resolver = ManualResolver(["a:1"])

        def observe(event):
            if getattr(event, "new", None) == "Terminated" and resolver._backends[0].name == "b:1":
                resolver.set(["c:1"])

        async with Pool("p", resolver, FakeConnector(), quiet(spares_wanted=1), observer=observe) as pool:
            await pool.ready()
            resolver.set(["b:1"])
            await asyncio.sleep(1)
            assert list(pool.stats().backends) == ["c:1"]
            async with pool.claim(timeout=1) as connection:
                return connection.backend.name

    assert run(main) == "c:1"


def test_a_set_that_an_observer_publishes_does_not_take_the_place_of_a_later_one():
    async def main():
        resolver, sets = ManualResolver(["a:1"]), [["b:1"], ["c:1"]]

        def observe(event):
            if type(event).__name__ == "HandleReturned" and sets:
                resolver.set(sets.pop(0))

        async with Pool("p", resolver, FakeConnector(), quiet(spares_wanted=2), observer=observe) as pool:
            await pool.ready()
            claims = [await pool.claim() for _ in range(2)]
            for claim in claims:
                claim.release()
            resolver.set(["d:1"])
            await asyncio.sleep(1)
            return list(pool.stats().backends)

    assert run(main) == ["d:1"]


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="there are no eager tasks before Python 3.12")
def test_an_observer_may_start_a_task_that_claims_eagerly_at_any_event():
    async def main():
        loop = asyncio.get_running_loop()
        tasks, busy, over = [], [], []

        async def claim():
            busy.append(None)
            async with pool.claim():
                pass
            busy.pop()

        def observe(event):
            if not busy and len(tasks) < 100 and not over:
                tasks.append(asyncio.eager_task_factory(loop, claim()))

        pool = Pool("p", FixedResolver(ONE), FakeConnector(), quiet(spares_wanted=2, max_slots=2), observer=observe)
        async with pool:
            await pool.ready()
            for _ in range(20):
                async with pool.claim(timeout=1):
                    pass
            over.append(None)
            await asyncio.wait(tasks)
            assert len(tasks) >= 10
            return [task.exception() for task in tasks]

    assert set(run(main)) == {None}


def test_a_claim_that_is_released_after_its_loop_was_closed_closes_its_connection_with_the_pool():
    connector = FakeConnector()
    loop = asyncio.new_event_loop()
    pool = Pool("p", FixedResolver(ONE), connector, quiet(spares_wanted=1))

    async def main():
        await pool.start()
        return await pool.claim()

    claim = loop.run_until_complete(main())
    loop.close()
    claim.release()
    pool.abort()
    assert not connector.connections


def test_handing_out_the_last_idle_connection_looks_at_no_other():
    async def main():
        connector = FakeConnector()  # it has an on_acquire: no short cut
        async with Pool(
            "p", FixedResolver(ONE), connector, quiet(spares_wanted=50, max_slots=50, max_slots_per_backend=50)
        ) as pool:
            await pool.ready()

            class Idle(list):
                def index(self, *arguments):
                    raise AssertionError("every idle connection is looked at")

            slots = pool._engine.sets[ONE[0]]
            slots.idle = Idle(slots.idle)
            async with pool.claim():
                slots.idle = list(slots.idle)

    run(main)
