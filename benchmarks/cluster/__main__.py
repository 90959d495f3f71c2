"""Put pools through faults: python -m benchmarks.cluster [--only NAME …] [--pools NAME …] [--update-docs]."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cluster import report
from benchmarks.cluster.account import Account
from benchmarks.cluster.contestants import CONTESTANTS, Contestant
from benchmarks.cluster.report import Run
from benchmarks.cluster.scenarios import SCENARIOS, Scenario, play, servers_to_harm
from benchmarks.report import BUSY

PAGE = Path(__file__).parents[2] / "docs" / "comparison.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Play everything that is asked for, print the tables, and write them into the documentation if that is wanted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.update_docs:
        try:
            report.check_marks(PAGE)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    logging.getLogger().addHandler(logging.NullHandler())  # pools log what is meant to go wrong here
    contestants = [one for one in CONTESTANTS if one.name in (options.pools or [one.name])]
    run = _run([SCENARIOS[name] for name in options.only or SCENARIOS], contestants, _command(arguments))
    text = report.markdown(run)
    print(text)
    if options.update_docs:
        report.write_into(PAGE, text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description="Pools on bad days of a cluster.")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*SCENARIOS], help="of: %(choices)s")
    names = [one.name for one in CONTESTANTS]
    parser.add_argument("--pools", nargs="+", metavar="NAME", choices=names, help="of: %(choices)s")
    parser.add_argument("--update-docs", action="store_true", help="write the tables into docs/comparison.md too")
    return parser


def _command(arguments: Sequence[str]) -> str:
    """How to get the like again."""
    of_the_run = shlex.join(argument for argument in arguments if argument != "--update-docs")
    return f'make compare COMPARE_ARGS="{of_the_run}"' if of_the_run else "make compare"


def _run(scenarios: Sequence[Scenario], contestants: Sequence[Contestant], command: str) -> Run:
    others = os.getloadavg()[0]
    if others >= BUSY:
        _say(f"{others:.1f} other programs are running on this machine: the figures will be rough")
    accounts: dict[tuple[Scenario, str], Account] = {}
    with servers_to_harm() as servers:
        postgres = "PostgreSQL " + servers[0].sql("SHOW server_version")
        for scenario in scenarios:
            for contestant in contestants:
                _say(f"{scenario.title}: {contestant.name} …")
                if scenario.moves:
                    with servers_to_harm() as others_to_harm:
                        one = asyncio.run(play(scenario, contestant, others_to_harm))
                else:
                    one = asyncio.run(play(scenario, contestant, servers))
                accounts[scenario, contestant.name] = one
    return Run(command, postgres, others, contestants, accounts)


def _say(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
