"""Pause, resume or purge a queue."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.flags import JsonFlag, new_app, open_client, with_settings
from penstock.cli.output import print_json, print_line
from penstock.config import Settings

app = new_app(no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="QUEUE", help="Name of the queue.")]


@app.callback()
def queue() -> None:
    """Pause, resume or purge a queue."""


@app.command()
@with_settings("client")
def pause(name: Name, *, as_json: JsonFlag = False, settings: Settings) -> None:
    """Stop handing out the queue's jobs until it is resumed; submits are taken, what runs goes on."""
    with open_client(settings) as client:
        found = client.pause(name)
    if as_json:
        print_json(found)
    else:
        print_line(f"{name} paused, {found.waiting:,} waiting, {found.running:,} running")


@app.command()
@with_settings("client")
def resume(name: Name, *, as_json: JsonFlag = False, settings: Settings) -> None:
    """Hand out the queue's jobs again."""
    with open_client(settings) as client:
        found = client.resume(name)
    if as_json:
        print_json(found)
    else:
        print_line(f"{name} resumed, {found.waiting:,} waiting, {found.running:,} running")


@app.command()
@with_settings("client")
def purge(name: Name, *, as_json: JsonFlag = False, settings: Settings) -> None:
    """Cancel all jobs that are queued there now; running, scheduled and retrying ones stay."""
    purged, more = 0, True
    with open_client(settings) as client:
        while more:
            answer = client.purge(name)
            purged, more = purged + answer.purged, answer.more and answer.purged > 0
    if as_json:
        print_json({"queue": name, "purged": purged})
    else:
        print_line(f"{name} purged, {purged:,} cancelled")
