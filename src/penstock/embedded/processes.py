"""Tell processes apart for sure, end them, and collect those that lost their parent."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.01
_IS_LINUX = sys.platform == "linux"


def process_identity(pid: int) -> str | None:
    """Return a text that no other process ever has, a later one of the same pid included; None when it is gone.

    A process that has ended and only waits to be collected counts as gone.
    """
    if _IS_LINUX:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        except OSError:
            return None
        # Counted from the name's closing bracket: state is field 3 of proc(5), starttime field 22.
        return None if fields[0] in "ZX" else f"{boot}/{pid}/{fields[19]}"
    listed = subprocess.run(
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
        env={"LC_ALL": "C", "TZ": "UTC"},
    )
    state, _, started = listed.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else f"{pid}/{started.strip()}"


def signal_group(pid: int, signal_number: signal.Signals) -> None:
    """Signal the process group that ``pid`` leads; nothing happens when it is empty."""
    # macOS answers EPERM for a group that holds nothing but uncollected processes.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal_number)


async def end_stale(pid: int, identity: str, *, gently_seconds: float) -> bool:
    """End a process of an earlier run if it still is that one; return whether it is gone.

    It gets SIGTERM and ``gently_seconds`` (0 skips that), then its group gets SIGKILL.
    """
    if gently_seconds > 0 and process_identity(pid) == identity:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGCONT)
        await wait_until(lambda: process_identity(pid) != identity, timeout_seconds=gently_seconds)
    if process_identity(pid) == identity:
        signal_group(pid, signal.SIGKILL)
    return await wait_until(lambda: process_identity(pid) != identity, timeout_seconds=5)


async def wait_until(condition: Callable[[], bool], *, timeout_seconds: float) -> bool:
    """Look every 10 ms, for things that cannot wake us; return whether it came true in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    while not condition():
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


def adopt_orphans() -> bool:
    """Become the parent of descendants whose parent dies, where the system can (Linux); return whether it can."""
    if not _IS_LINUX:
        return False
    try:
        return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether a child of ours has ended; its pid stays taken, where the system can leave it uncollected."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return process.poll() is not None
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def collect_adopted(own: Collection[int]) -> None:
    """Collect ended orphans, leaving our own children to those who wait for them; for adopters only."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        # One of our own in front hides orphans behind it until it is collected; its signal brings us back.
        if ended is None or ended.si_pid in own:
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(ended.si_pid, os.WNOHANG)


async def end_adopted() -> None:
    """Kill every child that is left, and theirs as they become ours; for adopters without children of their own."""
    for _ in range(500):
        collect_adopted(())
        children = _children()
        if not children:
            return
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(_POLL_SECONDS)


def _children() -> list[int]:
    own = str(os.getpid())
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
                if fields[1] == own:
                    found.append(int(entry.name))
    return found
