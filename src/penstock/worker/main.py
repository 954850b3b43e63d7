"""Run a worker: a supervisor and the processes that run jobs."""

from __future__ import annotations

import asyncio

from penstock.store import StoreOptions
from penstock.worker.options import WorkerOptions
from penstock.worker.supervisor import Supervisor


def run_worker(options: WorkerOptions, store_options: StoreOptions) -> int:
    """Run a worker until SIGTERM or SIGINT, drain, and return the exit code; a second signal hastens.

    0 after a stop, 78 when a module, a task or a setting cannot be used (told in one line on stderr).
    """
    return asyncio.run(Supervisor(options, store_options).run())
