"""A program that fires every probe once, for tools to watch: `python -m tests.observers.probed trap` or `... wait`.

When the probes are there, "trap" stops it for the debugger that it runs under, and "wait" has it say so and wait until
every one of them is watched. `EVENTS` is what it fires.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time

from qorb import events
from qorb.observers.usdt import ARGUMENTS, UsdtObserver

VALUES = {
    "pool": "orders, größte",
    "claim_id": 2**63 - 1,
    "slot_id": 2**40 + 7,
    "backend": "a.example:5432",
    "reason": 'refused: "50 %"',
    "old": "Connecting",
    "new": "ConnectedUnclaimed",
    "has_unclaimed_slots": True,
    "added": ("c:1", "d:1"),
    "removed": ("e:1",),
    "changed": (),
    "server": "10.0.0.53:53",
    "question": "orders A",
    "records": 2,
    "left": "3 connections",
}


def example(kind):
    """Give an event of this kind; what is not in VALUES is no argument of a probe."""
    return kind(**{field.name: VALUES.get(field.name) for field in dataclasses.fields(kind)})


EVENTS = [example(kind) for kind in ARGUMENTS]


def main(mode):
    observer = UsdtObserver()
    if mode == "trap":
        os.kill(os.getpid(), signal.SIGTRAP)
    else:
        sys.stdout.write(f"{observer.path}\n")
        sys.stdout.flush()
        while not all(observer._watchers):
            time.sleep(0.01)
    observer(events.Event("nobody's"))
    for event in EVENTS:
        observer(event)


if __name__ == "__main__":
    main(sys.argv[1])
