"""Backend: its identity, how it is written, and what can be none."""

from __future__ import annotations

from typing import Any

import pytest

from qorb import Backend
from qorb.backend import read_backends


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1:5432", "10.0.0.1", 5432),
        ("[::1]:5432", "::1", 5432),
        ("db.local:5432", "db.local", 5432),
        ("db.local:1", "db.local", 1),
        ("db.local:65535", "db.local", 65_535),
    ],
)
def test_an_address_is_read_and_names_the_backend(text, host, port):
    backend = Backend.parse(text)

    assert backend == Backend(text, host, port)
    assert backend.address == (host, port)
    assert str(backend) == backend.name == text


@pytest.mark.parametrize(
    ("text", "name", "host"), [("db.local", "db.local:9", "db.local"), ("[::1]", "[::1]:9", "::1")]
)
def test_the_default_port_is_used_when_there_is_none_and_stands_in_the_name(text, name, host):
    assert Backend.parse(text, default_port=9) == Backend(name, host, 9)


def test_the_default_port_gives_way_to_the_one_that_is_written():
    assert Backend.parse("db.local:1", default_port=9).port == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":5432",
        "db.local",
        "db.local:",
        "db.local:0",
        "db.local:65536",
        "db.local:-1",
        "db.local:+1",
        "db.local:１",  # noqa: RUF001 - a digit, but not an ASCII one
        "db.local:5 432",
        "db.local:postgres",
        "::1",
        "::1:5432",
        "[::1",
        "[]:5432",
        "[::1]5432",
        "[::1]:",
        None,
        5432,
        b"db.local:5432",
    ],
)
def test_what_is_no_address_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"address|port|host"):
        Backend.parse(text)


@pytest.mark.parametrize("default_port", [0, 65_536, -1, True, 1.5])
def test_a_default_port_that_is_none_is_a_value_error(default_port):
    with pytest.raises(ValueError, match="port"):
        Backend.parse("db.local", default_port=default_port)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", None),
        ("host", ""),
        ("host", 1),
        ("port", 0),
        ("port", 65_536),
        ("port", "5432"),
        ("port", True),
        ("priority", -1),
        ("priority", 65_536),
        ("weight", -1),
        ("weight", 65_536),
        ("weight", 0.5),
    ],
)
def test_a_value_that_cannot_be_is_named(field, value):
    values: dict[str, Any] = {"name": "a", "host": "10.0.0.1", "port": 1, field: value}
    with pytest.raises(ValueError, match=field):
        Backend(**values)


def test_backends_are_values():
    one, same = Backend.parse("a:1"), Backend.parse("a:1")

    assert one == same
    assert hash(one) == hash(same)
    assert sorted([Backend.parse("b:1"), one]) == [one, Backend.parse("b:1")]
    with pytest.raises(AttributeError):
        one.port = 2  # type: ignore[misc]


def test_a_set_is_read_from_texts_pairs_and_backends():
    own = Backend("own", "10.0.0.9", 9, server_name="db.example", priority=3, weight=0)

    read = read_backends(["10.0.0.1:1", ("10.0.0.2", 2), ("::1", 3), own])

    assert read == (
        Backend("10.0.0.1:1", "10.0.0.1", 1),
        Backend("10.0.0.2:2", "10.0.0.2", 2),
        Backend("[::1]:3", "::1", 3),
        own,
    )


@pytest.mark.parametrize(
    "what", ["10.0.0.1:1", ["a:1", "a:1"], ["a:1", ("a", 1)], [("a", 1, 2)], [("a", "1")], [("", 1)], [None]]
)
def test_a_set_that_cannot_be_read_is_a_value_error(what):
    with pytest.raises(ValueError, match=r"."):
        read_backends(what)
