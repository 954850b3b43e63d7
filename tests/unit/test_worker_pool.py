"""Kill children and see that nobody else notices."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.worker.pool import ChildDied, ChildStopped, ChildTimedOut, ProcessPool


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    opened = ProcessPool(2)
    yield opened
    opened.close()


def hold_the_lock(fifo: str) -> None:
    Path(fifo).write_text("started")
    re.match(r"(a+)+$", "a" * 60 + "b")


def nothing() -> None: ...


def explode() -> None:
    raise ValueError("from the child")


class Unreadable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def explode_unreadably() -> None:
    raise Unreadable(1, 2)


async def test_a_child_is_used_again_and_started_only_when_needed(pool: ProcessPool) -> None:
    first = await pool.run(os.getpid)
    assert first == await pool.run(os.getpid)
    assert first != os.getpid()


async def test_errors_come_back_with_the_childs_traceback(pool: ProcessPool) -> None:
    with pytest.raises(ValueError, match="from the child") as caught:
        await pool.run(explode)
    assert "in explode" in "".join(caught.value.__notes__)
    with pytest.raises(RuntimeError, match="1 and 2"):
        await pool.run(explode_unreadably)


async def test_what_cannot_be_pickled_is_the_callers_error_alone(pool: ProcessPool) -> None:
    before = await pool.run(os.getpid)
    with pytest.raises((AttributeError, TypeError)):
        await pool.run(lambda: 1)
    assert await pool.run(os.getpid) == before


async def test_a_child_killed_while_idle_is_replaced(pool: ProcessPool) -> None:
    first = await pool.run(os.getpid)
    os.kill(first, signal.SIGKILL)
    # It may still look alive when the next call comes; then that call dies with it, and the one after does not.
    try:
        second = await pool.run(os.getpid)
    except ChildDied as error:
        assert error.exit_code == -signal.SIGKILL  # noqa: PT017 - it need not be raised
        second = await pool.run(os.getpid)
    assert second != first


def leave(code: int) -> None:
    # Not os._exit itself: coverage puts a function of its own in its place, which does not travel.
    os._exit(code)


async def test_exit_codes_are_told(pool: ProcessPool) -> None:
    with pytest.raises(ChildDied) as caught:
        await pool.run(leave, 7)
    assert caught.value.exit_code == 7
    with pytest.raises(ChildDied) as caught:
        await pool.run(os.abort)
    assert caught.value.exit_code == -signal.SIGABRT


async def test_a_timeout_ends_even_a_child_that_holds_the_interpreters_lock(pool: ProcessPool, tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    # This module is imported there before the clock runs.
    await pool.run(nothing)
    call = pool.begin(hold_the_lock, str(fifo), timeout_s=1.0)
    assert await asyncio.to_thread(fifo.read_text) == "started"
    # The other child works on meanwhile.
    assert await pool.run(abs, -1) == 1
    with pytest.raises(ChildTimedOut):
        await call.future


async def test_cancelling_kills_the_child_and_only_that_one(pool: ProcessPool, tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    other = await pool.run(os.getpid)
    running = asyncio.create_task(pool.run(hold_the_lock, str(fifo)))
    await asyncio.to_thread(fifo.read_text)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await pool.run(abs, -1) == 1
    assert other > 0


async def test_a_call_killed_before_its_turn_never_runs(pool: ProcessPool) -> None:
    call = pool.begin(os._exit, 1)
    call.kill()
    with pytest.raises(ChildStopped):
        await call.future


async def test_closing_ends_what_runs(tmp_path: Path) -> None:
    pool = ProcessPool(1)
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    call = pool.begin(hold_the_lock, str(fifo))
    await asyncio.to_thread(fifo.read_text)
    await asyncio.to_thread(pool.close)
    with pytest.raises(ChildStopped):
        await call.future
    with pytest.raises(RuntimeError, match="closed"):
        pool.begin(abs, 1)
