"""The table of moves."""

from __future__ import annotations

import itertools

import pytest

from qorb._core.states import CONNECTED, MOVES, IllegalMoveError, SlotState, check_move, diagram

CONNECTING, UNCLAIMED, CHECKING, CLAIMED, RECYCLING, TERMINATED = SlotState


@pytest.mark.parametrize(("old", "new"), list(itertools.product(SlotState, SlotState)))
def test_a_move_is_legal_exactly_when_the_table_has_it(old, new):
    if (old, new) in MOVES:
        check_move(old, new)
    else:
        with pytest.raises(IllegalMoveError, match=f"from {old.name} to {new.name}"):
            check_move(old, new)


def test_terminated_is_absorbing_and_every_other_state_leads_there():
    assert not [new for old, new in MOVES if old is TERMINATED]
    assert {old for old, new in MOVES if new is TERMINATED} == set(SlotState) - {TERMINATED}


def test_only_an_idle_connection_is_checked_or_handed_out():
    assert [old for old, new in MOVES if new is CHECKING] == [UNCLAIMED]
    assert [old for old, new in MOVES if new is CLAIMED] == [UNCLAIMED]
    assert [old for old, new in MOVES if new is RECYCLING] == [CLAIMED]


def test_whatever_loses_its_connection_connects_anew():
    assert {old for old, new in MOVES if new is CONNECTING} == CONNECTED


def test_nothing_moves_to_where_it_is():
    assert not [old for old, new in MOVES if old is new]


def test_the_names_are_those_that_travel_on_the_wire():
    assert [state.value for state in SlotState] == [
        "Connecting",
        "ConnectedUnclaimed",
        "ConnectedChecking",
        "ConnectedClaimed",
        "ConnectedRecycling",
        "Terminated",
    ]


def test_the_diagram_has_every_move():
    drawn = diagram().splitlines()

    assert drawn[0] == "stateDiagram-v2"
    assert len(drawn) == len(MOVES) + 3
    for (old, new), why in MOVES.items():
        assert f"    {old.name} --> {new.name}: {why}" in drawn
