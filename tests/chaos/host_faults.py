"""Shift the clock of a worker's and an API's host, and let the kernel kill a process that takes too much memory."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from tests.chaos.scene import Bite, Fault, Scene
from tests.chaos.stack import libfaketime

_SHIFTS_S = (3_600, -3_600, 40, -40, 86_400)
_GROUPS = Path("/sys/fs/cgroup")
_LIMIT_BYTES = 64 << 20


class MemoryGroup:
    """Be a control group that may take little memory; ``path`` is "" where the system lets us make none."""

    def __init__(self) -> None:
        self.path = ""
        name = f"penstock-chaos-{os.getpid()}"
        for folder, limit in ((_GROUPS / "memory", "memory.limit_in_bytes"), (_GROUPS, "memory.max")):
            group = folder / name
            with contextlib.suppress(OSError):
                group.mkdir()
                try:
                    (group / limit).write_text(str(_LIMIT_BYTES))
                except OSError:
                    group.rmdir()
                    continue
                self.path = str(group)
                return

    def kills(self) -> int:
        """Return how often the kernel has killed a process of the group for its memory."""
        for name in ("memory.oom_control", "memory.events"):
            with contextlib.suppress(OSError):
                for line in (Path(self.path) / name).read_text().splitlines():
                    word, _, count = line.partition(" ")
                    if word == "oom_kill":
                        return int(count)
        return 0

    def close(self) -> None:
        if self.path:
            with contextlib.suppress(OSError):
                Path(self.path).rmdir()
            self.path = ""


class HostFaults:
    """Hold the faults of the machine."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.group = MemoryGroup()
        self.kinds: dict[str, Fault] = {"out-of-memory kill": self.out_of_memory}
        #: Kinds that cannot be had here, and what is missing.
        self.missing: dict[str, str] = {}
        if libfaketime() is not None:
            self.kinds["clock of the host shifted"] = self.shift_clock
        else:
            self.missing["clock of the host shifted"] = "libfaketime (Debian's faketime)"

    async def shift_clock(self) -> Bite:
        """Step the wall clock of running processes, and have jobs accepted and run under it."""
        scene = self._scene
        shift_s = scene.source.choice(_SHIFTS_S)
        members = [member for member in scene.stack.members if member.clock is not None]
        (worker,) = (member for member in members if member.kind == "worker")
        at_s = time.monotonic()
        off_s = time.time() - at_s
        for member in members:
            member.shift_clock(shift_s)

        def shifted() -> int:
            return sum(
                run.worker == worker.mark and abs(run.wall_s - run.at_s - off_s - shift_s) < 5
                for run in scene.runs.since(at_s, starts=False)
            )

        await scene.until(lambda: shifted() > 2)
        count = shifted()
        for member in members:
            member.shift_clock(0)
        return Bite(count, f"{count} jobs ended under a clock {shift_s:+d} s off")

    async def out_of_memory(self) -> Bite:
        scene = self._scene
        before = self.group.kills()
        job = await scene.submitters.one("chaos_memory", group=self.group.path)
        if job is None:
            return Bite(0, "no API took the job")
        watched = 0

        def pids() -> list[int]:
            return [run.pid for run in scene.runs.read()[-5_000:] if run.job == job and run.starts]

        def ran_again() -> bool:
            nonlocal watched
            if not self.group.path:
                watched += _kill_greedy(pids()[-1:])
            return len(set(pids())) > 1

        await scene.until(ran_again)
        again = len(set(pids())) > 1
        for pid in set(pids()[:-1]):
            scene.runs.forget(pid)
        kills = self.group.kills() - before
        if self.group.path:
            return Bite(kills if again else 0, f"{kills} kill by the kernel, {len(pids())} runs of the job")
        return Bite(watched if again else 0, f"no control group can be made here: {watched} kill by a watchdog")


def _kill_greedy(pids: list[int]) -> int:
    for pid in pids:
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            if pages * os.sysconf("SC_PAGE_SIZE") > 300 << 20:
                os.kill(pid, signal.SIGKILL)
                return 1
    return 0
