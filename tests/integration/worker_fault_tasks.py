"""Hold tasks that harm their process; each tells through a FIFO or a file that it has started."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from pathlib import Path

from penstock import Context, task

if importers := os.environ.get("TEST_IMPORTERS"):
    with Path(importers).open("a") as file:
        file.write(f"{os.getpid()}\n")


def tell(path: str) -> None:
    """Append who started and when; a FIFO waits here for its reader."""
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()} {time.monotonic()}\n")


def hold_lock(seconds: int) -> None:
    """Sleep in C without giving up the interpreter's lock."""
    ctypes.PyDLL(None).sleep(seconds)


@task
async def hold_on_loop(path: str, seconds: int) -> None:
    tell(path)
    hold_lock(seconds)


@task
def hold_on_thread(path: str, seconds: int) -> None:
    tell(path)
    hold_lock(seconds)


@task(executor="process")
def hold_in_pool(path: str, seconds: int) -> None:
    tell(path)
    hold_lock(seconds)


@task
async def hold_first(path: str, ctx: Context) -> str:
    tell(path)
    if ctx.attempt == 1:
        hold_lock(600)
    return "done"


@task
async def hang_first(path: str, ctx: Context) -> str:
    tell(path)
    if ctx.attempt == 1:
        await asyncio.Event().wait()
    return "done"


@task
async def segfault(path: str) -> None:
    tell(path)
    ctypes.string_at(0)


@task
async def nothing() -> None:
    return None
