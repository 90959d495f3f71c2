"""The probes as the tools see them: readelf finds them in the file, gdb and bpftrace watch them in a process."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qorb import events
from qorb.observers import usdt
from qorb.observers._probe_library import MACHINES, probe_library
from qorb.observers.usdt import ARGUMENTS, UsdtObserver, probe_name
from tests.observers.probed import EVENTS, VALUES
from tests.test_events import everything

ROOT = Path(__file__).parent.parent.parent
# What the original's probes are called and what they say, which scripts that were written for it rely on. What it calls
# the address of a backend is the backend's name here.
ORIGINALS = {
    "claim-start": "pool claim_id",
    "claim-done": "pool claim_id slot_id",
    "claim-failed": "pool claim_id reason",
    "connect-start": "pool slot_id backend",
    "connect-done": "pool slot_id backend",
    "connect-failed": "pool slot_id backend reason",
    "pool-claim-start": "pool claim_id",
    "pool-claim-done": "pool claim_id slot_id",
    "pool-claim-failed": "pool claim_id",
    "slot-set-claim-start": "pool claim_id backend",
    "slot-set-claim-done": "pool claim_id slot_id",
    "slot-set-claim-failed": "pool claim_id reason",
    "handle-claimed": "pool claim_id slot_id backend",
    "handle-returned": "pool slot_id",
    "health-check-start": "pool slot_id backend",
    "health-check-done": "pool slot_id",
    "health-check-failed": "pool slot_id reason",
    "recycle-start": "pool slot_id backend",
    "recycle-done": "pool slot_id",
    "recycle-failed": "pool slot_id reason",
    "rebalance-start": "pool",
    "rebalance-done": "pool",
}
OURS = {
    "claim-acquire-failed": "pool claim_id slot_id reason",
    "slot-set-online": "pool backend has_unclaimed_slots",
    "slot-set-offline": "pool backend has_unclaimed_slots",
    "slot-state-change": "pool slot_id backend old new",
    "resolver-updated": "pool added removed changed",
    "resolver-failed": "pool reason",
    "resolver-query-start": "pool server question",
    "resolver-query-done": "pool server question records",
    "resolver-query-failed": "pool server question reason",
    "pool-terminate-start": "pool left",
    "pool-terminate-done": "pool left",
}
PROBES = {name: arguments.split() for name, arguments in {**ORIGINALS, **OURS}.items()}
NUMBERS = {"claim_id", "slot_id", "has_unclaimed_slots", "records"}

needs_probes = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in MACHINES, reason="there are no USDT probes on this machine"
)


def needs(program):
    """Skip the test where the program is missing, save where all tests have to run: there it fails."""
    missing = shutil.which(program) is None and not os.environ.get("CI")
    return pytest.mark.skipif(missing, reason=f'needs the program {program}: "make system-deps" installs it')


@functools.cache
def reason_against_bpftrace():
    tried = subprocess.run(["bpftrace", "-e", "BEGIN { exit(); }"], capture_output=True, text=True, check=False)
    return f"bpftrace may not watch here: {tried.stderr.strip()}" if tried.returncode else None


def expected():
    """What a tool prints that prints all arguments of every probe."""

    def text(value):
        return " ".join(value) if isinstance(value, tuple) else str(int(value) if isinstance(value, bool) else value)

    return [f"{name}: {' | '.join(text(VALUES[argument]) for argument in PROBES[name])}" for name in names_in_order()]


def names_in_order():
    return [probe_name(type(event)) for event in EVENTS]


def printing(name):
    """Give the format that prints the arguments of a probe."""
    return f"{name}: {' | '.join('%lu' if argument in NUMBERS else '%s' for argument in PROBES[name])}\\n"


def notes(path):
    """Give what readelf finds in the file: for each probe its provider, registers, location and semaphore."""
    shown = subprocess.run(["readelf", "--notes", path], capture_output=True, text=True, check=True)
    assert not shown.stderr
    return {
        name: (provider, registers.split(), int(location, 16), int(semaphore, 16))
        for provider, name, location, semaphore, registers in re.findall(
            r"Provider: (\S+)\s+Name: (\S+)\s+Location: (\S+), Base: \S+, Semaphore: (\S+)\s+Arguments: (.*)",
            shown.stdout,
        )
    }


def test_every_event_has_a_probe_with_the_documented_name_and_arguments():
    kinds = {kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)}
    public = {kind for kind in kinds if kind is not events.Event and not kind.__name__.startswith("_")}

    assert set(ARGUMENTS) == public
    assert {probe_name(kind): list(arguments) for kind, arguments in ARGUMENTS.items()} == PROBES
    for kind, arguments in ARGUMENTS.items():
        assert kind.__doc__.startswith(probe_name(kind))
        assert set(arguments) <= {field.name for field in dataclasses.fields(kind)}
    assert usdt.NUMBERS == NUMBERS


def test_the_documentation_lists_the_probes_and_their_arguments():
    text = (ROOT / "docs/observing.md").read_text(encoding="utf-8").partition("## USDT probes")[2]
    listed = {}
    starred = set()
    for names, arguments in re.findall(r"^\| (`[^|]*) \| (`[^|]*) \|$", text, re.MULTILINE):
        for name, star in re.findall(r"`([a-z-]+)`(\*?)", names):
            listed[name] = re.findall(r"`(\w+)`", arguments)
            if star:
                starred.add(name)

    assert listed == PROBES
    assert starred == set(OURS)


@needs("readelf")
@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_a_library_says_where_its_probes_and_their_arguments_are(machine, tmp_path):
    file = tmp_path / "probes.so"
    file.write_bytes(probe_library("someone", {"one-thing": 2, "another": 0, "third": 6}, machine))

    found = notes(file)

    assert list(found) == ["one-thing", "another", "third"]
    registers = [f"8@{register}" for register in machine.registers]
    assert [found[name][:2] for name in found] == [
        ("someone", registers[:2]),
        ("someone", []),
        ("someone", registers),
    ]
    assert len({location for _, _, location, _ in found.values()}) == 3
    symbols = subprocess.run(["readelf", "--dyn-syms", file], capture_output=True, text=True, check=True).stdout
    for name, (_, _, location, _) in found.items():
        assert re.search(rf"{location:016x} .* FUNC .* {name.replace('-', '_')}$", symbols, re.MULTILINE)
    semaphores = [semaphore for *_, semaphore in found.values()]
    assert re.search(rf"{semaphores[0]:016x} .* OBJECT .* semaphores$", symbols, re.MULTILINE)
    assert semaphores == [semaphores[0], semaphores[0] + 2, semaphores[0] + 4]


@needs("readelf")
@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_nothing_in_a_library_can_be_both_written_and_run(machine, tmp_path):
    file = tmp_path / "probes.so"
    file.write_bytes(probe_library("someone", {"one-thing": 2}, machine))

    shown = subprocess.run(["readelf", "--segments", "-W", file], capture_output=True, text=True, check=True)

    assert not shown.stderr
    loaded = re.findall(r"^  (LOAD|GNU_STACK) .* ([R ][W ][E ]) 0x", shown.stdout, re.MULTILINE)
    assert loaded == [("LOAD", "R E"), ("LOAD", "RW "), ("GNU_STACK", "RW ")]


@needs_probes
@needs("readelf")
def test_the_probes_of_a_process_are_in_the_file_that_the_observer_names():
    observer = UsdtObserver()

    found = notes(observer.path)

    assert {provider for provider, *_ in found.values()} == {"qorb"}
    assert {name: len(registers) for name, (_, registers, _, _) in found.items()} == {
        name: len(arguments) for name, arguments in PROBES.items()
    }
    assert UsdtObserver().path == observer.path, "one library serves all observers"


@needs_probes
@needs("gdb")
def test_gdb_stops_at_every_probe_and_reads_its_arguments(tmp_path):
    script = ["set confirm off", "set pagination off", "set host-charset UTF-8", "run"]
    for name, arguments in PROBES.items():
        values = [
            f"{'(unsigned long)' if argument in NUMBERS else '(char *)'} $_probe_arg{number}"
            for number, argument in enumerate(arguments)
        ]
        script += [f"break -probe-stap qorb:{name}", "commands", "silent"]
        script += [f'printf "{printing(name)}", {", ".join(values)}', "continue", "end"]
    script.append("continue")
    (tmp_path / "script").write_text("\n".join(script), encoding="utf-8")

    done = subprocess.run(
        ["gdb", "-q", "-nx", "-batch", "-x", tmp_path / "script", "--args", *program("trap")],
        cwd=ROOT,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        encoding="utf-8",
        capture_output=True,
        check=False,
    )

    assert [line for line in done.stdout.splitlines() if line.partition(":")[0] in PROBES] == expected(), done
    assert "exited normally" in done.stdout, done


@needs_probes
@needs("bpftrace")
def test_bpftrace_sees_every_probe_and_its_arguments():
    if reason := reason_against_bpftrace():
        pytest.skip(reason)
    script = ""
    for name, arguments in PROBES.items():
        values = [f"arg{at}" if argument in NUMBERS else f"str(arg{at})" for at, argument in enumerate(arguments)]
        script += f'usdt:*:qorb:{name} {{ printf("{printing(name)}", {", ".join(values)}); }}\n'

    with subprocess.Popen(program("wait"), stdout=subprocess.PIPE, cwd=ROOT) as probed:
        probed.stdout.readline()
        # It ends when the process does.
        done = subprocess.run(
            ["bpftrace", "-p", str(probed.pid), "-e", script], capture_output=True, encoding="utf-8", check=False
        )
        if done.returncode:
            probed.kill()

    assert sorted(line for line in done.stdout.splitlines() if ": " in line) == sorted(expected()), done
    assert probed.returncode == 0


def program(mode):
    return [sys.executable, "-m", "tests.observers.probed", mode]


@pytest.fixture
def watched():
    """Give an observer whose probes count as watched, though nobody does."""
    observer = UsdtObserver()
    number = len(observer._watchers)
    observer._watchers[:] = [1] * number
    yield observer
    observer._watchers[:] = [0] * number


@needs_probes
def test_whatever_a_pool_tells_fits_into_its_probe(watched):
    kinds = set()
    for event in everything():
        watched(event)
        kinds.add(type(event))
    assert kinds == set(ARGUMENTS)


@needs_probes
def test_a_text_that_is_no_unicode_is_fired_all_the_same(watched):
    watched(events.ResolverFailed("main", "cannot read '\udcff'"))


@needs_probes
def test_an_event_whose_probe_nobody_watches_is_not_even_read():
    observer = UsdtObserver()
    unreadable = events.ClaimStart(pool=None, claim_id=None)

    observer(unreadable)

    observer._watchers[list(ARGUMENTS).index(events.ClaimStart)] = 1
    try:
        with pytest.raises(TypeError):
            observer(unreadable)
    finally:
        observer._watchers[list(ARGUMENTS).index(events.ClaimStart)] = 0


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "riscv64")])
def test_where_there_can_be_no_probes_a_sentence_says_so(monkeypatch, system, machine):
    monkeypatch.setattr(usdt, "_load", usdt._load.__wrapped__)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)

    with pytest.raises(OSError, match=f"need 64-bit Linux on x86-64 or AArch64, and this is {system} on {machine}"):
        UsdtObserver()
