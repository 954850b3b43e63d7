"""Say in a file when each run starts and ends: one line, one append, so that no line is torn or lost by a kill.

Times are the machine's monotonic clock, which no fault shifts; the wall clock stands beside it, to show one that was.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from pathlib import Path

from penstock import Context, task


def _note(mark: str, ctx: Context) -> None:
    who = f"{os.environ['CHAOS_WORKER']} {os.getpid()}"
    line = f"{mark} {ctx.id} {ctx.attempt} {who} {time.monotonic():.3f} {time.time():.3f}\n"
    file = os.open(os.environ["CHAOS_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def _first_time(ctx: Context) -> bool:
    """Tell whether no run of this job was here before, in whatever process."""
    try:
        Path(os.environ["CHAOS_RUNS"] + f"-{ctx.id}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@task
async def chaos_async(number: int, seconds: float, ctx: Context) -> int:
    """Work on the event loop."""
    _note("S", ctx)
    await asyncio.sleep(seconds)
    _note("E", ctx)
    return number


@task
def chaos_thread(number: int, seconds: float, ctx: Context) -> int:
    """Work on a thread."""
    _note("S", ctx)
    threading.Event().wait(seconds)  # time.sleep fails under a shifted clock (libfaketime)
    _note("E", ctx)
    return number


@task
async def chaos_segfault(number: int, ctx: Context) -> int:
    """Take the process down by a real segmentation fault, once."""
    _note("S", ctx)
    if _first_time(ctx):
        ctypes.string_at(0)
    _note("E", ctx)
    return number


@task
def chaos_memory(number: int, group: str, ctx: Context) -> int:
    """Take memory until the kernel kills the process, once.

    ``group`` is the folder of a control group with a limit, which the process enters; "" where none can be made.
    """
    _note("S", ctx)
    if _first_time(ctx):
        if group:
            (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
        taken = [bytearray(b"x") * (8 << 20) for _ in range(48)]
        threading.Event().wait(60)  # for the watchdog, where no group limits us
        raise AssertionError(f"nobody killed the process, which took {len(taken)} x 8 MiB")
    _note("E", ctx)
    return number
