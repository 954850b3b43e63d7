"""Build every key, for Python and for Lua; no other file holds a key literal.

Each key of a partition starts with ``<namespace>:{<tag>}:``, so that all of a partition's keys share one hash slot.
Scripts get the prefix by cutting the name of the ``meta`` key off ``KEYS[1]``.
"""

from __future__ import annotations

import dataclasses
from binascii import crc_hqx
from collections.abc import Collection

from penstock.core.ids import partition_tag

#: Slots of a cluster.
SLOTS = 16384


@dataclasses.dataclass(frozen=True, slots=True)
class KeyKind:
    """Describe one kind of key: the parts after the prefix (``{}`` takes an argument) and its Redis type."""

    pattern: str
    redis_type: str
    meaning: str

    @property
    def arity(self) -> int:
        """Return how many arguments the key takes."""
        return self.pattern.count("{}")


KINDS: dict[str, KeyKind] = {
    "meta": KeyKind(
        "meta",
        "hash",
        "format, partitions, index, swept_at, reap_from, lease (the longest in use, ms), lease_at, "
        "waits (durable calls)",
    ),
    "canary": KeyKind("canary", "none", "never exists; makes a cluster answer TRYAGAIN while its slot migrates"),
    "job": KeyKind("job:{}", "string", "one job: a msgpack map of its fields, with a small input and result"),
    "input": KeyKind("job:{}:in", "string", "a job's input when over 256 bytes; JSON"),
    "result": KeyKind("job:{}:out", "string", "a job's result when over 256 bytes; JSON"),
    "attempts": KeyKind(
        "job:{}:attempts",
        "hash",
        "attempt -> how it ended: <outcome>|<started>|<finished>|<length>|<worker of that length><error, JSON>; the "
        "newest 20",
    ),
    "log": KeyKind("job:{}:log", "list", "a job's log lines, oldest first: <attempt>|<Unix ms>|<order>|<JSON>"),
    "stream": KeyKind("job:{}:stream", "list", "a job's stream of chunks, in the same form"),
    "queue": KeyKind("queue:{}:{}", "zset", "ids queued in a queue at a priority, by seq"),
    "delayed": KeyKind("delayed", "zset", "ids scheduled and retrying, by due time (Unix ms)"),
    "running": KeyKind("running:{}", "zset", "ids that a worker runs, by lease deadline (Unix ms)"),
    "leases": KeyKind(
        "leases", "zset", "workers that run jobs, by a time before which none of their leases lapses (Unix ms)"
    ),
    "final": KeyKind("final:{}:{}", "zset", "ids completed, cancelled or expired of a queue, by finish time (Unix ms)"),
    "dead": KeyKind("dead:{}", "zset", "ids failed of a queue (the dead letter), by finish time (Unix ms)"),
    "expire": KeyKind(
        "expire",
        "zset",
        "hints of final jobs to remove: ids of one call that go together, spaces between, by their until (Unix ms)",
    ),
    "expiry": KeyKind("expiry", "zset", "ids not yet started that have expires_at, by it (Unix ms)"),
    "ready": KeyKind("ready", "zset", "<queue>:<priority> of non-empty queues, by depth"),
    "queues": KeyKind("queues", "set", "names of all queues ever used"),
    "paused": KeyKind("paused", "set", "names of paused queues"),
    "counters": KeyKind("counters", "hash", "<name>:<queue> -> count; seq"),
    "gauges": KeyKind(
        "gauges", "hash", "<name>:<queue> -> how many now (running, delayed); finished: -> final jobs but the failed"
    ),
    "marker": KeyKind("marker:{}", "list", "one element while the queue holds a job and is not paused"),
    "due": KeyKind("due", "list", "one element after an earlier due time was set"),
    "wake": KeyKind("wake:{}", "list", "a worker's wake-ups, at most 16; expires"),
    "inbox": KeyKind(
        "inbox:{}", "list", "ids that became final, or with a plus changed, for one waiting process; capped, expires"
    ),
    "idem": KeyKind(
        "idem:{}",
        "string",
        "<until (Unix ms)>|<fingerprint>|<job id>|<first answer, empty while only reserved, + when for several "
        "submits>, by an idempotency key's digest; expires",
    ),
    "unique": KeyKind(
        "unique:{}",
        "string",
        "<end (Unix ms), 0 without>|<job id>|<created (Unix ms)>|<final status, empty before>, by a unique key's "
        "digest; expires once only its end holds it",
    ),
    "schedule": KeyKind("schedule:{}", "hash", "one schedule: definition (JSON), revision, next, last_tick, counts"),
    "schedules": KeyKind("schedules", "zset", "names of all schedules, by name (score 0)"),
    "schedule_due": KeyKind("schedule_due", "zset", "names of schedules that tick, by their next tick (Unix ms)"),
    "tasks": KeyKind("tasks", "zset", "names of tasks that workers announced, by when (Unix ms)"),
    "task_options": KeyKind("task_options", "hash", "task -> its options; JSON"),
    "workers": KeyKind("workers", "zset", "names of workers, by when they were seen (Unix ms)"),
    "worker_info": KeyKind("worker_info", "hash", "worker -> its description; JSON"),
}


def anchor_key(namespace: str) -> str:
    """Return the one key outside all partitions: a string that says how many there are."""
    return f"{namespace}:partitions"


def slot_of(key: str | bytes) -> int:
    """Return the hash slot of a key: that of the first part in braces, of the whole key where there is none."""
    raw = key.encode() if isinstance(key, str) else key
    _, brace, rest = raw.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    # Redis' CRC16 is the XMODEM variant, which binascii computes in C.
    return crc_hqx(tag if brace and closed and tag else raw, 0) % SLOTS


class PartitionKeys:
    """Build the keys of one partition."""

    def __init__(self, namespace: str, partition: int, partitions: int) -> None:
        self.prefix = f"{namespace}:{{{partition_tag(partition, partitions)}}}:"
        self.declared = (self.prefix + KINDS["meta"].pattern, self.prefix + KINDS["canary"].pattern)
        self.slot = slot_of(self.prefix)

    def key(self, kind: str, *arguments: str) -> str:
        """Return a key of the given kind, such as ``key("queue", "default", "high")``."""
        return self.prefix + KINDS[kind].pattern.format(*arguments)


def lua_prelude(named: Collection[str]) -> str:
    """Return Lua that defines ``K.<kind>(...)`` for the named kinds of keys, relative to ``KEYS[1]`` (meta)."""
    lines = [f"local P = string.sub(KEYS[1], 1, -{len(KINDS['meta'].pattern) + 1})", "local K = {}"]
    for name, kind in KINDS.items():
        if name not in named:
            continue
        if kind.arity == 0:
            # A key without arguments is a plain string: one concatenation per call of the script.
            lines.append(f"K.{name} = P .. '{kind.pattern}'")
            continue
        parameters = [f"a{index}" for index in range(kind.arity)]
        pieces = kind.pattern.split("{}")
        expression = "P"
        for index, piece in enumerate(pieces):
            if piece:
                expression += f" .. '{piece}'"
            if index < kind.arity:
                expression += f" .. {parameters[index]}"
        lines.append(f"function K.{name}({', '.join(parameters)}) return {expression} end")
    return "\n".join(lines)
