"""Hold tasks that the worker's tests run; they tell the test what happens through ``BOARD``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from penstock import Context, Discard, Retry, Snooze, task
from tests.waiting import until


class Board:
    """Let handlers and tests signal each other across threads."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.started = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.runs: Counter[str] = Counter()
        self.running = 0
        self.most_running = 0
        self.lifespan: list[str] = []
        #: Where a crowd waits until all slots are taken.
        self.three = asyncio.Barrier(3)
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def counted(self) -> Any:
        with self.lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            yield
        finally:
            with self.lock:
                self.running -= 1


BOARD = Board()


@contextlib.asynccontextmanager
async def lifespan() -> AsyncIterator[dict[str, str]]:
    BOARD.lifespan.append("entered")
    yield {"model": "loaded"}
    BOARD.lifespan.append("left")


@task
async def add(width: int, height: int = 2) -> int:
    return width + height


@task
def multiply(width: int, height: int = 2) -> int:
    return width * height


@task(executor="process")
def cube(width: int) -> dict[str, int]:
    return {"cube": width**3, "pid": os.getpid()}


@task(executor="process")
async def cube_later(width: int, ctx: Context) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"cube": width**3, "id": ctx.id, "attempt": ctx.attempt}


@task
async def resources(ctx: Context) -> Any:
    return ctx.resources


@task
async def describe(ctx: Context) -> dict[str, Any]:
    return {"id": ctx.id, "task": ctx.task, "queue": ctx.queue, "attempt": ctx.attempt, "counted": ctx.counted}


@task
async def count_run(key: str) -> None:
    BOARD.runs[key] += 1


@task
async def hang() -> None:
    BOARD.started.release()
    await asyncio.Event().wait()


@task
async def stubborn() -> str:
    """Ignore the first cancellation."""
    BOARD.started.release()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass
    return "finished in spite of it"


@task
def hang_thread() -> str:
    BOARD.started.release()
    BOARD.go_on.wait(60)
    return "returned"


@task
def watchful(ctx: Context) -> str:
    BOARD.started.release()
    until(lambda: ctx.cancelled, "a cancel")
    return "partly done"


@task(executor="process")
def hang_process(fifo: str = "") -> None:
    if fifo:
        with open(fifo, "w") as signal:  # noqa: PTH123 - a FIFO
            signal.write(f"{os.getpid()}\n")
    # Holds the interpreter's lock, which nothing but a kill ends.
    re.match(r"(a+)+$", "a" * 60 + "b")


@task(executor="process")
def die(code: int) -> None:
    os._exit(code)


@task
async def leave() -> None:
    sys.exit("bye")


@task
def leave_thread() -> None:
    raise KeyboardInterrupt


@task(executor="process")
def leave_process() -> None:
    sys.exit(3)


@task(max_attempts=3, backoff={"base": 0.001, "jitter": False})
async def broken(ctx: Context) -> None:
    raise ValueError(f"attempt {ctx.attempt} went wrong")


@task
async def retry_later(ctx: Context) -> int:
    if ctx.counted == 0:
        raise Retry("not yet", after=0)
    return ctx.counted


@task
async def give_up() -> None:
    raise Discard("never again")


@task
async def snooze_once(ctx: Context) -> int:
    if ctx.attempt == 1:
        raise Snooze(0)
    return ctx.counted


@task
async def big(size: int) -> str:
    return "x" * size


@task
async def not_json() -> object:
    return object()


@task
async def report(ctx: Context) -> None:
    ctx.progress({"percent": 50})
    BOARD.started.release()
    await asyncio.Event().wait()


@task
def report_to_the_end(ctx: Context) -> None:
    ctx.progress({"percent": 50})
    assert BOARD.go_on.wait(30)
    ctx.progress({"percent": 100})


@task
async def block_loop(seconds: float) -> str:
    time.sleep(seconds)  # noqa: ASYNC251 - the fault that the test is about
    return "woke"


@task
async def crowd() -> None:
    with BOARD.counted():
        await BOARD.three.wait()


@task
def crowd_thread() -> None:
    with BOARD.counted():
        time.sleep(0.002)  # how long a run takes says how many are claimed ahead


@task
async def tell(ctx: Context, lines: int = 1, fail_first: bool = False) -> int:
    for number in range(lines):
        ctx.log.info("step", number=number)
        ctx.stream(f"chunk {number} of attempt {ctx.attempt}")
    if fail_first and ctx.counted == 0:
        raise Retry("once more", after=0)
    return lines


@task
def tell_on_a_thread(ctx: Context, lines: int = 1) -> int:
    for number in range(lines):
        ctx.log.warning("on a thread", number=number)
        ctx.stream({"number": number})
    return lines


@task(executor="process")
def tell_in_a_process(ctx: Context, lines: int = 1) -> int:
    for number in range(lines):
        ctx.log.info("in a process", number=number)
        ctx.stream([number])
    ctx.progress({"lines": lines})
    return lines


@task(executor="process", timeout="2s", max_attempts=1)
def tell_without_end(ctx: Context) -> None:
    while True:
        ctx.log.info("again")


@task
async def tell_and_wait(ctx: Context) -> None:
    ctx.log.info("before")
    BOARD.started.release()
    await asyncio.to_thread(BOARD.go_on.wait, 60)
    ctx.log.info("after")


@task
async def tell_of_an_error(ctx: Context) -> None:
    try:
        raise KeyError("lost")
    except KeyError:
        ctx.log.exception("caught")


@task(timeout="1s", max_attempts=1)
def tell_too_late(ctx: Context) -> None:
    ctx.log.info("in time")
    BOARD.go_on.wait(30)
    ctx.log.info("too late")
    BOARD.started.release()
