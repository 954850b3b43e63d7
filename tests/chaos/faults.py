"""Break one thing at a time under load, mend it, and say what it touched: one that touched nothing does not count."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import signal
import time
from collections.abc import Awaitable, Callable

import redis.exceptions

from tests.chaos.ledger import Runs, Submitters
from tests.chaos.stack import LEASE_S, Member, Stack

Fault = Callable[[], Awaitable["Bite"]]
_LOOK_S = 5.0


@dataclasses.dataclass(frozen=True)
class Bite:
    """Count what a fault touched; 0 means that it missed."""

    count: int
    evidence: str


class Faults:
    """Hold every kind of fault."""

    def __init__(self, stack: Stack, runs: Runs, submitters: Submitters, source: random.Random) -> None:
        self._stack = stack
        self._runs = runs
        self._submitters = submitters
        self._source = source
        #: (what, when it happened, jobs that it stopped), for the times of recovery.
        self.marks: list[tuple[str, float, frozenset[str]]] = []
        self.kinds: dict[str, Fault] = {
            "worker SIGKILL": self.kill_worker,
            "worker SIGSTOP past the lease": self.freeze_worker,
            "worker SIGTERM (deploy)": self.deploy_worker,
            "API SIGKILL": self.kill_api,
            "API SIGSTOP": self.freeze_api,
            "Valkey SIGKILL": self.kill_valkey,
            "wire: answers cut": self.cut,
            "wire: delay": self.delay,
            "wire: half-closed": self.half_close,
            "wire: answers swallowed": self.swallow,
            "CLIENT KILL": self.client_kill,
            "SCRIPT FLUSH": self.script_flush,
            "memory limit": self.memory_limit,
            "NOREPLICAS": self.no_replicas,
            "READONLY": self.read_only,
            "file cannot grow": self.full_file,
        }

    async def _until(self, condition: Callable[[], bool], seconds: float = _LOOK_S) -> bool:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.02)
        return True

    async def _busy_worker(self) -> tuple[Member, frozenset[str]]:
        """Choose a worker and wait until it runs jobs."""
        worker = self._source.choice(self._stack.of("worker"))
        await self._until(lambda: len(self._runs.open_of(worker.mark)) > 0, 15)
        return worker, frozenset(self._runs.open_of(worker.mark))

    def _starts_since(self, at_s: float) -> int:
        return sum(run.starts and run.at_s > at_s for run in self._runs.read())

    # processes

    async def kill_worker(self) -> Bite:
        worker, jobs = await self._busy_worker()
        worker.send(signal.SIGKILL)
        await worker.ended()
        jobs = frozenset(self._runs.open_of(worker.mark))  # a dead one writes no more
        self.marks.append(("worker SIGKILL", time.time(), jobs))
        worker.start()
        return Bite(len(jobs), f"{len(jobs)} jobs running")

    async def freeze_worker(self) -> Bite:
        worker, _ = await self._busy_worker()
        mark = worker.mark
        worker.send(signal.SIGSTOP)
        stopped_s = time.time()
        jobs = self._runs.open_of(mark)

        def taken() -> set[str]:
            runs = self._runs.read()
            return {run.job for run in runs if run.starts and run.job in jobs and run.worker != mark}

        await self._until(lambda: bool(jobs) and len(taken()) == len(jobs), LEASE_S * 3)
        worker.send(signal.SIGCONT)
        self.marks.append(("worker SIGSTOP", stopped_s, frozenset(taken())))
        return Bite(len(taken()), f"{len(taken())} of {len(jobs)} leases lapsed")

    async def deploy_worker(self) -> Bite:
        worker, _ = await self._busy_worker()
        jobs = self._runs.open_of(worker.mark)
        worker.send(signal.SIGTERM)
        code = await worker.ended()
        worker.start()
        return Bite(len(jobs) if code == 0 else 0, f"{len(jobs)} jobs running, exit code {code}")

    async def kill_api(self) -> Bite:
        number, api = self._choose_api()
        before = self._submitters.refused[f"api-{number}"]
        api.send(signal.SIGKILL)
        await api.ended()
        await self._until(lambda: self._submitters.refused[f"api-{number}"] > before)
        api.start()
        failed = self._submitters.refused[f"api-{number}"] - before
        return Bite(failed, f"{failed} submits failed")

    async def freeze_api(self) -> Bite:
        number, api = self._choose_api()
        before = self._submitters.refused[f"api-{number}:ReadTimeout"]
        api.send(signal.SIGSTOP)
        await self._until(lambda: self._submitters.refused[f"api-{number}:ReadTimeout"] > before, LEASE_S * 2)
        api.send(signal.SIGCONT)
        failed = self._submitters.refused[f"api-{number}:ReadTimeout"] - before
        return Bite(failed, f"{failed} submits without an answer")

    def _choose_api(self) -> tuple[int, Member]:
        apis = self._stack.of("api")
        number = self._source.randrange(len(apis))
        return number, apis[number]

    async def kill_valkey(self) -> Bite:
        _, jobs = await self._busy_worker()
        opened = sum(wire.opened for wire in self._stack.wires)
        await self._stack.valkey.kill()
        self.marks.append(("Valkey SIGKILL", time.time(), frozenset()))
        await self._stack.valkey.start()
        started_s = time.time()
        await self._until(lambda: self._starts_since(started_s) > 0, 20)
        reconnects = sum(wire.opened for wire in self._stack.wires) - opened
        return Bite(min(len(jobs), reconnects), f"{len(jobs)} jobs running, {reconnects} reconnects")

    # wires

    async def _for_a_while(self, name: str, value: object, counter: str, seconds: float) -> int:
        """Set a fault on all wires, until it has touched something and at least for ``seconds``."""
        wires = self._stack.wires
        before = sum(getattr(wire, counter) for wire in wires)
        normal = getattr(wires[0], name)
        for wire in wires:
            setattr(wire, name, value)
        await asyncio.sleep(seconds)
        await self._until(lambda: sum(getattr(wire, counter) for wire in wires) > before)
        for wire in wires:
            setattr(wire, name, normal)
        count: int = sum(getattr(wire, counter) for wire in wires) - before
        return count

    async def cut(self) -> Bite:
        count = await self._for_a_while("cutting", True, "cut", 0.5)
        return Bite(count, f"{count} answers cut")

    async def delay(self) -> Bite:
        count = await self._for_a_while("delay_s", self._source.choice((0.2, 0.8)), "delayed", 2.0)
        return Bite(count, f"{count} answers delayed")

    async def half_close(self) -> Bite:
        count = await self._for_a_while("half_closing", True, "half_closed", 0.5)
        return Bite(count, f"{count} connections half-closed")

    async def swallow(self) -> Bite:
        # Past the time that a call may take, so that callers give up connections that look alive.
        count = await self._for_a_while("swallowing", True, "swallowed", 5.5)
        return Bite(count, f"{count} answers swallowed")

    # the server's moods

    async def client_kill(self) -> Bite:
        async with self._stack.valkey.admin() as admin:
            count = await admin.client_kill_filter(_type="normal", skipme=True)
        return Bite(count, f"{count} connections killed")

    async def script_flush(self) -> Bite:
        async with self._stack.valkey.admin() as admin:
            before = int((await admin.info("memory"))["number_of_cached_scripts"])
            errors = await self._errors("NOSCRIPT")
            await admin.script_flush()
        missed = await self._until_errors("NOSCRIPT", errors)
        return Bite(missed, f"{before} scripts flushed, {missed} calls met NOSCRIPT")

    async def _errors(self, code: str) -> int:
        async with self._stack.valkey.admin() as admin:
            found = (await admin.info("errorstats")).get(f"errorstat_{code}", {})
        return int(found["count"]) if isinstance(found, dict) and found else 0

    async def _until_errors(self, code: str, before: int) -> int:
        end = time.monotonic() + _LOOK_S
        while True:
            await asyncio.sleep(1.0)
            count = await self._errors(code) - before
            if count or time.monotonic() > end:
                return count

    async def memory_limit(self) -> Bite:
        before = self._submitters.refused["store_full"]
        at_s = time.time()
        async with self._stack.valkey.admin() as admin:
            await admin.config_set("maxmemory", "1mb")
            await self._until(lambda: self._submitters.refused["store_full"] > before + 3)
            started = self._starts_since(at_s)
            await admin.config_set("maxmemory", "0")
        refused = self._submitters.refused["store_full"] - before
        return Bite(refused, f"{refused} submits refused, {started} jobs started meanwhile")

    async def no_replicas(self) -> Bite:
        before = await self._errors("NOREPLICAS")
        async with self._stack.valkey.admin() as admin:
            await admin.config_set("min-replicas-to-write", "1")
            count = await self._until_errors("NOREPLICAS", before)
            await admin.config_set("min-replicas-to-write", "0")
        return Bite(count, f"{count} calls met NOREPLICAS")

    async def read_only(self) -> Bite:
        before = await self._errors("READONLY")
        async with self._stack.valkey.admin() as admin:
            # Of a master that is not there: it keeps its data and refuses writes, as after a failover.
            await admin.replicaof("127.0.0.1", "1")
            count = await self._until_errors("READONLY", before)
            await admin.replicaof("NO", "ONE")
        return Bite(count, f"{count} calls met READONLY")

    async def full_file(self) -> Bite:
        """Let the append-only file grow no further: `always` ends the server, `everysec` refuses writes."""
        valkey = self._stack.valkey
        process = valkey.process
        assert process is not None
        errors = await self._errors("MISCONF")
        valkey.limit_file_bytes(1_000)
        end = time.monotonic() + _LOOK_S * 2
        count = 0
        while process.poll() is None and count == 0 and time.monotonic() < end:
            try:
                count = await self._errors("MISCONF") - errors
            except redis.exceptions.RedisError:
                break
            await asyncio.sleep(0.05)
        if count == 0 and await self._until(lambda: process.poll() is not None):
            await valkey.start()
            return Bite(1, f"the server gave up with code {process.returncode}")
        valkey.limit_file_bytes(None)
        return Bite(count, f"{count} calls met MISCONF")
