"""Keep what attempts log and stream."""

from __future__ import annotations

import dataclasses
from collections import deque

from penstock.core.job import JobRecord
from penstock.core.limits import Limits
from penstock.core.output import Followed, NewEntry, Output, OutputEntry, OutputKind, mark_of, merge

#: The name of the counter of what is dropped.
DROPPED = {OutputKind.LOG: "log_dropped", OutputKind.STREAM: "stream_dropped"}


@dataclasses.dataclass
class _Kept:
    """Hold the newest entries of one kind."""

    entries: deque[OutputEntry] = dataclasses.field(default_factory=deque)
    stored: int = 0
    size: int = 0
    missing: int = 0

    @property
    def dropped(self) -> int:
        return self.stored - len(self.entries) + self.missing

    def after(self, position: int | None) -> list[OutputEntry]:
        if position is None:
            return []
        seen = 0 if position > self.stored else position
        return [entry for entry in self.entries if entry.position > seen]


class StoredOutput:
    """Hold the output of one job."""

    def __init__(self) -> None:
        self._kept = {kind: _Kept() for kind in OutputKind}
        self._attempt = 0
        self._made = 0

    def add(self, item: Output, limits: Limits, now_ms: int) -> dict[OutputKind, int]:
        """Store what an attempt wrote; return how many entries of each kind went or will never come."""
        if self._attempt != item.token.attempt:
            self._attempt, self._made = item.token.attempt, 0
        lost = dict.fromkeys(OutputKind, 0)
        if item.made > self._made:
            lost = {OutputKind.LOG: item.dropped_lines, OutputKind.STREAM: item.dropped_chunks}
        for entry in item.entries[max(0, self._made - item.made) :]:
            self._append(entry, item.token.attempt, now_ms)
        self._made = max(self._made, item.made + len(item.entries))
        caps = {
            OutputKind.LOG: (limits.log_lines, limits.log_bytes),
            OutputKind.STREAM: (limits.stream_chunks, limits.stream_bytes),
        }
        for kind, (most, most_bytes) in caps.items():
            kept = self._kept[kind]
            kept.missing += lost[kind]
            while len(kept.entries) > most or (kept.size > most_bytes and kept.entries):
                kept.size -= _stored_bytes(kept.entries.popleft())
                lost[kind] += 1
        return lost

    @property
    def entries(self) -> tuple[OutputEntry, ...]:
        """Return what is kept, in order."""
        return tuple(sorted((one for kept in self._kept.values() for one in kept.entries), key=lambda one: one.order))

    def follow(self, record: JobRecord, *, log_after: int | None, stream_after: int | None, limit: int) -> Followed:
        """Return how the job stands and what comes after the positions."""
        log, stream = self._kept[OutputKind.LOG], self._kept[OutputKind.STREAM]
        lines, chunks = log.after(log_after)[:limit], stream.after(stream_after)[:limit]
        entries, more = merge(lines, chunks, limit=limit)
        return Followed(
            state=record.state,
            attempt=record.attempt,
            mark=mark_of(record),
            progress=record.progress,
            entries=entries,
            more=more or limit in (len(lines), len(chunks)),
            log_dropped=log.dropped,
            stream_dropped=stream.dropped,
        )

    def _append(self, entry: NewEntry, attempt: int, now_ms: int) -> None:
        kept = self._kept[entry.kind]
        kept.stored += 1
        order = sum(one.stored for one in self._kept.values())
        stored = OutputEntry(
            kind=entry.kind, position=kept.stored, order=order, attempt=attempt, at_ms=now_ms, value=entry.value
        )
        kept.entries.append(stored)
        kept.size += _stored_bytes(stored)


def _stored_bytes(entry: OutputEntry) -> int:
    return len(f"{entry.attempt}|{entry.at_ms}|{entry.order}|") + len(entry.value)
