"""Show a supervisor, through shared memory, which leases a process holds and when it last renewed them.

A handler that holds the interpreter's lock from its first moment keeps every thread of its process from telling
anything, so each lease is written down before its handler starts. One process writes, one reads; neither waits for the
other. What the reader finds half written names a token that is not current, and the store refuses it.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time

from penstock.core.ids import JobId, Token

#: Last answered round of renewals, last sign of life, last sight of jobs that must run alone (all ``time.monotonic``, 0
#: before the first), the tokens' nonce.
_HEADER = struct.Struct("<dd16sd")
_TIME = struct.Struct("<d")
#: Time of the claim, attempt, job id, whether the handler has started; the time is 0 where an entry is free.
_ENTRY = struct.Struct("<dI36s?3x")
_STARTED_AT = struct.calcsize("<dI36s")
_ROUND_AT, _BEAT_AT, _NONCE_AT, _APART_AT = 0, 8, 16, 32


def create(entries: int) -> int:
    """Return the descriptor of an empty table for so many leases; it ends with its last descriptor and map."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("penstock-leases")
    else:  # macOS
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, _HEADER.size + entries * _ENTRY.size)
    return descriptor


class LeaseWriter:
    """Write down what this process holds. ``put`` and ``drop`` belong to one thread, the times to another."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, 0)
        self._free = list(range(_HEADER.size, len(self._map), _ENTRY.size))

    def begin(self, nonce: str) -> None:
        """Note the nonce of all tokens to come, and give the first sign of life.

        The next comes from a thread: the first handler may take the interpreter's lock before it, and keep it.
        """
        self._map[_NONCE_AT : _NONCE_AT + 16] = nonce.encode().ljust(16, b"\0")
        self.beat()

    def put(self, token: Token, started_s: float) -> int:
        """Write down a lease and return its entry, 0 when the table is full: then only this process renews it."""
        if not self._free:
            return 0
        entry = self._free.pop()
        _ENTRY.pack_into(self._map, entry, started_s, token.attempt, token.job_id.encode(), False)
        return entry

    def start(self, entry: int) -> None:
        """Note that the handler starts."""
        self._map[entry + _STARTED_AT] = 1

    def drop(self, entry: int) -> None:
        """Strike out a lease."""
        _TIME.pack_into(self._map, entry, 0.0)
        self._free.append(entry)

    def mark_round(self) -> None:
        """Note that the store has answered a round of renewals."""
        _TIME.pack_into(self._map, _ROUND_AT, time.monotonic())

    def mark_apart(self) -> None:
        """Note that jobs wait which must run alone."""
        _TIME.pack_into(self._map, _APART_AT, time.monotonic())

    def beat(self) -> None:
        """Give a sign of life."""
        _TIME.pack_into(self._map, _BEAT_AT, time.monotonic())


class LeaseReader:
    """Read what another process holds."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)

    @property
    def beat_s(self) -> float:
        """Return when the process last gave a sign of life, 0 before the first."""
        beat: float = _TIME.unpack_from(self._map, _BEAT_AT)[0]
        return beat

    def unrenewed(self, since_s: float) -> list[Token]:
        """Return the leases that were neither taken nor renewed since a time."""
        round_s, _beat, nonce_bytes, _apart = _HEADER.unpack_from(self._map)
        if round_s >= since_s:
            return []
        nonce = nonce_bytes.rstrip(b"\0").decode(errors="replace")
        found = []
        for claimed_s, attempt, job_id, _started in _ENTRY.iter_unpack(self._map[_HEADER.size :]):
            if 0 < claimed_s < since_s:
                found.append(Token(JobId(job_id.decode("ascii", errors="replace")), attempt, nonce))
        return found

    def started(self) -> list[JobId]:
        """Return the jobs whose handlers have started."""
        return [
            JobId(job_id.decode("ascii", errors="replace"))
            for claimed_s, _attempt, job_id, started in _ENTRY.iter_unpack(self._map[_HEADER.size :])
            if claimed_s > 0 and started
        ]

    @property
    def apart_s(self) -> float:
        """Return when the process last saw jobs that must run alone, 0 for never."""
        apart: float = _TIME.unpack_from(self._map, _APART_AT)[0]
        return apart

    def close(self) -> None:
        """Let go of the memory."""
        self._map.close()
