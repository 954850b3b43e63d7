"""Hold tasks that harm their process; each tells through a FIFO or a file that it has started."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from pathlib import Path

from penstock import Context, task

if importers := os.environ.get("TEST_IMPORTERS"):
    with Path(importers).open("a") as file:
        file.write(f"{os.getpid()}\n")


def tell(path: str) -> None:
    """Append who started and when."""
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
async def eat_memory_first(path: str, group: str, ctx: Context) -> str:
    """Enter a group that may take little memory, and take much, until the kernel's killer comes."""
    tell(path)
    if ctx.attempt == 1:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
        eaten = []
        while True:
            eaten.append(bytearray(os.urandom(1 << 20)))
    return f"after {ctx.previous_outcome}"


@task
async def segfault(path: str) -> None:
    tell(path)
    ctypes.string_at(0)


@task
async def innocent(path: str, ctx: Context) -> dict[str, object]:
    """Wait beside a crasher until it has died twice, then run on alone."""
    tell(path)
    if ctx.previous_outcome is None or ctx.attempt < 3:
        await asyncio.Event().wait()
    return {"attempt": ctx.attempt, "previous": ctx.previous_outcome, "pid": os.getpid()}


@task
def crash_on_thread(path: str) -> None:
    tell(path)
    ctypes.string_at(0)


@task
def innocent_on_thread(path: str, ctx: Context) -> dict[str, object]:
    tell(path)
    if ctx.attempt < 3:
        threading.Event().wait()
    return {"attempt": ctx.attempt, "previous": ctx.previous_outcome, "pid": os.getpid()}


@task(executor="process")
def innocent_in_pool(path: str, ctx: Context) -> dict[str, object]:
    tell(path)
    if ctx.attempt < 3:
        threading.Event().wait()
    return {"attempt": ctx.attempt, "previous": ctx.previous_outcome, "pid": os.getpid()}


@task
async def crash_when_told(path: str, go: str, ctx: Context) -> None:
    """Die once all neighbours have started, so that all of them are lost with this one."""
    tell(path)
    if ctx.attempt < 3:
        await asyncio.to_thread(Path(go).read_bytes)
    ctypes.string_at(0)


@task
async def nothing() -> None:
    return None


@task
async def hang_alone(path: str, ctx: Context) -> None:
    """Take two processes along, then stay in the third."""
    tell(path)
    if ctx.attempt < 3:
        ctypes.string_at(0)
    ctx.log.info("test.alone")
    await asyncio.Event().wait()
