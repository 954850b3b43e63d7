"""End a Python child together with the supervisor that started it, however that one ended."""

from __future__ import annotations

import os
import signal
import stat
import threading

PARENT_FD_VARIABLE = "PENSTOCK_PARENT_FD"
"""Names the inherited pipe in a child's environment. Read it once and do not hand it on to processes of your own."""

_EXIT_CODE_ORPHANED = 70


def exit_with_parent(descriptor: int) -> None:
    """Watch the inherited pipe from a thread; when its writer is gone, kill this process and its group at once.

    There is no drain: the embedded Valkey goes down in the same moment, so nothing more could be stored. The jobs that
    were running start again when their leases lapse. Only a process that leads its group kills the group.

    Raises ValueError when the descriptor is not an open pipe.
    """
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except OSError as error:
        raise ValueError(f"{PARENT_FD_VARIABLE}={descriptor} is not open") from error
    if not is_pipe:
        raise ValueError(f"{PARENT_FD_VARIABLE}={descriptor} is not a pipe")
    os.set_inheritable(descriptor, False)
    threading.Thread(target=_wait_and_exit, args=(descriptor,), name="parent-watch", daemon=True).start()


def _wait_and_exit(descriptor: int) -> None:
    # Nothing is ever written: the read ends when the last writer, the supervisor, is gone.
    while os.read(descriptor, 1):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(_EXIT_CODE_ORPHANED)
