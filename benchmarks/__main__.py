"""Run the benchmarks: python -m benchmarks [--quick] [--only NAME ...] [--json] [--update-readme] [--check]."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles

from benchmarks import alone, databases, report, scenarios
from benchmarks.alone import Effort, Figure
from benchmarks.measure import by_turns, ratio
from benchmarks.peers import ASYNCIO_CONNECTION_POOL, PEERS, QORB, Peer
from benchmarks.report import Result, Run
from qorb._demo.postgres import PostgresError

README = Path(__file__).parent.parent / "README.md"

CONTESTS: Mapping[str, int] = {"idle": 1, "crowd-16": 16, "crowd-100": 100, "crowd-1000": 1_000}

TARGETS: Mapping[str, float] = {"idle": 0.52, "crowd-1000": 0.72}
"""The most that a claim may cost, as a share of what it costs in asyncio-connection-pool."""

POSTGRES = "postgres"

ALONE: Mapping[str, Callable[[Effort], list[Figure]]] = {
    "backends": alone.many_backends,
    "planner": alone.planner,
    "memory": alone.memory,
    "idle-cpu": alone.idle_cpu,
    "waiters": alone.waiters,
    "termination": alone.termination,
    "deadlines": alone.deadlines,
    "observer": alone.observer,
    "timings": alone.timings,
    "holders": alone.holders,
    "claim-object": alone.claim_object,
}

NAMES = (*CONTESTS, POSTGRES, *ALONE)

FULL = Effort(rounds=9, claims=20_000, seconds=3.0)
QUICK = Effort(rounds=3, claims=4_000, seconds=0.5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say with the exit status whether that went well: targets count only with --check."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.update_readme:
        try:
            report.check_marks(README)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    effort = QUICK if options.quick else FULL
    peers = [peer for peer in PEERS if peer.installed]
    for missing in (peer for peer in PEERS if not peer.installed):
        _say(f"{missing.name}: not installed, left out; pip install -r benchmarks/requirements.txt")
    run = _run(options.only or NAMES, peers, effort, _command(arguments))
    print(report.to_json(run) if options.json else report.markdown(run))
    if options.update_readme:
        report.write_into(README, report.markdown(run))
    missed = [figure for figure in run.figures if figure.met is False]
    return 1 if options.check and missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What qorb costs, beside its peers.")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=NAMES, help="of: %(choices)s")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: some seconds, rough figures")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--update-readme", action="store_true", help="write the tables into README.md too")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    return parser


def _command(arguments: Sequence[str]) -> str:
    """How to get the same figures again."""
    of_the_run = " ".join(
        argument for argument in arguments if argument not in {"--json", "--update-readme", "--check"}
    )
    return f'make bench BENCH_ARGS="{of_the_run}"' if of_the_run else "make bench"


def _run(names: Sequence[str], peers: Sequence[Peer], effort: Effort, command: str) -> Run:
    others = os.getloadavg()[0]
    if others >= report.BUSY:
        _say(f"{others:.1f} other programs are running on this machine: the figures will be rough")
    contests: dict[str, Sequence[Result]] = {}
    figures: list[Figure] = []
    database: databases.Contest | None = None
    for name in names:
        _say(f"{name} …")
        if name in CONTESTS:
            results, beside = _contest(name, peers, effort)
            contests[name.removeprefix("crowd-")] = results
            figures += beside
        elif name == POSTGRES:
            database = _database(effort)
            figures += database.figures if database is not None else []
        else:
            figures += ALONE[name](effort)
    return Run(command, peers, contests, figures, others, database)


def _database(effort: Effort) -> databases.Contest | None:
    """Put every pool through its scenario on PostgreSQL; None, and a word about it, where there can be no server."""
    for client in databases.CLIENTS:
        if client.versions is None:
            _say(f"{client.title}: not installed, left out; pip install -r benchmarks/requirements.txt")
    try:
        return databases.contest(effort)
    except (ImportError, PostgresError) as error:
        _say(f"{POSTGRES}: left out: {error}")
        return None


def _contest(name: str, peers: Sequence[Peer], effort: Effort) -> tuple[list[Result], list[Figure]]:
    """Put every peer through one scenario, and compare qorb with the peer that its targets name."""
    tasks = CONTESTS[name]
    if tasks == 1:
        times = by_turns({peer.name: partial(scenarios.idle, peer, effort.claims) for peer in peers}, effort.rounds)
        waits: Mapping[str, Sequence[scenarios.Waits]] = {}
    else:
        able = [peer for peer in peers if peer.can_wait]
        claims = max(effort.claims, tasks * 10)
        times = by_turns(
            {peer.name: partial(scenarios.throughput, peer, tasks, claims) for peer in able}, effort.rounds
        )
        waits = by_turns(
            {peer.name: partial(scenarios.waits, peer, tasks, claims) for peer in able}, min(3, effort.rounds)
        )
    ours = times.get(QORB.name)
    results = [_result(peer, seconds, ours, waits.get(peer)) for peer, seconds in times.items()]
    theirs = times.get(ASYNCIO_CONNECTION_POOL.name)
    if name not in TARGETS or ours is None or theirs is None:
        return results, []
    what = "idle pool" if tasks == 1 else f"{tasks:,} tasks on {scenarios.CONNECTIONS} connections"
    return results, [
        Figure(f"{what}, beside {ASYNCIO_CONNECTION_POOL.name}", ratio(ours, theirs), "times", TARGETS[name])
    ]


def _result(
    peer: str, seconds: Sequence[float], ours: Sequence[float] | None, waits: Sequence[scenarios.Waits] | None
) -> Result:
    lower, middle, upper = quantiles(seconds, n=4)
    beside = None if ours is None else ratio(seconds, ours)
    typical = None if waits is None else sorted(waits, key=lambda each: each.longest)[len(waits) // 2]
    return Result(peer, median(seconds), (upper - lower) / 2 / middle, beside, typical)


def _say(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
