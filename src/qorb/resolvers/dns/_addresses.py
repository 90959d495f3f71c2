"""Which addresses DNS may name."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
_RESERVED = ipaddress.IPv4Network("240.0.0.0/4")  # with the broadcast address


@lru_cache(maxsize=4096)
def judge(text: str) -> tuple[str, str | None, bool]:
    """Give an address in its usual form, why it can be no backend (None: it can), and whether it is a loopback one.

    An IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2) is judged, and used, as the IPv4 address that it stands for.
    """
    try:
        address: Address = ipaddress.ip_address(text)
    except ValueError:
        return text, "no address", False
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return text, "it has a scope", False
        address = address.ipv4_mapped or address
    return str(address), _reason_against(address), address.is_loopback


def _reason_against(address: Address) -> str | None:
    if address.is_unspecified:
        return "unspecified"
    if address.is_multicast:
        return "multicast"
    if address.is_link_local:
        return "link-local"
    if isinstance(address, ipaddress.IPv4Address):
        if address in _THIS_NETWORK:
            return "in 0.0.0.0/8"
        if address in _RESERVED:
            return "reserved (240.0.0.0/4)"
    return None
