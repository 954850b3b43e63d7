"""Kill, freeze and stop processes; let handlers take theirs down."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from tests.chaos.scene import Bite, Fault, Mark, Scene
from tests.chaos.stack import LEASE_S, SILENCE_S, Member, descendants


class ProcessFaults:
    """Hold the faults of processes."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.kinds: dict[str, Fault] = {
            "worker SIGKILL (group)": self.kill_worker,
            "supervisor SIGKILL": self.kill_supervisor,
            "child SIGKILL": self.kill_child,
            "worker SIGSTOP past the lease": self.freeze_worker,
            "supervisor SIGSTOP": self.freeze_supervisor,
            "child SIGSTOP": self.freeze_child,
            "worker SIGTERM (deploy)": self.deploy_worker,
            "handler segfault": self.segfault,
            "API SIGKILL": self.kill_api,
            "API SIGSTOP": self.freeze_api,
        }

    # workers

    async def kill_worker(self) -> Bite:
        worker = await self._scene.busy_worker()
        worker.send(signal.SIGKILL)
        await worker.ended()
        return await self._fallen(worker, "worker SIGKILL -> started elsewhere (by lease)")

    async def kill_supervisor(self) -> Bite:
        """Kill the supervisor alone: its processes end with it, and only leases tell of them."""
        worker = await self._scene.busy_worker()
        below = descendants(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)
        await worker.ended()
        await self._scene.until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in below))  # noqa: PTH110
        return await self._fallen(worker, "supervisor SIGKILL -> started elsewhere (by lease)")

    async def _fallen(self, worker: Member, what: str) -> Bite:
        at_s = time.monotonic()
        jobs = frozenset(self._scene.runs.open_of(worker.mark))  # a dead one writes no more
        self._scene.marks.append(Mark(what, at_s, jobs))
        worker.start()
        again = await self._again(jobs, at_s)
        return Bite(again, f"{len(jobs)} jobs running, {again} started again")

    async def _again(self, jobs: frozenset[str] | set[str], at_s: float) -> int:
        scene = self._scene
        await scene.until(lambda: len(scene.started_again(jobs, at_s)) == len(jobs))
        return len(scene.started_again(jobs, at_s))

    async def _busy_child(self) -> tuple[Member, int] | None:
        """Choose a worker's process that runs jobs."""
        scene = self._scene
        worker = scene.source.choice(scene.stack.of("worker"))

        def is_busy() -> bool:
            child = worker.child()
            return child is not None and bool(scene.runs.open_of(worker.mark, [child]))

        found = await scene.until(is_busy)
        child = worker.child()
        return (worker, child) if found and child is not None else None

    async def kill_child(self) -> Bite:
        chosen = await self._busy_child()
        if chosen is None:
            return Bite(0, "no process was busy")
        worker, child = chosen
        at_s = time.monotonic()
        os.kill(child, signal.SIGKILL)
        await self._scene.until(lambda: child not in descendants(worker.pid))
        jobs = frozenset(self._scene.runs.open_of(worker.mark, [child]))
        self._scene.runs.forget(child)
        self._scene.marks.append(Mark("child SIGKILL -> started elsewhere (by supervisor)", at_s, jobs))
        again = await self._again(jobs, at_s)
        return Bite(again, f"{len(jobs)} jobs running, {again} started again")

    async def freeze_worker(self) -> Bite:
        scene = self._scene
        worker = await scene.busy_worker()
        stale = worker.said("job.stale")
        worker.send(signal.SIGSTOP)
        at_s = time.monotonic()
        jobs = frozenset(scene.runs.open_of(worker.mark))

        def taken() -> set[str]:
            return {run.job for run in scene.runs.since(at_s) if run.job in jobs and run.worker != worker.mark}

        await scene.until(lambda: bool(jobs) and len(taken()) == len(jobs), max(scene.look_s, LEASE_S * 3))
        worker.send(signal.SIGCONT)
        count = len(taken())
        scene.marks.append(Mark("worker SIGSTOP -> started elsewhere (by lease)", at_s, frozenset(taken())))
        if count:
            await scene.until(lambda: worker.said("job.stale") > stale)
        refused = worker.said("job.stale") - stale
        return Bite(count, f"{count} of {len(jobs)} leases lapsed, {refused} late results refused")

    async def freeze_supervisor(self) -> Bite:
        """Freeze the supervisor alone past a lease: its processes renew their own and go on."""
        scene = self._scene
        worker = await scene.busy_worker()
        at_s = time.monotonic()
        os.kill(worker.pid, signal.SIGSTOP)
        await asyncio.sleep(LEASE_S + 1.5)

        def ends() -> int:
            return sum(run.worker == worker.mark for run in scene.runs.since(at_s, starts=False))

        await scene.until(lambda: ends() > 0)
        os.kill(worker.pid, signal.SIGCONT)
        return Bite(ends(), f"{ends()} jobs ended under a frozen supervisor")

    async def freeze_child(self) -> Bite:
        """Freeze a process for good: the supervisor holds its leases, then kills it and gives them back."""
        chosen = await self._busy_child()
        if chosen is None:
            return Bite(0, "no process was busy")
        worker, child = chosen
        os.kill(child, signal.SIGSTOP)
        at_s = time.monotonic()
        jobs = frozenset(self._scene.runs.open_of(worker.mark, [child]))
        was_killed = await self._scene.until(
            lambda: child not in descendants(worker.pid), max(self._scene.look_s, SILENCE_S * 3)
        )
        if not was_killed:
            os.kill(child, signal.SIGCONT)
            return Bite(0, "the supervisor did not kill it")
        self._scene.runs.forget(child)
        again = await self._again(jobs, at_s)
        lasted = time.monotonic() - at_s
        return Bite(again, f"{len(jobs)} jobs held, {again} started again, all within {lasted:.1f} s")

    async def deploy_worker(self) -> Bite:
        worker = await self._scene.busy_worker()
        jobs = self._scene.runs.open_of(worker.mark)
        worker.send(signal.SIGTERM)
        code = await worker.ended()
        left = self._scene.runs.open_of(worker.mark)
        worker.start()
        evidence = f"{len(jobs)} jobs running, {len(jobs & left)} handed back, exit code {code}"
        return Bite(len(jobs) if code == 0 else 0, evidence)

    async def segfault(self) -> Bite:
        scene = self._scene

        def faults() -> int:
            return sum(worker.said("SIGSEGV") for worker in scene.stack.of("worker"))

        before = faults()
        job = await scene.submitters.one("chaos_segfault")
        if job is None:
            return Bite(0, "no API took the job")

        def runs() -> list[int]:
            return [run.pid for run in scene.runs.read()[-5_000:] if run.job == job and run.starts]

        await scene.until(lambda: len(set(runs())) > 1 and faults() > before)
        died = faults() - before
        for pid in set(runs()[:-1]):
            scene.runs.forget(pid)
        return Bite(
            died if len(set(runs())) > 1 else 0, f"{died} process died of SIGSEGV, {len(runs())} runs of the job"
        )

    # APIs

    async def kill_api(self) -> Bite:
        number, api = self._choose_api()
        failed = self._scene.submitters.refusals(f"api-{number}")
        api.send(signal.SIGKILL)
        await api.ended()
        await self._scene.until(lambda: failed() > 0)
        api.start()
        return Bite(failed(), f"{failed()} submits failed")

    async def freeze_api(self) -> Bite:
        number, api = self._choose_api()
        failed = self._scene.submitters.refusals(f"api-{number}:ReadTimeout")
        api.send(signal.SIGSTOP)
        await self._scene.until(lambda: failed() > 0, max(self._scene.look_s, LEASE_S * 2))
        api.send(signal.SIGCONT)
        return Bite(failed(), f"{failed()} submits without an answer")

    def _choose_api(self) -> tuple[int, Member]:
        apis = self._scene.stack.of("api")
        number = self._scene.source.randrange(len(apis))
        return number, apis[number]
