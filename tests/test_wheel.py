"""The tests run against the wheel as users install it, and the wheel is what src holds."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

import qorb

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"


@pytest.fixture
def installed() -> Distribution:
    return distribution("qorb")


def test_the_package_under_test_is_the_installed_wheel(installed: Distribution) -> None:
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    assert "archive_info" in origin, "qorb is not installed from a wheel; run make wheel"
    assert str(origin["url"]).endswith(".whl")
    assert Path(str(installed.locate_file("qorb/__init__.py"))) == Path(str(qorb.__file__))
    assert SRC not in Path(str(qorb.__file__)).parents


def test_the_wheel_holds_the_files_of_src_and_nothing_else(installed: Distribution) -> None:
    files = [Path(str(file)) for file in installed.files or ()]
    packaged = {
        file
        for file in files
        if file.suffix != ".pyc" and not file.parts[0].endswith(".dist-info") and file.name != "qorb"
    }
    in_src = {path.relative_to(SRC) for path in SRC.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert packaged == in_src
    stale = [
        file for file in in_src if Path(str(installed.locate_file(file))).read_bytes() != (SRC / file).read_bytes()
    ]
    assert not stale, "the installed wheel is older than src; run make wheel"


def test_the_wheel_says_that_it_is_typed(installed: Distribution) -> None:
    assert Path(str(installed.locate_file("qorb/py.typed"))).is_file()
    assert "Typing :: Typed" in installed.metadata.get_all("Classifier", [])


def test_the_license_comes_along(installed: Distribution) -> None:
    assert installed.metadata["License-Expression"] == "Apache-2.0"
    (text,) = [file for file in installed.files or () if file.name == "LICENSE"]
    assert text.read_text() == (ROOT / "LICENSE").read_text()


def test_nothing_is_required_but_by_extras(installed: Distribution) -> None:
    assert [line for line in installed.requires or () if "extra ==" not in line] == []
    assert installed.metadata["Requires-Python"] == ">=3.11"


def test_the_extra_named_all_has_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["all"] == [f"qorb[{','.join(sorted(extras.keys() - {'all'}))}]"]


def test_the_program_is_installed(installed: Distribution) -> None:
    (program,) = installed.entry_points.select(group="console_scripts")
    assert (program.name, program.value) == ("qorb", "qorb.cli:main")


def test_the_library_runs_on_the_standard_library_alone(installed: Distribution) -> None:
    # -S leaves out site-packages, -I the environment; only the package itself is added.
    program = """
import importlib, pkgutil, sys
sys.path.append(sys.argv[1])
import qorb
sys.path.pop()
for module in ("qorb.cli", "qorb.connectors", "qorb.resolvers", "qorb.testing"):
    importlib.import_module(module)
ours = {name for name in sys.modules if name.split(".")[0] not in sys.stdlib_module_names | {"qorb", "__main__"}}
print(*ours)
"""
    command = [sys.executable, "-I", "-S", "-W", "error", "-c", program, str(installed.locate_file(""))]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "", "")


def test_importing_the_library_does_not_import_what_only_tests_and_programs_need(installed: Distribution) -> None:
    program = "import qorb, sys; print(*sorted(name for name in sys.modules if name.startswith('qorb.')))"
    run = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    imported = {name.split(".")[1] for name in run.stdout.split()}
    assert imported.isdisjoint({"testing", "cli", "_demo", "_resolve", "connectors", "observers", "top"})


def test_every_module_of_the_core_is_used() -> None:
    # Coverage speaks of what is imported only: a module that nobody imports would go unseen.
    program = "import qorb, sys; print(*sorted(name for name in sys.modules if name.startswith('qorb._core.')))"
    run = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) == {f"qorb._core.{path.stem}" for path in (SRC / "qorb" / "_core").glob("[!_]*.py")}
