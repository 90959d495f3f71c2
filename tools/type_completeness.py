"""Ask basedpyright whether users of the installed package meet types that are missing or ambiguous.

Started by "make type-completeness". Private modules and names are left out: mypy and basedpyright check those in src.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Print each public symbol with an incomplete type, and why; return the exit status."""
    report = ask()
    if not report["pyTypedPath"]:
        print("qorb is not installed with py.typed", file=sys.stderr)
        return 1
    incomplete = [symbol for symbol in report["symbols"] if symbol["isExported"] and is_incomplete(symbol)]
    for symbol in incomplete:
        for diagnostic in faults(symbol):
            print(f"{symbol['name']}: {diagnostic}")
    public = sum(symbol["isExported"] for symbol in report["symbols"])
    print(f"{len(incomplete)} of {public} public symbols have incomplete types")
    return 1 if incomplete or not public else 0


def ask() -> dict[str, Any]:
    """Return basedpyright's report on the package that is installed beside it."""
    beside = Path(sys.executable).parent
    # It looks for the package where the first python on PATH does.
    environment = {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}"}
    command = [beside / "basedpyright", "--verifytypes", "qorb", "--ignoreexternal", "--outputjson"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    report: dict[str, Any] = json.loads(answer.stdout)["typeCompleteness"]
    return report


def is_incomplete(symbol: dict[str, Any]) -> bool:
    """Say whether the symbol is public and incomplete by a fault of its own, not only by that of something it uses."""
    name: str = symbol["name"]
    private = any(part.startswith("_") and not part.endswith("__") for part in name.split("."))
    return bool(faults(symbol)) and not symbol["isTypeKnown"] and not private


def faults(symbol: dict[str, Any]) -> list[str]:
    """Return what is wrong with the symbol itself.

    What is "partially unknown" uses something that is unknown: a public symbol, which is reported by itself, or a
    private one, which users do not meet.
    """
    messages = [str(diagnostic["message"]) for diagnostic in symbol["diagnostics"]]
    return [message for message in messages if "partially unknown" not in message]


if __name__ == "__main__":
    sys.exit(main())
