"""Claim jobs as slots are free, and wait for work without polling."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from penstock.core import events
from penstock.core.errors import StoreError, StoreMismatch, StoreUnavailable
from penstock.core.ids import WorkerName
from penstock.core.job import Claimed, ClaimedJob, ClaimRequest
from penstock.core.limits import SCRIPT_ITEMS
from penstock.handlers.registry import EXECUTORS, Executor
from penstock.store.protocol import Store
from penstock.worker.backoff import FIRST_S, LAST_S, Outage
from penstock.worker.slots import Slots

#: The longest wait, so that a half-open connection shows and an idle worker proves that it can claim.
WAIT_S = 5.0
#: How long a full worker waits for a slot before it opens a wait for wake-ups, which costs a call to end.
FULL_PATIENCE_S = 0.02
FIRST_IGNORE_S = 0.05
LAST_IGNORE_S = 1.0
#: How long a worker for jobs that run alone stays after the last of them, and how often it looks meanwhile.
LINGER_S = 5.0
LINGER_LOOK_S = 0.5


class Ignored:
    """Leave a queue alone for a while on behalf of one executor: all that a claim found there belongs to others."""

    def __init__(self) -> None:
        self._until: dict[tuple[Executor, str], tuple[float, float]] = {}

    def ignore(self, executor: Executor, queue: str, *, now: float) -> None:
        """Ignore a queue for 50 ms, then twice as long each time in a row, up to 1 s."""
        known = self._until.get((executor, queue))
        wait = min(LAST_IGNORE_S, known[1] * 2) if known else FIRST_IGNORE_S
        self._until[executor, queue] = (now + wait, wait)

    def heed(self, executor: Executor, queue: str) -> None:
        """Heed a queue again: it held work for us, or nothing at all."""
        self._until.pop((executor, queue), None)

    def holds(self, executor: Executor, queue: str, *, now: float) -> bool:
        """Tell whether a queue is ignored now."""
        known = self._until.get((executor, queue))
        return known is not None and known[0] > now

    def next_end(self, *, now: float) -> float | None:
        """Return when the first ignored queue is to be asked again."""
        return min((until for until, _wait in self._until.values() if until > now), default=None)


class Away:
    """Remember which of several partitions do not answer, and when to ask them again."""

    def __init__(self) -> None:
        self._failures: dict[int, int] = {}
        self._until: dict[int, float] = {}
        self._log: Any = structlog.get_logger("penstock.worker").bind(loop="claim")

    def failed(self, partition: int, error: StoreUnavailable) -> None:
        """Leave a partition alone for a while, longer each time in a row."""
        if not self._failures:
            message = "Some partitions do not answer; claiming from the others, and asking these again."
            self._log.warning(events.STORE_LOST, message=message, partition=partition, error=str(error))
        count = self._failures.get(partition, 0)
        self._failures[partition] = count + 1
        wait_s = min(LAST_S, FIRST_S * 2.0 ** min(count, 10)) * (0.5 + random.random() / 2)
        self._until[partition] = asyncio.get_running_loop().time() + wait_s

    def over(self, partition: int) -> None:
        """Note that a partition answers."""
        if self._failures.pop(partition, 0):
            del self._until[partition]
            if not self._failures:
                self._log.warning(events.STORE_BACK, message="All partitions answer again.")

    def forget(self) -> None:
        """Leave none alone: nothing answers, and whoever waits for that asks all."""
        self._failures.clear()
        self._until.clear()

    def holds(self, partition: int) -> bool:
        """Tell whether a partition is left alone now."""
        return bool(self._until) and self._until.get(partition, 0.0) > asyncio.get_running_loop().time()

    def ends(self) -> list[float]:
        """Return when to ask again."""
        return list(self._until.values())


class Fetcher:
    """Run the claim loop: announce, promote what is due, claim for free slots, wait.

    ``start`` gets each claimed job with its executor, ``refuse`` those that came while stopping. ``on_wake`` is called
    when a cancel was requested, ``announce`` each pass (it decides itself whether it is time), ``on_apart`` when jobs
    wait that must run alone, ``on_due`` when a job or a schedule is due earlier than was known. With ``alone`` it
    claims jobs that must run alone and no others, one at a time, and ends soon after the last.
    """

    def __init__(
        self,
        store: Store,
        slots: Slots,
        *,
        worker: WorkerName,
        nonce: str,
        queues: tuple[str, ...],
        tasks: dict[Executor, tuple[str, ...]],
        lease_ms: int,
        start: Callable[[ClaimedJob, Executor], None],
        refuse: Callable[[ClaimedJob], Awaitable[None]],
        on_wake: Callable[[], None],
        announce: Callable[[], Awaitable[None]],
        on_due: Callable[[], None] = lambda: None,
        priority_weights: tuple[int, int, int] | None = None,
        queue_weights: Mapping[str, int] | None = None,
        alone: bool = False,
        on_apart: Callable[[], None] = lambda: None,
    ) -> None:
        self._alone = alone
        self._on_apart = on_apart
        self._store = store
        self._slots = slots
        self._worker = worker
        self._nonce = nonce
        self._queues = queues
        self._priority_weights = priority_weights
        self._queue_weights = queue_weights
        self._tasks = tasks
        self._lease_ms = lease_ms
        self._start = start
        self._refuse = refuse
        self._on_wake = on_wake
        self._announce = announce
        self._on_due = on_due
        self._stopping = False
        self._dry_since: float | None = None
        self._turn = 0
        self._ignored = Ignored()
        self._due: dict[int, float] = {}
        self._local: asyncio.Future[None] | None = None
        self._waiting: asyncio.Task[frozenset[str]] | None = None
        self._waiting_for: tuple[str, ...] = ()
        self._outage = Outage("claim")
        self._away = Away()
        self._log: Any = structlog.get_logger("penstock.worker")
        #: The store's clock at the last claim that it answered, Unix ms.
        self.last_claim_at_ms: int | None = None
        #: The loop's clock then.
        self.last_claim_s: float | None = None
        slots.on_freed = self.nudge

    def stop(self) -> None:
        """Claim no more from now on."""
        self._stopping = True
        self.nudge()

    def nudge(self) -> None:
        """End the wait: a slot is free, or the worker stops."""
        if self._local is not None and not self._local.done():
            self._local.set_result(None)

    async def run(self) -> None:
        """Claim until stopped; an outage of the store only delays.

        Raises:
            StoreMismatch: the data has another format or number of partitions than the settings.
        """
        try:
            while not self._stopping:
                try:
                    await self._pass()
                except StoreMismatch:
                    raise
                except StoreError as error:
                    await self._sleep(self._outage.failed(error))
                except Exception as error:  # noqa: BLE001 - a worker that no longer claims looks alive and is not
                    self._log.error(
                        events.LOOP_FAILED, message="Claiming failed; trying again.", loop="claim", error=repr(error)
                    )
                    await self._sleep(self._outage.failed(error))
        finally:
            await self._end_wait()

    async def _pass(self) -> None:
        self._local = asyncio.get_running_loop().create_future()
        await self._announce()
        await self._promote_due()
        more = await self._claim_all()
        await self._announce()
        if self._alone and not self._stopping:
            await self._linger()
        elif not more and not self._stopping:
            await self._wait()

    async def _claim_all(self) -> bool:
        """Claim for every executor with room; tell whether there may be more for us at once."""
        more = False
        for executor in EXECUTORS:
            tasks = self._tasks.get(executor)
            queues = self._heeded(executor)
            if not tasks or not queues or self._stopping or self._slots.free(executor) <= 0:
                continue
            jobs, waiting = await self._claim_for(executor, tasks, queues)
            if self._alone:
                # One job at a time, whatever runs it.
                if jobs:
                    break
                continue
            room = self._slots.free(executor) > 0
            if jobs == 0 and waiting and room:
                await self._ignore(executor, tasks, queues)
                continue
            for queue in queues:
                self._ignored.heed(executor, queue)
            more = more or (waiting and room)
        return more

    def _heeded(self, executor: Executor) -> tuple[str, ...]:
        """Return the queues that an executor has room for and that are not ignored."""
        now = asyncio.get_running_loop().time()
        return tuple(
            queue
            for queue in self._queues
            if self._slots.room(executor, queue) > 0 and not self._ignored.holds(executor, queue, now=now)
        )

    async def _claim_for(self, executor: Executor, tasks: tuple[str, ...], queues: tuple[str, ...]) -> tuple[int, bool]:
        """Claim from all partitions, each time starting at another one; what is away does not hold up the others.

        Return how many jobs came and whether the queues still hold some.

        Raises:
            StoreUnavailable: no partition answered.
        """
        jobs, waiting = 0, False
        missing: StoreUnavailable | None = None
        answered = False
        partitions = self._store.partitions
        self._turn = (self._turn + 1) % partitions
        for step in range(partitions):
            limit = min(self._slots.free(executor), self._slots.part(executor), SCRIPT_ITEMS)
            if limit <= 0 or self._stopping:
                break
            partition = (self._turn + step) % partitions
            if self._away.holds(partition):
                continue
            try:
                claimed = await self._claim(partition, executor, tasks, queues, limit)
            except StoreUnavailable as error:
                if partitions == 1:
                    raise
                missing = error
                self._away.failed(partition, error)
                continue
            answered = True
            self._away.over(partition)
            jobs += len(claimed.jobs)
            waiting = waiting or claimed.remaining or claimed.skipped > 0
        if missing is not None and not answered:
            self._away.forget()
            raise missing
        return jobs, waiting

    async def _claim(
        self, partition: int, executor: Executor, tasks: tuple[str, ...], queues: tuple[str, ...], limit: int
    ) -> Claimed:
        claimed = await self._store.claim(
            partition,
            ClaimRequest(
                worker=self._worker,
                nonce=self._nonce,
                queues=queues,
                tasks=tasks,
                limit=limit,
                lease_ms=self._lease_ms,
                window_start=random.random(),
                priority_weights=self._priority_weights,
                queue_weights=tuple(self._queue_weights[queue] for queue in queues) if self._queue_weights else None,
                queue_limits=self._slots.rooms(executor, queues),
                draw=random.random(),
                alone=self._alone,
            ),
        )
        loop_time = asyncio.get_running_loop().time()
        self._outage.over()
        self.last_claim_at_ms, self.last_claim_s = claimed.now_ms, loop_time
        self._note_due(partition, claimed.next_due_ms, claimed.now_ms)
        if claimed.apart:
            self._on_apart()
        for job in claimed.jobs:
            if self._stopping:
                await self._refuse(job)
            else:
                self._start(job, executor)
        return claimed

    async def _ignore(self, executor: Executor, tasks: tuple[str, ...], queues: tuple[str, ...]) -> None:
        """Ignore the queues that hold only jobs of others; with several, each is asked alone."""
        loop = asyncio.get_running_loop()
        for queue in queues:
            if len(queues) > 1:
                jobs, waiting = await self._claim_for(executor, tasks, (queue,))
                if jobs or not waiting:
                    self._ignored.heed(executor, queue)
                    continue
            self._ignored.ignore(executor, queue, now=loop.time())

    def _note_due(self, partition: int, next_due_ms: int | None, now_ms: int) -> None:
        if next_due_ms is None:
            self._due.pop(partition, None)
        else:
            self._due[partition] = asyncio.get_running_loop().time() + max(0, next_due_ms - now_ms) / 1000

    async def _promote_due(self) -> None:
        now = asyncio.get_running_loop().time()
        for partition in [partition for partition, due in self._due.items() if due <= now]:
            await self._promote(partition)

    async def _promote(self, partition: int) -> None:
        if self._away.holds(partition):
            return
        try:
            promoted = await self._store.promote(partition)
        except StoreUnavailable as error:
            if self._store.partitions == 1:
                raise
            # Its claim says when it is back, and what is due there then.
            self._due.pop(partition, None)
            self._away.failed(partition, error)
            return
        self._note_due(partition, promoted.next_due_ms, promoted.now_ms)

    async def _linger(self) -> None:
        """Wait until the job that runs alone has ended, then look for another one, and end when there is none."""
        assert self._local is not None
        loop = asyncio.get_running_loop()
        if self._slots.taken:
            self._dry_since = None
            await self._until_wake()
            return
        self._dry_since = self._dry_since or loop.time()
        if loop.time() - self._dry_since >= LINGER_S:
            self._stopping = True
            return
        await asyncio.wait({self._local}, timeout=LINGER_LOOK_S)

    async def _until_wake(self) -> None:
        """Wait for a free slot or a wake-up, of which the first one may tell of a cancel."""
        assert self._local is not None
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_task(
                self._store.wait_work(self._worker, (), timeout_ms=int(WAIT_S * 1000)), name="penstock-wait"
            )
        either: set[asyncio.Future[Any]] = {self._waiting, self._local}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._waiting.done():
            await self._take_wait()

    async def _wait(self) -> None:
        """Wait for a wake-up, a free slot, a due time or the end of an ignored queue's rest."""
        assert self._local is not None
        loop = asyncio.get_running_loop()
        now = loop.time()
        ends = [now + WAIT_S, *self._due.values(), *self._away.ends()]
        if (end := self._ignored.next_end(now=now)) is not None:
            ends.append(end)
        timeout = max(0.0, min(ends) - now)
        heeded = {queue for executor, tasks in self._tasks.items() if tasks for queue in self._heeded(executor)}
        wanted = tuple(queue for queue in self._queues if queue in heeded)
        if self._slots.full and self._waiting is None:
            await asyncio.wait({self._local}, timeout=min(timeout, FULL_PATIENCE_S))
            if self._local.done():
                return
        if self._waiting is not None and self._waiting_for != wanted and not self._waiting.done():
            await self._store.wake(self._worker)
            await self._take_wait()
        if self._waiting is None:
            self._waiting_for = wanted
            # Never cancelled: what it took from the store would be lost. A wake ends it.
            self._waiting = loop.create_task(
                self._store.wait_work(self._worker, wanted, timeout_ms=int(WAIT_S * 1000)), name="penstock-wait"
            )
        either: set[asyncio.Future[Any]] = {self._waiting, self._local}
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if self._waiting.done():
            await self._take_wait()

    async def _take_wait(self) -> None:
        assert self._waiting is not None
        waiting = self._waiting
        await asyncio.wait({waiting})
        self._waiting = None
        items = waiting.result()
        if "wake" in items:
            self._on_wake()
        if "due" in items:
            self._on_due()
            for partition in range(self._store.partitions):
                await self._promote(partition)

    async def _sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        # A freed slot nudges too, and must not hurry the next try.
        while not self._stopping and (left := end - loop.time()) > 0:
            self._local = loop.create_future()
            await asyncio.wait({self._local}, timeout=left)

    async def _end_wait(self) -> None:
        if self._waiting is None:
            return
        try:
            async with asyncio.timeout(2.0):
                await self._store.wake(self._worker)
                await asyncio.shield(self._waiting)
        except (StoreError, TimeoutError):
            # Closing the store ends the call.
            self._waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._waiting = None
