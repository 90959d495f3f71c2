import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from qorb.cli import main


def run_qorb(*arguments):
    command = [sys.executable, "-W", "error", "-m", "qorb.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def test_the_console_script_says_its_version():
    script = Path(sys.executable).with_name("qorb" + (".exe" if os.name == "nt" else ""))
    said = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"qorb {version('qorb')}\n"
    assert said.stderr == ""


def test_help_lists_the_commands():
    said = run_qorb("--help")
    assert said.returncode == 0
    assert "demo" in said.stdout
    assert "resolve" in said.stdout
    assert said.stderr == ""


def test_help_of_the_demo_lists_its_options_with_their_ranges():
    said = run_qorb("demo", "--help")
    assert said.returncode == 0
    for option in ("--backends", "--clients", "--seconds", "--seed", "--plain", "2 to 64", "1 to 1000", "3 to 3600"):
        assert option in said.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["dmeo"], "invalid choice: 'dmeo'"),
        (["demo", "--backends", "1"], "argument --backends: must be a whole number from 2 to 64, not '1'"),
        (["demo", "--backends", "many"], "argument --backends: must be a whole number from 2 to 64, not 'many'"),
        (["demo", "--clients", "0"], "argument --clients: must be a whole number from 1 to 1000, not '0'"),
        (["demo", "--clients", "2.5"], "argument --clients: must be a whole number from 1 to 1000, not '2.5'"),
        (["demo", "--seconds", "2"], "argument --seconds: must be a number of seconds from 3 to 3600, not '2'"),
        (["demo", "--seconds", "nan"], "argument --seconds: must be a number of seconds from 3 to 3600, not 'nan'"),
        (["demo", "--seconds", "inf"], "argument --seconds: must be a number of seconds from 3 to 3600, not 'inf'"),
        (["demo", "--seed", "-1"], "argument --seed: must be a whole number from 0 to 4294967295, not '-1'"),
        (["demo", "now"], "unrecognized arguments: now"),
    ],
)
def test_wrong_options_end_in_one_sentence_and_status_2(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("qorb")
    assert sentence in said.err.splitlines()[-1]
