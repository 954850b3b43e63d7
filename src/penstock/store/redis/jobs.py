"""Change jobs: each verb is one script, run once per partition that its items live in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from penstock.core.errors import KeyHeld, KeyReused, NotSent, QueueFull, StoreError, StoreUnavailable
from penstock.core.ids import JobId, WorkerName, home_of_digest, partition_of
from penstock.core.job import (
    Changed,
    Claimed,
    ClaimRequest,
    Extended,
    Extension,
    Idempotency,
    NewJob,
    Promoted,
    Pruned,
    Purged,
    Reaped,
    Settle,
    Settled,
    Submitted,
    TaskInfo,
    WorkerInfo,
)
from penstock.core.limits import DAY_MS, SCRIPT_BYTES, SCRIPT_ITEMS, TaskDefaults
from penstock.core.output import Output, OutputCode
from penstock.core.states import State
from penstock.store.redis.codec import (
    STATES,
    ItemError,
    changed,
    claimed_job,
    confirm_fields,
    new_job_item,
    number,
    output_code,
    output_item,
    pack,
    settle_item,
    settled,
    stored_input,
    submit_answer,
    submitted,
)
from penstock.store.redis.connection import Connection
from penstock.store.redis.group import Group

Item = TypeVar("Item")
Answer = TypeVar("Answer")

SMALL_INPUT_BYTES = 16 * 1024
HELD_MIN_AGE_MS = 10_000
WORKER_LIVE_MS = 60_000
TASK_KEPT_MS = DAY_MS
_ITEM_BYTES = 300
_ENTRY_BYTES = 100
_NO_BOUNDS = pack({})
#: Full calls of submits that are away at once: the server runs one while the next is packed and the last one is read.
_SUBMITS_AHEAD = 3
#: Calls of one reap at most; each looks at 1,000 workers and more, and the next reap goes on where it ended.
_REAP_CALLS = 20


class RedisJobs:
    """Implement ``JobStore``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        limits = connection.options.limits
        self.partitions = connection.options.partitions
        self._retention = (limits.retention_ms, limits.failed_retention_ms)
        self._dead_cap = max(1, limits.dead_letters // self.partitions)
        self._finished_cap = max(1, limits.finished_jobs // self.partitions)
        # Calls on several connections, as durable ones are, would let later jobs overtake earlier ones.
        ahead = 1 if connection.barrier.is_on else _SUBMITS_AHEAD
        self._submits = [
            Group(self._submit_call(partition), lambda job: len(job.input) + _ITEM_BYTES, ahead=ahead)
            for partition in range(self.partitions)
        ]
        self._settles = [
            Group(self._settle_call(partition), lambda item: len(item.value) + _ITEM_BYTES)
            for partition in range(self.partitions)
        ]
        self._outputs = [Group(self._output_call(partition), _output_bytes) for partition in range(self.partitions)]

    async def _spread(
        self,
        items: Sequence[Item],
        job_id: Callable[[Item], JobId],
        call: Callable[[int, Sequence[Item]], Awaitable[Sequence[Answer]]],
    ) -> list[Answer]:
        """Run ``call`` for each partition with its items and put the answers back in order."""
        if self.partitions == 1:
            return list(await call(0, items))
        places: dict[int, list[int]] = {}
        for index, item in enumerate(items):
            places.setdefault(partition_of(job_id(item), self.partitions), []).append(index)
        parts = await asyncio.gather(*(call(p, [items[i] for i in indexes]) for p, indexes in places.items()))
        answers: dict[int, Answer] = {}
        for indexes, part in zip(places.values(), parts, strict=True):
            answers.update(zip(indexes, part, strict=True))
        return [answers[index] for index in range(len(items))]

    # submit

    def _submit_call(self, partition: int) -> Callable[[Sequence[NewJob]], Awaitable[list[Submitted | Exception]]]:
        async def call(jobs: Sequence[NewJob]) -> list[Submitted | Exception]:
            packed, answers = _pack_items(jobs, new_job_item)
            if packed is None:
                return [answers[index] for index in range(len(jobs))]
            bounds = self._depth_bounds(jobs)
            now_ms, reply = await self._connection.script(
                "submit", partition, packed, bounds, *self._retention, durable=True
            )
            if not answers:
                return [submit_answer(answer, job, now_ms) for answer, job in zip(reply, jobs, strict=True)]
            replies = iter(reply)
            return [
                answers[index] if index in answers else submit_answer(next(replies), job, now_ms)
                for index, job in enumerate(jobs)
            ]

        return call

    def _depth_bounds(self, jobs: Sequence[NewJob]) -> bytes:
        limits = self._connection.options.limits
        if not limits.max_depth and not limits.queue_max_depth:
            return _NO_BOUNDS
        bounds = {queue: limits.depth_bound(queue, self.partitions) for queue in {job.queue for job in jobs}}
        return pack({queue: bound for queue, bound in bounds.items() if bound is not None})

    async def submit(self, jobs: Sequence[NewJob]) -> list[Submitted | Exception]:
        """See ``JobStore.submit``. Callers at the same moment share a script call.

        A job and its idempotency key nearly always share a partition, and then a script; otherwise the key is reserved
        first, and told of the answer last.
        """
        if self.partitions > 1 and any(self._is_apart(job) for job in jobs):
            return _raise_when_all_failed(await self._submit_reserved(jobs))
        return _raise_when_all_failed(await self._submit(jobs))

    async def _submit(self, jobs: Sequence[NewJob]) -> list[Submitted | Exception]:
        """Return an answer for each job, where a call failed its error for each of the jobs in it."""
        if self.partitions == 1:
            return await self._submits[0].add(jobs)
        return await self._spread(jobs, lambda job: job.id, lambda partition, part: self._submits[partition].add(part))

    def _key_partition(self, key: Idempotency) -> int:
        return home_of_digest(key.key) % self.partitions

    def _is_apart(self, job: NewJob) -> bool:
        """Tell whether a job's idempotency key belongs to another partition than the job."""
        key = job.idempotency
        return key is not None and self._key_partition(key) != partition_of(job.id, self.partitions)

    async def _submit_reserved(self, jobs: Sequence[NewJob]) -> list[Submitted | Exception]:
        """Submit jobs of which some have their idempotency key in another partition.

        Whoever dies after reserving leaves a key without a job; the next to come with it submits under the same id.
        """
        apart = {index: job.idempotency for index, job in enumerate(jobs) if self._is_apart(job) and job.idempotency}
        reserved = await self._by_key(
            "reserve", {index: (key, [key.fingerprint, key.keep_ms, jobs[index].id]) for index, key in apart.items()}
        )
        answers: dict[int, Submitted | Exception] = {}
        submits: dict[int, NewJob] = {}
        for index, job in enumerate(jobs):
            reply = reserved.get(index)
            if reply is None:
                submits[index] = job
            elif reply[0] == b"reserved":
                submits[index] = msgspec.structs.replace(job, id=JobId(reply[1].decode()), idempotency=None)
            else:
                answers[index] = submitted(reply)
        confirms: dict[int, tuple[Idempotency, list[Any]]] = {}
        for (index, job), answer in zip(submits.items(), await self._submit(list(submits.values())), strict=True):
            key = apart.get(index)
            answers[index] = answer
            if key is not None:
                if isinstance(answer, Submitted):
                    # The job was there: this is the repeat of a submit that lost its answer.
                    answers[index] = msgspec.structs.replace(answer, replayed=not (answer.created or answer.existing))
                # Of a job whose call failed the key stays reserved: a repeat submits it under the same id.
                if not _is_of_call(answer):
                    confirms[index] = (key, confirm_fields(job.id, answer))
        # The jobs are stored whatever happens here; a repeat finds them by the reserved id.
        with contextlib.suppress(StoreError):
            await self._by_key("confirm", confirms)
        return [answers[index] for index in range(len(jobs))]

    async def _by_key(self, script: str, items: Mapping[int, tuple[Idempotency, list[Any]]]) -> dict[int, Any]:
        """Run a script in the partitions of idempotency keys; answers by the number that each item came under."""
        places: dict[int, list[tuple[int, list[Any]]]] = {}
        for index, (key, fields) in items.items():
            places.setdefault(self._key_partition(key), []).append((index, [key.key, *fields]))
        answers: dict[int, Any] = {}
        for partition, part in places.items():
            for start in range(0, len(part), SCRIPT_ITEMS):
                chunk = part[start : start + SCRIPT_ITEMS]
                packed = pack([fields for _, fields in chunk])
                replies = await self._connection.script(script, partition, packed, durable=script == "reserve")
                answers.update(zip((index for index, _ in chunk), replies, strict=True))
        return answers

    # claim

    async def claim(self, partition: int, request: ClaimRequest) -> Claimed:
        """See ``JobStore.claim``."""
        limits = self._connection.options.limits
        answer = await self._connection.script(
            "claim",
            partition,
            pack(
                [
                    request.worker,
                    request.nonce,
                    min(request.limit, SCRIPT_ITEMS),
                    request.lease_ms,
                    request.queues,
                    request.tasks,
                    request.window_start,
                    request.priority_weights,
                    request.queue_weights,
                    request.draw,
                    request.alone,
                    request.queue_limits,
                ]
            ),
            pack([SMALL_INPUT_BYTES, SCRIPT_BYTES, limits.unknown_task_ms, *self._retention, limits.alone_from]),
        )
        now_ms, due, skipped, deferred, remaining, apart, deadline_ms, flat = answer
        fields = iter(flat)
        jobs = (
            claimed_job(job_id, text, big_input, request.nonce, deadline_ms)
            for job_id, text, big_input in zip(fields, fields, fields, strict=True)
        )
        return Claimed(
            jobs=tuple(job for job in jobs if job is not None),
            skipped=skipped,
            deferred=deferred,
            remaining=remaining == 1,
            next_due_ms=number(due),
            now_ms=now_ms,
            apart=apart,
        )

    async def input(self, job_id: JobId) -> bytes | None:
        """See ``JobStore.input``."""
        keys = self._connection.keys[partition_of(job_id, self.partitions)]
        big: bytes | None
        big, text = await self._connection.together(
            [("GET", keys.key("input", job_id)), ("GET", keys.key("job", job_id))]
        )
        return big if big is not None else stored_input(job_id, text)

    # leases

    async def extend(
        self, worker: WorkerName, items: Sequence[Extension], *, lease_ms: int, complete: bool = False
    ) -> list[Extended]:
        """See ``JobStore.extend``."""

        async def call(partition: int, part: Sequence[Extension]) -> list[Extended]:
            answers: list[Extended] = []
            for start in range(0, len(part), SCRIPT_ITEMS):
                packed = [
                    [item.token.job_id, item.token.attempt, item.token.nonce, (item.progress or b"").decode()]
                    for item in part[start : start + SCRIPT_ITEMS]
                ]
                for answer in await self._connection.script("extend", partition, pack(packed), lease_ms):
                    # A damaged job cannot be renewed, and must not keep the others from being.
                    alive = answer[0] not in (b"stale", b"error")
                    answers.append(
                        Extended(
                            deadline_ms=int(answer[0]) if alive else None,
                            cancel_requested=bool(alive and answer[1]),
                        )
                    )
            return answers

        answers = await self._spread(items, lambda item: item.token.job_id, call)
        if complete:
            await self._release_held(worker, [item.token.job_id for item in items], HELD_MIN_AGE_MS)
        return answers

    async def _release_held(
        self,
        worker: WorkerName,
        named: Sequence[JobId],
        min_age_ms: int,
        *,
        max_lost: int = 0,
        started: Sequence[JobId] | None = None,
    ) -> int:
        def mine(ids: Sequence[JobId] | None) -> bytes:
            return pack(ids and [job_id for job_id in ids if partition_of(job_id, self.partitions) == partition])

        given_back = 0
        for partition in range(self.partitions):
            arguments = (worker, mine(named), min_age_ms, SCRIPT_ITEMS, max_lost, *self._retention, mine(started))
            while True:
                count = await self._connection.script("release_held", partition, *arguments)
                given_back += count
                if count < SCRIPT_ITEMS:
                    break
        return given_back

    async def release_worker(
        self, worker: WorkerName, *, lost: bool = False, started: Sequence[JobId] | None = None
    ) -> int:
        """See ``JobStore.release_worker``."""
        max_lost = self._connection.options.limits.max_lost if lost else 0
        return await self._release_held(worker, [], 0, max_lost=max_lost, started=started)

    # settle

    def _settle_call(self, partition: int) -> Callable[[Sequence[Settle]], Awaitable[list[Settled | Exception]]]:
        async def call(items: Sequence[Settle]) -> list[Settled | Exception]:
            packed, answers = _pack_items(items, settle_item)
            if packed is None:
                return [answers[index] for index in range(len(items))]
            replies = iter(await self._connection.script("settle", partition, packed, *self._retention))
            return [answers[index] if index in answers else settled(next(replies)) for index in range(len(items))]

        return call

    async def settle(self, items: Sequence[Settle]) -> list[Settled | Exception]:
        """See ``JobStore.settle``. Callers at the same moment share a script call."""
        return _raise_store_errors(
            await self._spread(
                items, lambda item: item.token.job_id, lambda partition, part: self._settles[partition].add(part)
            )
        )

    # output

    def _output_call(self, partition: int) -> Callable[[Sequence[Output]], Awaitable[list[OutputCode | Exception]]]:
        limits = self._connection.options.limits
        caps = pack([limits.log_lines, limits.log_bytes, limits.stream_chunks, limits.stream_bytes])

        async def call(items: Sequence[Output]) -> list[OutputCode | Exception]:
            packed, answers = _pack_items(items, output_item)
            if packed is None:
                return [answers[index] for index in range(len(items))]
            replies = iter(await self._connection.script("output", partition, packed, caps))
            return [answers[index] if index in answers else output_code(next(replies)) for index in range(len(items))]

        return call

    async def output(self, items: Sequence[Output]) -> list[OutputCode | Exception]:
        """See ``JobStore.output``. Callers at the same moment share a script call."""
        return _raise_store_errors(
            await self._spread(
                items, lambda item: item.token.job_id, lambda partition, part: self._outputs[partition].add(part)
            )
        )

    # changes by people

    async def _change(
        self, script: str, ids: Sequence[JobId], *arguments: int, durable: bool = False
    ) -> list[Changed | Exception]:
        async def call(partition: int, part: Sequence[JobId]) -> list[Changed | Exception]:
            answers: list[Changed | Exception] = []
            for start in range(0, len(part), SCRIPT_ITEMS):
                packed = pack(part[start : start + SCRIPT_ITEMS])
                replies = await self._connection.script(script, partition, packed, *arguments, durable=durable)
                answers += map(changed, replies)
            return answers

        return await self._spread(ids, lambda job_id: job_id, call)

    async def cancel(self, ids: Sequence[JobId]) -> list[Changed | Exception]:
        """See ``JobStore.cancel``."""
        return await self._change("cancel", ids, *self._retention)

    async def redrive(self, ids: Sequence[JobId], *, early: bool = True) -> list[Changed | Exception]:
        """See ``JobStore.redrive``."""
        return await self._change("redrive", ids, int(early), durable=True)

    async def delete(self, ids: Sequence[JobId]) -> list[Changed | Exception]:
        """See ``JobStore.delete``."""
        return await self._change("delete", ids)

    # queues

    async def _pause(self, queue: str, paused: int) -> None:
        for answer in await self._connection.script_each("pause", range(self.partitions), queue, paused):
            if isinstance(answer, StoreError):
                raise answer

    async def pause(self, queue: str) -> None:
        """See ``JobStore.pause``."""
        await self._pause(queue, 1)

    async def resume(self, queue: str) -> None:
        """See ``JobStore.resume``."""
        await self._pause(queue, 0)

    async def purge(self, partition: int, queue: str, *, up_to: int | None = None, limit: int = SCRIPT_ITEMS) -> Purged:
        """See ``JobStore.purge``."""
        last = "" if up_to is None else up_to
        cancelled, last, more = await self._connection.script("purge", partition, queue, last, limit, *self._retention)
        return Purged(cancelled=cancelled, up_to=int(last), more=more == 1)

    # upkeep

    async def promote(self, partition: int, *, limit: int = SCRIPT_ITEMS) -> Promoted:
        """See ``JobStore.promote``."""
        queued, expired, due, now_ms = await self._connection.script("promote", partition, limit, *self._retention)
        return Promoted(queued=queued, expired=expired, next_due_ms=number(due), now_ms=now_ms)

    async def reap(self, partition: int, *, limit: int = SCRIPT_ITEMS) -> Reaped:
        """See ``JobStore.reap``."""
        max_lost = self._connection.options.limits.max_lost
        answers: list[tuple[bytes, bytes]] = []
        for _ in range(_REAP_CALLS):
            # One call looks at so many workers; a dead one may come after many that have renewed.
            left = limit - len(answers)
            more, part = await self._connection.script(
                "reap", partition, left, max_lost, TaskDefaults().lease_ms, *self._retention
            )
            answers += part
            if not more or len(answers) >= limit:
                break

        def chosen(state: State) -> tuple[JobId, ...]:
            return tuple(JobId(job_id.decode()) for job_id, status in answers if STATES[status] is state)

        return Reaped(requeued=chosen(State.QUEUED), poisoned=chosen(State.FAILED), cancelled=chosen(State.CANCELLED))

    async def prune(self, partition: int, *, limit: int = SCRIPT_ITEMS) -> Pruned:
        """See ``JobStore.prune``."""
        aged, capped = await self._connection.script("prune", partition, limit, self._dead_cap, self._finished_cap)
        return Pruned(expired=aged, capped=capped)

    # registry

    async def announce(self, worker: WorkerInfo, tasks: Sequence[TaskInfo]) -> None:
        """See ``JobStore.announce``. Every partition needs the tasks; the worker is described in all alike."""
        packed = pack([[task.name, msgspec.json.encode(task).decode()] for task in tasks])
        description = msgspec.json.encode(worker)
        # Those on a server that is away learn of it at the next time.
        self._connection.tolerate(
            await self._connection.script_each(
                "announce",
                range(self.partitions),
                worker.name,
                description,
                packed,
                WORKER_LIVE_MS,
                TASK_KEPT_MS,
            )
        )

    async def forget_worker(self, worker: WorkerName) -> None:
        """See ``JobStore.forget_worker``."""
        await self._connection.together(
            [
                command
                for keys in self._connection.keys
                for command in (("ZREM", keys.key("workers"), worker), ("HDEL", keys.key("worker_info"), worker))
            ]
        )


def _output_bytes(item: Output) -> int:
    # Many short entries take as long as few long ones.
    return _ITEM_BYTES + sum(len(entry.value) + _ENTRY_BYTES for entry in item.entries)


def _pack_items(
    items: Sequence[Item], to_fields: Callable[[Item], list[Any]]
) -> tuple[bytes | None, dict[int, Exception]]:
    """Return the items packed for a script, None when none is left, and the errors of those that cannot be packed.

    Callers share a script call, so that what one of them brings must not fail the others: text that is not UTF-8,
    a number beyond 64 bits.
    """
    try:
        return pack([to_fields(item) for item in items]), {}
    except (UnicodeError, OverflowError):
        pass
    good: list[list[Any]] = []
    errors: dict[int, Exception] = {}
    for index, item in enumerate(items):
        try:
            fields = to_fields(item)
            pack(fields)
        except (UnicodeError, OverflowError) as error:
            errors[index] = error
        else:
            good.append(fields)
    return (pack(good) if good else None), errors


def _raise_store_errors(answers: list[Any]) -> list[Any]:
    """Raise when the whole call failed; errors of single items stay in their places."""
    for answer in answers:
        if _is_of_call(answer):
            raise answer
    return answers


def _raise_when_all_failed(answers: list[Submitted | Exception]) -> list[Submitted | Exception]:
    """Raise when no job had an answer of its own; else the error of a call stays in the places of its jobs.

    Of several errors the one is raised that leaves most open.
    """
    failures = [answer for answer in answers if isinstance(answer, Exception) and _is_of_call(answer)]
    for failure in failures:
        if not isinstance(failure, StoreError):
            raise failure
    if failures and len(failures) == len(answers):
        maybe_stored = (
            error for error in failures if isinstance(error, StoreUnavailable) and not isinstance(error, NotSent)
        )
        raise next(maybe_stored, failures[0])
    return answers


def _is_of_call(answer: Any) -> bool:
    """Tell whether an answer is the error of a whole call, not one of its item."""
    return isinstance(answer, Exception) and not isinstance(
        answer, ItemError | KeyHeld | KeyReused | QueueFull | UnicodeError | OverflowError
    )
