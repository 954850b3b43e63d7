"""Tie a child to this process by a pipe whose other end closes when this process dies, even by SIGKILL."""

from __future__ import annotations

import fcntl
import os
import signal


class Lifeline:
    """Hold the write end of a pipe; the child inherits the read end.

    A Python child watches the read end (`exit_with_parent`). On Linux the kernel does so too, for any program: asked by
    `arm`, it signals the child's whole process group when the last writer closes. Against PR_SET_PDEATHSIG this reaches
    grandchildren, needs no code between fork and exec, does not depend on which thread forked, and cannot hit a
    recycled process id.
    """

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe()  # neither end is inherited unless named

    def arm(self, process_group: int, signal_number: signal.Signals) -> None:
        """Ask the kernel for the signal, if it can, and give up our copy of the read end."""
        set_signal = getattr(fcntl, "F_SETSIG", None)
        set_owner = getattr(fcntl, "F_SETOWN", None)
        if set_signal is not None and set_owner is not None:
            try:
                fcntl.fcntl(self.read_fd, set_owner, -process_group)
                fcntl.fcntl(self.read_fd, set_signal, signal_number)
                fcntl.fcntl(self.read_fd, fcntl.F_SETFL, fcntl.fcntl(self.read_fd, fcntl.F_GETFL) | os.O_ASYNC)
            except OSError:
                # The child is gone already, or this kernel cannot: its own watch and the next start see to it.
                pass
        self.close_read_end()

    def close_read_end(self) -> None:
        if self.read_fd >= 0:
            os.close(self.read_fd)
            self.read_fd = -1

    def close(self) -> None:
        """Give up both ends; call it after the child is gone, or it will end."""
        self.close_read_end()
        if self._write_fd >= 0:
            os.close(self._write_fd)
            self._write_fd = -1
