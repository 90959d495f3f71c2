"""Tools for testing applications that use a pool, and the pool itself.

- `run` runs a coroutine function in virtual time; `settle` and `block` are for the inside of it.
- `FakeConnector` stands for a service and goes wrong on demand.
- `at_every_await` interrupts an operation at each of its suspension points.
- `assert_nothing_left` shows that a pool is gone without a trace.
"""

from __future__ import annotations

from qorb.testing._clock import block, settle
from qorb.testing._connection import Call, FakeConnection
from qorb.testing._every_await import Report, Tried, at_every_await
from qorb.testing._fakes import FakeConnector, ForbiddenCallError
from qorb.testing._interrupt import Attempt, CancelSwallowedError, Ending, Timing
from qorb.testing._leaks import assert_nothing_left
from qorb.testing._loop import Deadlock, Livelock
from qorb.testing._run import UnhandledError, run

__all__ = [
    "Attempt",
    "Call",
    "CancelSwallowedError",
    "Deadlock",
    "Ending",
    "FakeConnection",
    "FakeConnector",
    "ForbiddenCallError",
    "Livelock",
    "Report",
    "Timing",
    "Tried",
    "UnhandledError",
    "assert_nothing_left",
    "at_every_await",
    "block",
    "run",
    "settle",
]
