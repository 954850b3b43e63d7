"""Print: one JSON document or NDJSON for programs, short lines and tables for people."""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from penstock.client.job import Job

_SUBMITTED = ("id", "status", "queue", "priority", "created_at", "run_at", "expires_at", "replayed", "existing")
_STYLES = {"completed": "green", "failed": "red", "running": "cyan", "retrying": "yellow", "cancelled": "magenta"}


def print_json(value: Any) -> None:
    """Print one document on one line; times have milliseconds, as the API writes them."""
    plain = msgspec.to_builtins(value, builtin_types=(dt.datetime,), str_keys=True, enc_hook=_encode_other)
    print(msgspec.json.encode(_with_moments(plain)).decode(), flush=True)


def print_submitted(job: Job) -> None:
    """Print what a submit answers; the other fields of the job are not known yet."""
    print_json({name: getattr(job, name) for name in _SUBMITTED})


def _with_moments(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_moments(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_with_moments(member) for member in value]
    return format_moment(value) if isinstance(value, dt.datetime) else value


def _encode_other(value: Any) -> Any:
    # The one type in our answers that JSON does not have is an error of one item of a batch.
    document = {"code": value.code, "detail": str(value), "errors": list(value.errors)}
    job_id = getattr(value, "job_id", "")
    return document | {"job_id": job_id} if job_id else document


def print_line(text: str) -> None:
    """Print one line for people; control characters in it are shown, not sent to the terminal."""
    print("".join(character if character.isprintable() else repr(character)[1:-1] for character in text), flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; numbers to the right. Without a terminal it keeps its full width and has no colours."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        is_number = bool(rows) and all(row[index].replace(",", "").isdigit() for row in rows)
        table.add_column(column, justify="right" if is_number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_printable(cell), style=_STYLES.get(cell, "")) for cell in row))
    is_terminal = sys.stdout.isatty()
    console = Console(width=None if is_terminal else 400, highlight=False)
    with console.capture() as capture:
        console.print(table)
    # At once, also into a pipe: `watch` prints a table now and then, for hours.
    print("\n".join(line.rstrip() for line in capture.get().splitlines()), flush=True)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "�" for character in text)


def describe(job: Job) -> list[tuple[str, str]]:
    """Return what people want to know of a job, as (label, text)."""
    lines = [("id", job.id), ("status", job.status)]
    if job.task:
        kind = "" if job.type == "task" else f" ({job.type})"
        lines.append(("task", f"{job.task}{kind} in {job.queue}, {job.priority}"))
    if job.attempt:
        lines.append(
            ("attempt", f"{job.attempt} (at most {job.max_attempts})" if job.max_attempts else str(job.attempt))
        )
    for label, moment in (
        ("created", job.created_at),
        ("due", job.run_at),
        ("expires", job.expires_at if job.started_at is None and not job.is_final else None),
        ("started", job.started_at),
        ("finished", job.finished_at),
        ("cancel asked", job.cancel_requested_at if not job.is_final else None),
    ):
        if moment is not None:
            lines.append((label, format_moment(moment)))
    if job.schedule is not None:
        lines.append(("schedule", job.schedule))
    if job.unique_key is not None:
        lines.append(("unique key", job.unique_key))
    if job.progress is not None:
        lines.append(("progress", as_text(job.progress)))
    if job.status == "completed":
        lines.append(("result", as_text(job.result)))
    if job.reason:
        lines.append(("reason", job.reason))
    if job.error is not None:
        field = f" [{job.error.field}]" if job.error.field else ""
        lines.append(("error", f"{job.error.type}: {job.error.message}{field}"))
    if job.no_handler and not job.is_final:
        lines.append(("waiting", "no worker knows this task; start one with 'penstock worker your_module'"))
    return lines


def print_job(job: Job) -> None:
    """Print a job for people."""
    for label, text in describe(job):
        print_line(f"{label:<13}{text}")


def as_text(value: Any) -> str:
    """Return a JSON value on one line."""
    return msgspec.json.encode(value).decode()


def format_moment(moment: dt.datetime) -> str:
    """Return a time as the API writes it."""
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextlib.contextmanager
def progress(label: str, total: int | None, *, enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr while the block runs, if that is a terminal; call what it gives with each step."""
    if not enabled or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda steps: bar.advance(task, steps)
