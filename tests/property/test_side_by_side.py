"""Drive the store in memory and the one on Redis side by side: after every step nothing that can be seen may differ.

Runs the same examples each time where the variable ``CI`` is set; elsewhere new ones, and a failing one is printed
as a program and kept for the next run.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from penstock.core.errors import KeyHeld, KeyReused, QueueFull, SchedulesFull
from penstock.core.ids import JobId, Token, WorkerName, at_home, home_of_digest, make_job_id
from penstock.core.job import (
    ClaimRequest,
    Extension,
    Idempotency,
    JobFilter,
    NewJob,
    OnConflict,
    Settle,
    Submitted,
    TaskInfo,
    Verb,
    WorkerInfo,
)
from penstock.core.output import NewEntry, Output
from penstock.core.schedule import Schedule, ScheduledJob, plan
from penstock.core.states import FINAL_STATES, State
from penstock.store.memory import MemoryStore
from penstock.store.memory.partition import StoredJob
from penstock.store.memory.reading import record
from penstock.store.memory.store import WORKER_LIVE_MS
from penstock.store.protocol import Store
from penstock.store.redis.store import RedisStore
from penstock.store.redis.testing import connect_with_clock
from tests.conformance.dump import Dump, read_dumps, remove_namespace
from tests.conformance.subject import START_MS
from tests.property.arguments import ARGUMENTS, LIMITS, QUEUES, WEIGHED, WORKERS

EXAMPLES = 200
STEPS = 50
_Value = TypeVar("_Value")
#: Of the steps, for each verb and each kind of submit.
LEAST_SHARE = 0.02


class SideBySide(RuleBasedStateMachine):
    """Take both stores through the same steps."""

    def __init__(self, url: str, taken: Counter[str]) -> None:
        super().__init__()
        self.url = url
        self.taken = taken
        self.loop = asyncio.new_event_loop()
        self.now_ms = self.latest_ms = START_MS
        self.numbers = 0
        self.tokens: list[Token] = []
        self.made: Counter[Token] = Counter()
        self.deck: list[str] = []
        self.memory: MemoryStore
        self.redis: RedisStore

    @initialize(partitions=st.sampled_from([1, 1, 2]))
    def start(self, partitions: int) -> None:
        self.memory = MemoryStore(lambda: self.now_ms, partitions, LIMITS)
        namespace = f"test-{uuid.uuid4().hex[:16]}"
        self.redis, self.set_clock = self.run(connect_with_clock(self.url, namespace, partitions, LIMITS))
        self.run(self.set_clock(self.now_ms))

    def teardown(self) -> None:
        if hasattr(self, "redis"):
            self.run(remove_namespace(self.redis.connection))
            self.run(self.redis.close())
        self.loop.close()

    def run(self, work: Awaitable[_Value]) -> _Value:
        return self.loop.run_until_complete(work)

    def both(self, verb: str, call: Callable[[Store], Awaitable[_Value]]) -> _Value:
        """Take a step on both stores, compare their answers and all that they hold."""
        self.taken[verb] += 1

        async def step() -> tuple[_Value, _Value, list[Dump]]:
            return await call(self.memory), await call(self.redis), await read_dumps(self.redis.connection)

        expected, answer, dumps = self.run(step())
        assert answer == expected
        self.compare(dumps)
        return expected

    def compare(self, dumps: Sequence[Dump]) -> None:
        assert self.memory.audit() == []
        for part, dump in zip(self.memory._parts, dumps, strict=True):
            assert dump.audit() == []
            assert dump.records() == {job.id: record(job, part) for job in part.jobs.values()}
            assert dump.output() == {job.id: job.output.entries for job in part.jobs.values()}
            queues = {key: list(index) for key, index in part.queues.items() if index}
            assert dump.queue_order() == queues
            final = {
                f"dead:{queue}" if state is State.FAILED else f"final:{state.value}:{queue}": list(index)
                for (state, queue), index in part.final.items()
                if index
            }
            assert {name: list(dump.zset(name)) for kind in ("dead", "final") for name in dump.named(kind)} == final
            # Which of those that go at the same time goes first is not promised.
            assert dump.removals() == sorted((part.expire.score(job_id), job_id) for job_id in part.expire)
            for name in ("delayed", "expiry"):
                index = getattr(part, name)
                assert dump.zset(name) == {job_id: index.score(job_id) for job_id in index}
                assert list(dump.zset(name)) == list(index)
            running = {
                f"running:{worker}": {job_id: part.running.score(job_id) for job_id in index}
                for worker, index in part.held.items()
                if index
            }
            assert {name: dump.zset(name) for name in dump.named("running")} == running
            assert {name.decode() for name in dump.keys.get("paused", ())} == part.paused
            assert dump.schedules() == part.schedules
            assert dump.zset("schedule_due") == part.schedule_due
            once = {
                f"idem:{key}": (until_ms, first.fingerprint, answer.id)
                for key, (first, until_ms, answer) in part.once.items()
                if until_ms > self.now_ms
            }
            locks = {
                f"unique:{key}": (lock.end_ms, lock.job_id, lock.state.value if lock.state else "")
                for key, lock in part.locks.items()
                if part.holder(key, self.now_ms)
            }
            found = dump.locks().items()
            assert {name: lock for name, lock in found if lock[0] > self.now_ms or name in locks} == locks
            assert {name: record for name, record in dump.once().items() if record[0] > self.now_ms} == once

    def jobs(self, *preferred: State, choice: int) -> JobId:
        """Choose a job, mostly one in a preferred state; an unknown id when there is none."""
        every = sorted((job for part in self.memory._parts for job in part.jobs.values()), key=lambda job: job.id)
        fitting = [job for job in every if job.state in preferred]
        pool = fitting if fitting and choice % 4 else every
        return pool[choice % len(pool)].id if pool else make_job_id(unix_ms=0, home=0, random_bits=choice)

    def token(self, choice: int) -> Token:
        """Choose a token: mostly of a running attempt, else an old one or one with a wrong nonce."""
        running = sorted(self.running(), key=lambda job: job.id)
        live = [Token(job.id, job.attempt, job.nonce) for job in running]
        if choice in (0, 1) and self.tokens:
            return self.tokens[-1 - choice * 3 % len(self.tokens)]
        if not live:
            return self.tokens[-1] if self.tokens else Token(self.jobs(choice=choice), 1, "none")
        token = live[choice % len(live)]
        return msgspec.structs.replace(token, nonce="wrong") if choice == 2 else token

    def running(self) -> list[StoredJob]:
        return [job for part in self.memory._parts for job in part.jobs.values() if job.state is State.RUNNING]

    def settle(self, verb: Verb, chosen: Sequence[int], **fields: Any) -> None:
        items = [Settle(token=self.token(choice), verb=verb, **fields) for choice in chosen]
        self.both("acknowledge" if verb is Verb.CANCEL else verb.value, lambda store: store.settle(items))

    def advance(self, ms: int) -> None:
        if ms < 0:
            self.forget()
        self.now_ms += ms
        self.latest_ms = max(self.latest_ms, self.now_ms)
        self.run(self.set_clock(self.now_ms))

    @rule(card=st.integers(0, 1_000), data=st.data())
    def step(self, card: int, data: st.DataObject) -> None:
        # One rule for all verbs, dealt like cards: with a rule each, or drawn freely, most programs would hardly use
        # some of them.
        if not self.deck:
            self.deck = [*WEIGHED, *WEIGHED]
        verb = self.deck.pop(card % len(self.deck))
        getattr(self, f"step_{verb}")(**data.draw(ARGUMENTS[verb], label=verb))

    def step_submit(self, many: list[dict[str, Any]], repeat: bool, choice: int, ms: int) -> None:
        self.advance(ms)
        jobs = []
        keys: set[int] = set()
        for fields in many:
            self.numbers += 1
            # Scattered, so that ties of a score are settled by something else than the order of submits.
            bits = self.numbers * 0x9E37_79B9_7F4A_7C15 & 0x3FFF_FFFF_FFFF_FFFF
            job_id = make_job_id(unix_ms=START_MS, home=0, random_bits=bits)
            once = fields.pop("once")
            home = fields.pop("home")
            unique = fields["unique"]
            if once is not None and once[0] in keys and any(other["unique"] for other in many):
                # One body has one home, and one fate: these here may differ.
                once = None
            if once is not None:
                # A key has one home, and its jobs have one: the same for keys 0 and 1, another one for 2 and 3.
                number, fingerprint = once
                keys.add(number)
                home = number
                digest = f"00{number if number < 2 else 5 - number}{number:029}"
                fields["idempotency"] = Idempotency(key=digest, fingerprint=fingerprint, keep_ms=10_000)
            if unique is not None:
                home = home_of_digest(unique.key)
            jobs.append(NewJob(id=at_home(job_id, home), **fields))
        if repeat:
            jobs.append(NewJob(id=self.jobs(choice=choice), task="echo", input=b"{}"))

        async def step(store: Store) -> list[Submitted | str]:
            answers = await store.submit(jobs)
            assert all(isinstance(answer, Submitted | KeyHeld | KeyReused | QueueFull) for answer in answers)
            # Two errors of one kind are not equal.
            return [answer if isinstance(answer, Submitted) else repr(answer) for answer in answers]

        self.both("submit", step)
        self.taken["submit with an idempotency key"] += any(job.idempotency is not None for job in jobs)
        for mode in OnConflict:
            taken = any(job.unique is not None and job.unique.on_conflict is mode for job in jobs)
            self.taken[f"submit with a unique key: {mode.value}"] += taken

    def step_claim(self, choice: int, weighted_queues: bool, queue_limit: int | None, **fields: Any) -> None:
        weights = tuple(range(3, 3 + len(fields["queues"]))) if weighted_queues else None
        limits = None if queue_limit is None else (queue_limit,) * len(fields["queues"])
        request = ClaimRequest(
            worker=WORKERS[choice % 2],
            nonce=f"n{self.numbers}",
            queue_weights=weights,
            queue_limits=limits,
            **fields,
        )
        partition = choice // 2 % self.memory.partitions
        claimed = self.both("claim", lambda store: store.claim(partition, request))
        self.tokens = [*self.tokens, *(job.token for job in claimed.jobs)][-12:]

    def step_extend(self, chosen: list[int], worker: WorkerName, **fields: Any) -> None:
        progress = fields.pop("progress")
        items = [Extension(token=self.token(choice), progress=progress) for choice in chosen]
        self.both("extend", lambda store: store.extend(worker, items, **fields))

    def step_output(self, chosen: list[int], repeat: int, dropped: int, entries: list[NewEntry]) -> None:
        """Go on where the attempt was, mostly; at times repeat the last entries, or skip some that were dropped."""
        items = []
        for token in dict.fromkeys(self.token(choice) for choice in chosen):
            made = max(0, self.made[token] - repeat) + dropped
            items.append(
                Output(token=token, made=made, entries=tuple(entries), dropped_lines=dropped // 2, dropped_chunks=1)
            )
            self.made[token] = made + len(entries)
        self.both("output", lambda store: store.output(items))

    def step_complete(self, **fields: Any) -> None:
        self.settle(Verb.COMPLETE, **fields)

    def step_retry(self, **fields: Any) -> None:
        self.settle(Verb.RETRY, **fields)

    def step_fail(self, **fields: Any) -> None:
        self.settle(Verb.FAIL, **fields)

    def step_release(self, **fields: Any) -> None:
        self.settle(Verb.RELEASE, **fields)

    def step_snooze(self, **fields: Any) -> None:
        self.settle(Verb.SNOOZE, **fields)

    def step_acknowledge(self, choice: int, ask: bool) -> None:
        """Settle as cancelled, mostly where a cancel was requested; at times request it just before."""
        asked = [job for job in self.running() if job.cancel_requested_at_ms is not None]
        token = self.token(choice)
        if asked and choice % 4:
            token = Token(asked[0].id, asked[0].attempt, asked[0].nonce)
        elif ask:
            self.both("cancel", lambda store: store.cancel([token.job_id]))
        self.both("acknowledge", lambda store: store.settle([Settle(token=token, verb=Verb.CANCEL)]))

    def step_cancel(self, choice: int, running: bool) -> None:
        job_id = self.jobs(*([State.RUNNING] if running else [State.QUEUED, State.SCHEDULED]), choice=choice)
        self.both("cancel", lambda store: store.cancel([job_id, job_id] if choice == 0 else [job_id]))

    def step_redrive(self, chosen: list[int], early: bool) -> None:
        ids = [self.jobs(State.FAILED, choice=choice) for choice in chosen]
        self.both("redrive", lambda store: store.redrive(ids, early=early))

    def step_delete(self, choice: int) -> None:
        job_id = self.jobs(*FINAL_STATES, choice=choice)
        self.both("delete", lambda store: store.delete([job_id]))

    def step_promote(self, choice: int, ms: int, limit: int) -> None:
        self.advance(ms)
        partition = choice % self.memory.partitions
        self.both("promote", lambda store: store.promote(partition, limit=limit))

    def step_reap(self, choice: int, times: int, ms: int, limit: int) -> None:
        partition = choice % self.memory.partitions
        for _ in range(times - 1):
            self.advance(ms)
            assert self.run(self.redis.reap(partition)) == self.run(self.memory.reap(partition))
        self.advance(ms)
        self.both("reap", lambda store: store.reap(partition, limit=limit))

    def step_release_worker(self, worker: WorkerName, lost: bool, all_started: bool) -> None:
        started = None if all_started else [job.id for job in self.running() if job.attempt % 2]
        self.both("release_worker", lambda store: store.release_worker(worker, lost=lost, started=started))

    def step_pause(self, queue: str, resume: bool) -> None:
        self.both("pause", lambda store: store.resume(queue) if resume else store.pause(queue))

    def step_purge(self, queue: str, choice: int, limit: int) -> None:
        partition = choice % self.memory.partitions

        async def step(store: Store) -> list[tuple[int, bool]]:
            # Places are numbered in blocks on the one store, and one by one on the other.
            purged = await store.purge(partition, queue, limit=limit)
            steps = [(purged.cancelled, purged.more)]
            if purged.more and choice % 3:
                purged = await store.purge(partition, queue, up_to=purged.up_to, limit=limit)
                steps.append((purged.cancelled, purged.more))
            return steps

        self.both("purge", step)

    def step_prune(self, choice: int, ms: int) -> None:
        self.advance(ms)
        partition = choice % self.memory.partitions
        self.both("prune", lambda store: store.prune(partition))

    def step_announce(self, worker: WorkerName, tasks: tuple[str, ...], forget: bool) -> None:
        info = WorkerInfo(
            name=worker,
            hostname="host",
            pid=1,
            version="1",
            queues=QUEUES,
            tasks=tasks,
            concurrency=1,
            running=0,
            started_at_ms=self.now_ms,
        )

        async def step(store: Store) -> tuple[list[WorkerInfo], dict[str, TaskInfo]]:
            await store.announce(info, [TaskInfo(name=task) for task in tasks])
            if forget:
                await store.forget_worker(worker)
            return await store.workers(), await store.tasks()

        self.both("announce", step)

    def step_schedule(self, name: str, what: str, queue: str, expires_in_ms: int | None, **fields: Any) -> None:
        job = ScheduledJob(task="echo", input=msgspec.Raw(b"{}"), queue=queue, expires_in_ms=expires_in_ms)
        schedule = Schedule(name=name, job=job, **fields)

        async def step(store: Store) -> Any:
            match what:
                case "put":
                    try:
                        return await store.put_schedule(schedule)
                    except SchedulesFull as error:
                        return str(error)
                case "pause":
                    return await store.pause_schedule(name)
                case "resume":
                    return await store.resume_schedule(name)
                case "delete":
                    return await store.delete_schedule(name)
            return await store.list_schedules(limit=1), await store.get_schedule(name)

        self.both("schedule", step)

    def step_tick(self, choice: int, ms: int, limit: int, times: int, put_off: bool) -> None:
        """Move the clock, at times back, and do what a loop does; a second loop that saw the same changes nothing."""
        self.advance(ms)
        partition = choice % self.memory.partitions

        async def step(store: Store) -> Any:
            due = await store.due_schedules(partition, limit=limit)
            if put_off and due.records:
                await store.put_off_schedule(due.records[0].schedule.name)
            ticks = [tick for record in due.records if (tick := plan(record, due.now_ms)) is not None]
            return due, [await store.tick(partition, ticks) for _ in range(times)]

        self.both("tick", step)

    def step_clock(self, ms: int) -> None:
        self.advance(ms)
        self.both("clock", lambda store: store.queues())

    def forget(self) -> None:
        """Do what a server's own expiry has done before its clock goes back: what was over by then is gone for good."""
        connection, live_ms = self.redis.connection, self.latest_ms - WORKER_LIVE_MS
        dumps = self.run(read_dumps(connection))
        self.memory._workers = {name: info for name, info in self.memory._workers.items() if info.seen_at_ms > live_ms}
        for part, keys, dump in zip(self.memory._parts, connection.keys, dumps, strict=True):
            part.once = {key: kept for key, kept in part.once.items() if kept[1] > self.latest_ms}
            part.locks = {key: lock for key, lock in part.locks.items() if part.holder(key, self.latest_ms)}
            there = {f"idem:{key}" for key in part.once} | {f"unique:{key}" for key in part.locks}
            gone = [keys.prefix + name for name in (*dump.once(), *dump.locks()) if name not in there]
            self.run(connection.together([("ZREMRANGEBYSCORE", keys.key("workers"), "-inf", live_ms)]))
            if gone:
                self.run(connection.together([("DEL", *gone)]))

    def step_look(self, choice: int, page: int, filters: JobFilter) -> None:
        job_id = self.jobs(choice=choice)

        async def listing(store: Store) -> list[Any]:
            found: list[Any] = []
            cursor: str | None = None
            while True:
                answer = await store.list_jobs(filters, limit=page, cursor=cursor)
                found.append(answer.items)
                cursor = answer.next
                if cursor is None:
                    return found

        async def step(store: Store) -> tuple[Any, ...]:
            totals = (await store.queues(), dict(await store.counters()))
            followed = await store.follow(job_id, log_after=choice % 4, stream_after=choice % 3, limit=page)
            return await store.get(job_id), followed, await store.input(job_id), await listing(store), *totals

        self.both("look", step)


def test_both_stores_agree_on_everything(valkey_url: str) -> None:
    taken: Counter[str] = Counter()
    profile = settings(
        # A few programs end early.
        max_examples=EXAMPLES + 40,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize="CI" in os.environ,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        # Finding is what matters: explaining a failing program would run it many times more. Shrinking takes minutes.
        phases=[Phase.generate] if "PENSTOCK_TEST_FAST" in os.environ else [Phase.reuse, Phase.generate, Phase.shrink],
    )
    # It takes whatever makes a machine; its annotation asks for a class.
    run_state_machine_as_test(lambda: SideBySide(valkey_url, taken), settings=profile)  # type: ignore[arg-type]
    extra = {name: taken.pop(name) for name in list(taken) if name not in ARGUMENTS}
    total = sum(taken.values())
    print(f"{total} steps:", ", ".join(f"{verb} {count / total:.1%}" for verb, count in taken.most_common()))
    assert set(taken) == set(ARGUMENTS)
    assert total >= EXAMPLES * STEPS
    assert min((*taken.values(), *extra.values())) >= LEAST_SHARE * total, (taken, extra)
