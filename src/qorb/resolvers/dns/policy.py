"""DnsPolicy: how DNS is asked, checked at birth."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Literal

from qorb.errors import PolicyError, shown
from qorb.policy import is_count, is_duration
from qorb.resolvers.dns._names import check_name

_FAMILIES = ("any", "ipv4", "ipv6")
_COUNTS = ("max_concurrency", "max_backends")
_DURATIONS = ("query_interval", "retry_interval", "query_timeout", "min_ttl", "max_ttl", "stale_limit", "ttl_override")
_POSITIVE = ("query_timeout", "stale_limit")  # of the others, 0 is what the second between two rounds makes of it


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsPolicy:
    """How DNS is asked. Durations are in seconds; math.inf means never.

    Whatever the durations and the TTLs are, two rounds of questions never start less than a second apart.
    Every value is checked when the policy is made: PolicyError names the field that is wrong.
    """

    resolver_service: str | None = None
    """SRV name under which more DNS servers are found; they are asked besides the given ones."""
    max_concurrency: int = 5
    """Queries in flight at once. One that has waited a second without an answer no longer counts."""
    query_interval: float = 60.0
    """At most this long between refreshes, whatever the TTLs say."""
    retry_interval: float = 10.0
    """The pause after an empty answer. After a failed round it is 1 s, doubling up to this."""
    query_timeout: float = 10.0
    """For one round of questions; a lost packet is sent again well before."""
    ttl_override: float | None = None
    """Take this for the TTL of every record."""
    min_ttl: float = 1.0
    """A shorter TTL is taken for this."""
    max_ttl: float = 3600.0
    """A longer TTL is taken for this."""
    stale_limit: float = math.inf
    """How long the last good answer outlives a DNS that fails (RFC 8767); less than 2 s are taken for 2 s.

    When half of it has passed the answer is asked for again, whatever its TTL is.
    """
    family: Literal["any", "ipv4", "ipv6"] = "any"
    """Which addresses are looked up."""
    max_backends: int = 256
    """More backends than this are not used. Which ones are is decided once per resolver, by hash."""

    def __post_init__(self) -> None:
        """Raise PolicyError for the first field whose value is not usable."""
        if self.resolver_service is not None:
            try:
                check_name("resolver_service", self.resolver_service)
            except ValueError as error:
                raise PolicyError(str(error), "resolver_service") from None
        for name in _COUNTS:
            if not is_count(getattr(self, name)) or getattr(self, name) < 1:
                _refuse(name, f"a whole number from 1 to {sys.maxsize}", getattr(self, name))
        for name in _DURATIONS:
            value = getattr(self, name)
            if name == "ttl_override" and value is None:
                continue
            if not is_duration(value) or (value == 0 and name in _POSITIVE):
                least = "more than 0" if name in _POSITIVE else "0 or more"
                _refuse(name, f"a number of seconds, {least} (math.inf: never)", value)
        if self.min_ttl > self.max_ttl:
            _refuse("min_ttl", f"at most max_ttl, which is {self.max_ttl:g}", self.min_ttl)
        if self.family not in _FAMILIES:
            _refuse("family", "'any', 'ipv4' or 'ipv6'", self.family)


def _refuse(name: str, wanted: str, value: object) -> None:
    raise PolicyError(f"{name} must be {wanted}, not {shown(value)}", name)
