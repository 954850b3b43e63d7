"""Run the command as users do, each run in a folder of its own, and leave no process behind."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.client import Client
from tests.waiting import Log, until

PENSTOCK = [sys.executable, "-P", "-m", "penstock"]
IS_LINUX = sys.platform == "linux"


def wait_running(client: Client, job_id: str) -> None:
    """Wait until a job runs; the server tells who follows it."""
    for event in client.events(job_id):
        if event.job is not None and event.job.status == "running":
            return
    raise AssertionError(f"{client.get(job_id)} never ran")


class Folder:
    """Run commands in one folder; what they start is found by a mark in its environment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mark = uuid.uuid4().hex
        self.env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PENSTOCK_", "REDIS_")) or name.startswith("COV")
        } | {"TEST_MARK": self.mark, "PENSTOCK_LOG_LEVEL": "warning"}
        self.log = Log()
        self.runs: list[subprocess.Popen[str]] = []
        self.url = ""
        self._read: dict[int, bytearray] = {}

    def run(
        self, *arguments: str, env: dict[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        given = {"capture_output": True, "text": True, "timeout": 120} | options
        return subprocess.run([*PENSTOCK, *arguments], check=False, cwd=self.path, env=self.env | (env or {}), **given)

    def json(self, *arguments: str, code: int = 0, **options: Any) -> Any:
        """Run a command with --json that must end with ``code``; return its one document."""
        done = self.run(*arguments, "--json", **options)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    def json_lines(self, *arguments: str, code: int = 0, **options: Any) -> list[Any]:
        """Run a command with --json that must end with ``code``; return its lines."""
        done = self.run(*arguments, "--json", **options)
        assert done.returncode == code, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command in a process group of its own, as a shell does."""
        run = subprocess.Popen(
            [*PENSTOCK, *arguments],
            cwd=self.path,
            env=self.env | (env or {}),
            stdout=subprocess.PIPE,
            stderr=self.log.writer,
            text=True,
            start_new_session=True,
        )
        self.runs.append(run)
        return run

    def up(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start ``penstock up`` and wait until it says that it is ready."""
        run = self.start("up", "--json", "--port", "0", *arguments, env=env)
        self.url = json.loads(self.line(run))["url"]
        return run

    def line(self, run: subprocess.Popen[str], seconds: float = 60.0) -> str:
        """Wait for the next line on stdout; an ended process fails the test with its stderr."""
        assert run.stdout is not None
        read = self._read.setdefault(run.pid, bytearray())
        while b"\n" not in read:
            assert select.select([run.stdout], [], [], seconds)[0], self.stderr()
            chunk = os.read(run.stdout.fileno(), 65_536)
            assert chunk, self.stderr()
            read += chunk
        line, _, rest = bytes(read).partition(b"\n")
        read[:] = rest
        return line.decode()

    def stderr(self) -> str:
        return self.log.text()

    def client(self, **options: Any) -> Client:
        return Client(self.url, **options)

    def wait_for_task(self, name: str) -> None:
        """Wait until a live worker has announced a task."""
        import httpx

        def announced() -> bool:
            workers = httpx.get(f"{self.url}/workers").json()["items"]
            return any(name in worker["tasks"] for worker in workers)

        until(announced, lambda: f"a worker that knows {name}:\n{self.stderr()}", seconds=30)

    def interrupt(self, run: subprocess.Popen[str]) -> int:
        """Press Ctrl-C: the signal goes to the whole process group; return the exit code."""
        os.killpg(run.pid, signal.SIGINT)
        return run.wait(60)

    def processes(self) -> list[str]:
        """Return the command lines of all processes that were started from here, by any way, and still live."""
        if not IS_LINUX:
            return []
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                # Valkey writes its title over its environment; it works in the data folder.
                is_ours = f"TEST_MARK={self.mark}".encode() in (entry / "environ").read_bytes()
                if is_ours or (entry / "cwd").readlink().is_relative_to(self.path):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def close(self) -> None:
        """End what still runs."""
        for run in self.runs:
            if run.poll() is None:
                run.send_signal(signal.SIGTERM)
        for run in self.runs:
            try:
                run.wait(60)
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
            if run.stdout is not None:
                run.stdout.close()
        self.all_gone()
        self.log.close()

    def all_gone(self, seconds: float = 10) -> None:
        """Wait until nothing runs any more that was started here."""
        until(lambda: not self.processes(), self.processes, seconds=seconds)


def one_line(done: subprocess.CompletedProcess[str], words: Sequence[str]) -> None:
    """Check that a command ended with one line on stderr that holds the words."""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("penstock: ")
    for word in words:
        assert word in lines[0], lines[0]
