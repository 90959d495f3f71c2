"""What the tests of DNS over real sockets share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
