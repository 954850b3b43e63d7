"""Run a worker as a process: event loop, signals, exit code."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import structlog
import uvloop

from penstock.core import events
from penstock.core.errors import ConfigError, StoreMismatch, TaskError
from penstock.store import Store, StoreOptions, connect
from penstock.worker.options import WorkerOptions
from penstock.worker.service import Worker

#: Exit codes, as in ``sysexits.h``.
EXIT_OK = 0
EXIT_CONFIG = 78


def run_worker(options: WorkerOptions, store_options: StoreOptions) -> int:
    """Run a worker until SIGTERM or SIGINT, drain, and return the exit code; a second signal hastens.

    0 after a stop, 78 when a module, a task or a setting cannot be used (told in one line on stderr).
    """
    log: Any = structlog.get_logger("penstock.worker")
    try:
        uvloop.run(_run(options, store_options))
    except (TaskError, ConfigError, StoreMismatch) as error:
        # One line; where it went wrong is in the message, and a traceback of ours would hide it.
        log.error(events.WORKER_REFUSED, message=str(error))  # noqa: TRY400
        return EXIT_CONFIG
    return EXIT_OK


async def _run(options: WorkerOptions, store_options: StoreOptions) -> None:
    async def make_store() -> Store:
        return await connect(store_options)

    worker = Worker(options, make_store)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.request_stop)
    await worker.run()
