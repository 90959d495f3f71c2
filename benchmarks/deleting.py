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
    return _without("observer")


def without_tests_for_timings() -> AbstractContextManager[None]:
    """Be without every test whether times are counted, and the counting."""
    return _without("timing")


@contextmanager
def _without(name: str) -> Iterator[None]:
    deleted = 0
    originals: list[tuple[type, str, Any]] = []
    try:
        for owner, function, module in CLAIM_PATH:
            original = vars(owner)[function]
            deleter = _Deleter(name)
            changed = _compiled(original, deleter, module)
            if deleter.deleted:
                deleted += deleter.deleted
                originals.append((owner, function, original))
                setattr(owner, function, changed)
        if not deleted:
            raise AssertionError(f"there is no test for {name} in the path of a claim")
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
    """Takes `if ... name ...:` out, and `and ... name ... is None` of a condition."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.deleted = 0

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
