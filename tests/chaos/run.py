"""Break a running Penstock at random for a while, then demand that nothing was lost or finished twice.

    make chaos CHAOS_SECONDS=900 CHAOS_SEED=1 CHAOS_FSYNC=always

The seed fixes the order of the faults, the process that each takes and what is submitted; the machine's timing it
cannot fix.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime as dt
import json
import os
import platform
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos.faults import Bite, Faults
from tests.chaos.ledger import Run, Runs, Submitters, Verdict, judge
from tests.chaos.stack import LEASE_S, Stack

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"


@dataclasses.dataclass(kw_only=True)
class Report:
    """Hold what a run did and found."""

    seed: int
    fsync: str
    seconds: float
    bites: dict[str, list[Bite]]
    verdict: Verdict
    recovery: dict[str, list[float]]
    refused: dict[str, int]
    least_bites: int

    @property
    def missed(self) -> list[str]:
        """Return the kinds of fault that bit too seldom: with any of them the run is void."""
        counts = {kind: sum(bite.count > 0 for bite in bites) for kind, bites in self.bites.items()}
        return [f"{kind}: {count} of {self.least_bites}" for kind, count in counts.items() if count < self.least_bites]

    @property
    def wrong(self) -> list[str]:
        return self.verdict.wrong(may_lose=self.fsync != "always")

    def lines(self) -> list[str]:
        """Return the tables that people read."""
        found = [f"{'fault':32}{'tried':>6}{'bit':>5}  last evidence"]
        for kind, bites in self.bites.items():
            bit = sum(bite.count > 0 for bite in bites)
            found.append(f"{kind:32}{len(bites):6}{bit:5}  {bites[-1].evidence if bites else ''}")
        verdict = self.verdict
        found += [
            "",
            f"seed {self.seed}, appendfsync {self.fsync}, lease {LEASE_S:g} s, {self.seconds:.0f} s of load",
            (
                f"jobs accepted {verdict.accepted}, stored {verdict.stored}, lost {len(verdict.lost)}, "
                f"not completed {len(verdict.unfinished)}, finished twice {verdict.doubly_finished}, "
                f"audit findings {len(verdict.findings)}"
            ),
            "runs per job: " + ", ".join(f"{jobs} jobs {runs}x" for runs, jobs in verdict.runs_per_job.items()),
        ]
        for name, times in self.recovery.items():
            if times:
                middle = sorted(times)[len(times) // 2]
                found.append(f"{name}: n {len(times)}, median {middle:.2f} s, worst {max(times):.2f} s")
        found += [f"VOID, bit too seldom: {kind}" for kind in self.missed] + [f"BROKEN: {text}" for text in self.wrong]
        return found

    def document(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {
            "missed": self.missed,
            "wrong": self.wrong,
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
        }


async def chaos(
    folder: Path, *, seed: int, seconds: float, fsync: str, kinds: Sequence[str] = (), least_bites: int = 3
) -> Report:
    """Run the load and the faults; each round takes every kind once in a random order, the last is finished."""
    source = random.Random(seed)
    stack = Stack(folder, fsync=fsync)
    runs = Runs(folder / "runs")
    loading: asyncio.Task[None] | None = None
    try:
        await stack.start()
        submitters = Submitters([api.url for api in stack.of("api")], seed)
        loading = asyncio.create_task(submitters.run())
        faults = Faults(stack, runs, submitters, source)
        chosen = list(kinds or faults.kinds)
        bites: dict[str, list[Bite]] = {kind: [] for kind in chosen}
        while not any(run.starts for run in runs.read()):  # noqa: ASYNC110 - another process writes the file
            await asyncio.sleep(0.05)
        began = time.monotonic()
        while time.monotonic() - began < seconds or any(len(bites[kind]) < least_bites for kind in chosen):
            source.shuffle(chosen)
            for kind in chosen:
                bite = await faults.kinds[kind]()
                bites[kind].append(bite)
                print(f"{time.monotonic() - began:7.1f} s  {kind}: {bite.evidence}", flush=True)
                await asyncio.sleep(source.uniform(0.2, 0.8))
        lasted = time.monotonic() - began
        submitters.stop()
        await loading
        verdict = await judge(stack.valkey.url, submitters.accepted, runs)
        return Report(
            seed=seed,
            fsync=fsync,
            seconds=lasted,
            bites=bites,
            verdict=verdict,
            recovery=_recovery(faults.marks, runs.read()),
            refused=dict(submitters.refused),
            least_bites=least_bites,
        )
    finally:
        if loading is not None:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        await stack.stop()


def _recovery(marks: list[tuple[str, float, frozenset[str]]], runs: list[Run]) -> dict[str, list[float]]:
    """Measure from a fault to the next start: of each job that it stopped, or of any after the server's death."""
    times: dict[str, list[float]] = collections.defaultdict(list)
    for what, at_s, jobs in marks:
        starts = [run for run in runs if run.starts and run.at_s > at_s]
        if what == "Valkey SIGKILL":
            times["Valkey SIGKILL -> first start"] += [min(run.at_s for run in starts) - at_s] if starts else []
            continue
        for job in jobs:
            again = [run.at_s for run in starts if run.job == job]
            times[f"{what} -> started elsewhere"] += [min(again) - at_s] if again else []
    return dict(times)


def main() -> int:
    seed = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(1_000_000))
    seconds = float(os.environ.get("CHAOS_SECONDS") or 900)
    fsync = os.environ.get("CHAOS_FSYNC") or "always"
    least = 3 if seconds >= 300 else 1
    print(f"chaos: CHAOS_SEED={seed} CHAOS_SECONDS={seconds:g} CHAOS_FSYNC={fsync}", flush=True)
    with tempfile.TemporaryDirectory(prefix="penstock-chaos-", ignore_cleanup_errors=True) as folder:
        report = asyncio.run(chaos(Path(folder), seed=seed, seconds=seconds, fsync=fsync, least_bites=least))
    print("\n".join(["", *report.lines()]))
    RESULTS.mkdir(parents=True, exist_ok=True)
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    (RESULTS / f"chaos-{stamp}-{seed}.json").write_text(json.dumps(report.document(), indent=1) + "\n")
    return 1 if report.wrong or report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
