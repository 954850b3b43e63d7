"""A Python child ends with its supervisor by the pipe alone, as on systems where the kernel does not help."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.embedded import exit_with_parent
from tests.waiting import wait_gone

_CHILD = """
import subprocess, sys
from penstock.embedded.parent_watch import exit_with_parent
exit_with_parent(int(sys.argv[1]))
grandchild = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(grandchild.pid, flush=True)
grandchild.wait()
"""


@pytest.mark.parametrize("leads_its_group", [True, False])
def test_the_child_and_its_group_end_when_the_writer_is_gone(leads_its_group: bool) -> None:
    read_end, write_end = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(read_end)],
        pass_fds=[read_end],
        stdout=subprocess.PIPE,
        start_new_session=leads_its_group,
    )
    os.close(read_end)
    assert child.stdout is not None
    with child.stdout:
        grandchild = int(child.stdout.readline())
    try:
        assert child.poll() is None
        os.close(write_end)
        assert child.wait(timeout=2) == (-signal.SIGKILL if leads_its_group else 70)
        # A group that it does not lead is not its own to kill.
        assert wait_gone(grandchild, 2 if leads_its_group else 0) is leads_its_group
    finally:
        if not leads_its_group:
            os.kill(grandchild, signal.SIGKILL)


def test_a_descriptor_that_is_no_pipe_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(ValueError, match="is not a pipe"):
        exit_with_parent(file.fileno())
    read_end, write_end = os.pipe()
    os.close(read_end)
    os.close(write_end)
    with pytest.raises(ValueError, match="is not open"):
        exit_with_parent(read_end)
