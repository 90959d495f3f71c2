"""The programs in examples/ that are no tests themselves: they run, and say what they should."""

import asyncio
import subprocess
import sys
from pathlib import Path

from qorb._demo.scenario import SERVICE, Stage

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_dns_example_uses_what_dns_names_and_follows_its_changes(run_real):
    async def main():
        async with Stage(2) as stage:
            program = await asyncio.create_subprocess_exec(
                *(sys.executable, "-X", "dev", "-W", "error", EXAMPLES / "dns.py", SERVICE, "--echo"),
                *("--nameserver", stage.dns.address, "--seconds", "3.5"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            said = [(await program.stdout.readline()).decode() for _ in range(3)]
            await stage.remove("echo-1")
            await stage.add("echo-3")
            rest, complaints = await program.communicate()
            await stage.deserted(60)
        lines = [*said, *rest.decode().splitlines(keepends=True)]
        assert complaints == b""
        assert program.returncode == 0
        ports = {name: server.backend.port for name, server in stage.servers.items()}
        names = {name: f"{name}.demo.test:{port}" for name, port in ports.items()}
        assert [line for line in lines if line.startswith("DNS: ")] == [
            f"DNS: + {names['echo-1']}\n",
            f"DNS: + {names['echo-2']}\n",
            f"DNS: + {names['echo-3']}\n",
            f"DNS: - {names['echo-1']}\n",
        ]
        assert f"  {names['echo-3']}: online, " in "".join(lines)
        assert lines[-1].endswith(" claims, 0 failures; left of the pool: nothing\n")

    run_real(main)


def test_the_dns_example_says_why_it_found_nothing():
    done = subprocess.run(
        [sys.executable, EXAMPLES / "dns.py", SERVICE, "--nameserver", "127.0.0.1:1", "--seconds", "1.1"],
        capture_output=True,
        text=True,
        check=False,
    )
    reason = f"{SERVICE} SRV: 127.0.0.1:1: nobody listens there\n"
    assert (done.returncode, done.stderr) == (1, f"{SERVICE}: {reason}")  # what the logger qorb.dns warns of
    assert f"DNS: nothing newer: DNS: {reason}" in done.stdout
