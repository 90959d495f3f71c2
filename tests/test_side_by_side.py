"""The tests run side by side; those of one group, which share what they have worked out, do so in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

GROUP_OF_TEN = """
import os, pathlib, pytest

@pytest.mark.xdist_group("ten")
@pytest.mark.parametrize("number", range(10))
def test_of_the_group(number):
    pathlib.Path(f"{number}.worker").write_text(os.environ["PYTEST_XDIST_WORKER"])
"""


def test_the_tests_of_a_group_run_in_one_process(pytester: pytest.Pytester):
    pytester.makepyfile(GROUP_OF_TEN)
    result = pytester.runpytest_subprocess("-n", "2", "--dist", "loadgroup", "-p", "no:randomly")
    result.assert_outcomes(passed=10)
    assert len({file.read_text() for file in pytester.path.glob("*.worker")}) == 1
