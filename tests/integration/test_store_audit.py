"""The auditor names every kind of damage, and never cries wolf."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.core.cron import Timing
from penstock.core.errors import StoreUnavailable
from penstock.core.ids import JobId, WorkerName
from penstock.core.job import (
    Extension,
    HeldUntil,
    Idempotency,
    JobFilter,
    OnConflict,
    Settle,
    TaskInfo,
    Unique,
    Verb,
    WorkerInfo,
)
from penstock.core.schedule import Schedule, ScheduledJob
from penstock.core.states import Priority, State
from penstock.store import audit as audit_module
from penstock.store.audit import AuditReport, audit
from penstock.store.redis.store import RedisStore
from penstock.store.redis.testing import change_job
from penstock.store.upkeep import Upkeep
from tests.integration.store_support import (
    WORKER,
    claim,
    claim_one,
    new_job,
    options_at,
    server_in,
    settle,
    store_at,
    submit,
)

Damage = Callable[["Scene"], Awaitable[None]]
BIG = b'"%s"' % (b"x" * 300)


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "_MARKER_SETTLES_S", 0.2)


class Scene:
    """Hold a store with one job in each state, to be damaged."""

    def __init__(self, store: RedisStore) -> None:
        self.store = store
        self.keys = store.connection.keys[0]
        self.queued = self.running = self.failed = self.completed = self.delayed = self.expiring = JobId("")
        self.alone = JobId("")

    async def set(self) -> None:
        self.completed = await submit(self.store, input=BIG)
        await settle(self.store, await claim_one(self.store), value=BIG)
        self.failed = await submit(self.store)
        await settle(self.store, await claim_one(self.store), Verb.FAIL, b"")
        self.running = await submit(self.store)
        await claim_one(self.store)
        once = Idempotency(key="0" * 32, fingerprint="aa", keep_ms=3_600_000)
        self.queued = await submit(self.store, input=BIG, idempotency=once)
        self.delayed = await submit(self.store, delay_ms=3_600_000)
        unique = Unique(key="0" * 32, until=HeldUntil.FINISHED, for_ms=3_600_000)
        self.alone = await submit(self.store, queue="other", delay_ms=3_600_000, unique=unique)
        self.expiring = await submit(self.store, queue="other", expires_in_ms=3_600_000)
        job = ScheduledJob(task="echo", input=msgspec.Raw(b"{}"))
        await self.store.put_schedule(Schedule(name="daily", timing=Timing(cron="0 0 * * *"), job=job))

    async def run(self, *command: str | bytes | int) -> None:
        await self.store.connection.command(*command)

    async def put(self, kind: str, *arguments: str, member: str, score: int = 1) -> None:
        await self.run("ZADD", self.keys.key(kind, *arguments), score, member)

    async def take(self, kind: str, *arguments: str, member: str) -> None:
        await self.run("ZREM", self.keys.key(kind, *arguments), member)

    async def change(self, job_id: JobId, **changes: Any) -> None:
        await change_job(self.store.connection, job_id, **changes)

    async def replace(self, job_id: JobId, verb: str) -> None:
        await self.run("DEL", self.job(job_id))
        await self.run(verb, self.job(job_id), "1")

    def job(self, job_id: JobId) -> str:
        return self.keys.key("job", job_id)


async def audited(store: RedisStore) -> AuditReport:
    return await audit(store.connection.options)


@pytest.fixture
async def scene(valkey_url: str, namespace: str) -> AsyncIterator[Scene]:
    # Its keys are those of one partition.
    async with store_at(valkey_url, namespace, partitions=1) as store:
        scene = Scene(store)
        await scene.set()
        assert (await audited(store)).findings == ()
        yield scene


def _changing(field: str, wrong: Any) -> Damage:
    return lambda scene: scene.change(scene.running, **{field: wrong})


def _recording(record: str | bytes) -> Damage:
    return lambda scene: scene.run("HSET", scene.keys.key("attempts", scene.failed), 1, record)


#: What is done, what must be named, and which attribute of the scene (or which name) it must be named for.
DAMAGES: dict[str, tuple[Damage, str, str]] = {
    "in two places": (lambda s: s.put("delayed", member=s.queued), "two_places", "queued"),
    "in two queues": (lambda s: s.put("queue", "default", "low", member=s.queued), "two_places", "queued"),
    "in another queue's index": (lambda s: s.put("queue", "other", "low", member=s.queued), "wrong_index", "queued"),
    "final and dead": (lambda s: s.put("dead", "default", member=s.completed), "two_places", "completed"),
    "queued in no place": (lambda s: s.take("queue", "default", "normal", member=s.queued), "no_place", "queued"),
    "delayed in no place": (lambda s: s.take("delayed", member=s.delayed), "no_place", "delayed"),
    "completed in no place": (
        lambda s: s.take("final", "completed", "default", member=s.completed),
        "no_place",
        "completed",
    ),
    "failed in no place": (lambda s: s.take("dead", "default", member=s.failed), "no_place", "failed"),
    "running without a lease": (
        lambda s: s.take("running", WORKER, member=s.running),
        "running_without_lease",
        "running",
    ),
    "running on no worker": (lambda s: s.change(s.running, worker=None), "running_without_lease", "running"),
    "running on two": (lambda s: s.put("running", "somebody", member=s.running), "wrong_index", "running"),
    "completed but running": (lambda s: s.put("running", WORKER, member=s.completed), "two_places", "completed"),
    "lease that nobody looks at": (lambda s: s.take("leases", member=WORKER), "unwatched_lease", "running"),
    "lease that is looked at too late": (
        lambda s: s.put("leases", member=WORKER, score=9_000_000_000_000),
        "unwatched_lease",
        "running",
    ),
    "job missing": (lambda s: s.run("DEL", s.job(s.queued)), "job_missing", "queued"),
    "record missing of a running job": (lambda s: s.run("DEL", s.job(s.running)), "job_missing", "running"),
    "status unknown": (lambda s: s.change(s.queued, status="odd"), "damaged_job", "queued"),
    "no queue": (lambda s: s.change(s.queued, queue=None), "damaged_job", "queued"),
    "no task": (lambda s: s.change(s.queued, task=None), "damaged_job", "queued"),
    "wrong place": (lambda s: s.change(s.queued, status="completed"), "wrong_place", "queued"),
    "wrong priority": (lambda s: s.change(s.queued, priority="low"), "wrong_place", "queued"),
    "no expiry": (lambda s: s.take("expire", member=s.completed), "no_expiry", "completed"),
    "an expiry too early": (lambda s: s.put("expire", member=s.completed), "no_expiry", "completed"),
    "no time at which it may go": (lambda s: s.change(s.completed, until=None), "no_expiry", "completed"),
    "an expiry of nothing": (lambda s: s.put("expire", member=f"{s.queued} odd"), "stray_hint", "=expire {queued} odd"),
    "an empty expiry": (lambda s: s.put("expire", member=""), "stray_hint", "=expire "),
    "no deadline": (lambda s: s.take("expiry", member=s.expiring), "no_deadline", "expiring"),
    "a deadline too late": (lambda s: s.put("expiry", member=s.completed), "wrong_index", "completed"),
    "a schedule that cannot be read": (
        lambda s: s.run("HSET", s.keys.key("schedule", "daily"), "definition", "{"),
        "damaged_schedule",
        "schedule:daily",
    ),
    "a schedule without a field": (
        lambda s: s.run("HDEL", s.keys.key("schedule", "daily"), "revision"),
        "damaged_schedule",
        "schedule:daily",
    ),
    "a schedule that was put off": (
        lambda s: s.put("schedule_due", member="daily", score=9_000_000_000_000),
        "failing_schedule",
        "schedule:daily",
    ),
    "a schedule that does not tick": (lambda s: s.take("schedule_due", member="daily"), "no_tick", "schedule:daily"),
    "a schedule in no list": (lambda s: s.take("schedules", member="daily"), "unlisted_schedule", "schedule:daily"),
    "a tick of no schedule": (
        lambda s: s.put("schedule_due", member="gone"),
        "stray_schedule",
        "schedule_due gone",
    ),
    "a schedule of another partition's": (
        lambda s: s.run("RENAME", s.keys.key("schedule", "daily"), s.keys.key("schedule", "other")),
        "stray_schedule",
        "schedules daily",
    ),
    "input gone": (lambda s: s.run("DEL", s.keys.key("input", s.queued)), "no_input", "queued"),
    "orphan input": (lambda s: s.run("SET", s.keys.key("input", "x"), "1"), "orphan_value", "job:x:in"),
    "orphan attempts": (
        lambda s: s.run("HSET", s.keys.key("attempts", "x"), "1", "x"),
        "orphan_value",
        "job:x:attempts",
    ),
    "orphan log": (lambda s: s.run("RPUSH", s.keys.key("log", "x"), "1"), "orphan_value", "job:x:log"),
    "orphan stream": (lambda s: s.run("RPUSH", s.keys.key("stream", "x"), "1"), "orphan_value", "job:x:stream"),
    "orphan result": (lambda s: s.run("SET", s.keys.key("result", "x"), "1"), "orphan_value", "job:x:out"),
    "running gauge": (
        lambda s: s.run("HINCRBY", s.keys.key("gauges"), "running:default", 1),
        "wrong_counter",
        "gauges running",
    ),
    "delayed gauge": (
        lambda s: s.run("HSET", s.keys.key("gauges"), "delayed:default", 0),
        "wrong_counter",
        "gauges delayed",
    ),
    "finished gauge": (
        lambda s: s.run("HINCRBY", s.keys.key("gauges"), "finished:", 7),
        "wrong_counter",
        "gauges finished",
    ),
    "negative gauge": (
        lambda s: s.run("HSET", s.keys.key("gauges"), "running:other", -1),
        "wrong_counter",
        "gauges running:other",
    ),
    "ready count": (
        lambda s: s.put("ready", member="default:normal", score=9),
        "wrong_counter",
        "ready default:normal",
    ),
    "ready missing": (lambda s: s.take("ready", member="default:normal"), "wrong_counter", "ready default:normal"),
    "ready of no queue": (lambda s: s.put("ready", member="nobody:low"), "unlisted_queue", "ready nobody:low"),
    "queue not listed": (
        lambda s: s.run("SREM", s.keys.key("queues"), "other"),
        "unlisted_queue",
        "queue:other:normal",
    ),
    "marker missing": (lambda s: s.run("DEL", s.keys.key("marker", "default")), "no_marker", "marker default"),
    "unknown key": (lambda s: s.run("SET", s.keys.prefix + "odd", "1"), "unknown_key", "odd"),
    "canary alive": (lambda s: s.run("SET", s.keys.key("canary"), "1"), "wrong_type", "canary"),
    "job of a wrong type": (lambda s: s.replace(s.queued, "RPUSH"), "wrong_type", "job:{queued}"),
    **{
        f"{field} is {wrong!r}": (_changing(field, wrong), "damaged_job", "running")
        for field in ("status", "queue", "priority", "task", "created", "worker", "started", "head")
        for wrong in (True, 7.5, {"a": 1})
    },
    "job that is no UTF-8": (
        lambda s: s.run(
            "SET",
            s.job(s.queued),
            b"\x86\xa6status\xa6queued\xa5queue\xa7default\xa8priority\xa6normal\xa4task\xa1\xff\xa7created\x01\xa5input\xa1x",
        ),
        "damaged_job",
        "queued",
    ),
    "options that cannot be read": (lambda s: s.change(s.queued, head="{"), "damaged_job", "queued"),
    **{
        f"attempt recorded as {record!r}": (_recording(record), "damaged_attempt", "failed")
        for record in (
            "failed",
            "odd|1|2|1|w",
            "failed|1|2|x|w",
            "failed|1|soon|1|w",
            "failed|1|2|1|w{",
            b"failed|1|2|1|\xff",
        )
    },
    "attempt of no number": (
        lambda s: s.run("HSET", s.keys.key("attempts", s.failed), "first", "failed|1|2|1|w"),
        "damaged_attempt",
        "failed",
    ),
    "attempts of a wrong type": (
        lambda s: s.run("SET", s.keys.key("attempts", s.queued), "1"),
        "wrong_type",
        "job:{queued}:attempts",
    ),
    "job with more after it": (lambda s: s.run("APPEND", s.job(s.queued), "1"), "damaged_job", "queued"),
    "job that cannot be read": (lambda s: s.run("SET", s.job(s.queued), "1"), "damaged_job", "queued"),
    "job that is no msgpack": (lambda s: s.run("SET", s.job(s.queued), "\xc1"), "damaged_job", "queued"),
    "index of a wrong type": (lambda s: s.run("SET", s.keys.key("delayed"), "1"), "wrong_type", "=delayed"),
    "queues of a wrong type": (lambda s: s.run("SET", s.keys.key("queues"), "1"), "wrong_type", "queues"),
    "gauges of a wrong type": (lambda s: s.run("SET", s.keys.key("gauges"), "1"), "wrong_type", "gauges"),
    "job would vanish": (lambda s: s.run("PEXPIRE", s.job(s.queued), 1_000_000), "would_vanish", "job:{queued}"),
    "index would vanish": (lambda s: s.run("PEXPIRE", s.keys.key("leases"), 1_000_000), "would_vanish", "=leases"),
    "idempotency key without an end": (
        lambda s: s.run("PERSIST", s.keys.key("idem", "0" * 32)),
        "never_vanishes",
        "=idem:" + "0" * 32,
    ),
    "unique key lost": (lambda s: s.run("DEL", s.keys.key("unique", "0" * 32)), "key_not_held", "alone"),
    "unique key of another": (
        lambda s: s.run("SET", s.keys.key("unique", "0" * 32), f"0|{s.queued}|1|"),
        "stray_lock",
        "=unique:" + "0" * 32,
    ),
    "unique key of nobody": (lambda s: s.run("SET", s.keys.key("unique", "1"), "0|x|1|"), "stray_lock", "=unique:1"),
    "unique key that cannot be read": (
        lambda s: s.run("SET", s.keys.key("unique", "1"), "odd"),
        "stray_lock",
        "=unique:1",
    ),
    "unique key of a final job": (
        lambda s: s.run("SET", s.keys.key("unique", "1"), f"0|{s.completed}|1|completed"),
        "stray_lock",
        "=unique:1",
    ),
    "unique key without an end": (
        lambda s: s.run("SET", s.keys.key("unique", "1"), "9999999999999|x|1|completed"),
        "never_vanishes",
        "=unique:1",
    ),
    "strange id": (lambda s: s.run("SET", s.keys.key("job", "x"), "\x80"), "wrong_partition", "x"),
}


@pytest.mark.parametrize("name", DAMAGES)
async def test_each_damage_is_named(scene: Scene, name: str) -> None:
    damage, code, subject = DAMAGES[name]
    await damage(scene)
    report = await audited(scene.store)
    expected = vars(scene).get(subject, subject.removeprefix("=").format(**vars(scene)))
    assert (code, expected) in {(finding.code, finding.subject) for finding in report.findings}, report.findings
    assert not report.healthy


async def test_an_entry_names_several_jobs_that_go_together(scene: Scene) -> None:
    """Hints that are wrong are no findings; a job that none names at its own time is one."""
    ids = [await submit(scene.store, queue="batch") for _ in range(3)]
    jobs = (await claim(scene.store, limit=3, queues=("batch",))).jobs
    await scene.store.settle([Settle(token=job.token, verb=Verb.COMPLETE, value=b"1") for job in jobs])
    assert (await audited(scene.store)).findings == ()
    flat = await scene.store.connection.command("ZRANGE", scene.keys.key("expire"), 0, -1, "WITHSCORES")
    entries = {entry.decode(): int(at) for entry, at in zip(flat[::2], flat[1::2], strict=True)}
    ((entry, at),) = [(entry, at) for entry, at in entries.items() if " " in entry]
    assert sorted(entry.split(" ")) == sorted(ids)
    await scene.take("expire", member=entry)
    for score, hint in (
        (at, [ids[0], ids[1], scene.queued]),
        (at + 1, [ids[2], ids[0]]),
        (at - 1, [ids[2], scene.running]),
    ):
        await scene.put("expire", member=" ".join(hint), score=score)
    found = {(finding.code, finding.subject) for finding in (await audited(scene.store)).findings}
    assert found == {("no_expiry", ids[2])}


async def test_keys_that_are_not_text_are_named(scene: Scene) -> None:
    await scene.store.connection.command("SET", scene.keys.prefix.encode() + b"\xff\xfe", "1")
    await scene.store.connection.command("SADD", scene.keys.key("queues"), b"\xff")
    report = await audited(scene.store)
    assert ("unknown_key", "\\xff\\xfe") in {(finding.code, finding.subject) for finding in report.findings}


async def test_keys_of_no_partition_are_named(scene: Scene) -> None:
    name = f"{scene.store.connection.options.namespace}:{{other}}:meta"
    await scene.run("SET", name, "1")
    report = await audited(scene.store)
    assert [(finding.code, finding.subject) for finding in report.findings] == [("unknown_key", name)]


@pytest.mark.parametrize("partitions", [1, 4])
async def test_a_healthy_store_has_no_finding_also_under_load(
    valkey_url: str, namespace: str, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submit, run, retry, fail, lose, cancel, redrive, delete and prune while the auditor reads over and over."""
    monkeypatch.setattr(audit_module, "_MARKER_SETTLES_S", 2.5)
    async with store_at(valkey_url, namespace, partitions=partitions) as store:
        load = Load(store, random.Random(11))
        upkeep = Upkeep(store)
        tasks = [asyncio.create_task(upkeep.run()), *(asyncio.create_task(load.worker(n)) for n in range(3))]
        tasks.append(asyncio.create_task(load.people()))
        seen = 0
        while load.settled < 1_500:
            report = await audited(store)
            assert report.findings == ()
            seen = max(seen, report.jobs)
        load.stopping = True
        upkeep.stop()
        await asyncio.gather(*tasks)
        # The workers that took the last markers are gone; the sweep of whoever is left sets them again.
        await asyncio.gather(*(store.reap(partition) for partition in range(partitions)))
        report = await audited(store)
        assert report.findings == ()
        assert seen > 100


class Load:
    def __init__(self, store: RedisStore, source: random.Random) -> None:
        self.store = store
        self.source = source
        self.stopping = False
        self.settled = 0
        self.ids: list[JobId] = []

    def unique(self) -> Unique:
        return Unique(
            key=self.source.choice("0123456789") * 32,
            until=self.source.choice(list(HeldUntil)),
            for_ms=self.source.choice([None, None, 2, 60_000]),
            on_conflict=self.source.choice(list(OnConflict)),
        )

    async def people(self) -> None:
        while not self.stopping:
            jobs = [
                new_job(
                    unique=self.source.choice([None, None, self.unique()]),
                    home=self.source.randrange(4096),
                    queue=self.source.choice(["default", "a:b"]),
                    priority=self.source.choice(list(Priority)),
                    delay_ms=self.source.choice([None, None, 5]),
                    expires_in_ms=self.source.choice([None, 3, 60_000]),
                    retention_ms=self.source.choice([None, 1, 20]),
                    input=self.source.choice([b"1", BIG]),
                    task=self.source.choice(["echo", "echo", "unknown"]),
                )
                for _ in range(20)
            ]
            await self.store.submit(jobs)
            self.ids = [*self.ids[-400:], *(job.id for job in jobs)]
            some = self.source.sample(self.ids, 8)
            await self.store.cancel(some[:3])
            await self.store.redrive(some[3:6])
            await self.store.delete(some[6:])

    async def worker(self, number: int) -> None:
        name = WorkerName(f"worker-{number}")
        verbs = [Verb.COMPLETE, Verb.COMPLETE, Verb.RETRY, Verb.FAIL, Verb.RELEASE, Verb.SNOOZE]
        while not self.stopping:
            for partition in range(self.store.partitions):
                claimed = await claim(
                    self.store, partition=partition, limit=10, worker=name, queues=("default", "a:b"), tasks=("echo",)
                )
                jobs = list(claimed.jobs)
                await self.store.extend(
                    name, [Extension(token=job.token) for job in jobs], lease_ms=15_000, complete=True
                )
                if jobs and self.source.random() < 0.1:
                    await self.store.release_worker(name)
                for job in jobs:
                    verb = self.source.choice(verbs)
                    value = BIG if verb is Verb.COMPLETE else b""
                    await self.store.settle([Settle(token=job.token, verb=verb, value=value, delay_ms=2)])
                    self.settled += 1
            await self.store.wait_work(name, ["default", "a:b"], timeout_ms=5)


class TestServer:
    def checks(self, report: AuditReport) -> dict[str, str]:
        return {check.name: check.status for check in report.checks}

    async def test_a_well_set_server(self, tmp_path: Path) -> None:
        with server_in(tmp_path) as server:
            report = await audit(options_at(server.url, "penstock"))
        assert set(self.checks(report).values()) == {"ok"}
        assert report.healthy

    async def test_settings_that_endanger_jobs(self, tmp_path: Path) -> None:
        settings = ["--maxmemory-policy", "allkeys-lru", "--maxmemory", "4mb", "--appendonly", "no"]
        with server_in(tmp_path, *settings) as server:
            report = await audit(options_at(server.url, "penstock"))
        checks = self.checks(report)
        assert checks["maxmemory-policy"] == "error"
        assert checks["persistence"] == "warning"
        assert not report.healthy

    @pytest.mark.parametrize(
        ("rights", "unknown"),
        [
            ("-config", {"appendfsync"}),
            ("-config -info", {"version", "persistence", "maxmemory-policy", "maxmemory"}),
            ("-config -info -script", {"version", "scripts", "persistence", "maxmemory-policy", "maxmemory"}),
        ],
    )
    async def test_what_is_forbidden_is_unknown_and_no_error(
        self, tmp_path: Path, rights: str, unknown: set[str]
    ) -> None:
        acl = tmp_path / "users.acl"
        acl.write_text(f"user default on nopass ~* &* +@all\nuser plain on >secret ~* &* +@all {rights}\n")
        with server_in(tmp_path, "--aclfile", str(acl)) as server:
            url = server.url.replace("redis://", "redis://plain:secret@")
            async with store_at(url, "penstock") as store:
                await submit(store)
            report = await audit(options_at(url, "penstock"))
        assert {name for name, status in self.checks(report).items() if status == "unknown"} == unknown
        assert set(self.checks(report).values()) == {"ok", "unknown"}
        assert report.healthy
        assert report.jobs == 1

    async def test_a_server_that_is_too_old(self, monkeypatch: pytest.MonkeyPatch, valkey_url: str) -> None:
        for info, status in [
            ({"redis_version": "6.2.14"}, "error"),
            ({"redis_version": "7.0.0"}, "ok"),
            ({"redis_version": "7.2.4", "valkey_version": "7.2.11"}, "ok"),
            ({}, "unknown"),
        ]:
            assert audit_module._version_check(info).status == status

    async def test_a_server_that_is_away(self, tmp_path: Path) -> None:
        with server_in(tmp_path) as server:
            pass
        with pytest.raises(StoreUnavailable):
            await audit(options_at(server.url, "penstock"))


async def test_workers_and_waiters_are_no_finding(valkey_url: str, namespace: str) -> None:
    async with store_at(valkey_url, namespace) as store:
        info = WorkerInfo(
            name=WORKER,
            hostname="h",
            pid=1,
            version="1",
            queues=("default",),
            tasks=("echo",),
            concurrency=1,
            running=0,
            started_at_ms=1,
        )
        await store.announce(info, [TaskInfo(name="echo")])
        job_id = await submit(store)
        waiting = asyncio.create_task(store.wait_final(job_id, timeout_ms=20_000))
        await store.wake(WORKER)
        told: list[int] = []
        report = await audit(store.connection.options, progress=told.append)
        assert report.findings == ()
        assert report.jobs == told[-1] == 1
        await store.cancel([job_id])
        await waiting


@pytest.mark.parametrize("name", ["a:b", "{other}:x", "two\nlines", "ü 1", "*"])
async def test_the_name_of_a_worker_may_hold_anything(valkey_url: str, namespace: str, name: str) -> None:
    async with store_at(valkey_url, namespace) as store:
        worker = WorkerName(name)
        job_id = await submit(store)
        await claim_one(store, worker=worker)
        assert (await audited(store)).findings == ()
        record = await store.get(job_id)
        assert record is not None
        assert record.deadline_ms is not None
        (listed,) = (await store.list_jobs(JobFilter(states=(State.RUNNING,)))).items
        assert listed.deadline_ms == record.deadline_ms
        assert await store.release_worker(worker) == 1


def test_the_reference_lists_every_code() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "reference" / "doctor.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)` \|", page.partition("## Findings")[2], re.MULTILINE))
    store = root / "src" / "penstock" / "store"
    sources = [store / "audit.py", *(store / "lua").glob("audit_*.lua")]
    written = set()
    for source in sources:
        text = source.read_text()
        written |= set(re.findall(r"_find\(\s*\"(\w+)\"|\bfind\('(\w+)'", text)) | set(
            re.findall(r"(findings\[#findings \+ 1\]) = \{.*?, '(\w+)', ", text)
        )
    codes = {code for pair in written for code in pair if code and "[" not in code}
    assert listed == codes
    assert {code for _, code, _ in DAMAGES.values()} == codes
