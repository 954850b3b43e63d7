"""Wait for what other processes do: by a signal where there is one, else by looking again, which only this file does.

Signals are the end of a process, a line of a pipe, a lock, an event, a call that blocks. What has none comes to
``until`` or ``until_async``: what another process shows of itself (``/proc``, ``INFO``, metrics, a file), a server that
is away and must be called anew, a lease that lapses by the clock, the ``cancelled`` of a handler. Each look is bounded,
and says what did not come. ``tests/unit/test_waiting.py`` finds a pause anywhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import inspect
import os
import select
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

#: What takes milliseconds as a rule; a loaded machine gets many more.
PATIENCE_S = 60.0
PAUSE_S = 0.01

T = TypeVar("T")
Trouble = tuple[type[Exception], ...]
#: What should have come; a function where that tells how things stand in the end.
What = str | Callable[[], object]


def _failure(what: What, seconds: float, last: Exception | None) -> AssertionError:
    words = what if isinstance(what, str) else what()
    return AssertionError(f"not within {seconds:g} s: {words}" + (f" ({last!r})" if last else ""))


def until(
    tell: Callable[[], T], what: What, *, seconds: float = PATIENCE_S, pause_s: float = PAUSE_S, trouble: Trouble = ()
) -> T:
    """Ask until the answer is true, and return it; after an error of ``trouble`` it is asked again."""
    end = time.monotonic() + seconds
    while True:
        last = None
        try:
            if answer := tell():
                return answer
        except trouble as error:
            last = error
        if time.monotonic() >= end:
            raise _failure(what, seconds, last) from last
        time.sleep(pause_s)


async def until_async(
    tell: Callable[[], Any], what: What, *, seconds: float = PATIENCE_S, pause_s: float = PAUSE_S, trouble: Trouble = ()
) -> Any:
    """Do the same beside other tasks, with what may have to be awaited; the bound also ends a question that hangs."""
    last = None
    bound = asyncio.timeout(seconds)
    try:
        async with bound:
            while True:
                try:
                    answer = tell()
                    if inspect.isawaitable(answer):
                        answer = await answer
                    if answer:
                        return answer
                except trouble as error:
                    last = error
                await asyncio.sleep(pause_s)
    except TimeoutError:
        if not bound.expired():
            raise
        raise _failure(what, seconds, last) from last


async def insist(call: Callable[[], Awaitable[T]], what: What, *, seconds: float = PATIENCE_S, trouble: Trouble) -> T:
    """Call until it raises none of the errors, as clients of a server do that is away; return what it returns."""

    async def answered() -> tuple[T]:
        return (await call(),)

    answer: T
    (answer,) = await until_async(answered, what, seconds=seconds, trouble=trouble)
    return answer


async def in_time(tell: Callable[[], bool | Awaitable[bool]], seconds: float, *, pause_s: float = PAUSE_S) -> bool:
    """Look again for so long, and tell whether it came true: for those to whom either is an answer."""
    with contextlib.suppress(AssertionError):
        await until_async(tell, "", seconds=seconds, pause_s=pause_s)
        return True
    return False


async def begun(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a task and return it once it has come to its first wait: the loop takes its steps in order."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


def wait_gone(pid: int, seconds: float) -> bool:
    """Wait until a process, not only of ours, has ended; tell whether it did in time."""
    if not hasattr(os, "pidfd_open"):
        with contextlib.suppress(AssertionError):
            return until(lambda: not _exists(pid), f"the end of process {pid}", seconds=seconds)
        return False
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Fifo:
    """Read the lines that others write to a named pipe, as they come; no writer waits for its reader."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        # Open for writing too, so that it never ends.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._text = b""
        self._taken = 0

    def lines(self) -> list[str]:
        """Return the whole lines so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._text += os.read(self._fd, 65_536)
        return self._text[: self._text.rfind(b"\n") + 1].decode().splitlines()

    async def until(
        self, tell: Callable[[list[str]], Any], what: str = "a line that was waited for", *, seconds: float = PATIENCE_S
    ) -> list[str]:
        """Return the lines once they are what is waited for."""
        loop = asyncio.get_running_loop()
        came = asyncio.Event()
        loop.add_reader(self._fd, came.set)
        try:
            async with asyncio.timeout(seconds):
                while not tell(lines := self.lines()):
                    came.clear()
                    await came.wait()
        except TimeoutError:
            raise AssertionError(f"not within {seconds:g} s: {what}; lines: {self.lines()}") from None
        finally:
            loop.remove_reader(self._fd)
        return lines

    async def next(self) -> str:
        """Return the next line that was not returned yet."""
        self._taken += 1
        return (await self.count(self._taken))[self._taken - 1]

    async def count(self, count: int) -> list[str]:
        """Return the lines once there are so many."""
        return await self.until(lambda lines: len(lines) >= count, f"{count} lines")

    def close(self) -> None:
        os.close(self._fd)


class Log:
    """Read what processes write to their stderr, as it comes; give ``writer`` to each of them."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._text = b""
        self._came = threading.Condition()
        self._closing, self._close = os.pipe()
        # Always read, so that nobody who writes much is held up.
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while self._closing not in select.select([self._reader, self._closing], [], [])[0]:
            self._drain()

    def _drain(self) -> None:
        with self._came, contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._reader, 65_536):
                self._text += chunk
                self._came.notify_all()

    def text(self) -> str:
        """Return all that was written, also what an ended process wrote last."""
        self._drain()
        return self._text.decode(errors="replace")

    def until(self, words: str, *, times: int = 1, seconds: float = PATIENCE_S) -> None:
        """Wait until the words were written so often."""
        wanted = words.encode()
        with self._came:
            came = self._came.wait_for(lambda: self._text.count(wanted) >= times, seconds)
        assert came, f"not within {seconds:g} s: {times} times {words!r} in\n{self.text()}"

    def close(self) -> None:
        os.close(self._close)
        self._thread.join()
        for descriptor in (self._reader, self.writer, self._closing):
            os.close(descriptor)


class Gate:
    """Hold up any number of handlers, on threads and in processes, until it is opened."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def open(self) -> None:
        """Let through those who wait and those who come; again, it does nothing."""
        if not self._file.closed:
            # Closing alone would not do: a process that was forked since holds the same lock.
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()


def pass_gate(path: str) -> None:
    """Wait at a gate, in a system call that heeds nothing."""
    with Path(path).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
