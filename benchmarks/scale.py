"""Measure whether cost stays flat as the work grows: `make bench-scale`.

    .venv/bin/python -m benchmarks.scale [--parts depth,workers,partitions] [--sizes 1000,100000,1000000]

*depth*: the rates of running, submitting and batches while so many jobs are queued, finished and kept (below a cap, and
at the shipped one), or delayed; bytes a job, the slowest script call, memory of worker and API. *workers*: 1, 2 and 4
processes. *partitions*: 1, 4, 16.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import records, reference, scripts, tables
from benchmarks.calls import full_calls
from benchmarks.feed import DRAIN_S, Feed
from benchmarks.marks import Marks
from benchmarks.processes import Bench, Process, end_cleanly, run_json
from benchmarks.records import Figure
from penstock.core.limits import Limits

OUT = records.RESULTS / "scale.json"
PARTS = ("depth", "workers", "partitions")
LONG_MS = 5
#: So many finished jobs are kept where nothing is set.
CAP = Limits().finished_jobs
HOUR_MS = 3_600_000
#: More than come over HTTP while so many others lie there.
MOST_SENT = 3_000_000
#: A repeat takes a tenth of what lies there, so that the sweeps, which come once a second, have their share of it.
SHARE, MOST_JOBS = 10, 100_000
WORKERS = (1, 2, 4)
PARTITIONS = (1, 4, 16)


LOADS: dict[str, dict[str, Any]] = {
    "http": {"connections": 64},
    "batch": {"connections": 4, "path": "/jobs/batch", "items": 1_000, "media_type": "application/json"},
}


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """``jobs`` at least are submitted and run in each repeat; ``sizes`` say how many lie there meanwhile."""

    repeats: int = 5
    jobs: int = 20_000
    seconds: float = 0.5
    sizes: tuple[int, ...] = (1_000, 100_000, 1_000_000)
    parts: tuple[str, ...] = PARTS


class Scale:
    """Run the parts and collect their figures."""

    def __init__(self, bench: Bench, parameters: Parameters, say: Callable[[str], None]) -> None:
        self.bench = bench
        self.parameters = parameters
        self.figures: list[Figure] = []
        self.references = reference.References(bench.url, parameters.seconds)
        self._say = say
        self._made = 0

    def run(self) -> list[Figure]:
        parts = {"depth": self.depth, "workers": self.workers, "partitions": self.partitions}
        for name in self.parameters.parts:
            parts[name]()
        return [*self.figures, *self.references.figures()]

    def _feed(self, jobs: int, partitions: int = 1) -> tuple[Path, Feed]:
        self._made += 1
        path = self.bench.folder / f"marks-{self._made}"
        return path, Feed(self.bench, Marks.create(path, jobs), partitions=partitions)

    def _jobs(self, size: int) -> int:
        return max(self.parameters.jobs, min(MOST_JOBS, size // SHARE))

    def add(self, key: str, name: str, unit: str, values: list[float], **more: Any) -> None:
        self.figures.append(
            Figure(key=key, section=key.partition(".")[0], name=name, unit=unit, values=tuple(values), **more)
        )

    # depth

    def depth(self) -> None:
        for size in self.parameters.sizes:
            self.references.run()
            self._queued_then_finished(size)
            if size == CAP:
                self._capped(size)
            self._delayed(size)

    def _queued_then_finished(self, size: int) -> None:
        self.bench.reset()
        path, feed = self._feed(size * 2 + self._jobs(size) * (self.parameters.repeats * 2 + 4) + MOST_SENT)
        # All that finish are kept; `_capped` measures what it costs when each that comes pushes one out.
        kept = {"PENSTOCK_FINISHED_JOBS": str(feed.marks.jobs)}
        with self.bench.worker(path, env=kept) as worker, self.bench.api(env=kept) as (api, port):
            feed.pause()
            scripts.watch_slow_calls(self.bench)
            empty = self.bench.used_memory()
            self._fill(feed, size)
            queued = (self.bench.used_memory() - empty) / size
            self._measure(feed, "queued", size, worker, api, port)
            feed.resume()
            feed.wait_finished(feed.taken)
            feed.pause()
            finished = (self.bench.used_memory() - empty) / self.bench.kept()
            self._measure(feed, "finished", size, worker, api, port)
            feed.resume()
            feed.wait_finished(feed.taken)
            verdict = feed.marks.verdict(0, feed.taken)
        self.add(f"bytes.queued.{size}", "a queued job", "bytes", [queued], lower=True)
        self.add(f"bytes.finished.{size}", "a finished job, kept with its result", "bytes", [finished], lower=True)
        self._judge(("queued", "finished"), size, verdict)

    def _capped(self, size: int) -> None:
        self.bench.reset()
        path, feed = self._feed(size + self._jobs(size) * (self.parameters.repeats + 2) + MOST_SENT)
        with self.bench.worker(path) as worker, self.bench.api() as (api, port):
            scripts.watch_slow_calls(self.bench)
            self._fill(feed, size)
            feed.wait_finished(feed.taken)
            feed.pause()
            self._measure(feed, "capped", size, worker, api, port)
            feed.resume()
            feed.wait_finished(feed.taken)
            verdict = feed.marks.verdict(0, feed.taken)
        self._judge(("capped",), size, verdict)

    def _delayed(self, size: int) -> None:
        self.bench.reset()
        path, feed = self._feed(self._jobs(size) * (self.parameters.repeats + 2) + MOST_SENT)
        with self.bench.worker(path) as worker, self.bench.api() as (api, port):
            feed.pause()
            scripts.watch_slow_calls(self.bench)
            before = self.bench.used_memory()
            self._fill(feed, size, delay_ms=HOUR_MS, counted=False)
            self.add(f"bytes.delayed.{size}", "a delayed job", "bytes", [(self.bench.used_memory() - before) / size])
            self._measure(feed, "delayed", size, worker, api, port)
            feed.resume()
            feed.wait_finished(feed.taken)
            verdict = feed.marks.verdict(0, feed.taken)
        self._judge(("delayed",), size, verdict)

    def _fill(self, feed: Feed, size: int, *, delay_ms: int | None = None, counted: bool = True) -> None:
        started = time.perf_counter()
        feed.submit("noop", feed.take(size) if counted else 0, size, delay_ms=delay_ms)
        self._say(f"{size:,} jobs {'delayed' if delay_ms else 'queued'} in {time.perf_counter() - started:.1f} s")

    def _measure(self, feed: Feed, kind: str, size: int, worker: Process, api: Process, port: int) -> None:
        """Submit and run some jobs while ``size`` others lie there."""
        parameters, jobs = self.parameters, self._jobs(size)
        submits, runs = [], []
        over_http: dict[str, list[float]] = {"http": [], "batch": []}
        for _ in range(parameters.repeats):
            submits.append(feed.submit("noop", feed.take(jobs), jobs))
            runs.append(self._let_go(feed, jobs))
            for section, rates in over_http.items():
                order = LOADS[section] | {"port": port, "first": feed.taken, "last": feed.marks.jobs}
                answer = run_json("benchmarks.load", {"seconds": parameters.seconds, **order})
                feed.take(answer["sent"])
                rates.append(answer["rate"])
                self._let_go(feed, answer["sent"])
        self.add(f"submit.{kind}.{size}", f"{size:,} {kind}", "jobs/s", submits)
        self.add(f"run.{kind}.{size}", f"{size:,} {kind}", "jobs/s", runs)
        for section, rates in over_http.items():
            self.add(f"{section}.{kind}.{size}", f"{size:,} {kind}", "jobs/s", rates)
        slowest = next(iter(scripts.slow_calls(self.bench).items()), ("none over 2 ms", 0.0))
        self.add(
            f"slowest.{kind}.{size}", f"{size:,} {kind}", "ms", [slowest[1]], settings=slowest[0], lower=True,
            more={f"calls over {LONG_MS} ms": (scripts.calls_over(self.bench, LONG_MS),)},
        )  # fmt: skip
        alone = full_calls(feed)
        verb, longest = next(iter(alone.items()))
        self.add(
            f"alone.{kind}.{size}", f"{size:,} {kind}", "ms", [longest], settings=verb, lower=True,
            more={name: (ms,) for name, ms in alone.items()},
        )  # fmt: skip
        self.add(
            f"memory.{kind}.{size}", f"{size:,} {kind}", "MiB", [worker.rss_mib()],
            more={"API": (api.rss_mib(),)}, lower=True,
        )  # fmt: skip

    def _let_go(self, feed: Feed, jobs: int) -> float:
        """Let the worker run so many more jobs of the queue, the oldest first; return how many a second."""
        target = feed.finished() + jobs
        feed.resume()
        first = (0.0, 0)
        deadline = time.perf_counter() + DRAIN_S
        begun = feed.finished()
        while True:
            now, done = time.perf_counter(), feed.finished()
            if not first[0] and done > begun:
                first = (now, done)
            if done >= target or now > deadline:
                break
            time.sleep(0.002)
        feed.pause()
        return (done - first[1]) / (now - first[0]) if first[0] and now > first[0] else 0.0

    def _judge(self, kinds: tuple[str, ...], size: int, verdict: str) -> None:
        """Make void what was measured while jobs were lost or ran twice."""
        if verdict:
            ends = tuple(f".{kind}.{size}" for kind in kinds)
            self.figures = [
                msgspec.structs.replace(figure, void=verdict) if figure.key.endswith(ends) else figure
                for figure in self.figures
            ]

    # workers and partitions

    def workers(self) -> None:
        for count in WORKERS:
            self._run_both(f"workers.{count}", _counted(count, "process", "processes"), ("--processes", str(count)), 1)

    def partitions(self) -> None:
        for count in PARTITIONS:
            self._run_both(f"partitions.{count}", _counted(count, "partition", "partitions"), (), count)

    def _run_both(self, key: str, name: str, flags: tuple[str, ...], partitions: int) -> None:
        parameters = self.parameters
        self.bench.reset()
        self.references.run()
        path, feed = self._feed(parameters.jobs * (parameters.repeats + 1) * 2, partitions)
        with self.bench.worker(path, *flags, env={"PENSTOCK_PARTITIONS": str(partitions)}) as worker:
            feed.pause()
            for task, shown in (("noop", "no-op"), ("short", "1 ms")):
                submits, runs, verdicts = [], [], []
                for repeat in range(parameters.repeats + 1):
                    first = feed.take(parameters.jobs)
                    submitted = feed.submit(task, first, parameters.jobs)
                    ran, verdict = feed.drain(first, parameters.jobs)
                    if repeat:  # the first warms the worker
                        submits.append(submitted)
                        runs.append(ran)
                    verdicts.append(verdict)
                void = next((verdict for verdict in verdicts if verdict), "")
                self.add(f"{key}.{task}", f"{name}, {shown}", "jobs/s", runs, void=void)
                if task == "noop" and not flags:
                    self.add(f"{key}.submit", f"{name}, bulk submit", "jobs/s", submits)
            self.add(f"{key}.memory", name, "MiB", [worker.rss_mib()], lower=True)
        self._say(name)


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def main() -> int:
    end_cleanly()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Parameters()
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas between them")
    parser.add_argument("--sizes", default=",".join(str(size) for size in defaults.sizes))
    parser.add_argument("--repeats", type=int, default=defaults.repeats)
    parser.add_argument("--jobs", type=int, default=defaults.jobs, help="of each repeat")
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="of each repeat over HTTP")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    parameters = Parameters(
        repeats=given.repeats,
        jobs=given.jobs,
        seconds=given.seconds,
        sizes=tuple(int(size) for size in given.sizes.split(",")),
        parts=tuple(given.parts.split(",")),
    )
    with Bench() as bench:
        scale = Scale(bench, parameters, lambda text: print(text, file=sys.stderr, flush=True))
        figures = scale.run()
        report = records.make_report("scale", figures, msgspec.to_builtins(parameters), valkey=bench.valkey_version)
    before = records.load(given.out)
    if before is not None and set(parameters.parts) != set(PARTS):
        report = keep_other_parts(before, report)
    records.save(report, given.out)
    print(tables.report(report))
    return 1 if report.void else 0


def keep_other_parts(before: records.Report, report: records.Report) -> records.Report:
    """Return the report with the figures of an earlier run that this one did not measure."""
    sections = {figure.section for figure in report.figures}
    kept = tuple(figure for figure in before.figures if figure.section not in sections)
    return msgspec.structs.replace(report, figures=(*kept, *report.figures))


if __name__ == "__main__":
    sys.exit(main())
