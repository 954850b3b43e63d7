"""Hold tasks that are told to stop, and heed it or not; each writes lines into a FIFO, which every executor can."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from penstock import Context, task
from tests.waiting import pass_gate, until


def note(path: str, what: str) -> None:
    """Append one line, which nothing tears."""
    with Path(path).open("a") as file:
        file.write(f"{what}\n")


def gate_of(path: str) -> str:
    """Return the gate at which those wait that heed nothing else."""
    return path + ".over"


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
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def wait() -> None:
        pass_gate(gate_of(path))
        loop.call_soon_threadsafe(over.set)

    # Not one of the loop's own threads: a worker that drains would wait for it.
    threading.Thread(target=wait, daemon=True).start()
    while not over.is_set():
        try:
            await over.wait()
        except asyncio.CancelledError:
            note(path, f"told cancelled={ctx.cancelled}")
    note(path, "returned")
    return "in spite of it"


def _heed(path: str, ctx: Context) -> str:
    note(path, f"started deadline={_deadline(ctx)}")
    until(lambda: ctx.cancelled, "a cancel")
    note(path, "told cancelled=True")
    return "partly"


def _ignore(path: str, ctx: Context) -> str:
    note(path, f"started deadline={_deadline(ctx)}")
    pass_gate(gate_of(path))
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
