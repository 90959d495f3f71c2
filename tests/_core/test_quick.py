"""A quickly made dataclass is as it would be otherwise."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle

import pytest

from qorb import events
from qorb._core.quick import quickly_made


@dataclasses.dataclass(frozen=True, slots=True)
class Base:
    name: str


@quickly_made
@dataclasses.dataclass(frozen=True, slots=True)
class Quick(Base):
    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class Slow(Base):
    number: int


def test_its_fields_are_set_by_place_and_by_name():
    assert Quick("a", 1) == Quick(number=1, name="a")
    assert (Quick("a", 1).name, Quick("a", 1).number) == ("a", 1)
    assert hash(Quick("a", 1)) == hash(Quick("a", 1))
    assert repr(Quick("a", 1)) == "Quick(name='a', number=1)"


def test_it_is_frozen_and_is_copied_and_pickled():
    quick = Quick("a", 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        quick.number = 2  # type: ignore[misc]
    assert copy.copy(quick) == pickle.loads(pickle.dumps(quick)) == quick
    assert dataclasses.replace(quick, number=2) == Quick("a", 2)


def test_it_looks_like_a_dataclass():
    assert inspect.signature(Quick) == inspect.signature(Slow)
    assert Quick.__init__.__annotations__ == Slow.__init__.__annotations__
    assert Quick.__init__.__qualname__ == Slow.__init__.__qualname__.replace("Slow", "Quick")


def test_what_is_missing_or_too_much_is_refused():
    for arguments in [(), ("a",), ("a", 1, 2)]:
        with pytest.raises(TypeError, match="__init__"):
            Quick(*arguments)


def test_events_are():
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)]
    own = [kind for kind in kinds if "__init__" in vars(kind)]
    assert len(own) > 10
    assert {kind for kind in own if "set_pool" not in kind.__init__.__globals__} == set()
