"""Frames as servers send them."""

import json

from qorb.top.terminal.frame import read_frame


def counts(total=0, *, claimed=0, unclaimed=1, checking=0, connecting=0, **more):
    """One backend's entry, as the original sends it; and what we send beside it."""
    return {
        "connecting_slots": connecting,
        "unclaimed_slots": unclaimed,
        "checking_slots": checking,
        "claimed_slots": claimed,
        "total_claims": total,
        **more,
    }


def frame(claims=0, sets=None, **more):
    return {"claims": claims, "sets": sets or {}, **more}


def histogram(*numbers, total=0.0, bounds=(0.001, 0.01)):
    return {"bounds": list(bounds), "counts": list(numbers), "total": sum(numbers), "sum": total}


FULL = frame(
    3,
    {
        "db-1:5432": counts(10, claimed=2, online=True, failures=0, last_error=None),
        "db-2:5432": counts(7, unclaimed=0, connecting=1, online=False, failures=4, last_error="refused"),
    },
    pool="main",
    state="running",
    waiting=5,
    timings={name: histogram(4, 1, 0, total=0.01) for name in ("wait", "use", "connect")},
)


def read(sent):
    return read_frame(json.dumps(sent).encode())
