"""Measure Penstock beside other job systems, on one Valkey in one run: `make bench-peers`.

    .venv/bin/python -m benchmarks.peers.run [--repeats 5] [--seconds 0.8] [--only penstock,bullmq]

Every system does the same: jobs are submitted, a fresh worker is started, and the rate counts from when a fifth of the
jobs have run until the last result is stored. Of the settings that a system documents the fastest is measured. A figure
is void when a job did not run exactly once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import records, reference, tables
from benchmarks.marks import VARIABLE, Marks
from benchmarks.peers import environments
from benchmarks.peers.catalogue import PEERS, PROGRAMS, Peer, Setting
from benchmarks.processes import Bench, clean_environment, end_cleanly
from benchmarks.records import ROOT, Figure

OUT = records.RESULTS / "peers.json"
TASKS = {"noop": "no-op jobs", "short": "jobs that wait 1 ms"}
RUN_S = 20.0
SKIPPED_PART = 0.2
#: All has been done by then; many take seconds to leave.
STOP_S = 0.3
MOST_JOBS = 100_000


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    repeats: int = 5
    seconds: float = 0.8
    only: tuple[str, ...] = ()


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one run of a worker."""

    rate: float
    verdict: str
    bytes_a_job: float


class Peers:
    """Run the peers one after the other."""

    def __init__(self, bench: Bench, parameters: Parameters) -> None:
        self.bench = bench
        self.parameters = parameters
        self.figures: list[Figure] = []
        self.notes: dict[str, Any] = {}
        self._runs = 0

    def measure(self, peer: Peer) -> None:
        best: dict[str, tuple[Setting, int]] = {}
        tried: dict[str, dict[str, float]] = {}
        for task in TASKS:
            rates: dict[str, float] = {}
            # A first run of a few jobs tells how many to take.
            expected = self._run(peer, peer.settings[0], task, 200).rate
            for setting in peer.settings:
                jobs = max(100, min(MOST_JOBS, int(max(expected, 100) * self.parameters.seconds / 2)))
                rates[setting.name] = self._run(peer, setting, task, jobs).rate
                expected = max(rates.values())
            tried[task] = rates
            chosen = max(peer.settings, key=lambda setting: rates[setting.name])
            jobs = int(rates[chosen.name] * self.parameters.seconds / (1 - SKIPPED_PART))
            best[task] = (chosen, max(50, min(MOST_JOBS, jobs)))
        self.notes[peer.name] = {
            "versions": environments.versions_of(peer.name) if not peer.is_ours else {},
            "tried": tried,
            "settings": {task: setting.name for task, (setting, _) in best.items()},
            "bulk": peer.bulk,
            "links": list(peer.links),
        }
        for task, (setting, jobs) in best.items():
            runs = [self._run(peer, setting, task, jobs) for _ in range(self.parameters.repeats)]
            self._add(
                peer, f"run.{task}", "jobs/s", [run.rate for run in runs],
                settings=f"{setting.name}; {jobs:,} jobs a repeat", void=_first([run.verdict for run in runs]),
            )  # fmt: skip
            if task == "noop":
                self._add(
                    peer, "bytes.finished", "bytes",
                    [run.bytes_a_job for run in runs], lower=True, void=_first([run.verdict for run in runs]),
                )  # fmt: skip
        self._submit_in_bulk(peer, best["noop"][0])

    def _submit_in_bulk(self, peer: Peer, setting: Setting) -> None:
        self.bench.reset()
        jobs = 500
        for _ in range(2):
            rate = jobs / self._submit(peer, setting, "noop", jobs)
            jobs = max(500, min(MOST_JOBS, int(rate * self.parameters.seconds)))
        rates, sizes = [], []
        for _ in range(self.parameters.repeats):
            self.bench.reset()
            before = self.bench.used_memory()
            rates.append(jobs / self._submit(peer, setting, "noop", jobs))
            sizes.append((self.bench.used_memory() - before) / jobs)
        self._add(peer, "submit.bulk", "jobs/s", rates, settings=f"{peer.bulk}; {jobs:,} jobs")
        self._add(peer, "bytes.queued", "bytes", sizes, lower=True)

    def _run(self, peer: Peer, setting: Setting, task: str, jobs: int) -> Run:
        """Submit jobs, start a worker, and see them through."""
        self.bench.reset()
        before = self.bench.used_memory()
        self._submit(peer, setting, task, jobs)
        self._runs += 1
        path = self.bench.folder / f"runs-{self._runs}"
        marks = Marks.create(path, jobs)
        env = self._environment(peer, setting) | {VARIABLE: str(path)}
        with self.bench.command(peer.worker(setting), env, peer.name, stop_s=STOP_S, cwd=self._cwd(peer)) as worker:
            curve = marks.watch(0, jobs, timeout_s=RUN_S)
            stored_s = self._stored(peer, jobs)
            words = worker.last_words()
        verdict = marks.verdict(0, jobs)
        bytes_a_job = (self.bench.used_memory() - before) / jobs
        marks.close()
        path.unlink()
        if verdict and not curve:
            verdict += f" ({' '.join(words.split())[-200:]})"
        return Run(rate=rate_of(curve, jobs, stored_s), verdict=verdict, bytes_a_job=bytes_a_job)

    def _stored(self, peer: Peer, jobs: int) -> float:
        """Return when all results were stored. Looking may cost the server time, so it is done seldom at the end."""
        deadline = time.perf_counter() + 10
        while (now := time.perf_counter()) < deadline and peer.finished(self.bench, jobs) < jobs:
            time.sleep(0.01)
        return now

    def _submit(self, peer: Peer, setting: Setting, task: str, jobs: int) -> float:
        """Return how many seconds it took to submit so many jobs."""
        done = subprocess.run(
            peer.submitter(task, jobs),
            check=False,
            cwd=PROGRAMS,
            env={**clean_environment(), **self._environment(peer, setting)},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{peer.name}: {done.stderr[-1000:]}")
        return float(json.loads(done.stdout.splitlines()[-1])["seconds"])

    def _environment(self, peer: Peer, setting: Setting) -> dict[str, str]:
        # RQ takes its server from a variable.
        found = {"BENCHMARK_REDIS_URL": self.bench.url, "RQ_REDIS_URL": self.bench.url}
        if peer.is_ours:
            found["PENSTOCK_REDIS_URL"] = self.bench.url
        path = str(ROOT) if peer.is_ours else str(PROGRAMS)
        return found | {"PYTHONPATH": path} | peer.environment(setting)

    def _cwd(self, peer: Peer) -> Path:
        return ROOT if peer.is_ours else PROGRAMS

    def _add(self, peer: Peer, key: str, unit: str, values: list[float], **more: Any) -> None:
        self.figures.append(
            Figure(key=f"{peer.name}.{key}", section=key, name=peer.name, unit=unit, values=tuple(values), **more)
        )


def rate_of(curve: list[tuple[float, int]], jobs: int, stored_s: float) -> float:
    """Return how many jobs a second ran, from when a fifth of them had until the last result was stored.

    ``curve`` says when how many had run. Of so few that all had run at the first look a guess is made.
    """
    if not curve:
        return 0.0
    began_s, ran = next(((at_s, ran) for at_s, ran in curve if ran >= SKIPPED_PART * jobs), curve[-1])
    if ran >= jobs:
        began_s, ran = curve[0][0] - 0.004, 0
    return (jobs - ran) / (stored_s - began_s)


def _first(verdicts: list[str]) -> str:
    return next((verdict for verdict in verdicts if verdict), "")


def main() -> int:
    end_cleanly()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Parameters()
    parser.add_argument("--repeats", type=int, default=defaults.repeats)
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="of each repeat, about")
    parser.add_argument("--only", default="", help="names of systems, with commas between them")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    parameters = Parameters(
        repeats=given.repeats, seconds=given.seconds, only=tuple(name for name in given.only.split(",") if name)
    )
    chosen = [peer for peer in PEERS if not parameters.only or peer.name in parameters.only]
    with Bench() as bench:
        run = Peers(bench, parameters)
        loops = reference.References(bench.url, parameters.seconds / 2)
        for peer in chosen:
            started = time.perf_counter()
            loops.run()
            try:
                run.measure(peer)
            except (environments.EnvironmentFailed, RuntimeError) as error:
                print(f"{peer.name} is left out: {error}", file=sys.stderr)
                continue
            print(f"{peer.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        report = records.make_report(
            "peers",
            [*run.figures, *loops.figures()],
            msgspec.to_builtins(parameters),
            valkey=bench.valkey_version,
            notes=run.notes,
        )
    records.save(report, given.out)
    print(tables.report(report))
    return 1 if report.void else 0


if __name__ == "__main__":
    sys.exit(main())
