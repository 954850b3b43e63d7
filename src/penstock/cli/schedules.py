"""List, show, write, pause, resume, run or delete schedules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from penstock.cli.flags import JsonFlag, new_app, open_client, with_settings
from penstock.cli.inputs import AsText, Input, read_input
from penstock.cli.output import as_text, format_moment, print_json, print_line, print_submitted, print_table
from penstock.client import Client, Schedule
from penstock.config import Settings

app = new_app(no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the schedule.")]


@app.callback()
def schedules() -> None:
    """List, show, write, pause, resume, run or delete schedules."""


@app.command("list")
@with_settings("client")
def list_(
    *,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    as_json: JsonFlag = False,
    settings: Settings,
) -> None:
    """List schedules by name. --json prints one a line."""
    with open_client(settings) as client:
        found = list(itertools.islice(_all(client), limit))
    if as_json:
        for item in found:
            print_json(item)
    elif not found:
        print_line("no schedules; 'penstock schedules put' makes one")
    else:
        columns = ["schedule", "when", "task", "next", "last", "fired", "skipped", "missed"]
        print_table(columns, [_row(item) for item in found])


def _all(client: Client) -> Iterator[Schedule]:
    cursor: str | None = None
    while True:
        page = client.schedules(limit=100, cursor=cursor)
        yield from page.items
        if (cursor := page.next) is None:
            return


def _row(found: Schedule) -> list[str]:
    following = "paused" if found.paused else format_moment(found.next[0]) if found.next else "never"
    last = format_moment(found.last_tick) if found.last_tick else ""
    ticks = (found.ticks.fired, found.ticks.skipped, found.ticks.missed)
    return [
        found.name,
        _when(found),
        str(found.job.get("task", "")),
        following,
        last,
        *(f"{count:,}" for count in ticks),
    ]


def _when(found: Schedule) -> str:
    return f"every {found.every:g} s" if found.every is not None else f"{found.cron} {found.timezone}"


@app.command()
@with_settings("client")
def show(name: Name, *, as_json: JsonFlag = False, settings: Settings) -> None:
    """Show a schedule: when it ticks next, what its ticks did, what each submits."""
    with open_client(settings) as client:
        _show(client.schedule(name), as_json=as_json)


def _show(found: Schedule, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    ticks = found.ticks
    lines = [
        ("schedule", f"{found.name} (from {found.source})"),
        ("when", _when(found)),
        ("task", f"{found.job.get('task')} in {found.job.get('queue')}, {found.job.get('priority')}"),
        ("input", as_text(found.job.get("input"))),
        ("rules", f"missed: {found.missed}, overlap: {found.overlap}"),
        ("ticks", f"{ticks.fired:,} fired, {ticks.skipped:,} skipped, {ticks.missed:,} missed"),
    ]
    if found.last_tick is not None:
        lines.append(("last", f"{format_moment(found.last_tick)}, job {found.last_job_id}"))
    if found.paused_at is not None:
        lines.append(("paused", f"since {format_moment(found.paused_at)}"))
    lines += [("next" if number == 0 else "", format_moment(moment)) for number, moment in enumerate(found.next)]
    for label, text in lines:
        print_line(f"{label:<13}{text}")


@app.command()
@with_settings("client")
def put(
    name: Name,
    task: Annotated[str, typer.Argument(metavar="TASK", help="Name of the task.")],
    input: Input = None,  # noqa: A002 - the field's name
    *,
    text: AsText = False,
    cron: Annotated[str | None, typer.Option(help="Five fields, such as '0 6 * * MON-FRI', or '@daily'.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Zone of --cron, such as Europe/Berlin.")] = None,
    every: Annotated[str | None, typer.Option(help="An interval of a second or more: '90s'.")] = None,
    start_at: Annotated[str | None, typer.Option(help="First tick of --every, RFC 3339.")] = None,
    missed: Annotated[str | None, typer.Option(help="skip, latest or all.")] = None,
    overlap: Annotated[str | None, typer.Option(help="allow or skip.")] = None,
    type: Annotated[str | None, typer.Option(help="Family of the task: 'task' or 'ai'.")] = None,  # noqa: A002
    queue: Annotated[str | None, typer.Option(help="Queue of the jobs.")] = None,
    priority: Annotated[str | None, typer.Option(help="critical, high, normal or low.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Tries of each job, the first included.")] = None,
    timeout: Annotated[str | None, typer.Option(help="Longest time of one attempt.")] = None,
    expires_in: Annotated[str | None, typer.Option(help="Give a job up if not started so long after its tick.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="Name to find the jobs by; may be given often.")
    ] = None,
    as_json: JsonFlag = False,
    settings: Settings,
) -> None:
    """Create or replace a schedule; the same again changes nothing."""
    values: dict[str, Any] = {"cron": cron, "timezone": timezone, "every": every, "start_at": start_at}
    values |= {"missed": missed, "overlap": overlap, "queue": queue, "priority": priority, "timeout": timeout}
    values |= {"type": type, "max_attempts": max_attempts, "expires_in": expires_in, "tags": tag}
    value = read_input(input, as_text=text)
    with open_client(settings) as client:
        found = client.put_schedule(
            name, task, value, **{key: given for key, given in values.items() if given is not None}
        )
    _show(found, as_json=as_json)


@app.command()
@with_settings("client")
def pause(name: Name, *, as_json: JsonFlag = False, settings: Settings) -> None:
    """Let a schedule start nothing until it is resumed."""
    with open_client(settings) as client:
        found = client.pause_schedule(name)
    if as_json:
        print_json(found)
    else:
        print_line(f"{name} paused")


@app.command()
@with_settings("client")
def resume(name: Name, *, as_json: JsonFlag = False, settings: Settings) -> None:
    """Let a paused schedule tick again."""
    with open_client(settings) as client:
        found = client.resume_schedule(name)
    if as_json:
        print_json(found)
    else:
        print_line(f"{name} resumed" + (f", next {format_moment(found.next[0])}" if found.next else ""))


@app.command()
@with_settings("client")
def run(name: Name, *, as_json: JsonFlag = False, settings: Settings) -> None:
    """Submit a schedule's job now, beside its ticks."""
    with open_client(settings) as client:
        job = client.run_schedule(name)
    if as_json:
        print_submitted(job)
    else:
        print_line(f"{job.id} {job.status}")


@app.command()
@with_settings("client")
def delete(name: Name, *, as_json: JsonFlag = False, settings: Settings) -> None:
    """Delete a schedule; its jobs stay."""
    with open_client(settings) as client:
        client.delete_schedule(name)
    if as_json:
        print_json({"name": name, "deleted": True})
    else:
        print_line(f"{name} deleted")
