"""The checks of conftest.py find what they look for. The inner tests run in a pytest of their own."""

import re
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py").read_text()

INNER_TESTS = """
import asyncio
import socket
import threading
import time
import warnings

import pytest

def test_nothing_left(run_real):
    async def main():
        await asyncio.sleep(0)
        return 42

    assert run_real(main) == 42

def test_the_loop_is_in_debug_mode(run_real):
    async def main():
        return asyncio.get_running_loop().get_debug()

    assert run_real(main)

def test_slow_callbacks_are_the_machine_s_affair():
    async def main():
        asyncio.get_running_loop().slow_callback_duration = 0.0
        await asyncio.sleep(0)

    asyncio.run(main(), debug=True)

def test_a_record_that_was_provoked_and_taken(run_real, asyncio_log):
    async def main():
        asyncio.get_running_loop().call_exception_handler({"message": "as planned"})

    run_real(main)
    asyncio_log.take("as planned")

def test_leaves_a_task(run_real):
    async def main():
        main.task = asyncio.create_task(asyncio.sleep(1), name="forgotten")

    run_real(main)

def test_calls_the_exception_handler(run_real):
    async def main():
        asyncio.get_running_loop().call_exception_handler({"message": "not as planned"})

    run_real(main)

def test_loses_an_exception(run_real):
    async def fail():
        raise ValueError("nobody looked")

    async def main():
        task = asyncio.create_task(fail())
        await asyncio.sleep(0.01)
        assert task.done()

    run_real(main)

def test_leaves_a_socket_open():
    socket.socket()

def test_fails_in_a_finalizer():
    class Failing:
        def __del__(self):
            raise ValueError("in a finalizer")

    cycle = Failing()
    cycle.self = cycle

def test_never_awaits():
    asyncio.sleep(0)

def test_leaves_a_thread():
    threading.Thread(target=time.sleep, args=(0.5,), name="forgotten").start()

def test_takes_what_was_not_logged(asyncio_log):
    asyncio_log.take("nothing of the kind")

def test_warns():
    warnings.warn("beware", UserWarning, stacklevel=1)
"""

GOOD = {
    "test_nothing_left",
    "test_the_loop_is_in_debug_mode",
    "test_slow_callbacks_are_the_machine_s_affair",
    "test_a_record_that_was_provoked_and_taken",
}
# Why each must fail, in the words of the report.
BAD = {
    "test_leaves_a_task": "tasks left behind: .*forgotten",
    "test_calls_the_exception_handler": "asyncio has logged:\nnot as planned",
    "test_loses_an_exception": "Task exception was never retrieved",
    "test_leaves_a_socket_open": "ResourceWarning: unclosed <socket",
    "test_fails_in_a_finalizer": "ValueError: in a finalizer",
    "test_never_awaits": "coroutine 'sleep' was never awaited",
    "test_leaves_a_thread": "threads left behind: .*forgotten",
    "test_takes_what_was_not_logged": "0 records with 'nothing of the kind'",
    "test_warns": "UserWarning: beware",
}


def test_each_leak_is_found_and_nothing_else(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(INNER_TESTS)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")

    result = pytester.runpytest_subprocess("--tb=short", "-rpfE", "-p", "no:cacheprovider")

    report = result.stdout.str()
    not_good = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", report, re.MULTILINE))
    assert not_good == set(BAD), report
    assert set(re.findall(r"^PASSED \S+::(\w+)", report, re.MULTILINE)) >= GOOD, report
    for test, why in BAD.items():
        (section,) = re.findall(
            rf"^_+ (?:ERROR at teardown of )?{test} _+$(.*?)^(?:_|=)+ ", report, re.MULTILINE | re.DOTALL
        )
        assert re.search(why, re.sub(r"^E +", "", section, flags=re.MULTILINE)), section
