"""Show a job."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.flags import JsonFlag, new_app, open_client, with_settings
from penstock.cli.waiting import seconds_of, show_final, wait_for_job
from penstock.config import Settings

app = new_app()


@app.command()
@with_settings("client")
def status(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.")],
    *,
    wait: Annotated[str | None, typer.Option(help="Wait so long for its end: seconds, or '5m'.")] = None,
    as_json: JsonFlag = False,
    settings: Settings,
) -> int:
    """Show a job. Exits 1 when it failed, was cancelled or expired."""
    wait_seconds = seconds_of("--wait", wait)
    if wait_seconds is not None:
        return wait_for_job(settings, job_id, wait_seconds, as_json=as_json)
    with open_client(settings) as client:
        return show_final(client.get(job_id), as_json=as_json)
