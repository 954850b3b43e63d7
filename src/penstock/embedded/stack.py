"""Run Valkey, the API and a worker on one data folder until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock import __version__
from penstock.embedded.errors import ChildFailed, FolderUnusable
from penstock.embedded.files import prepare_folder
from penstock.embedded.instance import (
    FolderLock,
    Instance,
    end_stale_children,
    record_children,
    write_instance,
)
from penstock.embedded.ports import ensure_port_free
from penstock.embedded.readiness import http_readiness
from penstock.embedded.supervisor import ChildSpec, Supervisor
from penstock.embedded.valkey import EmbeddedValkey

REDIS_URL_VARIABLE = "PENSTOCK_REDIS_URL"
"""How a child learns its Redis: an argument would show the password to every user of the machine."""

logger = logging.getLogger("penstock.embedded")

_API_STOP_SECONDS = 5.0
# After the drain a worker hands back what is left; only one that hangs needs killing.
_WORKER_STOP_MARGIN_SECONDS = 5.0
_PORT_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """Say what to run. The caller has read the environment; nothing here does."""

    data_dir: Path
    """Holds the lock, the password and the data; made (0700) if it is missing."""
    host: str
    port: int
    """Where the API will listen; checked before anything starts."""
    redis_url: str | None = None
    """A Redis or Valkey that runs elsewhere; None starts our own."""
    syncs_each_write: bool = False
    """Whether our own server writes to the disk before it answers, rather than each second."""
    api_argv: Sequence[str]
    worker_argv: Sequence[str]
    api_ready_url: str
    """Polled until it answers 200; then the stack is ready."""
    api_ready_timeout_seconds: float = 60.0
    drain_seconds: float = 30.0
    """How long the worker takes to drain after SIGTERM; it is killed 5 s later."""
    env: Mapping[str, str]
    """The children's environment, to which PENSTOCK_REDIS_URL and PENSTOCK_PARENT_FD are added."""
    on_ready: Callable[[Instance], None] = lambda _: None
    """Called once, when the API answers and the worker runs."""


def run_stack(options: StackOptions) -> int:
    """Run the stack until SIGINT, SIGTERM or SIGHUP; return 0 after the ordered stop.

    Call it in the main thread of a process that has no other children: it takes over signals and collects orphans.
    Raises EmbeddedError, whose message is one line, when the stack could not start or a child gave up; nothing is left
    running then either.
    """
    asyncio.run(_run(options))
    return 0


async def _run(options: StackOptions) -> None:
    data_dir = prepare_folder(options.data_dir)
    async with contextlib.AsyncExitStack() as held:
        # Signals first, so that one during the start is an ordered stop too; the folder is let go after the last child.
        async with Supervisor(lambda children: record_children(data_dir, children)) as supervisor:
            startup = asyncio.create_task(_start(options, data_dir, supervisor, held))
            stopping = asyncio.create_task(supervisor.stopping.wait())
            try:
                await asyncio.wait([startup, stopping], return_when=asyncio.FIRST_COMPLETED)
                if startup.done():
                    startup.result()
                    await stopping
            finally:
                startup.cancel()
                stopping.cancel()
                await asyncio.gather(startup, stopping, return_exceptions=True)
        if supervisor.failure is not None:
            raise supervisor.failure
    logger.info("Everything has stopped", extra={"event": "stack_stopped"})


async def _start(
    options: StackOptions, data_dir: Path, supervisor: Supervisor, held: contextlib.AsyncExitStack
) -> None:
    await held.enter_async_context(FolderLock(data_dir))
    for name in await end_stale_children(data_dir):
        logger.warning("Ended %s, left behind by a run that was killed", name, extra={"event": "stale_child_ended"})
    ensure_port_free(options.host, options.port)
    redis_url = options.redis_url or await _start_valkey(options, data_dir, supervisor)
    instance = Instance(
        pid=os.getpid(),
        api_host=options.host,
        api_port=options.port,
        redis_url=redis_url,
        started_at=dt.datetime.now(dt.UTC),
        version=__version__,
    )
    try:
        write_instance(data_dir, instance)
    except OSError as error:
        raise FolderUnusable(data_dir, error.strerror or str(error)) from error
    env = {**options.env, REDIS_URL_VARIABLE: redis_url}
    # The worker needs only the store, so it loads its tasks while the API starts.
    await supervisor.start(
        ChildSpec(
            name="api",
            argv=options.api_argv,
            env=env,
            ready=lambda: http_readiness(options.api_ready_url),
            ready_timeout_seconds=options.api_ready_timeout_seconds,
            stop_grace_seconds=_API_STOP_SECONDS,
        ),
        ChildSpec(
            name="worker",
            argv=options.worker_argv,
            env=env,
            stop_grace_seconds=options.drain_seconds + _WORKER_STOP_MARGIN_SECONDS,
            hastened_grace_seconds=_WORKER_STOP_MARGIN_SECONDS,
        ),
    )
    options.on_ready(instance)


async def _start_valkey(options: StackOptions, data_dir: Path, supervisor: Supervisor) -> str:
    """Start the server, on another port when the one found free was taken meanwhile; return its address."""
    valkey = EmbeddedValkey(data_dir, syncs_each_write=options.syncs_each_write)
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        try:
            await supervisor.start(valkey.child(options.env))
        except ChildFailed:
            if attempt == _PORT_ATTEMPTS or not valkey.lost_port():
                raise
        else:
            break
    return valkey.redis_url
