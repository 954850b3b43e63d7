"""Hold tasks that show what one job leaves behind for the next."""

from __future__ import annotations

import asyncio
import contextvars

import anyio

from penstock import task

MARK: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="unset")
#: The tasks of the event loop that ran a handler.
SEEN: list[asyncio.Task[object]] = []


class Abort(BaseException):
    """Be an exception that is none."""


@task
async def set_mark(value: str, *, sleep: bool = False) -> list[str]:
    before = MARK.get()
    MARK.set(value)
    if sleep:
        await asyncio.sleep(0)
    inner = await asyncio.create_task(read_later())
    return [before, inner, MARK.get()]


async def read_later() -> str:
    await asyncio.sleep(0)
    return MARK.get()


@task
def set_mark_on_thread(value: str) -> str:
    before = MARK.get()
    MARK.set(value)
    return before


@task
async def who_runs(*, sleep: bool) -> bool:
    """Tell whether the running task is the same before and after a wait."""
    me = asyncio.current_task()
    assert me is not None
    SEEN.append(me)
    if sleep:
        await asyncio.sleep(0)
    return asyncio.current_task() is me and me.cancelling() == 0


@task
async def cancel_the_last() -> None:
    """Cancel the task that ran the job before."""
    SEEN[-1].cancel()
    await asyncio.sleep(0)


@task
async def cancel_itself() -> str:
    me = asyncio.current_task()
    assert me is not None
    me.cancel()
    return "done"


@task
async def limited() -> list[str]:
    """Use what depends on the running task and its count of cancellations."""
    ended = []
    try:
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()
    except TimeoutError:
        ended.append("timeout")
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.Event().wait())
            group.create_task(fail())
    except* ValueError:
        ended.append("group")
    with anyio.move_on_after(0.001):
        await anyio.sleep_forever()
    ended.append("anyio")
    await asyncio.sleep(0)
    return ended


async def fail() -> None:
    raise ValueError


@task
async def raises(kind: str) -> None:
    kinds: dict[str, BaseException] = {
        "SystemExit": SystemExit(3),
        "KeyboardInterrupt": KeyboardInterrupt(),
        "CancelledError": asyncio.CancelledError(),
        "GeneratorExit": GeneratorExit(),
        "Abort": Abort(),
        "ValueError": ValueError("wrong"),
    }
    raise kinds[kind]
