"""Note in a file when and where each run starts, for ``benchmarks.recovery``."""

from __future__ import annotations

import asyncio
import os
import time

from penstock import Context, task


def _note(ctx: Context) -> None:
    file = os.open(os.environ["RECOVERY_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{ctx.id} {ctx.attempt} {os.getpid()} {time.monotonic():.4f}\n".encode())
    os.close(file)


@task
async def hang_first(ctx: Context) -> None:
    """Run for ever the first time."""
    _note(ctx)
    if ctx.attempt == 1:
        await asyncio.Event().wait()


@task
async def short(ctx: Context) -> None:
    _note(ctx)
    await asyncio.sleep(0.01)
