"""Kill Valkey, and let it be in each of the moods that servers have."""

from __future__ import annotations

import asyncio
import collections
import os
import time
from collections.abc import Callable

import redis.exceptions

from penstock.store.keys import PartitionKeys
from tests.chaos.scene import Bite, Fault, Mark, Scene
from tests.chaos.stack import NAMESPACE
from tests.chaos.verdict import Gap
from tests.waiting import in_time

#: What `appendfsync everysec` may lose; Valkey puts a slow sync off by one more second at most.
FORGOTTEN_S = 1.0


class ServerFaults:
    """Hold the faults of the server."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._valkey = scene.stack.valkey
        self.kinds: dict[str, Fault] = {
            "Valkey SIGKILL": self.kill_valkey,
            "CLIENT KILL": self.client_kill,
            "SCRIPT FLUSH": self.script_flush,
            "memory limit": self.memory_limit,
            "NOREPLICAS": self.no_replicas,
            "READONLY": self.read_only,
            "file cannot grow": self.full_file,
        }
        if self._valkey.disk.own:
            self.kinds["disk full"] = self.full_disk
        if self._valkey.fsync != "always":
            self.kinds["power cut (last second gone)"] = self.power_cut

    # its death

    async def kill_valkey(self) -> Bite:
        worker = await self._scene.busy_worker()
        jobs = self._scene.runs.open_of(worker.mark)
        opened = sum(wire.opened for wire in self._scene.stack.wires)
        await self._valkey.kill()
        return await self._back(len(jobs), opened, time.monotonic())

    async def _back(self, jobs: int, opened: int, killed_s: float) -> Bite:
        await self._valkey.start()
        started_s = time.monotonic()
        self._scene.marks.append(Mark("Valkey SIGKILL -> back and first start", killed_s, from_s=started_s))
        await self._scene.until(lambda: bool(self._scene.runs.since(started_s)), max(self._scene.look_s, 20))
        reconnects = sum(wire.opened for wire in self._scene.stack.wires) - opened
        return Bite(min(jobs, reconnects), f"{jobs} jobs running, {reconnects} reconnects")

    async def power_cut(self) -> Bite:
        """Kill the server and cut its file back to what stood there a second before, as if no sync had come since."""
        worker = await self._scene.busy_worker()
        jobs = self._scene.runs.open_of(worker.mark)
        opened = sum(wire.opened for wire in self._scene.stack.wires)
        file = self._valkey.file
        size, then_s = file.stat().st_size, time.monotonic()
        await asyncio.sleep(FORGOTTEN_S)
        await self._valkey.kill()
        killed_s = time.monotonic()
        cut = file.stat().st_size - size
        os.truncate(file, size)
        self._scene.gaps.append(Gap(then_s, killed_s))
        bite = await self._back(len(jobs), opened, killed_s)
        return Bite(bite.count if cut else 0, f"{cut} bytes of {killed_s - then_s:.1f} s gone, {bite.evidence}")

    # its moods

    async def client_kill(self) -> Bite:
        opened = sum(wire.opened for wire in self._scene.stack.wires)
        async with self._valkey.admin() as admin:
            count = await admin.client_kill_filter(_type="normal", skipme=True)
        await self._scene.until(lambda: sum(wire.opened for wire in self._scene.stack.wires) > opened)
        reconnects = sum(wire.opened for wire in self._scene.stack.wires) - opened
        return Bite(min(count, reconnects), f"{count} connections killed, {reconnects} reconnects")

    async def script_flush(self) -> Bite:
        async with self._valkey.admin() as admin:
            before = int((await admin.info("memory"))["number_of_cached_scripts"])
            errors = await self._scene.errors("NOSCRIPT")
            await admin.script_flush()
        missed = await self._scene.until_errors("NOSCRIPT", errors)
        return Bite(missed, f"{before} scripts flushed, {missed} calls met NOSCRIPT")

    async def memory_limit(self) -> Bite:
        """Set the limit below what is used while jobs wait and run: these must finish, and no others come."""
        scene = self._scene
        waiting = await scene.submitters.burst(60, 0.3)
        refused = scene.submitters.refusals("store_full")
        errors = await scene.errors("OOM")
        async with self._valkey.admin() as admin:
            await admin.config_set("maxmemory", "1mb")
            try:
                before = await self._counts()
                under_limit = (0, 0, 0)

                async def bites() -> bool:
                    nonlocal under_limit
                    now = await self._counts()
                    done = {name: now[name] - before[name] for name in ("started", "completed")}
                    under_limit = (refused(), done["started"], done["completed"])
                    return min(under_limit) > 3

                await in_time(bites, scene.look_s, pause_s=0.05)
                met = await scene.errors("OOM") - errors
            finally:
                await admin.config_set("maxmemory", "0")
        count = min(under_limit)
        told = "{} submits refused, {} claims and {} completions taken".format(*under_limit)
        return Bite(count, f"{waiting} jobs waited; at the limit {told}, {met} calls met OOM")

    async def _counts(self) -> collections.Counter[str]:
        """Return the server's counts over all queues."""
        key = PartitionKeys(NAMESPACE, 0, 1).key("counters")
        found: collections.Counter[str] = collections.Counter()
        async with self._valkey.admin() as admin:
            for name, count in (await admin.hgetall(key)).items():
                found[str(name).partition(":")[0]] += int(count)
        return found

    async def no_replicas(self) -> Bite:
        before = await self._scene.errors("NOREPLICAS")
        async with self._valkey.admin() as admin:
            await admin.config_set("min-replicas-to-write", "1")
            try:
                count = await self._scene.until_errors("NOREPLICAS", before)
            finally:
                await admin.config_set("min-replicas-to-write", "0")
        return Bite(count, f"{count} calls met NOREPLICAS")

    async def read_only(self) -> Bite:
        before = await self._scene.errors("READONLY")
        async with self._valkey.admin() as admin:
            # Of a master that is not there: it keeps its data and refuses writes, as after a failover.
            await admin.replicaof("127.0.0.1", "1")
            try:
                count = await self._scene.until_errors("READONLY", before)
            finally:
                await admin.replicaof("NO", "ONE")
        return Bite(count, f"{count} calls met READONLY")

    async def full_file(self) -> Bite:
        """Let the append-only file grow no further: `always` ends the server, `everysec` refuses writes."""
        return await self._no_room(lambda: self._valkey.limit_file_bytes(1_000), self._unlimit)

    def _unlimit(self) -> None:
        process = self._valkey.process
        if process is not None and process.poll() is None:
            self._valkey.limit_file_bytes(None)

    async def full_disk(self) -> Bite:
        """Leave no free block on the disk of the append-only file."""
        return await self._no_room(self._valkey.disk.fill, self._valkey.disk.free)

    async def _no_room(self, fill: Callable[[], None], free: Callable[[], None]) -> Bite:
        valkey = self._valkey
        process = valkey.process
        assert process is not None
        errors = await self._scene.errors("MISCONF")
        await asyncio.to_thread(fill)
        count = 0

        async def met() -> bool:
            nonlocal count
            if process.poll() is not None:
                return True
            try:
                count = await self._scene.errors("MISCONF") - errors
            except redis.exceptions.RedisError:
                return True
            return count > 0

        try:
            await in_time(met, self._scene.look_s, pause_s=0.05)
            ended = count == 0 and await self._scene.until(lambda: process.poll() is not None)
        finally:
            free()
        if ended:
            await valkey.start()
            return Bite(1, f"the server gave up with code {process.returncode}")
        return Bite(count, f"{count} calls met MISCONF")
