"""The programs in examples/ that are no tests themselves: they run, and say what they should."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

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
