"""Run a primary with two replicas under three sentinels, and make them fail over."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path

import redis

from tests import fleets
from tests.chaos.scene import Bite, Fault, Mark, Scene
from tests.waiting import in_time

DOWN_AFTER_MS = 1_500
#: An API that must have every job on all that may be elected.
SETTINGS = {
    "PENSTOCK_DURABILITY": "replica",
    "PENSTOCK_DURABILITY_REPLICAS": "2",
    "PENSTOCK_DURABILITY_TIMEOUT": "1s",
}
_REPLICAS = 2
_FAILOVER_S = 60.0
_BACKLOG = 300


class Sentinels:
    """Own the servers; a primary takes no writes while no replica follows it."""

    def __init__(self, folder: Path, *, down_after_ms: int = DOWN_AFTER_MS) -> None:
        self._folder = folder / "fleet"
        self._down_after_ms = down_after_ms
        self._fleet: fleets.Fleet | None = None

    @property
    def fleet(self) -> fleets.Fleet:
        assert self._fleet is not None
        return self._fleet

    @property
    def url(self) -> str:
        return self.fleet.url

    async def start(self) -> None:
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        settings = ("--appendonly", "yes", "--min-replicas-to-write", "1", "--min-replicas-max-lag", "3")
        self._fleet = fleets.sentinel(self._folder, *settings, replicas=_REPLICAS, down_after_ms=self._down_after_ms)
        for node in self._fleet.sentinels:
            # They rest for twice this time before they fail over again.
            node.ask("SENTINEL", "SET", fleets.SERVICE, "failover-timeout", 3_000)

    def primary(self) -> fleets.Node | None:
        """Return the server that most sentinels name, None where they do not agree yet."""
        named = []
        for sentinel in self.fleet.sentinels:
            with contextlib.suppress(redis.RedisError, OSError, AttributeError):
                _, port = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", fleets.SERVICE)
                named.append(int(port))
        agreed = max(set(named), key=named.count, default=0)
        return self.fleet.node_at(agreed) if named.count(agreed) >= 2 else None

    def is_whole(self) -> bool:
        """Tell whether all replicas follow the primary."""
        with contextlib.suppress(redis.RedisError, OSError):
            primary = self.primary()
            if primary is None:
                return False
            info = primary.ask("INFO", "replication")
            told = info if isinstance(info, dict) else {}
            follow = [told.get(f"slave{number}", {}) for number in range(_REPLICAS)]
            return told.get("role") == "master" and all(one.get("state") == "online" for one in follow)
        return False

    async def close(self) -> None:
        if self._fleet is not None:
            await asyncio.to_thread(self._fleet.stop)


class FleetFaults:
    """Hold the faults of a fleet."""

    def __init__(self, scene: Scene, servers: Sentinels) -> None:
        self._scene = scene
        self._servers = servers
        self.kinds: dict[str, Fault] = {
            "failover: primary SIGKILL": self.kill_primary,
            "failover: primary SIGSTOP, then SIGCONT": self.freeze_primary,
            "failover: asked for": self.ask_failover,
            "failover with a sentinel dead": self.without_a_sentinel,
        }

    async def _until(self, condition: Callable[[], bool], seconds: float = _FAILOVER_S) -> bool:
        """Ask the servers again and again, off the loop."""
        return await in_time(lambda: asyncio.to_thread(condition), seconds, pause_s=0.05)

    async def _whole(self) -> fleets.Node | None:
        await self._until(self._servers.is_whole)
        return await asyncio.to_thread(self._servers.primary)

    async def _fail_over(self, old: fleets.Node, what: str, jobs: int, broken_s: float) -> Bite:
        """Wait for another primary and for jobs that start under it."""
        scene = self._scene

        def moved() -> bool:
            now = self._servers.primary()
            return now is not None and now is not old and now.ask("ROLE")[0] == b"master"

        if not await self._until(lambda: _quiet(moved)):
            return Bite(0, "no other primary")
        moved_s = time.monotonic()
        scene.marks.append(Mark(f"{what} -> first start under another primary", broken_s, from_s=moved_s))
        started = await scene.until(lambda: bool(scene.runs.since(moved_s)), _FAILOVER_S)
        told = f"{jobs} jobs running, another primary after {moved_s - broken_s:.1f} s"
        return Bite(jobs if started else 0, told)

    async def _busy(self) -> int:
        """Let jobs run and wait, so that some are left when there is a primary again; return how many run.

        While a server is dead no submit is taken, because not all that may be elected would have it.
        """
        await self._scene.submitters.burst(_BACKLOG, 0.3)
        worker = await self._scene.busy_worker()
        return len(self._scene.runs.open_of(worker.mark))

    async def kill_primary(self) -> Bite:
        primary = await self._whole()
        if primary is None:
            return Bite(0, "no primary")
        jobs = await self._busy()
        broken_s = time.monotonic()
        await asyncio.to_thread(primary.kill)
        bite = await self._fail_over(primary, "primary SIGKILL", jobs, broken_s)
        await asyncio.to_thread(primary.start)
        await self._whole()
        return bite

    async def freeze_primary(self) -> Bite:
        primary = await self._whole()
        if primary is None:
            return Bite(0, "no primary")
        jobs = await self._busy()
        broken_s = time.monotonic()
        primary.send(signal.SIGSTOP)
        bite = await self._fail_over(primary, "primary SIGSTOP", jobs, broken_s)
        primary.send(signal.SIGCONT)
        back_s = time.monotonic()
        demoted = await self._until(lambda: _quiet(lambda: primary.ask("ROLE")[0] == b"slave"))
        told = f"{bite.evidence}, a replica {time.monotonic() - back_s:.1f} s after it woke"
        await self._whole()
        return Bite(bite.count if demoted else 0, told)

    async def ask_failover(self) -> Bite:
        primary = await self._whole()
        if primary is None:
            return Bite(0, "no primary")
        jobs = await self._busy()
        broken_s = time.monotonic()
        try:
            await asyncio.to_thread(self._servers.fleet.sentinels[-1].ask, "SENTINEL", "FAILOVER", fleets.SERVICE)
        except redis.RedisError as error:
            return Bite(0, f"refused: {error}")
        bite = await self._fail_over(primary, "failover asked for", jobs, broken_s)
        await self._whole()
        return bite

    async def without_a_sentinel(self) -> Bite:
        """Kill the sentinel that processes ask first, and then the primary."""
        sentinel = self._servers.fleet.sentinels[0]
        await self._whole()
        await asyncio.to_thread(sentinel.kill)
        try:
            return await self.kill_primary()
        finally:
            await asyncio.to_thread(sentinel.start)


def _quiet(condition: Callable[[], bool]) -> bool:
    with contextlib.suppress(redis.RedisError, OSError, AttributeError):
        return condition()
    return False
