"""What the tests of the network share."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from tests.connectors.conftest import authority, client_context, listener, names  # noqa: F401 - fixtures
from tests.connectors.peers import Listener
from tests.network.namespaces import SERVER, Network, reason_against

if TYPE_CHECKING:
    from collections.abc import Iterator

_reason_against = functools.cache(reason_against)


@pytest.fixture
def network() -> Iterator[Network]:
    """Two hosts with a cable between them; the test itself runs at the client."""
    if reason := _reason_against():
        pytest.skip(reason)
    with Network() as network:
        yield network


@pytest.fixture
def far_listener(network: Network) -> Iterator[Listener]:
    """A listening socket at the server, at the other end of the cable."""
    with network.at_server():
        listener = Listener(SERVER)
    with listener:
        yield listener
