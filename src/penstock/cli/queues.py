"""Show what the queues hold."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.cli.flags import JsonFlag, new_app, open_client, with_settings
from penstock.cli.output import print_json, print_line, print_table
from penstock.client import Queue
from penstock.config import Settings

app = new_app()

_PRIORITIES = ("critical", "high", "normal", "low")


@app.command()
@with_settings("client")
def queues(*, as_json: JsonFlag = False, settings: Settings) -> None:
    """Show what each queue holds: waiting jobs by priority, running, delayed, finished ones."""
    with open_client(settings) as client:
        found = client.queues()
    if as_json:
        print_json({"items": found})
    else:
        print_queues(found)


def print_queues(found: Sequence[Queue]) -> None:
    """Print a table of queues."""
    if not found:
        print_line("no queues yet; the first submit makes one")
        return
    columns = ["queue", *_PRIORITIES, "running", "delayed", "completed", "failed", "cancelled", "expired"]
    rows = [
        [
            f"{queue.name} (paused)" if queue.paused else queue.name,
            *(f"{queue.depth.get(priority, 0):,}" for priority in _PRIORITIES),
            f"{queue.running:,}",
            f"{queue.delayed:,}",
            *(f"{queue.finished.get(status, 0):,}" for status in ("completed", "failed", "cancelled", "expired")),
        ]
        for queue in found
    ]
    print_table(columns, rows)
