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

#: Last answered round of renewals, last sign of life (both ``time.monotonic``, 0 before the first), the tokens' nonce.
_HEADER = struct.Struct("<dd16s8x")
_TIME = struct.Struct("<d")
#: Time of the claim, attempt, job id; the time is 0 where an entry is free.
_ENTRY = struct.Struct("<dI36s")
_ROUND_AT, _BEAT_AT, _NONCE_AT = 0, 8, 16


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
        """Note the nonce of all tokens to come."""
        self._map[_NONCE_AT : _NONCE_AT + 16] = nonce.encode().ljust(16, b"\0")

    def put(self, token: Token, started_s: float) -> int:
        """Write down a lease and return its entry, 0 when the table is full: then only this process renews it."""
        if not self._free:
            return 0
        entry = self._free.pop()
        _ENTRY.pack_into(self._map, entry, started_s, token.attempt, token.job_id.encode())
        return entry

    def drop(self, entry: int) -> None:
        """Strike out a lease."""
        _TIME.pack_into(self._map, entry, 0.0)
        self._free.append(entry)

    def mark_round(self) -> None:
        """Note that the store has answered a round of renewals."""
        _TIME.pack_into(self._map, _ROUND_AT, time.monotonic())

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
        round_s, _beat, nonce_bytes = _HEADER.unpack_from(self._map)
        if round_s >= since_s:
            return []
        nonce = nonce_bytes.rstrip(b"\0").decode(errors="replace")
        found = []
        for started_s, attempt, job_id in _ENTRY.iter_unpack(self._map[_HEADER.size :]):
            if 0 < started_s < since_s:
                found.append(Token(JobId(job_id.decode("ascii", errors="replace")), attempt, nonce))
        return found

    def close(self) -> None:
        """Let go of the memory."""
        self._map.close()
