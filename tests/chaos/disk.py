"""Be the disk of the append-only file: a small file system that can be filled, where root may mount one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

#: The filler takes as much of the machine's memory.
_BYTES = 1 << 28


class Disk:
    """Hold a folder; with ``own`` it is a file system of its own when that can be mounted."""

    def __init__(self, path: Path, *, own: bool) -> None:
        self.path = path
        path.mkdir()
        self.own = own and self._mount()

    def _mount(self) -> bool:
        if os.geteuid() != 0:
            return False
        command = ["mount", "-t", "tmpfs", "-o", f"size={_BYTES}", "penstock-chaos", str(self.path)]
        try:
            return subprocess.run(command, check=False, capture_output=True).returncode == 0
        except FileNotFoundError:
            return False

    def fill(self) -> None:
        """Leave no free block."""
        with (self.path / "filler").open("ab", buffering=0) as filler:
            for block in (bytes(1 << 20), bytes(1 << 12)):
                with contextlib.suppress(OSError):
                    while filler.write(block):
                        pass

    def free(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        if self.own:
            subprocess.run(["umount", "--lazy", str(self.path)], check=False, capture_output=True)
            self.own = False
