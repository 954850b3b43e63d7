"""A hang of a test, of its fixtures or of what they leave behind fails the run, and does not hold it up for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_RUN = """
import sys, pytest
from tests import hangs
hangs.EXIT_S = 0.5
sys.exit(pytest.main(sys.argv[1:], plugins=[hangs]))
"""
_TESTS = """
import os, pytest, threading

@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    yield tmp_path / "fifo"
    {end}

def test_one(fifo):
    pass

def test_two():
    pass
"""


def run_tests(folder: Path, *arguments: str, end: str) -> subprocess.CompletedProcess[str]:
    """Run two tests, of which the first has a fixture that ends so."""
    (folder / "test_hanging.py").write_text(_TESTS.format(end=end))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    own = ["-q", f"--rootdir={folder}", "-p", "no:cacheprovider", "-o", "timeout=1", "-o", "asyncio_mode=auto"]
    return subprocess.run(
        [sys.executable, "-c", _RUN, *own, *arguments, "test_hanging.py"],
        cwd=folder,
        env=environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("tries", [1, 2])
def test_a_fixture_that_hangs_fails_each_try(tmp_path: Path, tries: int) -> None:
    run = run_tests(tmp_path, f"--reruns={tries - 1}", end="(tmp_path / 'fifo').read_text()")
    assert run.returncode == 1, run
    assert "ERROR test_hanging.py::test_one - Failed: Timeout (>1.0s)" in run.stdout
    # What follows runs all the same.
    assert f"{tries + 1} passed, 1 error" in run.stdout


def test_a_thread_that_is_left_hanging_fails_the_run(tmp_path: Path) -> None:
    run = run_tests(tmp_path, end="threading.Thread(target=(tmp_path / 'fifo').read_text).start()")
    assert run.returncode == 1, run
    assert "2 passed" in run.stdout
    assert "in read_text" in run.stderr
