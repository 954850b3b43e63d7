"""Measure Penstock at its shipped defaults on a Valkey of its own: `make bench`.

    .venv/bin/python -m benchmarks.throughput [--repeats 5] [--seconds 0.7] [--only run,http]

Prints a table and writes the raw figures to ``benchmarks/results/throughput.json``, a part of them (``--only``) to
``--out`` alone. A figure is void when one of its jobs did not run exactly once.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import fairness, records, reference, tables
from benchmarks.feed import DRAIN_S, Feed, Http, new_jobs
from benchmarks.marks import Marks
from benchmarks.processes import Bench, Process, end_cleanly, free_port, run_json, until
from benchmarks.records import Figure, percentile
from penstock.config import SETTINGS
from penstock.core.job import Submitted
from penstock.store.redis.store import RedisStore

CONNECTIONS = (1, 8, 64, 256)
BATCH_ITEMS = 1_000
BATCH_CONNECTIONS = 4
MARKED_JOBS = 8_000_000
OUT = records.RESULTS / "throughput.json"
EXECUTORS = (
    ("noop", "no-op jobs, async", "concurrency 100"),
    ("short", "jobs that wait 1 ms, async", "concurrency 100"),
    ("threaded", "no-op jobs on threads", "8 threads"),
    ("pooled", "no-op jobs in processes", "a pool process a core"),
)


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """Say how long to measure: ``samples`` are the jobs timed one by one in each repeat."""

    repeats: int = 5
    seconds: float = 0.7
    samples: int = 200
    idle_seconds: float = 2.0
    only: tuple[str, ...] = ()


class Throughput:
    """Run the sections and collect their figures."""

    def __init__(self, bench: Bench, parameters: Parameters) -> None:
        self.bench = bench
        self.parameters = parameters
        self.figures: list[Figure] = []
        self.references = reference.References(bench.url, parameters.seconds / 2)
        self._made = 0
        self.sections: dict[str, Callable[[], None]] = {
            "run": self.run_jobs,
            "submit": self.submit_in_bulk,
            "http": self.submit_over_http,
            "fsync": self.submit_with_fsync,
            "batch": self.submit_batches,
            "latency": self.latency,
            "fairness": self.fairness,
            "delayed": self.delayed,
            "idle": self.idle,
        }

    def run(self, say: Callable[[str], None]) -> list[Figure]:
        chosen = self.parameters.only or tuple(self.sections)
        for name in chosen:
            self.bench.reset()
            self.references.run()
            started = time.perf_counter()
            self.sections[name]()
            say(f"{name}: {time.perf_counter() - started:.0f} s")
        while len(self.references.figures()[0].values) < self.parameters.repeats:
            self.references.run()
        return [*self.figures, *self.references.figures()]

    def marks(self) -> tuple[Path, Feed]:
        """Make the file in which handlers count, and a feed that numbers its jobs."""
        self._made += 1
        path = self.bench.folder / f"marks-{self._made}"
        return path, Feed(self.bench, Marks.create(path, MARKED_JOBS))

    def add(self, key: str, name: str, unit: str, values: list[float], **more: Any) -> None:
        more.setdefault("section", key.partition(".")[0])
        more.setdefault("reference", reference.LOOP)
        self.figures.append(Figure(key=key, name=name, unit=unit, values=tuple(values), **more))

    # sections

    def run_jobs(self) -> None:
        path, feed = self.marks()
        with self.bench.worker(path):
            feed.pause()
            for task, name, settings in EXECUTORS:
                jobs = self._pilot(feed, task)
                rates, verdicts = [], []
                for _ in range(self.parameters.repeats):
                    first = feed.take(jobs)
                    feed.submit(task, first, jobs)
                    rate, verdict = feed.drain(first, jobs)
                    rates.append(rate)
                    verdicts.append(verdict)
                self.add(
                    f"run.{task}", name, "jobs/s", rates, settings=f"{settings}; {jobs:,} jobs a repeat",
                    void=_first(verdicts),
                )  # fmt: skip

    def _pilot(self, feed: Feed, task: str) -> int:
        """Return how many jobs take about the time of one repeat; what it runs warms the worker."""
        rate = 1_000.0
        for part in (0.2, 0.4):
            jobs = max(200, int(rate * self.parameters.seconds * part))
            first = feed.take(jobs)
            feed.submit(task, first, jobs)
            rate = feed.drain(first, jobs)[0]
        return max(100, min(150_000, int(rate * self.parameters.seconds)))

    def submit_in_bulk(self) -> None:
        path, feed = self.marks()
        with self.bench.worker(path):
            feed.pause()
            first = feed.take(2_000)
            rate = feed.submit("noop", first, 2_000)
            feed.drain(first, 2_000)
            jobs = max(500, int(rate * self.parameters.seconds))
            rates, verdicts = [], []
            for _ in range(self.parameters.repeats):
                first = feed.take(jobs)
                rates.append(feed.submit("noop", first, jobs))
                verdicts.append(feed.drain(first, jobs)[1])
            self.add(
                "submit.bulk", "submit straight to the store", "jobs/s", rates,
                settings=f"one Python process makes the jobs and submits 10,000 a call; {jobs:,} jobs a repeat",
                void=_first(verdicts),
            )  # fmt: skip

    def submit_over_http(self) -> None:
        path, feed = self.marks()
        with self.bench.worker(path), self.bench.api() as (_, port):
            feed.pause()
            for connections in CONNECTIONS:
                self._load(
                    feed, port, f"http.{connections}", f"`POST /submit`, {_connections(connections)}", connections
                )
            feed.resume()
            self._load(
                feed, port, "http.64.run", f"`POST /submit`, {_connections(64)}, a worker runs them meanwhile", 64,
                paused=False,
            )  # fmt: skip
        port = free_port()
        with self.bench.program("benchmarks.trivial", str(port)) as process:
            until(lambda: listens(process, port), "the trivial server listens")
            for connections in CONNECTIONS:
                answers = [self._run_load(port, connections, 0, MARKED_JOBS) for _ in range(self.parameters.repeats)]
                self._add_load(
                    answers, f"headroom.{connections}", f"the same generator, {_connections(connections)}",
                    "a server that does nothing but answer", "",
                )  # fmt: skip

    def submit_with_fsync(self) -> None:
        if not any(setting.env == "PENSTOCK_DURABILITY" for setting in SETTINGS):
            return
        self.bench.reset(appendfsync="always")
        path, feed = self.marks()
        env = {"PENSTOCK_DURABILITY": "fsync"}
        with self.bench.worker(path, env=env), self.bench.api(env) as (_, port):
            feed.pause()
            for connections in (1, 64):
                name = f"`POST /submit`, {_connections(connections)}, durability `fsync`"
                settings = "one API process; `appendfsync always`"
                self._load(feed, port, f"fsync.{connections}", name, connections, settings=settings)

    def submit_batches(self) -> None:
        for appendonly in (True, False):
            self.bench.reset(appendonly=appendonly)
            path, feed = self.marks()
            written = "append-only file, everysec" if appendonly else "no append-only file"
            with self.bench.worker(path), self.bench.api() as (_, port):
                feed.pause()
                for kind, media_type in (("JSON", "application/json"), ("NDJSON", "application/x-ndjson")):
                    self._load(
                        feed, port, f"batch.{kind.lower()}.{'aof' if appendonly else 'memory'}",
                        f"`POST /jobs/batch`, {kind}, {written}", BATCH_CONNECTIONS,
                        settings=f"one API process; {BATCH_ITEMS:,} jobs a request, {BATCH_CONNECTIONS} connections",
                        path="/jobs/batch", items=BATCH_ITEMS, media_type=media_type,
                    )  # fmt: skip
        self.bench.reset()

    def _load(
        self, feed: Feed, port: int, key: str, name: str, connections: int,
        *, settings: str = "one API process", paused: bool = True, **order: Any,
    ) -> None:  # fmt: skip
        answers, verdicts = [], []
        for _ in range(self.parameters.repeats):
            first = feed.take(0)
            answer = self._run_load(port, connections, first, MARKED_JOBS, **order)
            feed.take(answer["sent"])
            answers.append(answer)
            if paused and answer["sent"]:
                verdicts.append(feed.drain(first, answer["sent"])[1])
            elif answer["sent"]:
                feed.marks.watch(first, answer["sent"], timeout_s=DRAIN_S)
                feed.wait_finished(feed.taken)
                verdicts.append(feed.marks.verdict(first, answer["sent"]))
        self._add_load(answers, key, name, settings, _first(verdicts))

    def _run_load(self, port: int, connections: int, first: int, last: int, **order: Any) -> dict[str, Any]:
        seconds = self.parameters.seconds * (1.5 if order.get("items") else 1)
        return run_json(
            "benchmarks.load",
            {
                "port": port,
                "connections": connections,
                "seconds": seconds,
                "warm_seconds": min(0.1, seconds / 5),
                "first": first,
                "last": last,
                **order,
            },
        )

    def _add_load(self, answers: list[dict[str, Any]], key: str, name: str, settings: str, verdict: str) -> None:
        refused = sum(answer["refused"] for answer in answers)
        if refused:
            told = next(answer["refusal"] for answer in answers if answer["refused"])
            verdict = f"{refused} requests were refused: {told[-200:]}"
        self.add(
            key, name, "jobs/s", [answer["rate"] for answer in answers], settings=settings, void=verdict,
            more={f"{part} ms": tuple(answer[f"{part}_ms"] for answer in answers) for part in ("p50", "p99")},
        )  # fmt: skip

    def latency(self) -> None:
        path, feed = self.marks()
        with self.bench.worker(path), self.bench.api() as (_, port):
            self._one_by_one(feed, "latency.store", "submit to the store → handler starts", self._through_store)
            http = Http(port)
            try:
                self._one_by_one(
                    feed, "latency.http", "`POST /submit` → handler starts", lambda n: self._through_http(feed, http, n)
                )
                self._one_by_one(
                    feed, "latency.wait", "`POST /submit` with `Prefer: wait` → result",
                    lambda n: self._with_result(http, n),
                )  # fmt: skip
            finally:
                http.close()

    def _one_by_one(self, feed: Feed, key: str, name: str, measure: Callable[[Any], list[float]]) -> None:
        """Time jobs one after the other on a system that is idle before each."""
        samples = self.parameters.samples
        more: dict[str, list[float]] = {"p99 ms": [], "worst ms": []}
        middles, verdicts = [], []
        for _ in range(self.parameters.repeats):
            first = feed.take(samples)
            argument = (feed, first) if measure == self._through_store else first
            times = measure(argument)
            middles.append(percentile(times, 0.5))
            more["p99 ms"].append(percentile(times, 0.99))
            more["worst ms"].append(max(times))
            verdicts.append(feed.marks.verdict(first, samples))
        self.add(
            key, name, "ms", middles, settings=f"{samples} jobs a repeat, one at a time, idle between", lower=True,
            more={part: tuple(values) for part, values in more.items()}, void=_first(verdicts),
            reference=reference.TRIPS,
        )  # fmt: skip

    def _through_store(self, argument: tuple[Feed, int]) -> list[float]:
        feed, first = argument

        async def work(store: RedisStore) -> list[float]:
            await store.connection.verify()
            times = []
            for number in range(first, first + self.parameters.samples):
                await asyncio.sleep(0.003 + random.random() * 0.004)
                jobs = new_jobs("stamp", number, 1)
                sent = time.monotonic_ns()
                await store.submit(jobs)
                while not feed.marks.runs[number]:  # noqa: ASYNC110 - another process sets it
                    await asyncio.sleep(0.0005)
                times.append((feed.marks.stamps[number] - sent) / 1e6)
            return times

        return feed.with_store(work)

    def _through_http(self, feed: Feed, http: Http, first: int) -> list[float]:
        times = []
        for number in range(first, first + self.parameters.samples):
            time.sleep(0.003 + random.random() * 0.004)
            sent = time.monotonic_ns()
            status, answer = http.post("/submit", b'{"task":"stamp","input":{"n":%d}}' % number)
            if status != 202:
                raise RuntimeError(f"{status}: {answer[:300]!r}")
            while not feed.marks.runs[number]:
                time.sleep(0.0002)
            times.append((feed.marks.stamps[number] - sent) / 1e6)
        return times

    def _with_result(self, http: Http, first: int) -> list[float]:
        times = []
        for number in range(first, first + self.parameters.samples):
            time.sleep(0.003 + random.random() * 0.004)
            sent = time.perf_counter()
            status, answer = http.post("/submit", b'{"task":"noop","input":{"n":%d}}' % number, prefer="wait=30")
            times.append((time.perf_counter() - sent) * 1000)
            if status != 200 or b'"status":"completed"' not in answer:
                raise RuntimeError(f"{status}: {answer[:300]!r}")
        return times

    def fairness(self) -> None:
        path, feed = self.marks()
        repeats, samples = self.parameters.repeats, self.parameters.samples
        with self.bench.worker(path, *fairness.FLAGS):
            found = fairness.measure(feed, repeats=repeats, samples=samples)
        for key, name, times in (
            ("fairness.start", "submit to the fast queue → handler starts", found.starts),
            ("fairness.cancel", "cancel of a slow job → its handler is told", found.cancels),
        ):
            self.add(
                key, name, "ms", [percentile(some, 0.5) for some in times], lower=True, void=found.verdict,
                settings=f"`{' '.join(fairness.FLAGS)}`; {fairness.HELD_JOBS} slow jobs run and "
                f"{fairness.WAITING_JOBS:,} wait; {samples} a repeat, one at a time",
                more={"p99 ms": tuple(percentile(some, 0.99) for some in times), "worst ms": tuple(map(max, times))},
                reference=reference.TRIPS,
            )  # fmt: skip

    def delayed(self) -> None:
        path, feed = self.marks()
        samples = self.parameters.samples
        middles, verdicts = [], []
        more: dict[str, list[float]] = {"p99 ms": [], "worst ms": []}
        span_ms = max(200, int(self.parameters.seconds * 3000))
        with self.bench.worker(path):
            for _ in range(self.parameters.repeats):
                first = feed.take(samples)
                due = feed.with_store(lambda store, first=first: _submit_delayed(store, first, samples, span_ms))  # type: ignore[misc]
                feed.marks.watch(first, samples, timeout_s=60)
                late = [feed.marks.stamps[first + step] / 1e6 - due_ms for step, due_ms in enumerate(due)]
                middles.append(percentile(late, 0.5))
                more["p99 ms"].append(percentile(late, 0.99))
                more["worst ms"].append(max(late))
                early = sum(ms < 0 for ms in late)
                verdicts.append(f"{early} started early" if early else feed.marks.verdict(first, samples))
        self.add(
            "delayed.lateness", "a delayed job's due time → handler starts", "ms", middles, lower=True,
            settings=f"{samples} jobs at random times over {span_ms / 1000:g} s, nothing else to do",
            more={part: tuple(values) for part, values in more.items()}, void=_first(verdicts),
            reference=reference.TRIPS,
        )  # fmt: skip

    def idle(self) -> None:
        path, feed = self.marks()
        with self.bench.worker(path) as worker, self.bench.api() as (api, _):
            first = feed.take(10)
            feed.submit("noop", first, 10)
            feed.marks.watch(first, 10, timeout_s=60)
            time.sleep(min(1.0, self.parameters.idle_seconds))
            watched = {"worker": worker, "API": api, "Valkey": self.bench.valkey}
            shares: dict[str, list[float]] = {name: [] for name in watched}
            for _ in range(self.parameters.repeats):
                before = {name: process.cpu_s() for name, process in watched.items()}
                began = time.perf_counter()
                time.sleep(self.parameters.idle_seconds)
                spent = time.perf_counter() - began
                for name, process in watched.items():
                    shares[name].append((process.cpu_s() - before[name]) / spent * 100)
        for name, values in shares.items():
            self.add(
                f"idle.{name.lower()}", f"processor time of an idle {name}", "% of a core", values, lower=True,
                settings=f"all its processes, over {self.parameters.idle_seconds:g} s", reference="",
            )  # fmt: skip


async def _submit_delayed(store: RedisStore, first: int, jobs: int, span_ms: int) -> list[int]:
    """Submit jobs due at random times; return those times (Unix ms)."""
    made = [
        msgspec.structs.replace(job, delay_ms=300 + random.randrange(span_ms))
        for job in new_jobs("stamp_time", first, jobs)
    ]
    due = []
    for answer in await store.submit(made):
        assert isinstance(answer, Submitted)
        assert answer.run_at_ms is not None
        due.append(answer.run_at_ms)
    return due


def _connections(count: int) -> str:
    return f"{count} connection{'s' * (count != 1)}"


def _first(verdicts: list[str]) -> str:
    return next((verdict for verdict in verdicts if verdict), "")


def listens(process: Process, port: int) -> bool:
    process.check()
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def measure(parameters: Parameters, say: Callable[[str], None] = lambda _: None) -> records.Report:
    """Measure all that the parameters ask for."""
    with Bench() as bench:
        run = Throughput(bench, parameters)
        figures = run.run(say)
        return records.make_report("throughput", figures, msgspec.to_builtins(parameters), valkey=bench.valkey_version)


def main() -> int:
    end_cleanly()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Parameters()
    parser.add_argument("--repeats", type=int, default=defaults.repeats)
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="of each repeat")
    parser.add_argument("--samples", type=int, default=defaults.samples, help="jobs timed one by one in each repeat")
    parser.add_argument("--idle-seconds", type=float, default=defaults.idle_seconds)
    parser.add_argument("--only", default="", help="sections, with commas between them")
    parser.add_argument(
        "--out", type=Path, help=f"where the figures go; without --only {OUT.relative_to(records.ROOT)}"
    )
    given = parser.parse_args()
    report = measure(
        Parameters(
            repeats=given.repeats,
            seconds=given.seconds,
            samples=given.samples,
            idle_seconds=given.idle_seconds,
            only=tuple(name for name in given.only.split(",") if name),
        ),
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    # A part would take the place of the whole.
    if out := given.out or (None if given.only else OUT):
        records.save(report, out)
    print(tables.report(report))
    return 1 if report.void else 0


if __name__ == "__main__":
    sys.exit(main())
