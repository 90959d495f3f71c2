"""How processes end that have a pool: what they say, whether they hang, what their server sees. See programs.py."""

from __future__ import annotations

import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Not the programs that fork, nor those that close a loop under open connections: with uvloop's transports open, a
# forked child crashes as it ends, and a loop that is closed warns of each of them, whether there is a pool or not.
loops = pytest.mark.loops
GIVE_UP = 120.0
"""Seconds after which a program hangs. No test asserts how long one takes."""

NEVER = (
    "Executor shutdown has been called",
    "cannot schedule new futures after shutdown",
    "Event loop is closed",
    "Task was destroyed but it is pending",
    "Fatal Python error",
    "Exception ignored",
)


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 100

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.port = self.server_address[1]
        self.accepted = 0
        self.open = 0
        self.changed = threading.Condition()

    def wait_until_all_have_ended(self, least: int) -> None:
        """Wait until so many connections have come, and the other side has closed all, one way or another."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.accepted >= least and self.open == 0, GIVE_UP)


class Echo(socketserver.BaseRequestHandler):
    server: EchoServer

    def handle(self) -> None:
        self.count(1)
        try:
            while received := self.request.recv(1000):
                self.request.sendall(received)
        except ConnectionError:
            pass
        finally:
            self.count(-1)

    def count(self, change: int) -> None:
        with self.server.changed:
            self.server.open += change
            self.server.accepted += change == 1
            self.server.changed.notify_all()


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@dataclass
class Ended:
    code: int
    out: list[str]
    err: str

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.err.splitlines() if "Warning: " in line and "Enable tracemalloc" not in line]


def run_program(
    server: EchoServer, name: str, *signals: signal.Signals, warn: bool = True, connections: int = 3
) -> Ended:
    """Run a program of programs.py to its end; send it a signal after each of its first lines."""
    options = ["-X", "dev", "-W", "always"] if warn else []
    command = [sys.executable, *options, "-m", "tests.programs", name, str(server.port)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    ) as program:
        try:
            lines = []
            for one in signals:
                lines.append(program.stdout.readline().rstrip())
                program.send_signal(one)
            out, err = program.communicate(timeout=GIVE_UP)
        finally:
            program.kill()
    for text in NEVER:
        assert text not in err, err
    server.wait_until_all_have_ended(connections)
    return Ended(program.returncode, lines + out.split("\n")[:-1], err)


@loops
@pytest.mark.parametrize("program", ["terminated", "terminated_with_a_host_name"])
def test_a_process_whose_pool_was_terminated_ends_without_a_word(server, program):
    ended = run_program(server, program)
    assert (ended.code, ended.out, ended.err) == (0, ["done"], "")


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("dropped", marks=loops),
        "dropped_when_the_loop_is_closed",
        "kept_when_the_loop_is_closed",
        "loop_closed_while_it_is_being_terminated",
        pytest.param("body_returns", marks=loops),
        pytest.param("body_returns_and_the_pool_is_kept", marks=loops),
        pytest.param("body_returns_with_claims_out_and_claims_waiting", marks=loops),
    ],
)
def test_a_pool_that_nobody_terminates_brings_exactly_one_resource_warning_with_its_name(server, program):
    ended = run_program(server, program)
    assert (ended.code, ended.out) == (0, ["done"])
    assert len(ended.warnings) == 1, ended.err
    assert "ResourceWarning: unterminated pool main" in ended.warnings[0]
    assert "Traceback" not in ended.err


@loops
@pytest.mark.parametrize(("program", "warnings"), [("body_raises", 1), ("block_raises", 0)])
def test_when_the_body_raises_stderr_has_that_exception_and_at_most_one_warning(server, program, warnings):
    ended = run_program(server, program)
    assert (ended.code, ended.out) == (1, [])
    assert ended.err.count("Traceback") == 1
    assert ended.err.rstrip().endswith("ZeroDivisionError: the body's own")
    assert len(ended.warnings) == warnings, ended.err


@loops
def test_ctrl_c_terminates_the_pool_of_a_block(server):
    ended = run_program(server, "interrupted", signal.SIGINT)
    assert (ended.code, ended.out, ended.err) == (130, ["ready", "done"], "")


@loops
def test_ctrl_c_ends_a_pool_that_nobody_terminates_with_one_warning(server):
    ended = run_program(server, "interrupted_without_a_block", signal.SIGINT)
    assert (ended.code, ended.out) == (130, ["ready", "done"])
    assert len(ended.warnings) == 1
    assert "Traceback" not in ended.err


@loops
def test_ctrl_c_twice_does_not_wait_for_the_claims_that_are_out(server):
    ended = run_program(server, "interrupted_twice", signal.SIGINT, signal.SIGINT)
    assert (ended.code, ended.out, ended.err) == (130, ["ready", "terminating", "done"], "")


@loops
@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("killed", -signal.SIGTERM, ["ready"]),
        ("killed_with_a_handler_of_the_loop", 143, ["ready", "done"]),
        ("killed_with_a_handler_that_raises", 143, ["ready"]),
    ],
)
def test_sigterm_leaves_a_clean_stderr(server, program, code, said):
    ended = run_program(server, program, signal.SIGTERM)
    assert (ended.code, ended.out, ended.err) == (code, said, "")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("child_returns", ["done", "child 0", "done"]),
        ("child_exits", ["child 0", "done"]),
        ("child_calls_sys_exit", ["child 7", "done"]),
        ("child_collects_garbage", ["child 0", "done"]),
        ("child_of_a_loop_that_does_not_run", ["done", "child 0", "done"]),
        ("child_goes_on_with_the_loop", ["child 0", "done"]),
        ("child_of_a_hand_off", ["child 0", "done"]),
    ],
)
def test_a_child_gets_pool_forked_error_and_the_parent_goes_on_undisturbed(server, program, said):
    ended = run_program(server, program, warn=False)
    assert (ended.code, ended.out, ended.err) == (0, said, "")
    assert server.accepted == 4


def test_a_claim_that_is_under_way_at_a_fork_gets_pool_forked_error_in_the_child(server):
    ended = run_program(server, "child_in_on_acquire", warn=False)
    assert (ended.code, ended.out, ended.err) == (0, ["child 0", "done"], "")


def test_in_a_child_no_method_of_a_connector_or_observer_is_called(server):
    ended = run_program(server, "child_calls_nothing", warn=False, connections=0)
    assert (ended.code, ended.out, ended.err) == (0, ["done", "child 0", "done"], "")


def test_a_child_that_raises_says_only_that_and_the_parent_goes_on_undisturbed(server):
    ended = run_program(server, "child_raises", warn=False)
    assert (ended.code, ended.out) == (0, ["child 1", "done"])
    assert ended.err.count("Traceback") == 1
    assert ended.err.rstrip().endswith("ZeroDivisionError: the child's own")
    assert server.accepted == 4


@loops
def test_an_interpreter_that_ends_while_a_daemon_thread_runs_the_loop_does_not_hang(server):
    ended = run_program(server, "loop_in_a_daemon_thread")
    assert (ended.code, ended.out) == (0, ["done"])
    assert "Traceback" not in ended.err
