"""Run jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.flags import new_app, prepare_server, redis_url, with_settings
from penstock.config import Settings

app = new_app()

Modules = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODULES", help="Modules with tasks, as in 'import'; the current folder is on the path."),
]


@app.command()
@with_settings("worker", "store", "logs", "ai", "limits")
def worker(modules: Modules = None, *, settings: Settings) -> int:
    """Run jobs until SIGINT or SIGTERM: the built-in tasks and those of MODULES.

    A supervisor keeps --processes processes running; each runs up to the concurrency, threads and pool that are set.
    Without --redis-url it works for the instance that 'penstock up' runs in this folder.
    """
    prepare_server(settings)
    options = settings.worker_options(tuple(modules or ()))
    store_options = settings.store_options(redis_url(settings))
    from penstock.worker.main import run_worker

    return run_worker(options, store_options)
