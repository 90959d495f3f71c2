"""The claim path without something that stands in it: deleted from the code's tree, for a while, in this process only.

So a benchmark compares a path with the same path without it, in one run, and keeps no second copy of the code.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType, ModuleType
from typing import Any

from qorb import _desk, _slot_set, claim
from qorb._desk import Desk
from qorb._slot_set import SlotSet
from qorb.claim import ClaimRequest

Place = tuple[type, str, ModuleType]

CLAIM_PATH: Sequence[Place] = (
    (ClaimRequest, "__aenter__", claim),
    (ClaimRequest, "__aexit__", claim),
    (ClaimRequest, "_wait", claim),
    (Desk, "claim", _desk),
    (Desk, "_take", _desk),
    (Desk, "_choose", _desk),
    (Desk, "_handed_out", _desk),
    (Desk, "_take_turn", _desk),
    (Desk, "handed_back", _desk),
    (Desk, "note_use", _desk),
    (Desk, "refresh", _desk),
    (SlotSet, "moved", _slot_set),
)


def without_tests_for_observers() -> AbstractContextManager[None]:
    """Be without every test for an observer in the path of a claim, and what is done if there is one."""
    return _without(_TestDeleter("observer"))


def without_tests_for_timings() -> AbstractContextManager[None]:
    """Be without every test whether times are counted, and the counting."""
    return _without(_TestDeleter("timing"))


def without_notes_of_holders() -> AbstractContextManager[None]:
    """Be without every note of who has a connection, since when, and where it was claimed."""
    return _without(_NoteDeleter())


@contextmanager
def _without(deleter: "_Deleter") -> Iterator[None]:
    originals: list[tuple[type, str, Any]] = []
    try:
        for owner, function, module in CLAIM_PATH:
            original = vars(owner)[function]
            before = deleter.deleted
            changed = _compiled(original, deleter, module)
            if deleter.deleted > before:
                originals.append((owner, function, original))
                setattr(owner, function, changed)
        if not deleter.deleted:
            raise AssertionError("there is nothing of that kind in the path of a claim")
        yield
    finally:
        for owner, function, original in originals:
            setattr(owner, function, original)


def _compiled(original: FunctionType, deleter: "_Deleter", module: ModuleType) -> Callable[..., Any]:
    tree = deleter.visit(ast.parse(textwrap.dedent(inspect.getsource(original))))
    places: dict[str, Any] = {}
    future = __import__("__future__").annotations.compiler_flag
    code = compile(ast.fix_missing_locations(tree), module.__file__ or "", "exec", future, dont_inherit=True)
    exec(code, vars(module), places)  # noqa: S102 - it is our own code
    changed: Callable[..., Any] = places[original.__name__]
    return changed


class _Deleter(ast.NodeTransformer):
    """Takes something out, and counts how often."""

    def __init__(self) -> None:
        self.deleted = 0


class _TestDeleter(_Deleter):
    """Takes `if ... name ...:` out, and `and ... name ... is None` of a condition."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        if not self._is_test(node.test):
            return node
        self.deleted += 1
        return node.orelse or ast.Pass()

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        left = [value for value in node.values if not self._is_absence(value)]
        self.deleted += len(node.values) - len(left)
        return ast.BoolOp(node.op, left) if len(left) > 1 else left[0]

    def _is_test(self, test: ast.expr) -> bool:
        return ast.unparse(test).endswith(f"{self._name} is not None") or ast.unparse(test) == "observed"

    def _is_absence(self, test: ast.expr) -> bool:
        return ast.unparse(test).endswith(f"{self._name} is None")


class _NoteDeleter(_Deleter):
    """Takes `slot.since = ...` and `if desk.tracing: slot.site = ...` out, and of `slot.holder = ...` who it is."""

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        match ast.unparse(node.targets[0]):
            case "slot.holder":  # that there was one is what makes a connection proven
                node.value = ast.Constant(value=True)
            case "slot.since" | "slot.site":
                self.deleted += 1
                return ast.Pass()
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        return ast.Pass() if ast.unparse(node.test) == "desk.tracing" else node
