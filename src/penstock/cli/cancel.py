"""Cancel jobs."""

from __future__ import annotations

from penstock.cli.change import JobIds, change_each
from penstock.cli.flags import JsonFlag, new_app, open_client, with_settings
from penstock.config import Settings

app = new_app()


@app.command()
@with_settings("client")
def cancel(ids: JobIds, *, as_json: JsonFlag = False, settings: Settings) -> int:
    """Cancel jobs that wait, and tell the handlers of those that run. --json prints one a line."""
    with open_client(settings) as client:
        return change_each(ids, client.cancel, as_json=as_json, done="cancelled")
