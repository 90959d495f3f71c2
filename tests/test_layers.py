"""Who may import whom, and what must not stand anywhere in src: the rules of CONTRIBUTING.md that a machine can read.

Each rule is a function from a module to its offences, tried on the whole of src and on snippets that break it.
"""

import ast
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"

# The pool and its parts, lowest layer first. A module imports from its own layer and from lower ones. A new module is
# entered here.
LAYERS = (
    {"_core"},
    {
        *("errors", "backend", "policy", "stats", "connector", "events", "publishing", "credentials"),
        *("companions", "explanation"),
    },
    {"threads", "workers"},
    {"_tasks", "_home", "_timing"},
    {"_resolving", "_company"},
    {"resolver"},
    {"watching"},
    {"_slot"},
    {"_slot_set"},
    {"_holders", "_plight"},
    {"_verdict"},
    {"_look"},
    {"_diagnosis", "_termination"},
    {"_desk"},
    {"_engine"},
    {"claim"},
    {"pool"},
)
# The parts of the pool know the types of their owners, for news goes up to them; at run time they import none of them.
KNOW_THE_TYPES_ABOVE = {
    "_resolving",
    "_slot",
    "_slot_set",
    "_holders",
    "_plight",
    "_verdict",
    "_look",
    "_diagnosis",
    "_termination",
    "_desk",
    "_engine",
    "claim",
}
# These are built on the pool, as users' code is: they import the public modules only (and their own private ones).
GUESTS = {"resolvers", "connectors", "observers", "top", "testing", "cli", "_demo", "_resolve"}
# The programs behind the commands, which start them.
PROGRAMS = {"_demo", "_resolve"}

CORE_MAY_IMPORT = {
    *("__future__", "abc", "bisect", "collections", "dataclasses", "enum", "functools", "heapq", "itertools"),
    *("math", "operator", "types", "typing"),
}
FORBIDDEN_IN_ASYNCIO = {
    *("wait_for", "shield", "gather", "TaskGroup", "Lock", "Condition"),
    *("Semaphore", "BoundedSemaphore", "Queue", "PriorityQueue", "LifoQueue"),
}
# What an optional dependency brings along, and shows in what it gives; or the package that a module is named after less
# literally.
COMES_WITH = {"aiodns": "pycares", "prometheus": "prometheus_client"}
COMES_WITH |= {"otel": "opentelemetry", "otel_sdk": "opentelemetry"}
STARTS_TASKS = {"create_task", "ensure_future", "Task"}
# TaskOwner starts the pool's tasks. The others are programs or tools for tests, with tasks of their own, and what
# serves a client, which waits for its own.
MAY_START_TASKS = {
    *("qorb._tasks", "qorb.top._feed", "qorb.top._websockets"),
    *("qorb.testing", "qorb._demo", "qorb._resolve", "qorb.top.terminal", "qorb.cli"),
}
# Programs; and what is exported by OpenTelemetry's SDK says when it was, in any thread.
MAY_READ_THE_CLOCK = {"qorb._demo", "qorb._resolve", "qorb.top.terminal", "qorb.cli", "qorb.observers.otel_sdk"}
# (module, function): handlers of BaseException or CancelledError that do not end in raise, each with its reason.
MAY_END_OTHERWISE = {
    # Passes on what was thrown into it to the coroutine that it drives, as asyncio.Task does.
    ("qorb._tasks", "__await__"),
    # Misbehave on request: they stand for code that does not listen when it is cancelled.
    ("qorb.testing._fakes", "_take_time"),
    ("qorb.testing._fakes", "_go_on_regardless"),
    # Keeps the cancellation until its tasks have ended, then raises it.
    ("qorb.watching", "run"),
    # Keeps the cancellation until what it waits for has come, then raises it.
    ("qorb.threads", "outlast"),
    # Reports what an observer raises, which is to harm nothing, as Engine.emit does.
    ("qorb.observers", "__call__"),
    # Passes on whatever is raised on its thread to the coroutine that waits for it.
    ("qorb.threads", "work"),
}


@dataclass(frozen=True)
class Module:
    """A module of ours, read and not imported."""

    name: str
    tree: ast.Module

    @property
    def part(self) -> str:
        """The first component below qorb: what LAYERS and GUESTS speak of; "" is qorb itself."""
        return self.name.partition(".")[2].partition(".")[0]

    def is_in(self, packages: set[str]) -> bool:
        return any(self.name == package or self.name.startswith(f"{package}.") for package in packages)


@dataclass(frozen=True)
class Import:
    """One imported name: `from module import name`, or `import module` (name is "")."""

    module: str
    name: str
    line: int
    for_types_only: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def path(self) -> tuple[str, ...]:
        return (*self.module.split("."), *([self.name] if self.name else []))


def imports(module: Module) -> Iterator[Import]:
    type_checking = {
        id(inner)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(module.tree):
        for_types_only = id(node) in type_checking
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", node.lineno, for_types_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name}:{node.lineno}: imports are absolute"
            yield from (Import(str(node.module), alias.name, node.lineno, for_types_only) for alias in node.names)


def core_imports_nothing_that_waits_logs_or_reads_a_clock(module: Module) -> Iterator[str]:
    if module.part != "_core":
        return
    for one in imports(module):
        if one.top == "qorb":
            allowed = one.path()[:2] == ("qorb", "_core")
        elif one.top == "random":
            allowed = one.for_types_only or one.name == "Random"
        else:
            allowed = one.top in CORE_MAY_IMPORT
        if not allowed:
            yield f"{module.name}:{one.line}: the core imports {'.'.join(one.path())}"


def imports_go_one_way(module: Module) -> Iterator[str]:
    if module.part in GUESTS or module.part == "":
        return
    rank = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    if module.part not in rank:
        yield f"{module.name}: enter it in LAYERS (or in GUESTS)"
        return
    for one in imports(module):
        if one.top != "qorb":
            continue
        part = (*one.path(), "")[1]
        if one.for_types_only and part in rank and module.part in KNOW_THE_TYPES_ABOVE:
            continue
        if rank.get(part, len(LAYERS)) > rank[module.part]:
            yield f"{module.name}:{one.line}: imports {'.'.join(one.path())}, which is above it"


def guests_import_public_modules_only(module: Module) -> Iterator[str]:
    if module.part not in GUESTS:
        return
    for one in imports(module):
        if one.top != "qorb":
            continue
        own = one.path()[:2] == ("qorb", module.part)
        if not own and any(part.startswith("_") for part in one.path()):
            # A command is where the private program behind it is started.
            if module.part == "cli" and one.path()[1] in PROGRAMS:
                continue
            yield f"{module.name}:{one.line}: imports {'.'.join(one.path())}, which is private"


def names_with_an_underscore_stay_at_home(module: Module) -> Iterator[str]:
    for one in imports(module):
        # A module may be private to its package, and have names that are not private to it.
        if one.top == "qorb" and one.name.startswith("_") and f"{one.module}.{one.name}" not in module_names():
            yield f"{module.name}:{one.line}: imports {'.'.join(one.path())}, which is private to its module"


def optional_dependencies_are_imported_by_their_own_module_only(module: Module) -> Iterator[str]:
    for one in imports(module):
        if one.top in {"qorb", *sys.stdlib_module_names} or (one.top == "_typeshed" and one.for_types_only):
            continue
        own = module.name.rpartition(".")[2].lstrip("_")
        if one.top not in {own, COMES_WITH.get(own)}:
            yield f"{module.name}:{one.line}: imports {one.top}"


def uses(module: Module, package: str) -> Iterator[tuple[str, int]]:
    """Yield each name of `package` that the module uses: `package.name`, or imported from it or from below it."""
    aliases = {
        alias.asname or alias.name
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == package
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield node.attr, node.lineno
    for one in imports(module):
        if one.top == package and one.name:
            yield one.name, one.line
        elif one.module.startswith(f"{package}."):
            yield one.module.rpartition(".")[2], one.line


def nothing_of_asyncio_that_loses_cancellations(module: Module) -> Iterator[str]:
    for name, line in uses(module, "asyncio"):
        if name in FORBIDDEN_IN_ASYNCIO:
            yield f"{module.name}:{line}: uses asyncio.{name}"


def tasks_are_started_by_their_owner(module: Module) -> Iterator[str]:
    if module.is_in(MAY_START_TASKS):
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if name in STARTS_TASKS:
                yield f"{module.name}:{node.lineno}: calls {name}"


def only_the_loop_tells_the_time(module: Module) -> Iterator[str]:
    if module.is_in(MAY_READ_THE_CLOCK):
        return
    for name, line in uses(module, "time"):
        yield f"{module.name}:{line}: uses time.{name}"
    for name, line in uses(module, "datetime"):
        yield f"{module.name}:{line}: uses datetime.{name}"


def chance_comes_in_through_the_front_door(module: Module) -> Iterator[str]:
    for name, line in uses(module, "random"):
        if name != "Random":
            yield f"{module.name}:{line}: uses random.{name}"


def cancellation_passes(module: Module) -> Iterator[str]:
    for function, node in with_function(module.tree):
        if (module.name, function) not in MAY_END_OTHERWISE and swallows_cancellation(node):
            yield f"{module.name}:{node.lineno}: {function} may swallow a cancellation"


def with_function(node: ast.AST, function: str = "<module>") -> Iterator[tuple[str, ast.AST]]:
    """Yield each node with the name of the function that it stands in."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        function = node.name
    yield function, node
    for child in ast.iter_child_nodes(node):
        yield from with_function(child, function)


def swallows_cancellation(node: ast.AST) -> bool:
    if isinstance(node, ast.ExceptHandler):
        return catches_cancellation(node) and not ends_in_raise(node.body)
    suppresses = isinstance(node, ast.Call) and ast.unparse(node.func) in {"suppress", "contextlib.suppress"}
    return suppresses and any(names_cancellation(argument) for argument in node.args)


def catches_cancellation(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or names_cancellation(handler.type)


def names_cancellation(classes: ast.expr) -> bool:
    one_by_one = classes.elts if isinstance(classes, ast.Tuple) else [classes]
    return any(ast.unparse(one).rpartition(".")[2] in {"BaseException", "CancelledError"} for one in one_by_one)


def ends_in_raise(body: list[ast.stmt]) -> bool:
    """Whether the body raises at its end, in each branch, and does not leave before."""
    if any(isinstance(node, ast.Return | ast.Break | ast.Continue) for one in body for node in ast.walk(one)):
        return False
    last = body[-1]
    if isinstance(last, ast.If):
        return bool(last.orelse) and ends_in_raise(last.body) and ends_in_raise(last.orelse)
    return isinstance(last, ast.Raise)


@functools.cache
def read_src() -> tuple[Module, ...]:
    modules = []
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules.append(Module(name, ast.parse(path.read_text(encoding="utf-8"))))
    return tuple(modules)


def module_names() -> set[str]:
    return {module.name for module in read_src()}


# Rule -> (module, source) pairs that break it.
RULES: dict[Callable[[Module], Iterator[str]], list[tuple[str, str]]] = {
    core_imports_nothing_that_waits_logs_or_reads_a_clock: [
        ("qorb._core.tally", "import asyncio"),
        ("qorb._core.tally", "from asyncio import Future"),
        ("qorb._core.tally", "import time"),
        ("qorb._core.tally", "import logging"),
        ("qorb._core.tally", "import random"),
        ("qorb._core.tally", "from random import uniform"),
        ("qorb._core.tally", "from qorb.backend import Backend"),
        ("qorb._core.tally", "import rich"),
        ("qorb._core.tally", "def f():\n    import socket"),
        ("qorb._core.tally", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from qorb.pool import Pool"),
    ],
    imports_go_one_way: [
        ("qorb._slot", "from qorb._slot_set import SlotSet"),
        ("qorb._slot", "def f():\n    from qorb.pool import Pool"),
        ("qorb._slot_set", "from qorb import pool"),
        ("qorb.errors", "if TYPE_CHECKING:\n    from qorb.pool import Pool"),
        ("qorb.errors", "import qorb"),
        ("qorb._tasks", "from qorb._slot import Slot"),
        ("qorb.pool", "from qorb.testing import run"),
        ("qorb.pool", "from qorb.resolvers.fixed import FixedResolver"),
        ("qorb._something_new", ""),
    ],
    guests_import_public_modules_only: [
        ("qorb.testing.loop", "from qorb._tasks import TaskOwner"),
        ("qorb.resolvers.fixed", "from qorb import _tasks"),
        ("qorb.connectors.tcp", "import qorb._core.states"),
        ("qorb.connectors.tcp", "from qorb.backend import _split"),
        ("qorb._demo.view", "from qorb._slot import Slot"),
        ("qorb.cli", "from qorb._slot import Slot"),
    ],
    names_with_an_underscore_stay_at_home: [
        ("qorb.connectors.asyncpg", "from qorb.connectors.tcp import _addresses"),
        ("qorb.connectors.asyncpg", "if TYPE_CHECKING:\n    from qorb.connectors._sockets import _Options"),
        ("qorb._engine", "from qorb._slot import _ids"),
    ],
    optional_dependencies_are_imported_by_their_own_module_only: [
        ("qorb.pool", "import rich"),
        ("qorb._demo.demo", "from rich.table import Table"),
        ("qorb.pool", "from _typeshed import Incomplete"),
        ("qorb.connectors.tcp", "import asyncpg"),
        ("qorb.connectors.psycopg", "def f():\n    import asyncpg.pool"),
    ],
    nothing_of_asyncio_that_loses_cancellations: [
        ("qorb.pool", "import asyncio\nasyncio.wait_for"),
        ("qorb.pool", "import asyncio as aio\naio.shield(1)"),
        ("qorb.pool", "from asyncio import gather"),
        ("qorb.pool", "from asyncio import gather as together"),
        ("qorb._demo.demo", "import asyncio\nasync def f():\n    async with asyncio.TaskGroup(): pass"),
        ("qorb.connectors.tcp", "from asyncio.locks import Lock"),
        ("qorb.pool", "import asyncio\nclass Line(asyncio.Queue): pass"),
    ],
    tasks_are_started_by_their_owner: [
        ("qorb.pool", "import asyncio\nasyncio.create_task(f())"),
        ("qorb.pool", "loop.create_task(f())"),
        ("qorb.pool", "from asyncio import ensure_future\nensure_future(f())"),
        ("qorb._slot", "import asyncio\nasyncio.Task(f())"),
    ],
    only_the_loop_tells_the_time: [
        ("qorb.pool", "import time\ntime.monotonic()"),
        ("qorb.testing.loop", "from time import sleep"),
        ("qorb.pool", "import datetime\ndatetime.datetime.now()"),
    ],
    chance_comes_in_through_the_front_door: [
        ("qorb.pool", "import random\nrandom.uniform(0, 1)"),
        ("qorb.pool", "from random import shuffle"),
        ("qorb._demo.demo", "import random\nrandom.seed(1)"),
    ],
    cancellation_passes: [
        ("qorb.pool", "try: f()\nexcept BaseException: pass"),
        ("qorb.pool", "try: f()\nexcept: g()"),
        ("qorb.pool", "try: f()\nexcept asyncio.CancelledError: g()"),
        ("qorb.pool", "try: f()\nexcept (OSError, CancelledError): g()"),
        ("qorb.pool", "try: f()\nexcept BaseException:\n    if g():\n        raise"),
        ("qorb.pool", "def f():\n    try: f()\n    except BaseException:\n        if g(): return 1\n        raise"),
        ("qorb.pool", "while True:\n    try: f()\n    except BaseException:\n        if g(): continue\n        raise"),
        ("qorb.pool", "with contextlib.suppress(asyncio.CancelledError): f()"),
        ("qorb._tasks", "def other():\n    try: f()\n    except BaseException: pass"),
    ],
}

LAWFUL = [
    ("qorb._core.tally", "import math\nfrom qorb._core.states import SlotState\nfrom collections.abc import Callable"),
    ("qorb._core.ranking", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import random"),
    ("qorb._core.ranking", "from random import Random"),
    (
        "qorb._slot",
        "from qorb._core.states import SlotState\nfrom qorb._tasks import TaskOwner\nfrom qorb import events",
    ),
    ("qorb.pool", "from qorb._slot_set import SlotSet\nfrom qorb.policy import Policy\nimport random\nrandom.Random()"),
    (
        "qorb.testing.fakes",
        "from qorb import Backend\nfrom qorb.testing._loop import Loop\nimport asyncio\nasyncio.Event",
    ),
    ("qorb.connectors.asyncpg", "import asyncpg\nfrom qorb.connector import Connector"),
    ("qorb.connectors.asyncpg", "from qorb.connectors._sockets import Dialler\nfrom qorb.connectors import _sockets"),
    ("qorb._demo._rich", "from rich.table import Table\nimport time\ntime.monotonic()"),
    ("qorb._slot", "if TYPE_CHECKING:\n    from qorb._slot_set import SlotSet\n    from _typeshed import Unused"),
    ("qorb.pool", "try: f()\nexcept BaseException:\n    if g():\n        raise\n    else:\n        raise X from None"),
    ("qorb.pool", "try: f()\nexcept Exception: pass"),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_src_keeps(rule: Callable[[Module], Iterator[str]]) -> None:
    modules = read_src()
    assert len(modules) > 10
    offences = [offence for module in modules for offence in rule(module)]
    assert not offences, "\n" + "\n".join(offences)


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [(rule, *offence) for rule, offences in RULES.items() for offence in offences],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_breach_is_found(rule: Callable[[Module], Iterator[str]], name: str, source: str) -> None:
    assert list(rule(Module(name, ast.parse(source))))


@pytest.mark.parametrize(("name", "source"), LAWFUL)
def test_what_is_lawful_passes(name: str, source: str) -> None:
    assert [offence for rule in RULES for offence in rule(Module(name, ast.parse(source)))] == []


def test_every_exception_from_the_rules_is_still_needed() -> None:
    modules = {module.name: module for module in read_src()}
    for name, function in MAY_END_OTHERWISE:
        inside = [node for where, node in with_function(modules[name].tree) if where == function]
        assert any(map(swallows_cancellation, inside)), (name, function)
