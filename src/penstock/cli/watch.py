"""Follow a job, or the queues."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import typer

from penstock.cli.exits import Exit
from penstock.cli.flags import JsonFlag, new_app, open_client, with_settings
from penstock.cli.log import show_line
from penstock.cli.output import as_text, print_json, print_line
from penstock.cli.queues import print_queues
from penstock.cli.waiting import show_final
from penstock.client import Client, Job, LogLine, Queue
from penstock.config import Settings

app = new_app()

#: How often the queues are looked at.
_STEP_SECONDS = 1.0


@app.command()
@with_settings("client")
def watch(
    job_id: Annotated[str | None, typer.Argument(metavar="ID", help="A job; without one, the queues.")] = None,
    *,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="Stop once no job waits, is delayed or runs.")
    ] = False,
    as_json: JsonFlag = False,
    settings: Settings,
) -> int:
    """Follow a job until it is final: its states, progress, log and stream; or the queues, each second until Ctrl-C.

    --json prints a document for each: the job, or what it told under "event". Exits 1 when the job failed, was
    cancelled or expired.
    """
    with open_client(settings, retries=5) as client:
        if job_id is not None:
            return _watch_job(client, job_id, as_json=as_json)
        return _watch_queues(client, until_idle=until_idle, as_json=as_json)


def _watch_job(client: Client, job_id: str, *, as_json: bool) -> int:
    shown = ""
    for event in client.events(job_id):
        job = event.job
        if job is not None:
            # The last state comes again below, with the result.
            shown = shown if job.is_final else _show_change(job, shown, as_json=as_json)
        elif as_json:
            print_json({"event": event.kind, **event.data})
        elif event.kind == "log":
            show_line(msgspec.convert(event.data, LogLine))
        elif event.kind == "stream":
            print_line(f"attempt {event.attempt} streamed {as_text(event.chunk)}")
        else:
            print_line(f"running, attempt {event.attempt}, {as_text(event.data.get('progress'))}")
    return show_final(client.get(job_id), as_json=as_json)


def _show_change(job: Job, shown: str, *, as_json: bool) -> str:
    line = f"{job.status}, attempt {job.attempt}" if job.attempt else job.status
    line += f", {as_text(job.progress)}" if job.progress is not None else ""
    line += f", {job.error.type}: {job.error.message}" if job.error is not None else ""
    if line != shown:
        if as_json:
            print_json(job)
        else:
            print_line(line)
    return line


def _watch_queues(client: Client, *, until_idle: bool, as_json: bool) -> int:
    shown: list[Queue] | None = None
    while True:
        queues = client.queues()
        if queues != shown:
            if as_json:
                print_json({"items": queues})
            else:
                print_queues(queues)
                print()
        shown = queues
        if until_idle and not any(queue.waiting or queue.running or queue.delayed for queue in queues):
            return Exit.OK
        time.sleep(_STEP_SECONDS)
