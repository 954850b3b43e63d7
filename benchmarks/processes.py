"""Start what is measured as its users do: the embedded Valkey, workers and APIs by the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import redis

from benchmarks.marks import VARIABLE
from benchmarks.records import ROOT
from penstock.embedded.readiness import Readiness, http_readiness
from penstock.embedded.valkey import EmbeddedValkey
from penstock.store.keys import PartitionKeys

START_S = 60.0
STOP_S = 60.0


def clean_environment() -> dict[str, str]:
    """Return our environment without settings, so that the shipped defaults are what is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "REDIS_"))}


def end_cleanly() -> None:
    """Let SIGTERM end us as Ctrl-C does, so that what was started is stopped. For commands, in their main thread."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Any, what: str, seconds: float = START_S) -> None:
    """Look each 10 ms until it is so.

    Raises:
        TimeoutError: it did not become so in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not in {seconds:g} s: {what}")
        time.sleep(0.01)


class Process:
    """Own a process, and whatever it starts, in a group of its own."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], log: Path, cwd: Path = ROOT, **more: Any):
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **more,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raise RuntimeError with its last words when it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.log.name} ended with {self._process.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]

    def stop(self, *, wait_s: float = STOP_S) -> None:
        """Ask it to stop, and kill the group when it does not."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(wait_s)
            except subprocess.TimeoutExpired:
                pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def family(self) -> list[int]:
        """Return its pid and those of its children, and theirs."""
        found = [self.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += [int(child) for child in task.read_text().split()]
        return found

    def cpu_s(self) -> float:
        """Return the processor time that it and its children took so far."""
        spent_ns = 0
        for pid in self.family():
            for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    spent_ns += int(stat.read_text().split()[0])
        return spent_ns / 1e9

    def rss_mib(self) -> float:
        """Return the resident memory of it and its children."""
        pages = 0
        for pid in self.family():
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


class Bench:
    """Own a folder, a Valkey as it is shipped, and what was started on it; leaving it stops all."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._count = 0

    def __enter__(self) -> Self:
        made = tempfile.TemporaryDirectory(prefix="penstock-benchmark-", ignore_cleanup_errors=True)
        self.folder = Path(self._stack.enter_context(made))
        try:
            self._start_valkey()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start_valkey(self) -> None:
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        valkey = EmbeddedValkey(data)
        spec = valkey.child(clean_environment())
        assert spec.prepare is not None
        assert spec.ready is not None
        locks = list(asyncio.run(_awaited(spec.prepare())))
        try:
            self.valkey = Process(
                list(spec.argv),
                env=spec.env,
                log=self.folder / "valkey.log",
                cwd=data,
                pass_fds=locks,
                umask=spec.umask,
            )
        finally:
            for lock in locks:
                os.close(lock)
        self._stack.callback(self.valkey.stop)
        self.url = valkey.redis_url
        ready = spec.ready

        def is_ready() -> bool:
            self.valkey.check()
            return asyncio.run(_awaited(ready())) is Readiness.READY

        until(is_ready, "Valkey is ready")
        self.client = redis.Redis.from_url(self.url, protocol=2)
        self._stack.callback(self.client.close)

    def reset(self, *, appendonly: bool = True, appendfsync: str = "everysec") -> None:
        """Empty the server and set its append-only file; call it while nothing runs on it."""
        # At once: what is freed later on would count against what comes next.
        self.client.execute_command("FLUSHALL", "SYNC")  # type: ignore[no-untyped-call]
        self.client.config_set("appendfsync", appendfsync)
        self.client.config_set("appendonly", "yes" if appendonly else "no")
        until(lambda: not self.info("persistence")["aof_rewrite_in_progress"], "the append-only file is ready")

    def ask(self, *words: str | int) -> Any:
        """Run a plain command."""
        return self.client.execute_command(*words)  # type: ignore[no-untyped-call]

    def info(self, section: str) -> dict[str, Any]:
        found = self.client.info(section)
        assert isinstance(found, dict)
        return found

    @property
    def valkey_version(self) -> str:
        return str(self.info("server").get("valkey_version") or self.info("server")["redis_version"])

    def used_memory(self) -> int:
        """Return the memory of the server without that of its clients and of its append-only file."""
        found = self.info("memory")
        return int(found["used_memory"]) - int(found["mem_clients_normal"]) - int(found["mem_aof_buffer"])

    def keys(self, partitions: int = 1) -> list[PartitionKeys]:
        return [PartitionKeys("penstock", partition, partitions) for partition in range(partitions)]

    def finished(self, queue: str = "default", partitions: int = 1) -> int:
        """Return how many jobs of a queue have been completed so far."""
        names = [keys.key("counters") for keys in self.keys(partitions)]
        return sum(int(self.ask("HGET", name, f"completed:{queue}") or 0) for name in names)

    def kept(self, queue: str = "default") -> int:
        """Return how many completed jobs of a queue are kept; the oldest above the limit of all have gone."""
        return int(self.ask("ZCARD", self.keys()[0].key("final", "completed", queue)))

    @contextlib.contextmanager
    def worker(self, marks: Path, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[Process]:
        """Run a worker with the benchmarks' tasks at the shipped defaults, but for the flags that are given."""
        command = [sys.executable, "-P", "-m", "penstock", "worker", *flags, "benchmarks.tasks"]
        settings = {"PENSTOCK_REDIS_URL": self.url, VARIABLE: str(marks), **(env or {})}
        with self._running(command, settings, "worker") as process:

            def has_started() -> bool:
                process.check()
                return any('"worker.started"' in line for line in process.log.read_text().splitlines())

            until(has_started, "the worker has started")
            yield process

    @contextlib.contextmanager
    def api(self, env: Mapping[str, str] | None = None) -> Iterator[tuple[Process, int]]:
        """Run an API at the shipped defaults; give its port, too."""
        port = free_port()
        settings = {"PENSTOCK_REDIS_URL": self.url, "PENSTOCK_PORT": str(port), **(env or {})}
        with self._running([sys.executable, "-P", "-m", "penstock", "api"], settings, "api") as process:

            def is_ready() -> bool:
                process.check()
                return asyncio.run(_awaited(http_readiness(f"http://127.0.0.1:{port}/health"))) is Readiness.READY

            until(is_ready, "the API is ready")
            yield process, port

    @contextlib.contextmanager
    def program(self, module: str, *arguments: str) -> Iterator[Process]:
        """Run another module of the benchmarks beside us until the end of the block."""
        with self._running([sys.executable, "-P", "-m", module, *arguments], {}, module) as process:
            yield process

    @contextlib.contextmanager
    def command(
        self, command: Sequence[str], env: Mapping[str, str], name: str, *, stop_s: float, cwd: Path
    ) -> Iterator[Process]:
        """Run any command until the end of the block."""
        with self._running(command, env, name, stop_s=stop_s, cwd=cwd) as process:
            yield process

    @contextlib.contextmanager
    def _running(
        self,
        command: Sequence[str],
        settings: Mapping[str, str],
        name: str,
        *,
        stop_s: float = STOP_S,
        cwd: Path = ROOT,
    ) -> Iterator[Process]:
        self._count += 1
        process = Process(
            command,
            env={**clean_environment(), "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **settings},
            cwd=cwd,
            log=self.folder / f"{name}-{self._count}.log",
        )
        try:
            yield process
        finally:
            process.stop(wait_s=stop_s)


def run_json(module: str, order: Mapping[str, Any]) -> dict[str, Any]:
    """Run a module of the benchmarks to its end; it reads its order and prints its answer, both JSON."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, json.dumps(order)],
        cwd=ROOT,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{module}: {done.stderr[-1500:]}")
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


async def _awaited(value: Any) -> Any:
    return await value
