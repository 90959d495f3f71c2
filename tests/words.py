"""What programs under test say, without what tells only how busy the machine is."""

from __future__ import annotations

import re

_SLOW = re.compile(r"^Executing <.*> took [\d.]+ seconds\n", re.MULTILINE)


def without_slowness(text: str) -> str:
    """Leave out what asyncio's debug mode says of slow callbacks."""
    return _SLOW.sub("", text)
