"""Find what limits the speed: where each microsecond of a job goes. `make bench-limit`.

    .venv/bin/python -m benchmarks.limit [--jobs 100000]

Takes the processor time of worker, API and Valkey a job, the server's own time for each script, and, where its
environment can be made, a profile of worker and API by py-spy (sampling costs a little, so that rates come from runs
without it).
"""

from __future__ import annotations

import argparse
import collections
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks import records, reference, scripts, tables
from benchmarks.feed import Feed, claim_request, new_jobs, submit
from benchmarks.marks import Marks
from benchmarks.peers.environments import EnvironmentFailed, environment
from benchmarks.processes import Bench, Process, clean_environment, end_cleanly, free_port, run_json, until
from benchmarks.records import Figure
from benchmarks.throughput import listens
from penstock.core.job import Settle, Verb
from penstock.core.limits import SCRIPT_ITEMS
from penstock.store import StoreOptions
from penstock.store.redis.store import RedisStore

OUT = records.RESULTS / "limit.json"
PROFILER = Path(__file__).with_name("profiler") / "requirements.txt"
PROFILE_S = 4.0
BATCHES = (1, 10, SCRIPT_ITEMS)
_PLACES = (
    "penstock/store", "penstock/worker", "penstock/handlers", "penstock/api", "penstock/core", "penstock/observability",
    "redis", "hiredis", "msgspec", "uvicorn", "litestar", "asyncio", "uvloop", "structlog", "logging", "benchmarks",
)  # fmt: skip
#: What the loop itself does, in C, which the sampler takes for the frame that started it.
_LOOP = "Runner.run (asyncio/"
#: Threads that wait in these look busy to the sampler.
_WAITING = ("EpollSelector.select", "_run.<locals>.listen")


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    jobs: int = 60_000
    repeats: int = 5
    seconds: float = 1.0
    profile: bool = True


class Limit:
    """Measure the parts of a job's cost."""

    def __init__(self, bench: Bench, parameters: Parameters) -> None:
        self.bench = bench
        self.parameters = parameters
        self.figures: list[Figure] = []
        self.notes: dict[str, Any] = {}
        self._made = 0

    def add(self, key: str, name: str, unit: str, values: list[float], **more: Any) -> None:
        self.figures.append(
            Figure(key=key, section=key.partition(".")[0], name=name, unit=unit, values=tuple(values), **more)
        )

    def _feed(self, jobs: int) -> tuple[Path, Feed]:
        self._made += 1
        path = self.bench.folder / f"marks-{self._made}"
        return path, Feed(self.bench, Marks.create(path, jobs))

    def run(self) -> None:
        self.bench.client.config_set("latency-monitor-threshold", 2)
        scripts.watch_slow_calls(self.bench)
        self.script_times()
        self.run_budget()
        self.http_budget()
        self.notes["slowest calls, ms"] = scripts.slow_calls(self.bench)
        self.notes["latency events, ms"] = {
            str(name, "utf-8"): int(worst) for name, _at, _last, worst, *_ in self.bench.ask("LATENCY", "LATEST")
        }
        self.notes["bare server"] = bare_server(self.bench)

    # the server's time for each script

    def script_times(self) -> None:
        """Run each verb by itself with batches of several sizes, and take the server's own time for it."""

        async def measure() -> None:
            store = RedisStore(StoreOptions(redis_url=self.bench.url))
            try:
                await store.connection.verify()
                for size in BATCHES:
                    await self._script_times(store, size)
            finally:
                await store.close()

        self.bench.reset()
        uvloop.run(measure())

    async def _script_times(self, store: RedisStore, size: int) -> None:
        calls = max(5, min(300, self.parameters.jobs // size // 4))
        command = store.connection.command
        held: list[Any] = []

        async def submit_some() -> None:
            await submit(store, new_jobs("noop", 0, size))

        async def claim_some() -> None:
            held.extend((await store.claim(0, claim_request("default", size))).jobs)

        async def complete_some() -> None:
            part, held[:] = held[:size], held[size:]
            await store.settle([Settle(token=job.token, verb=Verb.COMPLETE, value=b"12345") for job in part])

        for work in (submit_some, claim_some, complete_some):
            await work()  # loads the script
        for name, work in (("submit", submit_some), ("claim", claim_some), ("complete", complete_some)):
            values = []
            for _ in range(self.parameters.repeats):
                await command("CONFIG", "RESETSTAT")
                for _ in range(calls):
                    await work()
                stat = (await command("INFO", "commandstats"))["cmdstat_evalsha"]
                values.append(stat["usec"] / stat["calls"] / size)
            self.add(f"script.{name}.{size}", f"`{name}`, {size} a call", "µs a job", values, lower=True)

    # a job that runs

    def run_budget(self) -> None:
        parameters = self.parameters
        self.bench.reset()
        path, feed = self._feed(parameters.jobs * (parameters.repeats + 4) * 2)
        shares: dict[str, list[float]] = collections.defaultdict(list)
        with self.bench.worker(path) as worker:
            feed.pause()
            self._drained(feed, parameters.jobs // 4)
            for _ in range(parameters.repeats):
                first = feed.take(parameters.jobs)
                feed.submit("noop", first, parameters.jobs)
                self.bench.ask("CONFIG", "RESETSTAT")
                before = (worker.cpu_s(), self.bench.valkey.cpu_s())
                rate, verdict = feed.drain(first, parameters.jobs)
                spent = (worker.cpu_s() - before[0], self.bench.valkey.cpu_s() - before[1])
                if verdict:
                    raise RuntimeError(verdict)
                stats = scripts.command_times(self.bench)
                shares["wall"].append(1e6 / rate)
                shares["worker"].append(spent[0] / parameters.jobs * 1e6)
                shares["valkey"].append(spent[1] / parameters.jobs * 1e6)
                shares["scripts"].append(stats["evalsha"]["usec"] / parameters.jobs)
            self.notes["commands of a job that runs"] = {
                name: round(stat["calls"] / parameters.jobs, 3) for name, stat in stats.items() if stat["calls"] > 100
            }
            self.notes["time of them, µs"] = {
                name: round(stats[name]["usec"] / parameters.jobs, 3)
                for name in self.notes["commands of a job that runs"]
            }
            self._profile("worker", worker, lambda: self._drained(feed, parameters.jobs))
        loops = [uvloop.run(reference.loop_of_tasks(parameters.seconds)) for _ in range(parameters.repeats)]
        names = {
            "wall": "from one job to the next, one worker process",
            "worker": "processor time of the worker",
            "valkey": "processor time of Valkey, with reading, answering and the append-only file",
            "scripts": "of it: inside the scripts (claim and complete)",
        }
        for part, name in names.items():
            self.add(f"budget.run.{part}", name, "µs a job", shares[part], lower=True)
        name = "a loop that does nothing but JSON and a task of the event loop"
        self.add("budget.run.loop", name, "µs a job", [1e6 / rate for rate in loops], lower=True)

    def _drained(self, feed: Feed, jobs: int) -> None:
        first = feed.take(jobs)
        feed.submit("noop", first, jobs)
        feed.drain(first, jobs)

    # a job that is submitted

    def http_budget(self) -> None:
        parameters = self.parameters
        self.bench.reset()
        shares: dict[str, list[float]] = collections.defaultdict(list)
        order = {"connections": 64, "seconds": parameters.seconds, "first": 0, "last": 10_000_000}
        sent = 0

        def load(port: int, **more: Any) -> dict[str, Any]:
            nonlocal sent
            answer = self._load(order | {"port": port, **more})
            sent += answer["sent"]
            if answer["refused"]:
                raise RuntimeError(f"{answer['refused']} requests were refused: {answer['refusal'][-200:]}")
            return answer

        with self.bench.api() as (api, port):
            load(port)
            for _ in range(parameters.repeats):
                self.bench.ask("CONFIG", "RESETSTAT")
                before = (api.cpu_s(), self.bench.valkey.cpu_s())
                answer = load(port)
                jobs = answer["sent"]
                stats = scripts.command_times(self.bench)
                shares["wall"].append(1e6 / answer["rate"] if answer["rate"] else 0.0)
                shares["api"].append((api.cpu_s() - before[0]) / jobs * 1e6)
                shares["valkey"].append((self.bench.valkey.cpu_s() - before[1]) / jobs * 1e6)
                shares["scripts"].append(stats["evalsha"]["usec"] / jobs)
                shares["group"].append(jobs / stats["evalsha"]["calls"])
            self._profile("API", api, lambda: load(port, seconds=max(parameters.seconds, PROFILE_S)))
        queued = int(self.bench.ask("ZCARD", self.bench.keys()[0].key("queue", "default", "normal")))
        if queued != sent:
            raise RuntimeError(f"{queued} jobs are queued, {sent} were submitted")
        port = free_port()
        with self.bench.program("benchmarks.trivial", str(port)) as process:
            until(lambda: listens(process, port), "the trivial server listens")
            rates = [self._load(order | {"port": port})["rate"] for _ in range(parameters.repeats)]
        names = {
            "wall": "from one request to the next, 64 connections, one API process",
            "api": "processor time of the API",
            "valkey": "processor time of Valkey",
            "scripts": "of it: inside the script (submit)",
        }
        for part, name in names.items():
            self.add(f"budget.http.{part}", name, "µs a job", shares[part], lower=True)
        name = "the same generator at a server that does nothing but answer"
        self.add("budget.http.headroom", name, "µs a job", [1e6 / rate if rate else 0.0 for rate in rates], lower=True)
        self.add("group.http", "jobs that share a script call", "jobs", shares["group"])

    def _load(self, order: dict[str, Any]) -> dict[str, Any]:
        return run_json("benchmarks.load", order)

    # profiles

    def _profile(self, name: str, process: Process, work: Any) -> None:
        """Sample the process that did most of the work while it does it again."""
        if not self.parameters.profile:
            return
        try:
            py_spy = environment("py-spy", PROFILER).with_name("py-spy")
        except EnvironmentFailed as error:
            self.notes[f"profile of the {name}"] = {"missing": str(error)}
            return
        pid = max(process.family(), key=_cpu_ticks)
        out = self.bench.folder / f"profile-{name}"
        command = [str(py_spy), "record", "--pid", str(pid), "--duration", "30", "--rate", "200", "--format", "raw"]
        sampler = subprocess.Popen(
            [*command, "--output", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=clean_environment()
        )
        try:
            time.sleep(1.0)  # it attaches first
            ends = time.perf_counter() + PROFILE_S
            while time.perf_counter() < ends:
                work()
        finally:
            sampler.send_signal(2)  # as Ctrl-C, on which it writes what it has
            _, words = sampler.communicate(timeout=60)
        if not out.exists():
            self.notes[f"profile of the {name}"] = {"missing": words.decode(errors="replace")[-300:]}
            return
        self.notes[f"profile of the {name}"] = summarize(out.read_text().splitlines())


def summarize(stacks: Iterable[str]) -> dict[str, Any]:
    """Return the shares of a profile: by part of the program, and of the functions that took most by themselves.

    A stack is ``outermost;…;innermost count``. It counts for the innermost frame whose file is of a known part.
    """
    parts: collections.Counter[str] = collections.Counter()
    functions: collections.Counter[str] = collections.Counter()
    for line in stacks:
        text, _, count = line.rpartition(" ")
        frames = text.split(";")
        if frames[-1].startswith(_WAITING):
            continue
        functions[frames[-1]] += int(count)
        if frames[-1].startswith(_LOOP):
            parts["uvloop"] += int(count)
            continue
        part = next((place for frame in reversed(frames) for place in _PLACES if f"{place}/" in frame), "other")
        parts[part] += int(count)
    total = sum(parts.values()) or 1
    return {
        "samples": total,
        "parts": {name: round(count / total, 4) for name, count in parts.most_common()},
        "functions": {name: round(count / total, 4) for name, count in functions.most_common(20)},
    }


def _cpu_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def bare_server(bench: Bench) -> dict[str, float]:
    """Return commands a second of the server as its own benchmark tool sees them, where the machine has one."""
    tool = shutil.which("valkey-benchmark") or shutil.which("redis-benchmark")
    if tool is None:
        return {}
    login, _, address = bench.url.removeprefix("redis://").partition("@")
    host, _, port = address.partition("/")[0].partition(":")
    # The password is that of a server which goes with this run.
    command = [tool, "-h", host, "-p", port, "-a", login.removeprefix(":"), "-P", "50", "-c", "20", "-r", "100000"]
    done = subprocess.run(
        [*command, "-n", "300000", "--csv", "-t", "set,hset,zadd"],
        check=False,
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=120,
    )
    rows = [line.replace('"', "").split(",") for line in done.stdout.splitlines()[1:]]
    return {row[0]: float(row[1]) for row in rows if len(row) > 1}


def main() -> int:
    end_cleanly()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Parameters()
    parser.add_argument("--jobs", type=int, default=defaults.jobs, help="of each repeat")
    parser.add_argument("--repeats", type=int, default=defaults.repeats)
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="of each repeat over HTTP")
    parser.add_argument("--no-profile", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    parameters = Parameters(jobs=given.jobs, repeats=given.repeats, seconds=given.seconds, profile=not given.no_profile)
    with Bench() as bench:
        limit = Limit(bench, parameters)
        limit.run()
        report = records.make_report(
            "limit", limit.figures, msgspec.to_builtins(parameters), valkey=bench.valkey_version, notes=limit.notes
        )
    records.save(report, given.out)
    print(tables.report(report))
    print(msgspec.json.format(msgspec.json.encode(report.notes)).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
