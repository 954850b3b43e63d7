"""List jobs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated

import typer

from penstock.cli.flags import JsonFlag, new_app, open_client, with_settings
from penstock.cli.output import format_moment, print_json, print_line, print_table
from penstock.client import Job
from penstock.config import Settings

app = new_app()


@app.command()
@with_settings("client")
def jobs(
    *,
    status: Annotated[list[str] | None, typer.Option(help="Only of this status; may be given often.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only of this queue.")] = None,
    task: Annotated[str | None, typer.Option(help="Only of this task.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: JsonFlag = False,
    settings: Settings,
) -> None:
    """List jobs: the ones under way first, then the finished ones, newest first. --json prints one a line."""
    filters = {"status": status or None, "queue": queue, "task": task, "tag": tag}
    with open_client(settings) as client:
        found = list(itertools.islice(client.iter_jobs(**filters), limit))
    print_jobs(found, as_json=as_json)


def print_jobs(found: Sequence[Job], *, as_json: bool) -> None:
    """Print jobs, one a line."""
    if as_json:
        for job in found:
            print_json(job)
        return
    if not found:
        print_line("no such jobs")
        return
    rows = [
        [
            job.id,
            job.status,
            job.task if job.type == "task" else f"{job.task} ({job.type})",
            job.queue,
            str(job.attempt),
            format_moment(job.created_at) if job.created_at else "",
            f"{job.error.type}: {job.error.message}"[:80] if job.error else "",
        ]
        for job in found
    ]
    print_table(["id", "status", "task", "queue", "attempt", "created", "error"], rows)
