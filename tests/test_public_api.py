"""The library keeps what tests/promised_api.py promises."""

import dataclasses
import enum
import importlib
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest

from tests.promised_api import PROMISED, SOME

# Not coroutine functions, for speed, but what they return can be awaited: tests/typing does.
RETURN_AWAITABLES = {("ClaimRequest", "__aenter__"), ("ClaimRequest", "__aexit__")}


def classes() -> list[Any]:
    """Give every class as (module, class)."""
    return [
        pytest.param(module, thing, id=f"{module}.{thing.__name__}")
        for module, things in PROMISED.items()
        for thing in things
        if isinstance(thing, type)
    ]


def members() -> list[Any]:
    """Give every function, method and property that is written in promised_api.py (not what a dataclass adds)."""
    found: list[tuple[str, tuple[str, ...], object]] = []
    for module, things in PROMISED.items():
        for thing in things:
            if isinstance(thing, type):
                found += [(module, (thing.__name__, k), v) for k, v in vars(thing).items() if is_written(thing, v)]
            else:
                found.append((module, (thing.__name__,), thing))
    return [pytest.param(*one, id=".".join((one[0], *one[1]))) for one in found]


def is_written(owner: type, member: object) -> bool:
    if isinstance(member, property):
        return True
    function = function_of(member)
    source = inspect.getsourcefile(function) if isinstance(function, FunctionType) else None
    return source is not None and source == inspect.getsourcefile(owner)


def function_of(member: Any) -> Any:
    return member.__func__ if isinstance(member, classmethod) else member


def find(module: str, path: tuple[str, ...]) -> Any:
    found: Any = importlib.import_module(module)
    for name in path:
        found = getattr(found, name) if found.__class__.__name__ == "module" else inspect.getattr_static(found, name)
    return found


@pytest.mark.parametrize(("module", "promised"), classes())
def test_the_class_is_there(module: str, promised: type) -> None:
    found = find(module, (promised.__name__,))
    assert found.__name__ == promised.__name__
    assert {one.__name__ for one in promised.__mro__} <= {one.__name__ for one in found.__mro__}
    assert inspect.isabstract(found) == inspect.isabstract(promised)
    assert found.__module__.partition(".")[0] == "qorb"


@pytest.mark.parametrize(("module", "promised"), [case for case in classes() if issubclass(case.values[1], enum.Enum)])
def test_the_members_of_the_enum_are_the_same(module: str, promised: type[enum.Enum]) -> None:
    found = find(module, (promised.__name__,))
    assert {name: one.value for name, one in found.__members__.items()} == {one.name: one.value for one in promised}


@pytest.mark.parametrize(
    ("module", "promised"), [case for case in classes() if dataclasses.is_dataclass(case.values[1])]
)
def test_the_dataclass_has_the_fields(module: str, promised: Any) -> None:
    found = find(module, (promised.__name__,))
    for option in ("frozen", "order"):
        assert getattr(found.__dataclass_params__, option) == getattr(promised.__dataclass_params__, option)
    assert "__slots__" in vars(found)
    expected, there = dataclasses.fields(promised), dataclasses.fields(found)
    shared = there[: len(expected)]
    assert [(f.name, f.default, f.kw_only) for f in shared] == [(f.name, f.default, f.kw_only) for f in expected]
    new = there[len(expected) :]
    assert all(f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING for f in new)


@pytest.mark.parametrize(("module", "path", "promised"), members())
def test_it_can_be_called_as_promised(module: str, path: tuple[str, ...], promised: object) -> None:
    found = find(module, path)
    if isinstance(promised, property):
        assert not callable(found)  # a property, or a plain attribute
        return
    assert isinstance(found, classmethod) == isinstance(promised, classmethod)
    found, promised = function_of(found), function_of(promised)
    assert getattr(found, "__isabstractmethod__", False) == getattr(promised, "__isabstractmethod__", False)
    if path not in RETURN_AWAITABLES:
        assert inspect.iscoroutinefunction(found) == inspect.iscoroutinefunction(promised)
    assert differences(promised, found) == []


def differences(promised: Callable[..., Any], found: Callable[..., Any]) -> list[str]:
    """Say how `found` cannot be called where `promised` can."""
    expected, there = (inspect.signature(one).parameters for one in (promised, found))
    positional = [one for one in there.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    wrong = []
    for position, (name, one) in enumerate(expected.items()):
        if one.kind is one.VAR_POSITIONAL:
            # `*exc` stands for the three arguments of __exit__, however they are written.
            wrong += [] if accepts_exception(found) else ["it takes no exception"]
        elif name not in there:
            wrong.append(f"{name} is missing")
        elif there[name].kind is not one.kind:
            wrong.append(f"{name} is {there[name].kind.description}")
        elif one.kind is one.POSITIONAL_OR_KEYWORD and positional[position].name != name:
            wrong.append(f"{name} is in another place")
        elif repr(one.default) != repr(there[name].default) and one.default is not SOME:
            wrong.append(f"{name} is {there[name].default} by default")
        elif (one.default is one.empty) != (there[name].default is one.empty):
            wrong.append(f"{name} has lost its default")
    if not any(one.kind is one.VAR_POSITIONAL for one in expected.values()):
        new = [one for name, one in there.items() if name not in expected]
        wrong += [f"{one.name} is new and required" for one in new if one.default is one.empty]
    return wrong


def accepts_exception(found: Callable[..., Any]) -> bool:
    try:
        inspect.signature(found).bind(None, ValueError, ValueError(), None)
    except TypeError:
        return False
    return True


def test_a_difference_is_found() -> None:
    def promised(self, one, two=2, *, three=3): ...

    def renamed(self, uno, two=2, *, three=3): ...
    def reordered(self, two=2, one=1, *, three=3): ...
    def other_default(self, one, two=3, *, three=3): ...
    def no_default(self, one, two, *, three=3): ...
    def other_kind(self, one, two=2, three=3): ...
    def new_required(self, one, two=2, *, three=3, four): ...
    def new_optional(self, one, two=2, *, three=3, four=4): ...

    for found in (renamed, reordered, other_default, no_default, other_kind, new_required):
        assert differences(promised, found), found
    assert not differences(promised, new_optional)


def test_a_connection_of_the_tcp_connector_is_a_reader_and_a_writer() -> None:
    stream = importlib.import_module("qorb.connectors").TcpStream
    assert {"reader", "writer"} <= set(inspect.signature(stream).parameters)


def test_an_observer_is_any_callable_that_takes_an_event() -> None:
    package = importlib.import_module("qorb")
    assert package.Observer == Callable[[package.Event], None]


@pytest.mark.parametrize("package", ["qorb", "qorb.resolvers", "qorb.connectors", "qorb.testing"])
def test_the_package_exports_what_was_promised_and_what_it_has(package: str) -> None:
    imported = importlib.import_module(package)
    observer = {"Observer"} if package == "qorb" else set()
    assert {thing.__name__ for thing in PROMISED[package]} | observer <= set(imported.__all__)
    assert [name for name in imported.__all__ if not hasattr(imported, name)] == []
