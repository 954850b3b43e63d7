"""Prove on live data that each job is in exactly one place, and say what of the server's settings endangers jobs.

Every check reads one job, or one partition's totals, at one moment, so jobs that move meanwhile are no findings.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from penstock.core.errors import StoreError, StoreUnavailable, StoreUnfit
from penstock.core.ids import JobId, parse_job_id, partition_of
from penstock.core.limits import SCRIPT_ITEMS
from penstock.core.schedule import home_of_schedule
from penstock.core.states import State
from penstock.store.keys import KINDS, anchor_key
from penstock.store.options import StoreOptions
from penstock.store.redis.codec import UNREADABLE, ItemError, ended_attempt, job_record, pack
from penstock.store.redis.connection import FORMAT, Connection
from penstock.store.redis.primary import Primary
from penstock.store.redis.reader import as_dict
from penstock.store.redis.schedules import record_or_damage
from penstock.store.redis.server import product, read_info, read_setting, text_of, version_problem

_PAGE = 1_000
_MARKER_SETTLES_S = 2.5
_MARKER_LOOK_S = 0.05
#: Runs one plain command on one server.
Ask = Callable[..., Awaitable[Any]]
#: Kinds of keys that may have a time to live.
_EXPIRING = frozenset({"wake", "inbox", "idem", "unique"})
_AOF = {"0": "no", "1": "yes"}
#: What an index demands of the jobs it names: index kind -> status or group of statuses.
_INDEX_DEMANDS = {"delayed": "delayed", "expiry": "waiting"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Say what is wrong with one job or key."""

    code: str
    subject: str
    detail: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """Say how one check of the server went; ``status`` is ``ok``, ``warning``, ``error`` or ``unknown``."""

    name: str
    status: str
    detail: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditReport:
    """Hold what an audit found."""

    jobs: int
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Tell whether no job is damaged and no check failed."""
        return not self.findings and all(check.status != "error" for check in self.checks)


async def audit(options: StoreOptions, *, progress: Callable[[int], None] | None = None) -> AuditReport:
    """Check the server, then every key of the namespace; ``progress`` is told the number of jobs read so far.

    Raises:
        StoreError: the store is away.
    """
    connection = Connection(options)
    try:
        await connection.verify()
        checks = await _server_checks(connection)
        auditor = _Auditor(connection, progress or (lambda _: None))
        await auditor.run()
        return AuditReport(jobs=auditor.jobs, checks=tuple(checks), findings=auditor.findings)
    finally:
        await connection.close()


async def _server_checks(connection: Connection) -> list[Check]:
    primaries = await connection.primaries()
    checks = [Check(name="connection", status="ok", detail="the server answers")]
    partitions = connection.options.partitions
    checks.append(Check(name="format", status="ok", detail=f"{FORMAT}, partitions: {partitions}"))
    if connection.is_cluster:
        checks.append(await _spread_check(connection, primaries))
    for primary in primaries:
        found = await _checks_of(connection, functools.partial(connection.command_at, primary))
        if len(primaries) > 1:
            found = [dataclasses.replace(check, name=f"{check.name} of {primary.name}") for check in found]
        checks += found
    checks.append(await _durability_check(connection))
    return checks


async def _spread_check(connection: Connection, primaries: Sequence[Primary]) -> Check:
    """Say how the partitions lie on the primaries of a cluster."""
    counts = dict.fromkeys(primaries, 0)
    for partition in range(len(connection.keys)):
        counts[await connection.server_of(partition)] += 1
    spread = ", ".join(f"{count} on {primary.name}" for primary, count in counts.items())
    idle = sum(count == 0 for count in counts.values())
    if idle:
        return Check(name="cluster", status="warning", detail=f"{idle} primaries hold no partition: {spread}")
    return Check(name="cluster", status="ok", detail=f"partitions: {spread}")


async def _checks_of(connection: Connection, ask: Ask) -> list[Check]:
    """Check one server."""
    info = await read_info(ask)
    checks = [_version_check(info), await _script_check(connection, ask)]
    checks += _persistence_checks(
        await read_setting(ask, "appendonly") or _AOF.get(info.get("aof_enabled", "")),
        await read_setting(ask, "appendfsync"),
    )
    policy = await read_setting(ask, "maxmemory-policy") or info.get("maxmemory_policy")
    checks.append(_policy_check(policy))
    limit = await read_setting(ask, "maxmemory") or info.get("maxmemory")
    checks.append(_memory_check(limit, info.get("used_memory")))
    return checks


def _version_check(info: dict[str, str]) -> Check:
    known = product(info)
    if known is None:
        return Check(name="version", status="unknown", detail="the server forbids INFO")
    problem = version_problem(info)
    return Check(name="version", status="error" if problem else "ok", detail=problem or " ".join(known))


def _persistence_checks(appendonly: str | None, fsync: str | None) -> list[Check]:
    name = "persistence"
    if appendonly is None:
        return [Check(name=name, status="unknown", detail="the server forbids CONFIG and INFO")]
    if appendonly == "no":
        return [Check(name=name, status="warning", detail="no append-only file: a restart loses jobs")]
    known = Check(name="appendfsync", status="ok", detail=fsync or "")
    unknown = Check(name="appendfsync", status="unknown", detail="the server forbids CONFIG")
    return [Check(name=name, status="ok", detail="append-only file"), known if fsync else unknown]


async def _durability_check(connection: Connection) -> Check:
    wanted = connection.options.durability.value
    try:
        await connection.check()
    except StoreUnfit as error:
        return Check(name="durability", status="error", detail=f"{error}")
    except StoreError as error:
        return Check(name="durability", status="unknown", detail=f"{wanted}: {error}")
    advice = connection.barrier.advice
    return Check(name="durability", status="warning" if advice else "ok", detail=f"{wanted}{advice and ': ' + advice}")


def _policy_check(policy: str | None) -> Check:
    name = "maxmemory-policy"
    if policy is None:
        return Check(name=name, status="unknown", detail="the server forbids CONFIG and INFO")
    if policy == "noeviction":
        return Check(name=name, status="ok", detail=policy)
    detail = f"{policy}: the server may throw jobs away; set it to noeviction"
    return Check(name=name, status="error", detail=detail)


def _memory_check(limit: str | None, used: str | None) -> Check:
    if limit is None or (used is None and limit != "0"):
        return Check(name="maxmemory", status="unknown", detail="the server forbids CONFIG and INFO")
    if limit == "0":
        return Check(name="maxmemory", status="ok", detail="no limit set")
    share = int(used or 0) / int(limit)
    return Check(
        name="maxmemory", status="ok" if share < 0.9 else "warning", detail=f"{share:.0%} of {limit} bytes used"
    )


async def _script_check(connection: Connection, ask: Ask) -> Check:
    shas = [script.sha for script in connection.scripts.values()]
    try:
        loaded = sum(await ask("SCRIPT", "EXISTS", *shas))
    except StoreUnavailable:
        return Check(name="scripts", status="unknown", detail="the server forbids SCRIPT EXISTS")
    return Check(name="scripts", status="ok", detail=f"{loaded} of {len(shas)} of this release are loaded")


class _Auditor:
    """Walk over all keys of a namespace and collect findings."""

    def __init__(self, connection: Connection, progress: Callable[[int], None]) -> None:
        self._connection = connection
        self._progress = progress
        self._partitions = {keys.prefix: partition for partition, keys in enumerate(connection.keys)}
        self._queues: dict[int, set[str]] = {}
        # SCAN may name a key twice; a finding is told once.
        self._findings: dict[Finding, None] = {}
        self.jobs = 0

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(self._findings)

    def _find(self, code: str, subject: str, detail: str) -> None:
        self._findings[Finding(code=code, subject=subject, detail=detail)] = None

    async def run(self) -> None:
        for partition in range(len(self._connection.keys)):
            await self._totals(partition)
        for primary in await self._connection.primaries():
            await self._keys_of(primary)

    async def _keys_of(self, primary: Primary) -> None:
        cursor = 0
        pattern = _escape(self._connection.options.namespace) + ":*"
        while True:
            cursor, names = await self._connection.command_at(primary, "SCAN", cursor, "MATCH", pattern, "COUNT", _PAGE)
            await self._page(names)
            self._progress(self.jobs)
            if cursor == 0:
                return

    async def _lists(self, partition: int, queue: str) -> bool:
        """Tell whether a queue is listed; asks again for one that was not when the names were read."""
        if queue not in self._queues.setdefault(partition, set()):
            try:
                names = await self._connection.command("SMEMBERS", self._connection.keys[partition].key("queues"))
            except StoreUnavailable:
                raise
            except StoreError:
                return True  # a wrong type, which is a finding of its own
            self._queues[partition] = {text_of(name) for name in names}
        return queue in self._queues[partition]

    # totals

    async def _totals(self, partition: int) -> None:
        findings = await self._read_totals(partition)
        missing = {finding for finding in findings if finding.code == "no_marker"}
        end = asyncio.get_running_loop().time() + _MARKER_SETTLES_S
        while missing and asyncio.get_running_loop().time() < end:
            # A worker that has just woken holds the marker for a moment; a lost one is set again by the 1 s sweep.
            await asyncio.sleep(_MARKER_LOOK_S)
            missing &= set(await self._read_totals(partition))
        for finding in findings:
            if finding.code != "no_marker" or finding in missing:
                self._findings[finding] = None

    async def _read_totals(self, partition: int) -> list[Finding]:
        answers = await self._connection.script("audit_totals", partition, "")
        return [
            Finding(code=text_of(code), subject=text_of(subject), detail=text_of(detail))
            for subject, code, detail in answers
        ]

    # keys

    async def _page(self, names: list[bytes]) -> None:
        """Check one page of keys: first what each is, then the jobs, values and indexes among them."""
        looks: list[tuple[str | bytes, ...]] = []
        for raw_name in names:
            looks += [("TYPE", raw_name), ("PTTL", raw_name)]
        answers = await self._connection.together(looks)
        # What is checked together, by kind and partition: names and their arguments.
        gathered: dict[tuple[str, int], list[tuple[str, str]]] = {}
        checks: dict[str, Callable[[int, list[tuple[str, str]]], Awaitable[None]]] = {
            "job": self._jobs,
            "attempts": self._attempts,
            "unique": self._locks,
            "schedule": self._schedules,
        }
        checks |= dict.fromkeys(("input", "result", "log", "stream"), self._values)
        for raw_name, found_type, ttl_ms in zip(names, answers[::2], answers[1::2], strict=True):
            place = self._place(raw_name)
            if place is None or text_of(found_type) == "none":
                continue
            partition, name = place
            kind, arguments = _kind_of(name)
            if kind == "":
                self._find("unknown_key", name, "no part of Penstock writes such a key")
            elif text_of(found_type) != KINDS[kind].redis_type:
                wanted = KINDS[kind].redis_type
                self._find("wrong_type", name, f"is a {text_of(found_type)}, not a {wanted}")
            elif ttl_ms >= 0 and kind not in _EXPIRING:
                self._find("would_vanish", name, "has a time to live, so that the server would remove it")
            elif kind == "idem" and ttl_ms == -1:
                self._find("never_vanishes", name, "has no time to live, so that it would stay for ever")
            elif kind in checks:
                gathered.setdefault((kind, partition), []).append((name, arguments[0]))
            else:
                await self._index(partition, name, kind, arguments)
        for (kind, partition), found in gathered.items():
            await checks[kind](partition, found)

    def _place(self, raw: bytes) -> tuple[int, str] | None:
        """Return a key's partition and its name without the prefix; None for the anchor and for strange keys."""
        name = text_of(raw)
        if name == anchor_key(self._connection.options.namespace):
            return None
        head, brace, rest = name.partition("}:")
        partition = self._partitions.get(head + brace)
        if partition is None:
            self._find("unknown_key", name, "belongs to no partition")
            return None
        return partition, rest

    async def _jobs(self, partition: int, found: list[tuple[str, str]]) -> None:
        ids = [job_id for _, job_id in found]
        for chunk in _chunks(ids):
            answers = await self._connection.script("audit_jobs", partition, pack(chunk))
            unreadable = await self._unreadable(partition, chunk)
            for job_id, (_, *pairs) in zip(chunk, answers, strict=True):
                for code, detail in zip(pairs[::2], pairs[1::2], strict=True):
                    self._find(text_of(code), job_id, text_of(detail))
                if job_id in unreadable and b"damaged_job" not in pairs:
                    self._find("damaged_job", job_id, unreadable[job_id])
        for job_id in ids:
            known = parse_job_id(job_id)
            if known is None or partition_of(known, len(self._connection.keys)) != partition:
                self._find("wrong_partition", job_id, f"is not an id of partition {partition}")
        self.jobs += len(ids)

    async def _unreadable(self, partition: int, ids: list[str]) -> dict[str, str]:
        """Return which jobs whoever asks for them could not be shown, and why; scripts take less amiss."""
        keys = self._connection.keys[partition]
        names = [keys.key("job", job_id) for job_id in ids]
        found: dict[str, str] = {}
        for job_id, text in zip(ids, await self._connection.command("MGET", *names), strict=True):
            try:
                if text is not None:
                    job_record(JobId(job_id), text, attempts={})
            except ItemError as error:
                found[job_id] = f"the job cannot be shown: {error.__cause__}"
        return found

    async def _locks(self, partition: int, found: list[tuple[str, str]]) -> None:
        for chunk in _chunks(digest for _, digest in found):
            for digest, code, detail in await self._connection.script("audit_locks", partition, pack(chunk)):
                self._find(text_of(code), f"unique:{text_of(digest)}", text_of(detail))

    async def _schedules(self, partition: int, found: list[tuple[str, str]]) -> None:
        keys, partitions = self._connection.keys[partition], len(self._connection.keys)
        for key, name in found:
            reads: list[tuple[str, ...]] = [("HGETALL", keys.prefix + key)]
            reads += [("ZSCORE", keys.key(index), name) for index in ("schedules", "schedule_due")]
            try:
                flat, listed, at = await self._connection.together(reads, atomic=True)
            except StoreUnavailable:
                raise
            except StoreError:
                return  # a wrong type, which is a finding of its own
            if not flat:
                continue
            record, damage = record_or_damage(flat)
            if record is None:
                self._find("damaged_schedule", key, damage)
                continue
            if home_of_schedule(name) % partitions != partition:
                self._find("wrong_partition", key, f"is not a schedule of partition {partition}")
            if listed is None:
                self._find("unlisted_schedule", key, "the schedule is in no list")
            next_ms = None if record.paused_at_ms is not None else record.next_ms
            if next_ms is not None and at is None:
                self._find("no_tick", key, "the schedule would never tick")
            elif next_ms is not None and float(at) > next_ms:
                self._find("failing_schedule", key, "the schedule could not tick and was put off by a minute")

    async def _schedule_index(self, partition: int, kind: str) -> None:
        """Name the entries of the two indexes of schedules whose schedule is gone."""
        keys = self._connection.keys[partition]
        cursor = 0
        while True:
            cursor, entries = await self._connection.command("ZSCAN", keys.key(kind), cursor, "COUNT", SCRIPT_ITEMS)
            for member, _ in entries:
                name = text_of(member)
                looks = [("ZSCORE", keys.key(kind), name), ("EXISTS", keys.key("schedule", name))]
                stands, schedule_stands = await self._connection.together(looks, atomic=True)
                if stands is not None and not schedule_stands:
                    self._find("stray_schedule", f"{kind} {name}", "names a schedule that is gone")
            if cursor == 0:
                return

    async def _hints(self, partition: int) -> None:
        """Name the entries of ``expire`` that are no lists of ids; that a job is gone, or goes later, is no finding."""
        key = self._connection.keys[partition].key("expire")
        cursor = 0
        while True:
            cursor, entries = await self._connection.command("ZSCAN", key, cursor, "COUNT", SCRIPT_ITEMS)
            for entry, _ in entries:
                if not all(map(parse_job_id, text_of(entry).split(" "))):
                    self._find("stray_hint", f"expire {text_of(entry)}", "is no list of ids")
            if cursor == 0:
                return

    async def _values(self, partition: int, found: list[tuple[str, str]]) -> None:
        keys = self._connection.keys[partition]
        looks: list[tuple[str, ...]] = []
        for name, owner in found:
            looks += [("EXISTS", keys.prefix + name), ("EXISTS", keys.key("job", owner))]
        # At one moment: a job that is removed meanwhile takes its values with it.
        answers = await self._connection.together(looks, atomic=True)
        for (name, _), stands, owner_stands in zip(found, answers[::2], answers[1::2], strict=True):
            if stands and not owner_stands:
                self._find("orphan_value", name, "its job is gone")

    async def _attempts(self, partition: int, found: list[tuple[str, str]]) -> None:
        """Name the records that whoever asks for their job could not be shown."""
        await self._values(partition, found)
        keys = self._connection.keys[partition]
        for chunk in _chunks(job_id for _, job_id in found):
            try:
                answers = await self._connection.together([("HGETALL", keys.key("attempts", one)) for one in chunk])
            except StoreUnavailable:
                raise
            except StoreError:
                continue  # a wrong type, which is a finding of its own
            for job_id, flat in zip(chunk, answers, strict=True):
                for number, record in as_dict(flat).items():
                    try:
                        ended_attempt(number, record)
                    except UNREADABLE as error:
                        detail = f"the record of attempt {text_of(number)} cannot be read: {error}"
                        self._find("damaged_attempt", job_id, detail)

    async def _index(self, partition: int, name: str, kind: str, arguments: tuple[str, ...]) -> None:
        if kind in ("queue", "dead"):
            queue = arguments[0]
            wanted = "queue" if kind == "queue" else "failed"
        elif kind == "final":
            wanted, queue = arguments
        elif kind == "running":
            wanted, queue = "running", arguments[0]
        elif kind in _INDEX_DEMANDS:
            wanted, queue = _INDEX_DEMANDS[kind], ""
        elif kind in ("schedules", "schedule_due"):
            await self._schedule_index(partition, kind)
            return
        elif kind == "expire":
            await self._hints(partition)
            return
        else:
            return
        if kind in ("queue", "dead", "final") and not await self._lists(partition, queue):
            self._find("unlisted_queue", name, "jobs of this queue are not listed")
        key = self._connection.keys[partition].prefix + name
        cursor = 0
        while True:
            cursor, entries = await self._connection.command("ZSCAN", key, cursor, "COUNT", SCRIPT_ITEMS)
            for chunk in _chunks(text_of(member) for member, _ in entries):
                answers = await self._connection.script("audit_entries", partition, name, wanted, queue, pack(chunk))
                for subject, code, detail in answers:
                    self._find(text_of(code), text_of(subject), text_of(detail))
            if cursor == 0:
                return


def _escape(text: str) -> str:
    return re.sub(r"([\[\]*?\\])", r"\\\1", text)


@functools.cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return what each kind of key looks like; longer patterns first, since a job's values start like the job."""
    statuses = "|".join(state.value for state in State)
    found = []
    for kind in sorted(KINDS, key=lambda kind: -len(KINDS[kind].pattern)):
        pattern = re.escape(KINDS[kind].pattern).replace(r"\{\}", "(.*)")
        if kind == "final":
            # A queue's name may hold a colon, a status may not.
            pattern = pattern.replace("(.*)", f"({statuses})", 1)
        found.append((kind, re.compile(pattern, re.DOTALL)))
    return tuple(found)


def _kind_of(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the kind of a key and its arguments; an empty kind for a strange one."""
    for kind, pattern in _patterns():
        match = pattern.fullmatch(name)
        if match:
            return kind, match.groups()
    return "", ()


def _chunks(items: Iterable[str]) -> Iterable[list[str]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, SCRIPT_ITEMS)):
        yield chunk
