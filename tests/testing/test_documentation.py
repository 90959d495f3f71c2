"""The guide to qorb.testing and the example: their code runs."""

from __future__ import annotations

import re
from pathlib import Path

import qorb.testing
from qorb.testing import FakeConnector

ROOT = Path(__file__).parent.parent.parent
GUIDE = ROOT / "docs" / "testing-your-application.md"
EXAMPLE = ROOT / "examples" / "test_application.py"


def all_pass(pytester, tests):
    pytester.makepyfile(tests)
    outcomes = pytester.runpytest_subprocess("-W", "error").parseoutcomes()
    assert set(outcomes) == {"passed"}
    assert outcomes["passed"] >= tests.count("def test_") > 5


def test_the_tests_in_the_guide_pass(pytester):
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    all_pass(pytester, "\n".join(blocks))


def test_the_example_passes(pytester):
    all_pass(pytester, EXAMPLE.read_text(encoding="utf-8"))


def test_the_guide_names_every_verb_and_every_public_name():
    text = GUIDE.read_text(encoding="utf-8")
    calls = "abort close connect exchange is_closed needs_recycle on_acquire on_recycle"
    verbs = {name for name in vars(FakeConnector) if not name.startswith("_")} - {*calls.split()}
    named_in_docstrings = {"Attempt", "Call", "Ending", "ForbiddenCallError", "Report", "Timing", "Tried"}
    names = set(qorb.testing.__all__) - named_in_docstrings
    assert not {name for name in (verbs | names) if not re.search(rf"\b{name}\b", text)}
