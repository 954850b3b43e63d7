"""Hold tasks that are told to stop, and heed it or not; each writes lines into a file, which every executor can."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from penstock import Context, task


def note(path: str, what: str) -> None:
    """Append one line, which nothing tears."""
    with Path(path).open("a") as file:
        file.write(f"{what}\n")


def _is_over(path: str) -> bool:
    return Path(path + ".over").exists()


def _deadline(ctx: Context) -> str:
    return "none" if ctx.deadline is None else "some"


@task
async def heed_async(path: str, ctx: Context) -> str:
    note(path, f"started deadline={_deadline(ctx)}")
    try:
        await asyncio.Event().wait()
    finally:
        note(path, f"told cancelled={ctx.cancelled}")
    return "never"


@task
async def ignore_async(path: str, ctx: Context) -> str:
    note(path, f"started deadline={_deadline(ctx)}")
    while not _is_over(path):
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            note(path, f"told cancelled={ctx.cancelled}")
    note(path, "returned")
    return "in spite of it"


def _heed(path: str, ctx: Context) -> str:
    note(path, f"started deadline={_deadline(ctx)}")
    while not ctx.cancelled:
        time.sleep(0.01)
    note(path, "told cancelled=True")
    return "partly"


def _ignore(path: str, ctx: Context) -> str:
    note(path, f"started deadline={_deadline(ctx)}")
    while not _is_over(path):
        time.sleep(0.01)
    note(path, "returned")
    return "in spite of it"


@task
def heed_thread(path: str, ctx: Context) -> str:
    return _heed(path, ctx)


@task
def ignore_thread(path: str, ctx: Context) -> str:
    return _ignore(path, ctx)


@task(executor="process")
def heed_process(path: str, ctx: Context) -> str:
    return _heed(path, ctx)


@task(executor="process")
def ignore_process(path: str, ctx: Context) -> str:
    return _ignore(path, ctx)


@task(executor="process")
async def heed_async_process(path: str, ctx: Context) -> str:
    note(path, f"started deadline={_deadline(ctx)}")
    try:
        await asyncio.Event().wait()
    finally:
        note(path, f"told cancelled={ctx.cancelled}")
    return "never"


@task
async def echo(value: int) -> int:
    return value


@task
def echo_thread(value: int) -> int:
    return value


@task(executor="process")
def echo_process(value: int) -> int:
    return value
