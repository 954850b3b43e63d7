"""Say how each peer is run: its command, the settings that are tried, and where they are documented."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.peers import environments
from benchmarks.processes import Bench

PROGRAMS = Path(__file__).with_name("programs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Hold one way to run a worker: arguments after the program's name, and what goes into the environment."""

    name: str
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """Describe a peer.

    ``program`` is in its environment's ``bin``. ``finished`` tells how many results are stored, given how many jobs
    were submitted. ``settings`` are tried in turn, and the fastest is measured. ``bulk`` says how jobs are submitted.
    """

    name: str
    program: str
    settings: tuple[Setting, ...]
    finished: Callable[[Bench, int], int]
    bulk: str
    links: tuple[str, ...]

    @property
    def is_ours(self) -> bool:
        return self.name == "penstock"

    def program_path(self) -> str:
        """Return the program of the worker; the first call installs the peer."""
        if self.name in environments.NODE_PEERS:
            environments.node_modules()
            return shutil.which("node") or "node"
        if self.is_ours:
            return sys.executable
        return str(environments.python_of(self.name).with_name(self.program))

    def worker(self, setting: Setting) -> list[str]:
        return [self.program_path(), *setting.arguments]

    def submitter(self, task: str, jobs: int) -> list[str]:
        if self.name in environments.NODE_PEERS:
            command = [self.program_path(), str(PROGRAMS / f"{self.name}.cjs")]
        else:
            python = sys.executable if self.is_ours else str(environments.python_of(self.name))
            command = [python, str(PROGRAMS / f"{self.name}_app.py")]
        return [*command, "submit", task, "0", str(jobs)]

    def environment(self, setting: Setting) -> dict[str, str]:
        """Return what its processes need to find, beside the server and the marks."""
        found = dict(setting.env)
        if self.name in environments.NODE_PEERS:
            found["NODE_PATH"] = str(environments.node_modules())
        return found


def _counted(*words: str) -> Callable[[Bench, int], int]:
    def finished(bench: Bench, _jobs: int) -> int:
        return int(bench.ask(*words))

    return finished


def _keys(pattern: str) -> Callable[[Bench, int], int]:
    def finished(bench: Bench, _jobs: int) -> int:
        return sum(1 for _ in bench.client.scan_iter(match=pattern, count=5_000))

    return finished


def _left(key: str) -> Callable[[Bench, int], int]:
    def finished(bench: Bench, jobs: int) -> int:
        return jobs - int(bench.ask("ZCARD", key))

    return finished


def _concurrency(*sizes: int, arguments: tuple[str, ...]) -> tuple[Setting, ...]:
    return tuple(
        Setting(name=f"concurrency {size}", arguments=arguments, env={"BENCHMARK_CONCURRENCY": str(size)})
        for size in sizes
    )


def _celery(pool: str, size: int) -> Setting:
    flags = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR")
    arguments = ("-A", "celery_app", "worker", "--pool", pool, "--concurrency", str(size), *flags)
    return Setting(name=f"pool {pool}, concurrency {size}, prefetch multiplier 64", arguments=arguments)


def _dramatiq(processes: int, threads: int) -> Setting:
    arguments = ("dramatiq_app:broker", "--processes", str(processes), "--threads", str(threads), "--skip-logging")
    each = "1 process" if processes == 1 else f"{processes} processes, each"
    return Setting(name=f"{each} of {threads} threads", arguments=arguments)


def _taskiq(broker: str) -> Setting:
    arguments = ("worker", "taskiq_app:broker", "--workers", "1", "--max-async-tasks", "100", "--max-prefetch", "100")
    return Setting(
        name=f"{broker} broker, 100 async tasks, prefetch 100",
        arguments=(*arguments, "--log-level", "ERROR"),
        env={"BENCHMARK_BROKER": broker},
    )


PEERS = (
    Peer(
        name="penstock",
        program="python",
        settings=(Setting(name="as shipped", arguments=("-P", "-m", "penstock", "worker", "benchmarks.tasks")),),
        finished=lambda bench, _jobs: bench.finished(),
        bulk="10,000 a call",
        links=(),
    ),
    Peer(
        name="bullmq",
        program="node",
        settings=_concurrency(50, 100, 200, 500, arguments=(str(PROGRAMS / "bullmq.cjs"), "worker")),
        finished=_counted("ZCARD", "bull:benchmark:completed"),
        bulk="`addBulk`, 1,000 a call",
        links=(
            "https://docs.bullmq.io/guide/workers/concurrency",
            "https://docs.bullmq.io/guide/queues/adding-bulks",
        ),
    ),
    Peer(
        name="huey",
        program="huey_consumer",
        settings=tuple(
            Setting(name=f"{size} {kind} workers", arguments=("huey_app.huey", "-k", kind, "-w", str(size), "-q"))
            for kind, size in (("thread", 8), ("process", 2))
        ),
        finished=_counted("HLEN", "huey.results.benchmark"),
        bulk="a call for each",
        links=("https://huey.readthedocs.io/en/latest/consumer.html",),
    ),
    Peer(
        name="taskiq",
        program="taskiq",
        settings=(_taskiq("list"), _taskiq("stream")),
        finished=_keys("result:*"),
        bulk="100 `kiq` calls at once",
        links=("https://taskiq-python.github.io/guide/cli.html", "https://github.com/taskiq-python/taskiq-redis"),
    ),
    Peer(
        name="streaq",
        program="streaq",
        settings=_concurrency(100, 250, arguments=("run", "streaq_app:worker")),
        finished=_keys("streaq:*:task:results:*"),
        bulk="`enqueue_many`, 1,000 a call",
        links=("https://streaq.readthedocs.io/en/latest/",),
    ),
    Peer(
        name="saq",
        program="saq",
        settings=_concurrency(50, 100, arguments=("saq_app.settings",)),
        finished=_left("saq:default:incomplete"),
        bulk="100 `enqueue` calls at once",
        links=("https://saq-py.readthedocs.io/en/latest/",),
    ),
    Peer(
        name="arq",
        program="arq",
        settings=_concurrency(100, 500, arguments=("arq_app.WorkerSettings",)),
        finished=_keys("arq:result:*"),
        bulk="100 `enqueue_job` calls at once",
        links=("https://arq-docs.helpmanual.io/#arq.worker.Worker",),
    ),
    Peer(
        name="dramatiq",
        program="dramatiq",
        settings=(_dramatiq(1, 8), _dramatiq(2, 8)),
        finished=_keys("dramatiq-results:*"),
        bulk="a call for each",
        links=("https://dramatiq.io/guide.html", "https://dramatiq.io/cookbook.html#results"),
    ),
    Peer(
        name="celery",
        program="celery",
        settings=(_celery("threads", 8), _celery("prefork", 2), _celery("solo", 1)),
        finished=_keys("celery-task-meta-*"),
        bulk="a call for each, one producer",
        links=(
            "https://docs.celeryq.dev/en/stable/userguide/optimizing.html",
            "https://docs.celeryq.dev/en/stable/userguide/workers.html",
        ),
    ),
    Peer(
        name="rq",
        program="rq",
        settings=(
            Setting(name="1 SimpleWorker", arguments=("worker", "-w", "rq.SimpleWorker", "--quiet")),
            Setting(
                name="pool of 2 SimpleWorkers", arguments=("worker-pool", "-n", "2", "-w", "rq.SimpleWorker", "--quiet")
            ),
        ),
        finished=_counted("ZCARD", "rq:finished:default"),
        bulk="`enqueue_many`, 1,000 a call",
        links=("https://python-rq.org/docs/workers/", "https://python-rq.org/docs/#bulk-job-enqueueing"),
    ),
)
