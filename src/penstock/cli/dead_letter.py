"""List, redrive or delete failed jobs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from penstock.cli.exits import CommandFailed, Exit
from penstock.cli.flags import JsonFlag, new_app, open_client, with_settings
from penstock.cli.jobs import print_jobs
from penstock.cli.output import print_json, print_line
from penstock.client import Client, Job
from penstock.config import Settings

app = new_app(no_args_is_help=True)

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of failed jobs.")]
Queue = Annotated[str | None, typer.Option(help="Those of this queue.")]
Task = Annotated[str | None, typer.Option(help="Those of this task.")]
Tag = Annotated[str | None, typer.Option(help="Those with this tag.")]
Everything = Annotated[bool, typer.Option("--all", help="All of them.")]


@app.callback()
def dead_letter() -> None:
    """List, redrive or delete failed jobs."""


@app.command("list")
@with_settings("client")
def list_(
    *,
    queue: Queue = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: JsonFlag = False,
    settings: Settings,
) -> None:
    """List failed jobs, newest first. --json prints one a line."""
    with open_client(settings) as client:
        found = list(itertools.islice(_dead_letters(client, queue), limit))
    print_jobs(found, as_json=as_json)


@app.command()
@with_settings("client")
def redrive(
    ids: Ids = None,
    *,
    queue: Queue = None,
    task: Task = None,
    tag: Tag = None,
    everything: Everything = False,
    as_json: JsonFlag = False,
    settings: Settings,
) -> int:
    """Queue failed jobs again, with attempts counted anew: those named, those of a filter, or --all."""
    choice = _choice(ids, queue, task, tag, everything)
    done = skipped = 0
    with open_client(settings) as client:
        more = True
        while more:
            answer = client.redrive(**choice)
            done, skipped, more = done + answer.redriven, skipped + answer.skipped, answer.more and answer.redriven > 0
    return _report("redriven", done, skipped, as_json=as_json)


@app.command()
@with_settings("client")
def delete(
    ids: Ids = None,
    *,
    queue: Queue = None,
    task: Task = None,
    tag: Tag = None,
    everything: Everything = False,
    as_json: JsonFlag = False,
    settings: Settings,
) -> int:
    """Delete failed jobs with their inputs: those named, those of a filter, or --all."""
    choice = _choice(ids, queue, task, tag, everything)
    done = skipped = 0
    with open_client(settings) as client:
        more = True
        while more:
            answer = client.delete_dead_letters(**choice)
            done, skipped, more = done + answer.deleted, skipped + answer.skipped, answer.more and answer.deleted > 0
    return _report("deleted", done, skipped, as_json=as_json)


def _choice(
    ids: list[str] | None, queue: str | None, task: str | None, tag: str | None, everything: bool
) -> dict[str, Any]:
    if not (ids or queue or task or tag or everything):
        raise CommandFailed("name ids, or --queue, --task or --tag, or say --all", Exit.USAGE, field="ids")
    return {"ids": ids or [], "queue": queue, "task": task, "tag": tag, "all": everything}


def _report(verb: str, done: int, skipped: int, *, as_json: bool) -> int:
    if as_json:
        print_json({verb: done, "skipped": skipped})
    else:
        print_line(
            f"{verb} {done:,}"
            + (f", skipped {skipped:,} that are not failed jobs or cannot be changed" if skipped else "")
        )
    return Exit.NOT_FOUND if skipped and not done else Exit.OK


def _dead_letters(client: Client, queue: str | None) -> Iterator[Job]:
    cursor: str | None = None
    while True:
        page = client.dead_letters(queue=queue, limit=100, cursor=cursor)
        yield from page.items
        if (cursor := page.next) is None:
            return
