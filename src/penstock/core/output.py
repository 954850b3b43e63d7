"""Define what running attempts write: lines of the log and chunks of the stream, and what a follower sees of a job."""

from __future__ import annotations

import enum
import zlib

import msgspec

from penstock.core.ids import Token
from penstock.core.job import JobRecord
from penstock.core.limits import OUTPUT_ENTRIES
from penstock.core.states import State


class OutputKind(enum.Enum):
    """Name the two kinds of output."""

    LOG = "log"
    STREAM = "stream"


class NewEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one log line or chunk to be stored; ``value`` is JSON text."""

    kind: OutputKind
    value: bytes


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """Store what an attempt has written, under its token.

    ``made`` counts the entries that the attempt made before the first of these, whether they were stored or not: so a
    repeat stores nothing twice. ``dropped_lines`` and ``dropped_chunks`` say what of them will never come; they count
    once.
    """

    token: Token
    made: int
    entries: tuple[NewEntry, ...]
    dropped_lines: int = 0
    dropped_chunks: int = 0

    def __post_init__(self) -> None:
        if len(self.entries) > OUTPUT_ENTRIES:
            raise ValueError(f"{len(self.entries)} entries of output at once; at most {OUTPUT_ENTRIES}")


class OutputCode(enum.Enum):
    """Say what became of an output."""

    DONE = "done"
    #: The token is not the current one; nothing was stored.
    STALE = "stale"


class OutputEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one stored entry.

    ``position`` counts the job's entries of its kind from 1, over all attempts; ``order`` those of both kinds.
    """

    kind: OutputKind
    position: int
    order: int
    attempt: int
    at_ms: int
    value: bytes


class Followed(msgspec.Struct, frozen=True, kw_only=True):
    """Say how a job stands, and which entries come after those already seen.

    ``mark`` is another one after each change of the job that is not output or progress, ``rev`` after progress too.
    ``log_dropped`` and ``stream_dropped`` count what was written and is not kept.
    """

    state: State
    attempt: int
    mark: str
    progress: bytes | None
    entries: tuple[OutputEntry, ...] = ()
    #: There are more entries than fitted.
    more: bool = False
    log_dropped: int = 0
    stream_dropped: int = 0

    @property
    def rev(self) -> str:
        """Return a short mark of all that ``state`` and ``progress`` tell."""
        return rev_of(self.mark, self.progress)


def rev_of(mark: str, progress: bytes | None) -> str:
    """Return eight hexadecimal digits that differ where a job's status or progress does."""
    return f"{zlib.crc32(mark.encode() + b'|' + (progress or b'')):08x}"


def make_mark(
    state: State,
    *,
    attempt: int,
    counted: int,
    lost: int,
    no_handler: int,
    run_at_ms: int | None,
    cancel_ms: int | None,
    finished_ms: int | None,
) -> str:
    """Return text that differs after each transition of a job and each request to cancel it."""
    due = run_at_ms if state in (State.SCHEDULED, State.RETRYING) else None
    ended = finished_ms if state.is_final else None
    parts = (state.value, attempt, counted, lost, no_handler, due, cancel_ms, ended)
    return "|".join("" if part is None else str(part) for part in parts)


def mark_of(record: JobRecord) -> str:
    """Return the mark of a job as ``JobReader.get`` shows it."""
    return make_mark(
        record.state,
        attempt=record.attempt,
        counted=record.counted,
        lost=record.lost,
        no_handler=record.no_handler,
        run_at_ms=record.run_at_ms,
        cancel_ms=record.cancel_requested_at_ms,
        finished_ms=record.finished_at_ms,
    )


def merge(lines: list[OutputEntry], chunks: list[OutputEntry], *, limit: int) -> tuple[tuple[OutputEntry, ...], bool]:
    """Return up to ``limit`` entries of both kinds in the order in which they were written, and whether more stand.

    Each list starts where the reader is and holds ``limit`` entries where there are as many.
    """
    whole = sorted([*lines, *chunks], key=lambda entry: entry.order)
    return tuple(whole[:limit]), len(whole) > limit
