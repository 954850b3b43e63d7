"""Define how the output of a job is shown."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from penstock.api.views import Time
from penstock.core.durations import format_time
from penstock.core.output import OutputEntry

Attempt = Annotated[int, Meta(description="The attempt that wrote it.")]
Number = Annotated[int, Meta(description="Counts what was written to this log or stream, from 1, over all attempts.")]


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Show a line of a job's log; `cut` says that it was longer than what is kept."""

    number: Number
    attempt: Attempt
    time: Time
    level: str
    message: str
    fields: dict[str, Any]
    exception: str | None
    cut: bool


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Show a part of a job's log, oldest first; `dropped` counts the lines that are not kept."""

    items: list[LogEntry]
    next: str | None
    dropped: int


class StreamEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Show a chunk of a job's stream."""

    number: Number
    attempt: Attempt
    time: Time
    chunk: msgspec.Raw


class ProgressEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Show the newest progress of an attempt."""

    attempt: Attempt
    progress: msgspec.Raw


class _StoredLine(msgspec.Struct, frozen=True):
    """Read a line as workers store it."""

    level: str = "info"
    message: str = ""
    fields: dict[str, Any] = {}
    exception: str = ""
    cut: bool = False


_decode_line = msgspec.json.Decoder(_StoredLine).decode


def log_entry(entry: OutputEntry) -> LogEntry:
    """Show a line; one of another form than ours becomes the message as it is."""
    try:
        line = _decode_line(entry.value)
    except msgspec.MsgspecError:
        line = _StoredLine(message=entry.value.decode(errors="replace"))
    return LogEntry(
        number=entry.position,
        attempt=entry.attempt,
        time=format_time(entry.at_ms),
        level=line.level,
        message=line.message,
        fields=line.fields,
        exception=line.exception or None,
        cut=line.cut,
    )
