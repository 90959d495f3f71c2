"""What the tests of the network share."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from tests.network.namespaces import Network, reason_against

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
