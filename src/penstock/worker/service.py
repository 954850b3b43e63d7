"""Be one worker: load tasks, claim and run, keep leases, drain."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import secrets
import socket
import time
from types import ModuleType
from typing import Any

import structlog

import penstock
from penstock.core import events
from penstock.core.errors import SchedulesFull, StoreError, StoreFull, TaskError
from penstock.core.ids import WorkerName
from penstock.core.job import PRIORITY_WEIGHTS, ClaimedJob, JobOptions, Settle, Verb, WorkerInfo, handler_name
from penstock.handlers import builtin
from penstock.handlers.registry import EXECUTORS, Executor, Registry, Task
from penstock.handlers.schedules import DeclaredSchedule, find_schedules
from penstock.store.protocol import Store
from penstock.store.ticker import Ticker
from penstock.store.upkeep import Upkeep
from penstock.worker.active import ActiveJob, Place, StopCause
from penstock.worker.ahead import MOST_JOBS
from penstock.worker.child import start_child
from penstock.worker.decide import Policy, policy_of
from penstock.worker.executors import Handlers, JobExecutor, LoopExecutor
from penstock.worker.fetcher import Fetcher
from penstock.worker.lease_table import LeaseWriter
from penstock.worker.leases import Held, LeaseKeeper, LeaseTask, LeaseThread, StoreFactory
from penstock.worker.loader import load_modules
from penstock.worker.options import WorkerOptions
from penstock.worker.output import OutputWriter
from penstock.worker.pool import STOP_GRACE_S, ProcessPool
from penstock.worker.process_executor import ProcessExecutor
from penstock.worker.runner import Runner
from penstock.worker.settler import Settler
from penstock.worker.slots import Slots
from penstock.worker.thread_executor import ThreadExecutor
from penstock.worker.threads import Threads

#: How long handlers that are cancelled at the end of the drain get to clean up.
CLEANUP_S = 2.0
#: How long leaving may take when the store is away.
GOODBYE_S = 3.0


class Worker:
    """Run one worker on the current loop.

    ``connect`` makes the worker's store, and a second one for the thread that renews leases, unless ``lease_thread`` is
    false, which is for stores that live in one loop. ``writer`` shows a supervisor what is held. ``alone`` runs only
    jobs that must run alone, one after the other, and ends when there are none; a worker without a supervisor runs none
    of them.
    """

    def __init__(
        self,
        options: WorkerOptions,
        connect: StoreFactory,
        *,
        lease_thread: bool = True,
        writer: LeaseWriter | None = None,
        alone: bool = False,
    ) -> None:
        self._alone = alone
        self.options = options
        self.name = WorkerName(options.name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}")
        #: Set once the worker has announced itself and claims.
        self.started = asyncio.Event()
        self._connect = connect
        self._lease_thread = lease_thread
        self._log: Any = structlog.get_logger("penstock.worker").bind(worker=self.name)
        self._stop = asyncio.Event()
        self._hasten = asyncio.Event()
        self._writer = writer
        self._held = Held(writer)
        self._registry = Registry()
        self._modules: list[ModuleType] = []
        self._threads = Threads(options.threads)
        self._pool = ProcessPool(options.pool_processes)
        self._started_at_ms = time.time_ns() // 1_000_000
        self._announced_s: float | None = None
        self._told_of_claim = False
        #: It stops because too many of its slots are stuck.
        self.worn = False
        self._places: dict[tuple[Executor, str], Place]
        #: By the name that the claim gives; the policy is that of jobs whose submit says nothing.
        self._tasks: dict[str, tuple[Task[..., Any], Policy]] = {}
        self._store: Store
        self._slots: Slots
        self._settler: Settler
        self._runner: Runner
        self._fetcher: Fetcher
        self._leases: LeaseThread | LeaseTask
        self._ticker: Ticker
        self._schedules: list[DeclaredSchedule] = []

    def request_stop(self) -> None:
        """Begin to drain; called again, hand back at once what still runs."""
        if self._stop.is_set():
            self._log.warning(events.WORKER_HASTENED, message="Handing back at once what still runs.")
            self._hasten.set()
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Tell whether the worker drains, or has."""
        return self._stop.is_set()

    @property
    def running(self) -> int:
        """Return how many jobs the worker holds."""
        return len(self._held)

    def load(self) -> None:
        """Import the task modules.

        Raises:
            TaskError: a module or a task cannot be used.
            ConfigError: a queue that is given slots is not served.
        """
        if self.options.builtin:
            builtin.add_builtin(self._registry, ai=self.options.ai, run_in_process=self._pool.run)
        self._modules = load_modules(self._registry, self.options.modules)
        self._schedules = find_schedules(self._modules)
        in_children = {self._registry.module_of(name) for name in self._registry.names(["process"])}
        self._pool.initialize_with(
            start_child, self.options.log_json, self.options.log_level, tuple(sorted(in_children))
        )
        if not self._registry.names():
            raise TaskError("there is nothing to run: name a module with tasks, or leave the built-in ones on")
        self.options.check_queue_slots(self._queues())

    async def run(self) -> None:
        """Work until ``request_stop``, then drain and leave.

        Raises:
            TaskError: a module or a task cannot be used.
            ConfigError: a queue that is given slots is not served.
            StoreMismatch: the data has another format.
        """
        self.load()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._threads.close)
            stack.push_async_callback(asyncio.to_thread, self._pool.close)
            self._store = await self._connect()
            stack.push_async_callback(self._store.close)
            resources = await self._enter_lifespans(stack)
            self._build(resources)
            if self._writer is not None:
                # A process of our own: what is loaded stays, and need not be looked through again.
                gc.collect()
                gc.freeze()
            upkeep = Upkeep(self._store)
            upkeep_task = asyncio.create_task(upkeep.run(), name="penstock-upkeep")
            ticker_task = asyncio.create_task(self._ticker.run(), name="penstock-ticker")
            fetch_task = asyncio.create_task(self._fetcher.run(), name="penstock-fetch")
            self._leases.start()
            try:
                await self._until_stop(fetch_task)
                self._log.info(
                    events.WORKER_STOPPING,
                    message=f"Stopping; {self.running} running jobs get {self.options.drain_ms / 1000:g} s to finish.",
                    running=self.running,
                )
                self._fetcher.stop()
                await fetch_task
                self._runner.withdraw()
                await self._drain()
            finally:
                fetch_task.cancel()
                self._runner.abandon()
                upkeep.stop()
                self._ticker.stop()
                await self._leases.stop()
                await self._settler.close()
                upkeep_task.cancel()
                ticker_task.cancel()
                await asyncio.gather(upkeep_task, ticker_task, fetch_task, return_exceptions=True)
                await self._leave()
        self._log.info(events.WORKER_STOPPED, message="The worker has stopped.")

    async def _until_stop(self, fetch_task: asyncio.Task[None]) -> None:
        stop_task = asyncio.create_task(self._stop.wait(), name="penstock-stop")
        await asyncio.wait({stop_task, fetch_task}, return_when=asyncio.FIRST_COMPLETED)
        stop_task.cancel()
        if fetch_task.done():
            # It ends by itself with an error that no waiting cures, or when no job is left that runs alone.
            fetch_task.result()
            self._stop.set()

    async def _enter_lifespans(self, stack: contextlib.AsyncExitStack) -> dict[str, Any]:
        resources: dict[str, Any] = {}
        if self.options.builtin:
            resources[builtin.MODULE] = await stack.enter_async_context(builtin.ai_lifespan())
        for module in self._modules:
            lifespan = getattr(module, "lifespan", None)
            if lifespan is None:
                continue
            manager = lifespan() if callable(lifespan) else None
            if not isinstance(manager, contextlib.AbstractAsyncContextManager):
                raise TaskError(f"{module.__name__}.lifespan must be a function under contextlib.asynccontextmanager")
            resources[module.__name__] = await stack.enter_async_context(manager)
        return resources

    def _build(self, resources: dict[str, Any]) -> None:
        options = self.options
        sizes: dict[Executor, int] = {
            "async": options.concurrency,
            "thread": options.threads,
            "process": self._pool.size,
        }
        tasks: dict[Executor, tuple[str, ...]] = {kind: self._registry.names([kind]) for kind in EXECUTORS}
        # An executor without tasks has no slots, else a full worker would never look full.
        one = 1 if self._alone else None
        self._slots = Slots(
            {kind: one or sizes[kind] if tasks[kind] else 0 for kind in EXECUTORS},
            most=one,
            queues=self._queues(),
            queue_slots=None if self._alone else dict(options.queue_slots),
        )
        self._places = {
            (kind, queue): Place(
                functools.partial(self._slots.give_back, kind, queue),
                on_progress=lambda: self._leases.poke_progress(),  # noqa: PLW0108 - made further down
                mark_stuck=functools.partial(self._note_stuck, kind),
            )
            for kind in EXECUTORS
            for queue in self._queues()
        }
        for name in self._registry.names():
            task = self._registry.get(name)
            assert task is not None
            self._tasks[name] = (task, policy_of(JobOptions(), task.info, options.defaults))
        self._settler = Settler(self._store, most_bytes=options.unwritten_bytes)
        self._ticker = Ticker(self._store, self._store.partitions)
        nonce = secrets.token_hex(8)
        if self._writer is not None:
            self._writer.begin(nonce)
        handlers = Handlers(self._registry, resources, options.limits, OutputWriter(self._store))
        set_ahead = self._slots.set_ahead
        executors: dict[Executor, JobExecutor] = {
            "async": LoopExecutor(handlers),
            "thread": ThreadExecutor(handlers, self._threads, functools.partial(set_ahead, "thread")),
            "process": ProcessExecutor(handlers, self._pool, functools.partial(set_ahead, "process")),
        }
        self._runner = Runner(
            self._store,
            self._held,
            self._settler,
            executors,
            worker=self.name,
            lease_ms=options.lease_ms,
            ahead=0 if self._alone else min(MOST_JOBS, self._slots.size),
        )
        self._fetcher = Fetcher(
            self._store,
            self._slots,
            worker=self.name,
            nonce=nonce,
            queues=self._queues(),
            tasks=tasks,
            lease_ms=options.lease_ms,
            start=self._start,
            refuse=self._refuse,
            on_wake=lambda: self._leases.poke(),  # noqa: PLW0108 - made further down
            announce=self._announce,
            on_due=self._ticker.nudge,
            priority_weights=PRIORITY_WEIGHTS if options.priorities == "weighted" else None,
            alone=self._alone,
            on_apart=self._writer.mark_apart if self._writer is not None else lambda: None,
            queue_weights=(
                dict(zip(self._queues(), options.queue_weights, strict=True)) if options.queue_weights else None
            ),
        )
        loop = asyncio.get_running_loop()

        def stop_job(job: ActiveJob, cause: StopCause) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(job.stop, cause)

        def make_keeper(store: Store) -> LeaseKeeper:
            return LeaseKeeper(store, self.name, self._held, lease_ms=options.lease_ms, stop_job=stop_job)

        beat = self._writer.beat if self._writer is not None else lambda: None
        self._leases = (
            LeaseThread(self._connect, make_keeper, beat=beat)
            if self._lease_thread
            else LeaseTask(make_keeper(self._store))
        )

    def _start(self, claimed: ClaimedJob, executor: Executor) -> None:
        # The claim names our tasks, so the store hands out no others.
        task, policy = self._tasks[handler_name(claimed.type, claimed.task)]
        options = claimed.options
        if options.max_attempts or options.timeout_ms or options.backoff:
            policy = policy_of(options, task.info, self.options.defaults)
        self._slots.take(executor, claimed.queue)
        self._runner.start(ActiveJob(claimed, task, policy, self._places[executor, claimed.queue]))

    def _note_stuck(self, executor: Executor, change: int) -> None:
        self._slots.mark_stuck(executor, change)
        if change > 0 and self._writer is not None:
            # One that looks at `ctx.cancelled` returns in a moment, and is no reason.
            asyncio.get_running_loop().call_later(STOP_GRACE_S, self._look_for_wear)

    def _look_for_wear(self) -> None:
        if self._slots.worn and not self.stopping:
            self.worn = True
            self._log.error(
                events.WORKER_WORN,
                message="Handlers that outlived their timeouts hold a quarter of the slots; a new process takes over.",
                stuck=self._slots.stuck,
            )
            self.request_stop()

    @property
    def stuck(self) -> int:
        """Return how many slots are held by handlers whose attempts have ended."""
        return self._slots.stuck

    async def _refuse(self, claimed: ClaimedJob) -> None:
        await self._settler.settle(Settle(token=claimed.token, verb=Verb.RELEASE))

    async def _announce(self) -> None:
        now = time.monotonic()
        # The first claim is told at once: until then a health check cannot call this worker well.
        has_news = self._fetcher.last_claim_at_ms is not None and not self._told_of_claim
        if (
            not has_news
            and self._announced_s is not None
            and (now - self._announced_s) * 1000 < self.options.announce_ms
        ):
            return
        has_claimed = self._fetcher.last_claim_at_ms is not None
        await self._publish_schedules()
        await self._store.announce(self._info(), self._registry.infos())
        self._told_of_claim = has_claimed
        if self._announced_s is None:
            self.started.set()
            self._warn_of_unserved_queues()
            self._log.info(
                events.WORKER_STARTED,
                message=f"Serving {', '.join(self._queues())} with {len(self._registry.names())} tasks.",
                queues=self._queues(),
                tasks=self._registry.names(),
            )
        self._announced_s = now

    async def _publish_schedules(self) -> None:
        """Store what the modules declare, once; a pause stays, and one that cannot be stored stops no work."""
        tasks = {info.name: info for info in self._registry.infos()}
        while self._schedules:
            declared = self._schedules[0]
            try:
                await self._store.put_schedule(declared.with_queue(tasks, self.options.defaults.queue))
            except (SchedulesFull, StoreFull, ValueError) as error:
                message = f"The schedule {declared.name!r} of {declared.where} was not stored: {error}."
                self._log.error(events.SCHEDULE_REFUSED, message=message, schedule=declared.name, error=repr(error))
            self._schedules.pop(0)

    def _queues(self) -> tuple[str, ...]:
        """Return the queues to serve; without a setting a task's own queue must not stay unserved."""
        if self.options.queues is not None:
            return self.options.queues
        named = {info.queue for info in self._registry.infos() if info.queue is not None}
        return (self.options.defaults.queue, *sorted(named - {self.options.defaults.queue}))

    def _warn_of_unserved_queues(self) -> None:
        for info in self._registry.infos():
            if info.queue is not None and info.queue not in self._queues():
                self._log.warning(
                    events.WORKER_UNSERVED,
                    message=f"Task {info.name!r} puts its jobs into the queue {info.queue!r}, not served here.",
                    task=info.name,
                    queue=info.queue,
                )

    def _info(self) -> WorkerInfo:
        return WorkerInfo(
            name=self.name,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            version=penstock.__version__,
            queues=self._queues(),
            tasks=self._registry.names(),
            concurrency=self._slots.size,
            running=self._slots.taken,
            stuck=self._slots.stuck,
            started_at_ms=self._started_at_ms,
            last_claim_at_ms=self._last_contact_ms(),
        )

    def _last_contact_ms(self) -> int | None:
        """Return the store's time of the last answered claim, or renewal while all slots are full: full is not sick."""
        claim_ms, claim_s = self._fetcher.last_claim_at_ms, self._fetcher.last_claim_s
        if claim_ms is None or claim_s is None:
            return None
        renewed_s = self._leases.last_round_s
        # Both clocks are time.monotonic, that of asyncio and that of uvloop as well.
        if self._slots.full and renewed_s is not None and renewed_s > claim_s:
            return claim_ms + int((renewed_s - claim_s) * 1000)
        return claim_ms

    async def _drain(self) -> None:
        """Wait for running jobs, then stop them and hand them back."""
        idle = asyncio.create_task(self._runner.wait_idle(), name="penstock-idle")
        hastened = asyncio.create_task(self._hasten.wait(), name="penstock-hasten")
        try:
            await asyncio.wait(
                {idle, hastened}, timeout=self.options.drain_ms / 1000, return_when=asyncio.FIRST_COMPLETED
            )
            if not idle.done():
                for job in self._held.all():
                    job.stop(StopCause.DRAIN)
                await asyncio.wait({idle}, timeout=CLEANUP_S)
        finally:
            idle.cancel()
            hastened.cancel()
            await asyncio.gather(idle, hastened, return_exceptions=True)

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(GOODBYE_S):
                # What is still held has no one to finish it here.
                await self._store.release_worker(self.name)
                await self._store.forget_worker(self.name)
        except (StoreError, TimeoutError) as error:
            self._log.warning(
                events.STORE_LOST,
                message="The store was away at the end; leases lapse by themselves.",
                error=str(error),
            )
