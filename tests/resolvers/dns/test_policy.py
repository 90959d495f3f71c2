"""DnsPolicy and the names that a DnsResolver is given: what cannot be used is refused at birth."""

from __future__ import annotations

import dataclasses
import math
import sys

import pytest

from qorb import PolicyError
from qorb.resolvers import DnsPolicy, DnsResolver

DURATIONS = ("query_interval", "retry_interval", "query_timeout", "min_ttl", "max_ttl", "ttl_override", "stale_limit")
COUNTS = ("max_concurrency", "max_backends")
ZERO = ("query_interval", "retry_interval", "min_ttl", "max_ttl", "ttl_override")
"""Durations for which 0 has a meaning: rounds never start less than a second apart anyway."""


def refused(**values):
    with pytest.raises(PolicyError) as caught:
        DnsPolicy(**values)
    return caught.value


@pytest.mark.parametrize("value", [math.nan, -1, -0.001, -math.inf, "1", True, None, 1j, [1]])
@pytest.mark.parametrize("field", DURATIONS)
def test_a_duration_that_cannot_be_used_is_named(field, value):
    if (field, value) == ("ttl_override", None):
        return
    error = refused(**{field: value})
    assert error.field == field
    assert field in str(error)


@pytest.mark.parametrize("value", [0, -1, 1.5, math.nan, math.inf, sys.maxsize + 1, "5", True, None])
@pytest.mark.parametrize("field", COUNTS)
def test_a_count_that_cannot_be_used_is_named(field, value):
    error = refused(**{field: value})
    assert error.field == field
    assert field in str(error)


@pytest.mark.parametrize("field", ["query_timeout", "stale_limit"])
def test_no_time_at_all_is_refused_where_nothing_could_be_known_then(field):
    assert refused(**{field: 0}).field == field


@pytest.mark.parametrize("field", ZERO)
def test_no_time_at_all_is_allowed_where_a_second_apart_is_the_limit(field):
    values = {"min_ttl": 0.0} if field == "max_ttl" else {}
    assert getattr(DnsPolicy(**{field: 0.0, **values}), field) == 0


@pytest.mark.parametrize("field", DURATIONS)
def test_infinite_means_never_for_every_duration(field):
    values = {"max_ttl": math.inf} if field == "min_ttl" else {}
    assert getattr(DnsPolicy(**{field: math.inf, **values}), field) == math.inf


def test_min_ttl_is_not_above_max_ttl():
    assert refused(min_ttl=10, max_ttl=9).field == "min_ttl"
    assert DnsPolicy(min_ttl=10, max_ttl=10).min_ttl == 10


@pytest.mark.parametrize("value", ["IPV4", "", None, 4])
def test_another_family_is_refused(value):
    assert refused(family=value).field == "family"


@pytest.mark.parametrize("value", ["", ".", "a..b", "x" * 64 + ".com", "dns://x", "x:53", 5, "a b", "a." * 127 + "com"])
def test_a_resolver_service_that_is_no_name_is_refused(value):
    assert refused(resolver_service=value).field == "resolver_service"


def test_a_policy_is_frozen_and_has_the_promised_defaults():
    policy = DnsPolicy()
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.min_ttl = 3
    with pytest.raises(TypeError):
        DnsPolicy("name")
    assert dataclasses.asdict(policy) == {
        "resolver_service": None,
        "max_concurrency": 5,
        "query_interval": 60.0,
        "retry_interval": 10.0,
        "query_timeout": 10.0,
        "ttl_override": None,
        "min_ttl": 1.0,
        "max_ttl": 3600.0,
        "stale_limit": math.inf,
        "family": "any",
        "max_backends": 256,
    }


# Names.


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".com",
        "a..b",
        "x" * 64,
        "a." * 127 + "com",
        "https://x",
        "x:53",
        "a/b",
        "a@b",
        "a b",
        "a\n",
        "a\0b",
    ],
)
def test_a_service_that_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match="service"):
        DnsResolver(name)


@pytest.mark.parametrize("text", ["user:s3cret@db", "user:s3cret@db:5432", "pg://user:s3cret@db/x", "user:s3cret@/x"])
def test_a_refusal_never_shows_a_password(text):
    for refused in (
        lambda: DnsResolver(text),
        lambda: DnsResolver("db", [text]),
        lambda: DnsResolver("db", text),
        lambda: DnsPolicy(resolver_service=text),
    ):
        with pytest.raises(ValueError, match=r"\*\*\*@") as told:
            refused()
        assert "s3cret" not in str(told.value)


@pytest.mark.parametrize("name", [None, 5, b"db"])
def test_a_service_that_is_no_text_is_refused(name):
    with pytest.raises(ValueError, match="service must be a DNS name"):
        DnsResolver(name)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("_Pg._TCP.Example.COM.", "_pg._tcp.example.com"),
        ("db", "db"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("x" * 63 + ".com", "x" * 63 + ".com"),
    ],
)
def test_names_compare_in_lower_case_without_the_final_dot(name, canonical):
    assert DnsResolver(name).service == canonical


@pytest.mark.parametrize("port", [0, -1, 65_536, 1.5, "5432", True])
def test_a_default_port_that_is_none_is_refused(port):
    with pytest.raises(ValueError, match="default_port"):
        DnsResolver("db", default_port=port)


def test_a_policy_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="DnsPolicy"):
        DnsResolver("db", None, {"min_ttl": 1})
