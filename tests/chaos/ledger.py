"""Keep outside Valkey what was accepted and what ran, and judge the end by it."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import random
from pathlib import Path

import httpx

from penstock.core.ids import JobId
from penstock.core.states import State
from penstock.store import StoreOptions
from penstock.store.audit import audit
from penstock.store.redis.store import RedisStore

END_S = 120.0


@dataclasses.dataclass(frozen=True)
class Run:
    """Be one line of a handler."""

    starts: bool
    job: str
    attempt: int
    worker: str
    at_s: float


class Runs:
    """Read what handlers wrote."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Run]:
        lines = (line.split() for line in self._path.read_text().splitlines())
        return [Run(m == "S", job, int(attempt), worker, float(at)) for m, job, attempt, worker, at in lines]

    def open_of(self, worker: str) -> set[str]:
        """Return the jobs that a process has started and not ended."""
        runs = [run for run in self.read() if run.worker == worker]
        ended = {(run.job, run.attempt) for run in runs if not run.starts}
        return {run.job for run in runs if run.starts and (run.job, run.attempt) not in ended}


class Submitters:
    """Submit over HTTP without end; what was answered 2xx is accepted, what was not answered may or may not be."""

    def __init__(self, urls: list[str], seed: int, *, count: int = 4, pause_s: float = 0.08) -> None:
        self._urls = urls
        self._seed = seed
        self._count = count
        self._pause_s = pause_s
        self._stopping = False
        self._number = 0
        self.accepted: dict[str, int] = {}
        self.refused: collections.Counter[str] = collections.Counter()

    async def run(self) -> None:
        await asyncio.gather(*(self._submit(number) for number in range(self._count)))

    def stop(self) -> None:
        self._stopping = True

    async def _submit(self, who: int) -> None:
        source = random.Random(f"{self._seed}-{who}")
        async with httpx.AsyncClient(timeout=2.0) as client:
            while not self._stopping:
                self._number += 1
                number = self._number
                seconds = source.choice((0.02, 0.1, 0.3, 1.0))
                body = {
                    "task": source.choice(("chaos_async", "chaos_async", "chaos_thread")),
                    "input": {"number": number, "seconds": seconds},
                    "priority": source.choice(("high", "normal", "low")),
                    "delay": source.choice((0, 0, 0, 0.5)),
                }
                api = source.randrange(len(self._urls))
                try:
                    answer = await client.post(f"{self._urls[api]}/submit", json=body)
                except httpx.HTTPError as error:
                    self.refused[f"api-{api}:{type(error).__name__}"] += 1
                    self.refused[f"api-{api}"] += 1
                else:
                    if answer.is_success:
                        self.accepted[answer.json()["id"]] = number
                    else:
                        self.refused[answer.json()["code"]] += 1
                await asyncio.sleep(self._pause_s * source.uniform(0.5, 1.5))


@dataclasses.dataclass(kw_only=True)
class Verdict:
    """Say how a run ended; ``wrong`` is empty when all promises held."""

    accepted: int = 0
    stored: int = 0
    lost: list[str] = dataclasses.field(default_factory=list)
    unfinished: list[str] = dataclasses.field(default_factory=list)
    wrong_results: list[str] = dataclasses.field(default_factory=list)
    completions: int = 0
    doubly_finished: int = 0
    findings: list[str] = dataclasses.field(default_factory=list)
    runs_per_job: dict[int, int] = dataclasses.field(default_factory=dict)

    def wrong(self, *, may_lose: bool) -> list[str]:
        """Return each broken promise; ``may_lose`` for a server that may forget its last second."""
        found = []
        if self.lost and not may_lose:
            found.append(f"lost: {self.lost[:5]}")
        if self.unfinished:
            found.append(f"not completed: {self.unfinished[:5]}")
        if self.wrong_results:
            found.append(f"wrong results: {self.wrong_results[:5]}")
        if self.doubly_finished:
            found.append(f"{self.completions} completions of {self.stored} jobs")
        return found + self.findings[:10]


async def judge(url: str, accepted: dict[str, int], runs: Runs) -> Verdict:
    """Wait until nothing waits or runs any more, then compare the store with what was written down outside it."""
    store = RedisStore(StoreOptions(redis_url=url, namespace="chaos"))
    try:
        await _settled(store)
        verdict = Verdict(accepted=len(accepted))
        for job_id, number in accepted.items():
            record = await store.get(JobId(job_id))
            if record is None:
                verdict.lost.append(job_id)
            elif record.state is not State.COMPLETED:
                verdict.unfinished.append(f"{job_id} {record.state.value}")
            elif record.result != str(number).encode():
                verdict.wrong_results.append(f"{job_id} {record.result!r}")
        report = await audit(store.connection.options)
        verdict.findings = [f"{found.code} {found.subject} {found.detail}" for found in report.findings]
        verdict.stored = report.jobs
        counters = await store.counters()
        verdict.completions = sum(count for (name, _), count in counters.items() if name == "completed")
        verdict.doubly_finished = verdict.completions - verdict.stored
        started = collections.Counter(run.job for run in runs.read() if run.starts)
        verdict.runs_per_job = dict(sorted(collections.Counter(started[job] for job in accepted).items()))
        return verdict
    finally:
        await store.close()


async def _settled(store: RedisStore) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + END_S
    while loop.time() < end:
        counters = await store.counters()
        totals: collections.Counter[str] = collections.Counter()
        for (name, _), count in counters.items():
            totals[name] += count
        ended = totals["completed"] + totals["failed"] + totals["cancelled"] + totals["expired"] + totals["poisoned"]
        if ended >= totals["submitted"]:
            return
        await asyncio.sleep(0.1)
