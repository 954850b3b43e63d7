"""Read all that a namespace holds in Redis, and check it against itself: each job in one place, every index right."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from typing import Any

import msgspec

from penstock.core.ids import JobId
from penstock.core.job import JobRecord
from penstock.core.output import OutputEntry, OutputKind
from penstock.core.schedule import ScheduleRecord
from penstock.core.states import FINAL_STATES, PLACES, Priority, State
from penstock.store.keys import KINDS
from penstock.store.redis.codec import job_record, read_entry
from penstock.store.redis.connection import Connection
from penstock.store.redis.schedules import record_of

_READS = {
    "hash": ("HGETALL",),
    "zset": ("ZRANGE", "0", "-1", "WITHSCORES"),
    "string": ("GET",),
    "list": ("LRANGE", "0", "-1"),
    "set": ("SMEMBERS",),
}
_JOB_ID = re.compile(r"job:([0-9a-f-]{36})")
_CODES = frozenset({"submitted", "started", "completed", "failed", "retried", "cancelled", "expired", "lost"}) | {
    "poisoned",
    "redriven",
    "deferred",
    "pruned",
    "dropped",
    "dead_dropped",
    "result_refused",
    "error_cut",
    "refused",
    "log_dropped",
    "stream_dropped",
    "conflicts",
    "existing",
    "replaced",
    "ticks_fired",
    "ticks_skipped",
    "ticks_missed",
}


_KINDS = [
    (kind, re.compile(re.escape(description.pattern).replace(r"\{\}", r"[^:]+"))) for kind, description in KINDS.items()
]


def kind_of(name: str) -> str:
    """Return the kind of a key from its name without the prefix."""
    for kind, pattern in _KINDS:
        if pattern.fullmatch(name):
            return kind
    raise AssertionError(f"no kind of key is named {name!r}")


@dataclasses.dataclass
class Dump:
    """Hold the keys of one partition by kind and name, without the prefix."""

    keys: dict[str, Any]
    ttls: dict[str, int]

    def __post_init__(self) -> None:
        self._kinds = {name: kind_of(name) for name in sorted(self.keys)}

    def zset(self, name: str) -> dict[str, int]:
        """Return a sorted set's members in order with their scores."""
        flat = self.keys.get(name, [])
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
        return {member.decode(): int(float(score)) for member, score in pairs}

    def hash(self, name: str) -> dict[str, str]:
        """Return a hash."""
        return {field.decode(): value.decode() for field, value in self.raw_hash(name).items()}

    def raw_hash(self, name: str) -> dict[bytes, bytes]:
        """Return a hash as it is stored."""
        flat = self.keys.get(name, [])
        return dict(flat) if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job's fields as they are stored."""
        found: dict[str, Any] = msgspec.msgpack.decode(self.keys[f"job:{job_id}"])
        return found

    def removals(self) -> list[tuple[int, str]]:
        """Return when each final job may go, in that order, by what the entries of ``expire`` name."""
        return sorted((at, job_id) for entry, at in self.zset("expire").items() for job_id in entry.split(" "))

    def named(self, kind: str) -> list[str]:
        """Return the names of all keys of a kind."""
        return [name for name, found in self._kinds.items() if found == kind]

    def records(self) -> dict[JobId, JobRecord]:
        """Return all jobs."""
        running = {job_id: at for name in self.named("running") for job_id, at in self.zset(name).items()}
        found = {}
        for name in self.named("job"):
            job_id = JobId(name.removeprefix("job:"))
            found[job_id] = job_record(
                job_id,
                self.keys[name],
                attempts=self.raw_hash(f"{name}:attempts"),
                big_input=self.keys.get(f"job:{job_id}:in"),
                big_result=self.keys.get(f"job:{job_id}:out"),
                deadline=str(running[job_id]).encode() if job_id in running else None,
            )
        return found

    def audit(self, *, markers: bool = True) -> list[str]:
        """Name everything that is not as it must be; ``markers`` false where a wait may have taken some."""
        jobs = self.records()
        problems = [f"{name} would vanish by itself" for name in self.named("job") if self.ttls[name] != -1]
        problems += self._audit_places(jobs)
        problems += self._audit_side_indexes(jobs)
        problems += self._audit_locks(jobs)
        problems += self._audit_totals(jobs)
        problems += self._audit_wakes(jobs, markers=markers)
        problems += self._audit_schedules()
        for name in (name for kind in ("input", "result", "attempts", "log", "stream") for name in self.named(kind)):
            match = _JOB_ID.match(name)
            if match is None or JobId(match[1]) not in jobs:
                problems.append(f"{name} belongs to no job")
        return problems

    def _audit_places(self, jobs: dict[JobId, JobRecord]) -> list[str]:
        places: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for kind in ("queue", "delayed", "running", "final", "dead"):
            for name in self.named(kind):
                for member, at in self.zset(name).items():
                    places[member].append((name, at))
        problems = [
            f"{member} is in {found} but there is no such job" for member, found in places.items() if member not in jobs
        ]
        for job_id, job in jobs.items():
            fields = self.job(job_id)
            expected: dict[State, tuple[str, int | str | None]] = {
                State.QUEUED: (f"queue:{job.queue}:{job.priority.value}", fields.get("seq")),
                State.SCHEDULED: ("delayed", fields.get("due")),
                State.RETRYING: ("delayed", fields.get("due")),
                State.RUNNING: (f"running:{job.worker}", job.deadline_ms),
                State.FAILED: (f"dead:{job.queue}", job.finished_at_ms),
            }
            place, score = expected.get(job.state, (f"final:{job.state.value}:{job.queue}", job.finished_at_ms))
            if [(name, str(at)) for name, at in places[job_id]] != [(place, str(score))]:
                problems.append(f"{job_id} ({job.state.value}) is in {places[job_id]}, not in {place} at {score}")
        return problems

    def _audit_side_indexes(self, jobs: dict[JobId, JobRecord]) -> list[str]:
        wanted: dict[str, set[str]] = {
            "expiry": {
                job.id
                for job in jobs.values()
                if job.state not in FINAL_STATES and job.attempt == 0 and job.expires_at_ms is not None
            },
        }
        found = {"expiry": set(self.zset("expiry"))}
        if "finished" in self.keys:
            wanted["finished"] = {
                job.id for job in jobs.values() if job.state in FINAL_STATES and job.state is not State.FAILED
            }
            found["finished"] = set(self.zset("finished"))
        problems = [
            f"{name}: {found[name]} instead of {wanted[name]}" for name in wanted if found[name] != wanted[name]
        ]
        going = {job_id: self.job(job_id).get("until") for job_id, job in jobs.items() if job.state in FINAL_STATES}
        problems += [f"{job_id} may go at a time" for job_id in jobs.keys() - going if "until" in self.job(job_id)]
        if self.removals() != sorted((at, job_id) for job_id, at in going.items()):
            problems.append(f"expire: {self.removals()} instead of {going}")
        for job_id, at in self.zset("expiry").items():
            if job_id in jobs and jobs[JobId(job_id)].expires_at_ms != at:
                problems.append(f"{job_id} expires at {at} instead of {jobs[JobId(job_id)].expires_at_ms}")
        bounds = self.zset("leases")
        for name in self.named("running"):
            worker, first = name.removeprefix("running:"), min(self.zset(name).values())
            if worker not in bounds or bounds[worker] > first:
                problems.append(f"{worker} has a lease that lapses at {first} and is in leases at {bounds.get(worker)}")
        return problems

    def _audit_locks(self, jobs: dict[JobId, JobRecord]) -> list[str]:
        problems = []
        holders = {name: job_id for name, (_, job_id, _) in self.locks().items()}
        bound = {}
        for job_id, job in jobs.items():
            digest, until, _ = self.job(job_id).get("unique", "||").split("|")
            waits = until == "finished" or (until == "started" and job.attempt == 0)
            if waits and job.state not in FINAL_STATES:
                bound[f"unique:{digest}"] = job_id
        for name, job_id in bound.items():
            if holders.get(name) != job_id:
                problems.append(f"{job_id} holds {name}, which is of {holders.get(name)}")
        for name, (end_ms, owner, _) in self.locks().items():
            if name not in bound and end_ms == 0:
                problems.append(f"{name} is locked by {owner}, which does not hold it")
            if (name in bound) != (self.ttls[name] == -1):
                problems.append(f"{name} has a time to live of {self.ttls[name]} ms")
        return problems

    def _audit_totals(self, jobs: dict[JobId, JobRecord]) -> list[str]:
        wanted: Counter[str] = Counter()
        for job in jobs.values():
            place = PLACES[job.state].value
            if place in ("running", "delayed"):
                wanted[f"{place}:{job.queue}"] += 1
            elif place == "final" and job.state is not State.FAILED:
                wanted["finished:"] += 1
        gauges = {name: int(value) for name, value in self.hash("gauges").items() if value != "0"}
        if "finished" in self.keys or "finished:" not in gauges:
            wanted.pop("finished:", None)
            gauges.pop("finished:", None)
        problems = [] if gauges == dict(wanted) else [f"gauges are {gauges} instead of {dict(wanted)}"]
        depths = Counter(f"{job.queue}:{job.priority.value}" for job in jobs.values() if job.state is State.QUEUED)
        if self.zset("ready") != dict(depths):
            problems.append(f"ready is {self.zset('ready')} instead of {dict(depths)}")
        names = {name.decode() for name in self.keys.get("queues", ())}
        problems += [f"{job.id}: queue {job.queue} is not known" for job in jobs.values() if job.queue not in names]
        for field in self.hash("counters"):
            if field != "seq" and field.partition(":")[0] not in _CODES:
                problems.append(f"counter {field} is not one of ours")
        return problems

    def _audit_wakes(self, jobs: dict[JobId, JobRecord], *, markers: bool) -> list[str]:
        problems = [
            f"{name} holds {len(self.keys[name])}"
            for name in (*self.named("marker"), *self.named("due"))
            if len(self.keys[name]) != 1
        ]
        marked = {name.removeprefix("marker:") for name in self.named("marker")}
        filled = {member.rpartition(":")[0] for member in self.zset("ready")}
        filled -= {name.decode() for name in self.keys.get("paused", ())}
        # Jobs that were lost before may have to run alone, and then wake nobody.
        waking = filled & {job.queue for job in jobs.values() if job.state is State.QUEUED and job.lost == 0}
        if not (waking if markers else set()) <= marked <= filled:
            problems.append(f"markers of {marked} while {filled} are claimable")
        problems += [f"{name} holds {len(self.keys[name])}" for name in self.named("wake") if len(self.keys[name]) > 16]
        problems += [
            f"{name} never goes away"
            for name in (*self.named("wake"), *self.named("inbox"), *self.named("idem"))
            if self.ttls[name] <= 0
        ]
        return problems

    def output(self) -> dict[JobId, tuple[OutputEntry, ...]]:
        """Return what is kept of each job's output, in order."""
        found = {}
        for name in self.named("job"):
            job_id = JobId(name.removeprefix("job:"))
            tally = [int(number) for number in self.job(job_id).get("output", "0|0|0|0|0|0|0|0").split("|")]
            entries: list[OutputEntry] = []
            for kind, (stored, size) in {OutputKind.LOG: tally[2:4], OutputKind.STREAM: tally[5:7]}.items():
                texts = self.keys.get(f"{name}:{kind.value}", [])
                assert sum(map(len, texts)) == size
                before = stored - len(texts)
                entries += [read_entry(kind, position, text) for position, text in enumerate(texts, start=before + 1)]
            found[job_id] = tuple(sorted(entries, key=lambda entry: entry.order))
        return found

    def _audit_schedules(self) -> list[str]:
        found = {name.removeprefix("schedule:"): self.hash(name) for name in self.named("schedule")}
        ticking = {name: int(fields["next"]) for name, fields in found.items() if "next" in fields}
        ticking = {name: at for name, at in ticking.items() if "paused" not in found[name]}
        problems = []
        if set(self.zset("schedules")) != set(found):
            problems.append(f"schedules are {self.zset('schedules')} instead of {set(found)}")
        if self.zset("schedule_due") != ticking:
            problems.append(f"due are {self.zset('schedule_due')} instead of {ticking}")
        return problems

    def schedules(self) -> dict[str, ScheduleRecord]:
        """Return all schedules."""
        return {name.removeprefix("schedule:"): record_of(self.raw_hash(name)) for name in self.named("schedule")}

    def once(self) -> dict[str, tuple[int, str, str]]:
        """Return until when each idempotency key is kept, with which fingerprint and for which job."""
        found = {}
        for name in self.named("idem"):
            keep_until, fingerprint, job_id, _ = self.keys[name].decode().split("|", 3)
            found[name] = (int(keep_until), fingerprint, job_id)
        return found

    def locks(self) -> dict[str, tuple[int, str, str]]:
        """Return until when time holds each unique key, for which job, and how that one ended."""
        found = {}
        for name in self.named("unique"):
            end_ms, job_id, _, status = self.keys[name].decode().split("|")
            found[name] = (int(end_ms), job_id, status)
        return found

    def queue_order(self) -> dict[tuple[str, Priority], list[str]]:
        """Return the ids that wait in each queue, in order."""
        found = {}
        for name in self.named("queue"):
            _, queue, priority = name.split(":")
            found[queue, Priority(priority)] = list(self.zset(name))
        return found


async def read_dumps(connection: Connection) -> list[Dump]:
    """Read each partition's keys."""
    dumps = []
    for keys in connection.keys:
        names = [name.decode() for name in await _names(connection, f"{keys.prefix}*")]
        reads: list[tuple[str, ...]] = []
        for name in names:
            verb, *arguments = _READS[KINDS[kind_of(name.removeprefix(keys.prefix))].redis_type]
            reads += [(verb, name, *arguments), ("PTTL", name)]
        answers = await connection.together(reads)
        short = [name.removeprefix(keys.prefix) for name in names]
        dumps.append(Dump(dict(zip(short, answers[::2], strict=True)), dict(zip(short, answers[1::2], strict=True))))
    return dumps


async def _names(connection: Connection, pattern: str) -> list[bytes]:
    found: list[bytes] = []
    for primary in await connection.primaries():
        found += await connection.command_at(primary, "KEYS", pattern)
    return found


async def remove_namespace(connection: Connection) -> None:
    """Remove all keys of a namespace."""
    names = await _names(connection, f"{connection.options.namespace}:*")
    await connection.together([("UNLINK", name) for name in names])
