"""What the tests of DNS over real sockets share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.resolvers.dns.real.knot import Knot, find_knotd
from tests.resolvers.dns.real.scripted import ScriptedServer, scripted_server


@pytest.fixture(scope="module")
def faulty() -> Iterator[ScriptedServer]:
    """A server that does what faults.py says."""
    with scripted_server("tests.resolvers.dns.real.faults") as server:
        yield server


@pytest.fixture(scope="module")
def hostile() -> Iterator[ScriptedServer]:
    """A server that does what corpus.py says."""
    with scripted_server("tests.resolvers.dns.real.corpus") as server:
        yield server


def require_knot() -> None:
    """Skip the test when there is no knot; in continuous integration, fail it."""
    if find_knotd() is not None:
        return
    reason = "there is no knotd; as root on Debian, make system-deps installs it"
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; in continuous integration (CI is set) it must be there")
    pytest.skip(reason)


@pytest.fixture
def knot(tmp_path: Path) -> Iterator[Knot]:
    """A knot with an empty zone."""
    require_knot()
    knot = Knot(tmp_path)
    try:
        yield knot
    finally:
        knot.kill()
