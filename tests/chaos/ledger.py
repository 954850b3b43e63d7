"""Keep outside Valkey what was accepted and what ran."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

_TRIES = 8
#: More lines than any fault lasts for.
_RECENT = 5_000


@dataclasses.dataclass(frozen=True)
class Run:
    """Be one line of a handler; ``at_s`` is the machine's monotonic clock, ``wall_s`` what the process held for now."""

    starts: bool
    job: str
    attempt: int
    worker: str
    pid: int
    at_s: float
    wall_s: float


class Runs:
    """Read what handlers wrote, each line once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._runs: list[Run] = []
        self._open: dict[tuple[str, int, str, int], Run] = {}

    def read(self) -> list[Run]:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode().splitlines():
            mark, job, attempt, worker, pid, at_s, wall_s = line.split()
            run = Run(mark == "S", job, int(attempt), worker, int(pid), float(at_s), float(wall_s))
            self._runs.append(run)
            key = (run.job, run.attempt, run.worker, run.pid)
            if run.starts:
                self._open[key] = run
            else:
                self._open.pop(key, None)
        return self._runs

    def open_of(self, worker: str, pids: Sequence[int] | None = None) -> set[str]:
        """Return the jobs that a worker, or some of its processes, has started and not ended."""
        self.read()
        return {run.job for run in self._open.values() if run.worker == worker and (pids is None or run.pid in pids)}

    def forget(self, pid: int) -> None:
        """Count nothing as open any more in a process that is dead."""
        self.read()
        self._open = {key: run for key, run in self._open.items() if run.pid != pid}

    def since(self, at_s: float, *, starts: bool = True) -> list[Run]:
        """Return the newest starts, or ends, that came after a moment."""
        return [run for run in self.read()[-_RECENT:] if run.at_s > at_s and run.starts == starts]


@dataclasses.dataclass(frozen=True)
class Accepted:
    """Be one answer of 2xx: which job, what it should come to, and when it was asked for and answered."""

    id: str
    number: int
    asked_s: float
    answered_s: float


class Submitters:
    """Submit over HTTP without end; what was answered 2xx is accepted, what was not answered may or may not be.

    A part of the submits carries an ``Idempotency-Key`` or holds a unique key: those are sent again until they are
    answered, now and then once more after that, and must always name the same job.
    """

    def __init__(self, urls: Sequence[str], seed: int, ledger: Path, *, count: int = 4, pause_s: float = 0.08) -> None:
        self._urls = urls
        self._seed = seed
        self._ledger = ledger.open("w", buffering=1)
        self._count = count
        self._pause_s = pause_s
        self._stopping = False
        self._number = 0
        self.accepted: dict[str, Accepted] = {}
        self.keyed = self.repeated = 0
        #: Of one key: two jobs, and when the second was answered.
        self.doubles: list[tuple[str, str, float]] = []
        self.refused: collections.Counter[str] = collections.Counter()

    async def run(self) -> None:
        try:
            await asyncio.gather(*(self._submit(number) for number in range(self._count)))
        finally:
            self._ledger.close()

    def stop(self) -> None:
        self._stopping = True

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def _accept(self, job_id: str, number: int, asked_s: float) -> None:
        if job_id not in self.accepted:
            self.accepted[job_id] = Accepted(job_id, number, asked_s, time.monotonic())
            self._ledger.write(f"{job_id} {number} {time.monotonic():.3f}\n")

    async def _submit(self, who: int) -> None:
        source = random.Random(f"{self._seed}-{who}")
        async with httpx.AsyncClient(timeout=2.0) as client:
            while not self._stopping:
                number = self.next_number()
                # Some outlive a worker's drain.
                seconds = 4.0 if source.random() < 0.02 else source.choice((0.02, 0.1, 0.3, 1.0))
                body = {
                    "task": source.choice(("chaos_async", "chaos_async", "chaos_thread")),
                    "input": {"number": number, "seconds": seconds},
                    "priority": source.choice(("high", "normal", "low")),
                    "delay": source.choice((0, 0, 0, 0.5)),
                }
                key, again = source.choice(("", "", "", "", "idempotency", "unique")), source.random() < 0.3
                apis = [source.randrange(len(self._urls)) for _ in range(_TRIES)]
                if key:
                    await self._insist(client, apis, body, number, key=key, again=again)
                else:
                    await self._post(client, apis[0], body, number, {})
                await asyncio.sleep(self._pause_s * source.uniform(0.5, 1.5))

    async def _insist(
        self, client: httpx.AsyncClient, apis: list[int], body: dict[str, Any], number: int, *, key: str, again: bool
    ) -> None:
        name = f"{self._seed}-{number}"
        headers = {"Idempotency-Key": name} if key == "idempotency" else {}
        if key == "unique":
            # Held for longer than the run takes, whatever becomes of the job.
            body = body | {"unique": {"key": name, "for": "1h", "on_conflict": "return_existing"}}
        self.keyed += 1
        first: str | None = None
        tries = 0
        for api in apis:
            found = await self._post(client, api, body, number, headers)
            tries += 1
            if found is None:
                await asyncio.sleep(0.2)
                continue
            if first is None:
                first = found
                if not again:
                    break
            elif found != first:
                self.doubles.append((first, found, time.monotonic()))
                break
            else:
                break
        self.repeated += tries > 1

    async def _post(
        self, client: httpx.AsyncClient, api: int, body: dict[str, Any], number: int, headers: dict[str, str]
    ) -> str | None:
        asked_s = time.monotonic()
        try:
            answer = await client.post(f"{self._urls[api]}/submit", json=body, headers=headers)
        except httpx.HTTPError as error:
            self.refused[f"api-{api}:{type(error).__name__}"] += 1
            self.refused[f"api-{api}"] += 1
            return None
        if not answer.is_success:
            self.refused[answer.json()["code"]] += 1
            return None
        job_id: str = answer.json()["id"]
        self._accept(job_id, number, asked_s)
        return job_id

    async def one(self, task: str, **given: Any) -> str | None:
        """Submit one job of a fault's own; None when no API took it."""
        number = self.next_number()
        async with httpx.AsyncClient(timeout=5.0) as client:
            for api in range(len(self._urls)):
                found = await self._post(
                    client,
                    api,
                    {"task": task, "input": {"number": number, **given}, "priority": "critical"},
                    number,
                    {},
                )
                if found is not None:
                    return found
        return None

    async def burst(self, count: int, seconds: float) -> int:
        """Submit jobs that will still wait and run for a while; return how many were taken."""
        numbers = [self.next_number() for _ in range(count)]
        jobs = [{"task": "chaos_async", "input": {"number": number, "seconds": seconds}} for number in numbers]
        async with httpx.AsyncClient(timeout=5.0) as client:
            for url in self._urls:
                asked_s = time.monotonic()
                try:
                    answer = await client.post(f"{url}/jobs/batch", json=jobs)
                except httpx.HTTPError:
                    continue
                if answer.is_success:
                    taken = [(item["index"], item["id"]) for item in answer.json()["items"] if "id" in item]
                    for index, job_id in taken:
                        self._accept(job_id, numbers[index], asked_s)
                    return len(taken)
        return 0

    def refusals(self, code: str) -> Callable[[], int]:
        """Return a count of refusals of a kind from now on."""
        before = self.refused[code]
        return lambda: self.refused[code] - before
