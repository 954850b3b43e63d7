"""Break a running system in each of a few ways, in processes of its own, and read what became of the jobs.

What runs, which faults there are and how the end is judged: docs/explanation/proof.md; `make chaos` takes all of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import IS_LINUX
from tests.waiting import Log, until

pytestmark = pytest.mark.skipif(not IS_LINUX, reason="faults are given by way of /proc, so they need Linux")
ROOT = Path(__file__).resolve().parents[2]
#: It takes under a minute; the bound is for a machine that does a lot else.
LIMIT_S = 800


class Run:
    """Run the short form, and read what it says."""

    def __init__(self, folder: Path, seed: str) -> None:
        self.log = Log()
        foreign = ("CHAOS_", "COV", "PENSTOCK_", "REDIS_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.run", "--short"],
            cwd=ROOT,
            env=env | {"CHAOS_SEED": seed, "TMPDIR": str(folder)},
            stdout=self.log.writer,
            stderr=self.log.writer,
        )
        self.said = ""

    def end(self) -> None:
        """End it the gentle way, which ends what it started."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.said = self.log.text()
        self.log.close()


def left_in(folder: Path) -> list[str]:
    """Return the command lines of processes that work in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink().is_relative_to(folder):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder of a short name: the path of a socket in it may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.mark.timeout(LIMIT_S + 90)
def test_nothing_is_lost_or_finished_twice_whatever_breaks(folder: Path) -> None:
    run = Run(folder, seed="")
    try:
        code = run.process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        code = -1
    finally:
        run.end()
    assert code == 0, run.said
    assert "| accepted and lost | 0 |" in run.said
    assert "| finished more than once | 0 |" in run.said
    until(lambda: not left_in(folder), lambda: left_in(folder))


@pytest.mark.timeout(300)
def test_a_run_that_is_stopped_leaves_nothing_behind(folder: Path) -> None:
    run = Run(folder, seed="1")
    try:
        run.log.until("\nload\n", seconds=150)
        assert left_in(folder)
    finally:
        run.end()
    assert run.process.returncode == 128 + signal.SIGTERM, run.said
    until(lambda: not left_in(folder), lambda: left_in(folder))
    assert list(folder.glob("penstock-chaos-*")) == []
