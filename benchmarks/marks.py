"""Count each job's runs outside the store: a byte for each job in a file that processes share."""

from __future__ import annotations

import mmap
import time
from pathlib import Path

VARIABLE = "BENCHMARK_MARKS"
"""Names the file, for handlers."""
_STAMP_BYTES = 8


class Marks:
    """Share a file of one byte a job, how often it ran, and of eight, when a handler that stamps started (ns).

    A handler adds one to its job's byte. It costs some 50 ns, so that it can be done in every figure.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.jobs = len(self._map) // (1 + _STAMP_BYTES)
        self.runs = memoryview(self._map)[: self.jobs]
        self.stamps = memoryview(self._map)[self.jobs : self.jobs * (1 + _STAMP_BYTES)].cast("Q")

    @classmethod
    def create(cls, path: Path, jobs: int) -> Marks:
        """Make the file for up to ``jobs`` jobs, a multiple of eight."""
        jobs += -jobs % _STAMP_BYTES
        with path.open("wb") as file:
            file.truncate(jobs * (1 + _STAMP_BYTES))
        return cls(path)

    def ran(self, first: int, jobs: int) -> int:
        """Return how many of the jobs have run."""
        return jobs - self._map[first : first + jobs].count(0)

    def verdict(self, first: int, jobs: int) -> str:
        """Say how the jobs did not run exactly once each; nothing when they did."""
        runs = self._map[first : first + jobs]
        never, once = runs.count(0), runs.count(1)
        more = jobs - never - once
        parts = [f"{never} of {jobs} jobs never ran"] if never else []
        parts += [f"{more} of {jobs} jobs ran more than once"] if more else []
        return ", ".join(parts)

    def watch(self, first: int, jobs: int, *, timeout_s: float) -> list[tuple[float, int]]:
        """Return when how many of the jobs had run, looking each 2 ms, until all have; (seconds, jobs)."""
        curve: list[tuple[float, int]] = []
        deadline = time.perf_counter() + timeout_s
        while True:
            now, ran = time.perf_counter(), self.ran(first, jobs)
            if ran and (not curve or ran > curve[-1][1]):
                curve.append((now, ran))
            if ran == jobs or now > deadline:
                return curve
            time.sleep(0.002)

    def close(self) -> None:
        self.runs.release()
        self.stamps.release()
        self._map.close()
