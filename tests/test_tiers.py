"""The two tiers of tests: the fast tier says what it leaves out, and every slow test has a fast twin."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = """
import pytest

def test_fast(): pass

@pytest.mark.slow(twin="test_fast")
def test_slow(): pass

@pytest.mark.parametrize("size", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_sizes(size): pass
"""


def run(folder: Path, source: str, *options: str) -> str:
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_tiers_of.py").write_text(source)
    marks = "[pytest]\nmarkers =\n    gpu: g\n    slow: s\n"
    (folder / "pytest.ini").write_text(marks)
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(folder)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return result.stdout + result.stderr


@pytest.mark.parametrize(
    ("options", "summary", "says"),
    [((), "2 passed, 2 deselected", True), (("--all",), "4 passed", False), (("-m", "slow"), "2 passed, 2", False)],
)
def test_slow_tests_are_left_out_only_with_a_word(tmp_path, options, summary, says):
    output = run(tmp_path, SLOW, *options)
    assert summary in output
    assert ("slow tests are deselected: make test-all (pytest --all) runs them" in output) == says


@pytest.mark.parametrize("mark", ["@pytest.mark.slow", '@pytest.mark.slow(twin="test_fsat")'])
def test_a_slow_test_without_a_twin_ends_the_run(tmp_path, mark):
    source = SLOW.replace('@pytest.mark.slow(twin="test_fast")', mark)
    output = run(tmp_path, source, "--all")
    assert "test_slow: a slow test names its fast twin in the same file" in output and "passed" not in output
