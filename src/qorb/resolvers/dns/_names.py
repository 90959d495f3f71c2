"""Names as DNS has them (RFC 1035): labels of up to 63 octets, 253 in all; case and the final dot do not matter."""

from __future__ import annotations

from qorb.backend import without_user
from qorb.errors import shown

MAX_NAME = 253
_MAX_LABEL = 63


def canonical(name: str) -> str:
    """Give the form in which names are compared."""
    return name.lower().removesuffix(".")


def check_name(what: str, name: object) -> str:
    """Give the canonical form of a name that a user wrote. Raises ValueError for what can be no DNS name."""
    if not isinstance(name, str):
        raise ValueError(f"{what} must be a DNS name such as '_pg._tcp.example.com', not {shown(name)}")  # noqa: TRY004 - one class of error for every unusable name
    if "://" in name or "/" in name or "@" in name:
        raise ValueError(f"{what} must be a DNS name alone, not a URL: {without_user(name)}")
    if ":" in name:
        raise ValueError(f"{what} must be a DNS name without a port: {shown(name)}")
    try:
        name.encode("ascii")
    except UnicodeEncodeError:
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            raise ValueError(f"{what} is no DNS name: {shown(name)}") from None
    short = canonical(name)
    labels = short.split(".")
    if not short or len(short) > MAX_NAME or not all(0 < len(label) <= _MAX_LABEL for label in labels):
        raise ValueError(
            f"{what} is no DNS name: {shown(name)}; names have up to {MAX_NAME} characters, "
            f"in labels of 1 to {_MAX_LABEL} with dots between"
        )
    if not all(character.isalnum() or character in "-_." for character in short):
        raise ValueError(f"{what} is no DNS name: {shown(name)}; use letters, digits, '-', '_' and dots")
    return short
