"""Prove on live data that each job is in exactly one place, and say what of the server's settings endangers jobs.

Every check reads one job, or one partition's totals, at one moment, so jobs that move meanwhile are no findings.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import re
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from penstock.core.errors import StoreError
from penstock.store.keys import KINDS, PartitionKeys
from penstock.store.options import StoreOptions
from penstock.store.redis.codec import pack
from penstock.store.redis.connection import FORMAT, Connection

_CHUNK = 200
_MARKER_SETTLES_S = 2.5
#: What an index demands of the jobs it names: index kind -> status or group of statuses.
_INDEX_DEMANDS = {"delayed": "delayed", "running": "running", "expire": "final", "expiry": "waiting"}


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
        jobs, findings = await _data_findings(connection, progress or (lambda _: None))
        return AuditReport(jobs=jobs, checks=tuple(checks), findings=tuple(findings))
    finally:
        await connection.close()


async def _server_checks(connection: Connection) -> list[Check]:
    checks = [Check(name="connection", status="ok", detail="the server answers")]
    info = _parse_info(await connection.command("INFO"))
    name, version = ("Valkey", info["valkey_version"]) if "valkey_version" in info else ("Redis", info["redis_version"])
    minimum = (7, 2) if name == "Valkey" else (7, 0)
    recent = tuple(int(part) for part in version.split(".")[:2]) >= minimum
    wanted = ".".join(map(str, minimum))
    checks.append(
        Check(
            name="version",
            status="ok" if recent else "error",
            detail=f"{name} {version}" + ("" if recent else f"; {wanted} or later is needed"),
        )
    )
    checks.append(Check(name="format", status="ok", detail=f"{FORMAT}, {connection.options.partitions} partitions"))
    checks.append(await _script_check(connection))

    appendonly = await _setting(connection, "appendonly")
    if appendonly is None:
        on = info.get("aof_enabled") == "1"
        checks.append(
            Check(
                name="persistence", status="ok" if on else "warning", detail=f"append-only file {'on' if on else 'off'}"
            )
        )
    elif appendonly == "yes":
        fsync = await _setting(connection, "appendfsync")
        checks.append(Check(name="persistence", status="ok", detail=f"append-only file, appendfsync {fsync}"))
    else:
        checks.append(Check(name="persistence", status="warning", detail="no append-only file: a restart loses jobs"))
    policy = await _setting(connection, "maxmemory-policy") or info.get("maxmemory_policy")
    limit = await _setting(connection, "maxmemory") or info.get("maxmemory")
    if policy is None:
        checks.append(Check(name="maxmemory-policy", status="unknown", detail="the server forbids CONFIG"))
    elif policy == "noeviction":
        checks.append(Check(name="maxmemory-policy", status="ok", detail="noeviction"))
    else:
        checks.append(
            Check(
                name="maxmemory-policy",
                status="error",
                detail=f"{policy}: the server may throw jobs away; set it to noeviction",
            )
        )
    if limit is None:
        checks.append(Check(name="maxmemory", status="unknown", detail="the server forbids CONFIG"))
    elif limit == "0":
        checks.append(Check(name="maxmemory", status="ok", detail="no limit set"))
    else:
        used = int(info.get("used_memory", 0)) / int(limit)
        checks.append(
            Check(
                name="maxmemory", status="ok" if used < 0.9 else "warning", detail=f"{used:.0%} of {limit} bytes used"
            )
        )
    return checks


async def _script_check(connection: Connection) -> Check:
    shas = [script.sha for script in connection.scripts.values()]
    loaded = sum(await connection.command("SCRIPT", "EXISTS", *shas))
    return Check(name="scripts", status="ok", detail=f"{loaded} of {len(shas)} of this release are loaded")


async def _setting(connection: Connection, name: str) -> str | None:
    """Return a server setting; None where CONFIG is forbidden."""
    try:
        answer = await connection.command("CONFIG", "GET", name)
    except StoreError:
        return None
    values = list(answer.values()) if isinstance(answer, dict) else answer[1:2]
    return _text(values[0]) if values else None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _parse_info(answer: Any) -> dict[str, str]:
    if isinstance(answer, dict):
        return {_text(name): _text(value) for name, value in answer.items()}
    lines = (line.partition(":") for line in _text(answer).splitlines() if ":" in line)
    return {name: value for name, _, value in lines}


async def _data_findings(connection: Connection, progress: Callable[[int], None]) -> tuple[int, list[Finding]]:
    findings: list[Finding] = []
    jobs = 0
    for partition, keys in enumerate(connection.keys):
        totals = await _totals(connection, partition)
        if any(finding.code == "no_marker" for finding in totals):
            # A worker that has just woken holds the marker for a moment; the 1 s sweep sets a lost one again.
            await asyncio.sleep(_MARKER_SETTLES_S)
            totals = await _totals(connection, partition)
        findings += totals
        async for names in _scan(connection, keys):
            jobs += await _audit_keys(connection, partition, names, findings)
            progress(jobs)
    return jobs, findings


async def _totals(connection: Connection, partition: int) -> list[Finding]:
    return [_finding(*answer) for answer in await connection.script("audit_totals", partition, "")]


def _finding(subject: bytes, code: bytes, detail: bytes) -> Finding:
    return Finding(code=code.decode(), subject=subject.decode(), detail=detail.decode())


async def _scan(connection: Connection, keys: PartitionKeys) -> AsyncIterator[list[str]]:
    cursor = b"0"
    while True:
        cursor, names = await connection.command("SCAN", cursor, "MATCH", _escape(keys.prefix) + "*", "COUNT", 1_000)
        yield [name.decode().removeprefix(keys.prefix) for name in names]
        if cursor in (b"0", 0):
            return


def _escape(text: str) -> str:
    return re.sub(r"([\[\]*?\\])", r"\\\1", text)


def _kind_patterns() -> dict[str, re.Pattern[str]]:
    return {
        name: re.compile(re.escape(kind.pattern).replace(r"\{\}", "(.+)"), re.DOTALL) for name, kind in KINDS.items()
    }


async def _audit_keys(connection: Connection, partition: int, names: list[str], findings: list[Finding]) -> int:
    """Check one page of a partition's keys; return how many of them were jobs."""
    patterns = _kind_patterns()
    ids: list[str] = []
    for name in names:
        matches = {kind: match for kind, pattern in patterns.items() if (match := pattern.fullmatch(name))}
        if not matches:
            findings.append(Finding(code="unknown_key", subject=name, detail="no part of Penstock writes such a key"))
        elif "input" in matches or "result" in matches:
            owner = (matches.get("input") or matches["result"])[1]
            if not await connection.command("EXISTS", connection.keys[partition].key("job", owner)):
                findings.append(Finding(code="orphan_value", subject=name, detail="its job is gone"))
        elif "job" in matches:
            ids.append(matches["job"][1])
        else:
            for kind, match in matches.items():
                await _audit_index(connection, partition, name, kind, match, findings)
    for chunk in _chunks(ids):
        answers = await connection.script("audit_jobs", partition, pack(chunk))
        for job_id, (_, *pairs) in zip(chunk, answers, strict=True):
            for code, detail in zip(pairs[::2], pairs[1::2], strict=True):
                findings.append(Finding(code=code.decode(), subject=job_id, detail=detail.decode()))
    return len(ids)


async def _audit_index(
    connection: Connection, partition: int, name: str, kind: str, match: re.Match[str], findings: list[Finding]
) -> None:
    if kind == "queue":
        wanted, queue = "queue", match[1]
    elif kind == "final":
        wanted, queue = match[1], match[2]
    elif kind == "dead":
        wanted, queue = "failed", match[1]
    elif kind == "held":
        wanted, queue = "running", ""
    elif kind in _INDEX_DEMANDS:
        wanted, queue = _INDEX_DEMANDS[kind], ""
    else:
        return
    key = connection.keys[partition].prefix + name
    cursor = b"0"
    while True:
        cursor, flat = await connection.command("ZSCAN", key, cursor, "COUNT", _CHUNK)
        for chunk in _chunks([member.decode() for member in flat[::2]]):
            answers = await connection.script("audit_entries", partition, name, wanted, queue, pack(chunk))
            findings += [_finding(*answer) for answer in answers]
        if cursor in (b"0", 0):
            return


def _chunks(items: Iterable[str]) -> Iterable[list[str]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        yield chunk
