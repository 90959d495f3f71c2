"""Run the tests on every supported Python, each on the plain loop, on uvloop and (3.12 and later) with eager tasks.

On uvloop those are run to which the loop makes a difference; tests/conftest.py says which.

Started by "make test-matrix"; arguments go to pytest. PYTHONS="3.12 3.13" and LOOPS="uvloop" choose fewer. A Python
that is not found fails the run, after the others have been tried: what was not tested must not look as if it were.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
LOOPS = ("asyncio", "uvloop", "eager")
NO_EAGER_TASKS = ("3.11",)


def main(pytest_args: list[str]) -> int:
    """Run each combination, print one line for each, and return the exit status."""
    pythons = os.environ.get("PYTHONS", " ".join(PYTHONS)).split()
    loops = os.environ.get("LOOPS", " ".join(LOOPS)).split()
    results: dict[str, str] = {}
    for version in pythons:
        if not is_found(version):
            results[f"{version}"] = f"MISSING: there is no working python{version} on PATH"
            continue
        python = install(version)
        for loop in loops:
            if loop == "eager" and version in NO_EAGER_TASKS:
                continue
            print(f"== Python {version}, {loop}", flush=True)
            failed = run_tests(python, loop, pytest_args)
            results[f"{version} {loop}"] = "FAILED" if failed else "passed"
    print("\n".join(f"{combination:14}{result}" for combination, result in results.items()))
    if any(result.startswith("MISSING") for result in results.values()):
        print("With pyenv: PYENV_VERSION=3.11:3.12:3.13 make test-matrix. Choose fewer with PYTHONS='3.11 3.12'.")
    return 0 if set(results.values()) == {"passed"} else 1


def is_found(version: str) -> bool:
    """Say whether python<version> starts: a pyenv shim may be on PATH and have nothing behind it."""
    try:
        return subprocess.run([f"python{version}", "-c", ""], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def install(version: str) -> Path:
    """Bring .venv-<version> up to date: the tools at their pinned versions, and the wheel that "make wheel" built."""
    venv = ROOT / f".venv-{version}"
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([f"python{version}", "-m", "venv", venv], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    (wheel,) = (ROOT / "build" / "wheel").glob("qorb-*.whl")
    subprocess.run([*pip, "-r", "requirements-dev.txt"], cwd=ROOT, check=True)
    subprocess.run([*pip, "--force-reinstall", "--no-deps", wheel], cwd=ROOT, check=True)
    subprocess.run([*pip, "-c", "constraints.txt", f"{wheel}[all]"], cwd=ROOT, check=True)
    return python


def run_tests(python: Path, loop: str, pytest_args: list[str]) -> int:
    """Run pytest on one loop and return its exit status."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    environment["QORB_TEST_LOOP"] = loop
    return subprocess.run([python, "-m", "pytest", *pytest_args], cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
