"""Be the tasks that the benchmarks run; each counts its run where the benchmark can see it."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from benchmarks.marks import VARIABLE, Marks
from penstock import task

_marks = Marks(Path(os.environ[VARIABLE]))
_runs = _marks.runs
_stamps = _marks.stamps


@task
async def noop(n: int) -> int:
    """Do nothing, on the loop."""
    _runs[n] += 1
    return n


@task
async def short(n: int) -> int:
    """Wait 1 ms, as for an answer from elsewhere."""
    _runs[n] += 1
    await asyncio.sleep(0.001)
    return n


@task
def threaded(n: int) -> int:
    """Do nothing, on a thread."""
    _runs[n] += 1
    return n


@task(executor="process")
def pooled(n: int) -> int:
    """Do nothing, in a process of the pool."""
    _runs[n] += 1
    return n


@task
async def hold(n: int) -> int:
    """Hold the slot until it is cancelled, and note when."""
    _runs[n] += 1
    try:
        await asyncio.Event().wait()
    finally:
        _stamps[n] = time.monotonic_ns()
    return n


@task
async def stamp(n: int) -> int:
    """Note when the handler started, by the clock that all processes share."""
    _stamps[n] = time.monotonic_ns()
    _runs[n] += 1
    return n


@task
async def stamp_time(n: int) -> int:
    """Note at what time the handler started (Unix ns)."""
    _stamps[n] = time.time_ns()
    _runs[n] += 1
    return n
