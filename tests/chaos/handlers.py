"""Say in a file when each run starts and ends: one line, one append, so that no line is torn or lost by a kill."""

from __future__ import annotations

import asyncio
import os
import time

from penstock import Context, task


def _note(mark: str, ctx: Context) -> None:
    line = f"{mark} {ctx.id} {ctx.attempt} {os.environ['CHAOS_WORKER']} {time.time():.3f}\n"
    file = os.open(os.environ["CHAOS_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


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
    time.sleep(seconds)
    _note("E", ctx)
    return number
