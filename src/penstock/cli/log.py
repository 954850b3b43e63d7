"""Show what a job has logged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
import typer

from penstock.cli.exits import Exit
from penstock.cli.flags import JsonFlag, new_app, open_client, with_settings
from penstock.cli.output import as_text, print_json, print_line
from penstock.client import Client, LogLine
from penstock.config import Settings

app = new_app()
_PAGE = 1_000


@app.command()
@with_settings("client")
def log(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.")],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is final.")] = False,
    as_json: JsonFlag = False,
    settings: Settings,
) -> int:
    """Show what a job has logged, oldest line first; each line names its attempt. --json prints one line a document."""
    with open_client(settings, retries=5) as client:
        for line in _followed(client, job_id) if follow else _pages(client, job_id):
            if as_json:
                print_json(line)
            else:
                show_line(line)
    return Exit.OK


def _pages(client: Client, job_id: str) -> Iterator[LogLine]:
    cursor: str | None = None
    while True:
        page = client.log(job_id, limit=_PAGE, cursor=cursor)
        if cursor is None and page.dropped:
            typer.echo(f"penstock: {page.dropped} lines are not kept", err=True)
        yield from page.items
        if (cursor := page.next) is None:
            return


def _followed(client: Client, job_id: str) -> Iterator[LogLine]:
    for event in client.events(job_id):
        if event.kind == "log":
            yield msgspec.convert(event.data, LogLine)


def show_line(line: LogLine) -> None:
    """Print a line of a log for people."""
    fields = "".join(
        f" {name}={value if isinstance(value, str) else as_text(value)}" for name, value in line.fields.items()
    )
    cut = " …" if line.cut else ""
    print_line(f"{line.time} attempt {line.attempt} {line.level:<8} {line.message}{fields}{cut}")
    for text in (line.exception or "").splitlines():
        print_line(f"    {text}")
