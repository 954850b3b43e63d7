"""Be one of the processes that run jobs under a supervisor."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from typing import Any

import structlog
import uvloop

from penstock.core import events
from penstock.core.errors import ConfigError, StoreMismatch, TaskError
from penstock.observability.logs import configure_logging
from penstock.store import Store, connect
from penstock.worker.control import DRAIN, EXIT_CONFIG, EXIT_OK, EXIT_WORN, HASTEN, Orders, read_orders
from penstock.worker.lease_table import LeaseWriter
from penstock.worker.pool_child import ask_kernel_to_end_with_parent
from penstock.worker.service import Worker

#: Jobs come and go by the hundred, and hold no cycles: with the interpreter's own thresholds a fifth of a short job's
#: time goes into looking for some.
_GC_THRESHOLDS = (10_000, 20, 20)


def main(control: int, table: int) -> int:
    """Run a worker until told to stop through the pipe ``control``; end at once when its other end closes.

    Return 0 after a stop, 78 when a module, a task or a setting cannot be used (told in one line on stderr).
    """
    ask_kernel_to_end_with_parent()
    orders = read_orders(control)
    configure_logging(json=orders.options.log_json, level=orders.options.log_level)
    log: Any = structlog.get_logger("penstock.worker")
    # Before the task modules, so that one that sets its own keeps them.
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        uvloop.run(_run(orders, control, LeaseWriter(table)))
    except (TaskError, ConfigError, StoreMismatch) as error:
        # One line; where it went wrong is in the message, and a traceback of ours would hide it.
        log.error(events.WORKER_REFUSED, message=str(error))  # noqa: TRY400
        return EXIT_CONFIG
    return EXIT_OK


async def _run(orders: Orders, control: int, writer: LeaseWriter) -> None:
    async def make_store() -> Store:
        return await connect(orders.store_options)

    worker = Worker(orders.options, make_store, writer=writer, alone=orders.alone)
    loop = asyncio.get_running_loop()

    def drain() -> None:
        # A signal to the whole group comes here and to the supervisor, which tells us as well; it is one request.
        if not worker.stopping:
            worker.request_stop()

    def hasten() -> None:
        drain()
        worker.request_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, drain)
    commands = {DRAIN: drain, HASTEN: hasten}

    def listen() -> None:
        while command := os.read(control, 1):
            try:
                loop.call_soon_threadsafe(commands[command])
            except RuntimeError:
                # The loop has ended, which is what we were to be told; the end of the supervisor still matters.
                continue
        os._exit(1)

    threading.Thread(target=listen, name="penstock-control", daemon=True).start()
    await worker.run()
    if worker.stuck:
        # A handler that catches every cancellation would keep the loop from closing; there is nothing left to close.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_WORN if worker.worn else EXIT_OK)
