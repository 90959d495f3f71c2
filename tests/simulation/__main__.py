"""python -m tests.simulation: run the simulation with many seeds, or replay one of them."""

from __future__ import annotations

import argparse
import sys
import time
from hashlib import sha256
from pathlib import Path

from tests.simulation.plan import Plan, draw
from tests.simulation.play import Failure, play, shrink


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many seeds to run (default: %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="replay this seed only, with a trace of what happens")
    parser.add_argument("--plan", type=Path, help="replay a plan that was written down, with a trace")
    parser.add_argument("--write", type=Path, help="with --seed: write its plan down, as short as it still fails")
    parser.add_argument("--digests", action="store_true", help="print a digest of each seed's trace, to compare runs")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first seed that fails")
    chosen = parser.parse_args(arguments)
    if chosen.plan is not None:
        return _replay(Plan.from_json(chosen.plan.read_text()), None)
    if chosen.seed is not None:
        return _replay(draw(chosen.seed), chosen.write)
    if chosen.digests:
        for seed in range(chosen.start, chosen.start + chosen.seeds):
            print(seed, sha256(play(draw(seed)).trace.encode()).hexdigest())
        return 0
    return _run(chosen.start, chosen.seeds, keep_going=chosen.keep_going)


def _replay(plan: Plan, write: Path | None) -> int:
    try:
        run = play(plan)
    except Failure as failure:
        print(failure.trace)
        print(f"\n{failure}")
        if write is not None:
            write.write_text(shrink(plan).to_json() + "\n")
        return 1
    print(run.trace)
    reached = sorted(run.situations)
    print(f"seed {plan.seed}: well; it reached:" + "".join(f"\n- {name}" for name in reached))
    return 0


def _run(start: int, seeds: int, *, keep_going: bool) -> int:
    began, failed = time.perf_counter(), 0
    for seed in range(start, start + seeds):
        try:
            play(draw(seed))
        except Failure as failure:
            failed += 1
            print(f"{failure}\n", flush=True)
            if not keep_going:
                return 1
    spent = time.perf_counter() - began
    print(f"{seeds} seeds from {start}: {failed} failed; {spent:.1f} s, {seeds / max(spent, 1e-9):.1f} seeds/s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
