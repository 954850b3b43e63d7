"""Run one job inside a child process of the pool."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Coroutine
from typing import Any

import msgspec

from penstock.core.errors import TaskError
from penstock.core.outcome import Cancelled, Outcome
from penstock.handlers.context import CancelFlag, Context, deadline_of
from penstock.handlers.registry import Task, find_tasks
from penstock.worker import loader, outcomes
from penstock.worker.pool_child import STOP, TELL, Stop

#: What a child tells of beside its output.
PROGRESS = "progress"


class ChildJob(msgspec.Struct, frozen=True, kw_only=True):
    """Carry a job to a child; the function travels as the names of its module and task."""

    module: str
    name: str
    input: bytes
    id: str
    task: str
    queue: str
    attempt: int
    counted: int
    previous_outcome: str | None
    timeout_ms: int | None
    schedule: str | None
    scheduled_for_ms: int | None
    result_bytes: int
    error_bytes: int


def start_child(log_json: bool | None, log_level: str, modules: tuple[str, ...]) -> None:
    """Prepare a child: logging as in its parent, and the task modules, whose import is no part of a job's time."""
    from penstock.observability.logs import configure_logging

    configure_logging(json=log_json, level=log_level)
    for module in modules:
        # One that cannot be imported here fails its jobs, each with the reason.
        with contextlib.suppress(TaskError):
            loader.import_module(module)


def run_in_child(job: ChildJob) -> Outcome:
    """Run the handler and describe how it ended; nothing but an end of the process escapes.

    ``Cancelled`` is the answer of one that was told to end and did; the parent knows whether a cancel or its time was
    the cause.
    """
    stop, flag = STOP.get() or Stop(), CancelFlag()

    def tell() -> None:
        flag.requested = True

    stop.on_ask(tell)
    try:
        value = _call(_task(job.module, job.name), job, stop, flag)
    except asyncio.CancelledError as error:
        return Cancelled() if stop.asked else outcomes.raised(error, limit=job.error_bytes)
    except BaseException as error:  # noqa: BLE001 - a handler that calls sys.exit() has failed, not the child
        return outcomes.raised(error, limit=job.error_bytes)
    if stop.asked and flag.seen:
        return Cancelled()
    return outcomes.succeeded(value, limit=job.result_bytes)


@functools.cache
def _task(module: str, name: str) -> Task[..., Any]:
    for found in find_tasks(loader.import_module(module)):
        if found.name == name:
            return found
    raise LookupError(f"module {module!r} has no task {name!r} in a child process")


def _call(task: Task[..., Any], job: ChildJob, stop: Stop, flag: CancelFlag) -> Any:
    binder = task.binder
    arguments = binder.bind(job.input)
    if binder.context_name is not None:
        tell = TELL.get()
        arguments[binder.context_name] = Context(
            id=job.id,
            task=job.task,
            queue=job.queue,
            attempt=job.attempt,
            counted=job.counted,
            previous_outcome=job.previous_outcome,
            deadline=deadline_of(job.timeout_ms),
            flag=flag,
            schedule=job.schedule,
            scheduled_for_ms=job.scheduled_for_ms,
            report=lambda value: tell(PROGRESS, value),
            write=lambda kind, value: tell(kind.value, value),
        )
    if inspect.iscoroutinefunction(task.function):
        return asyncio.run(_until_asked(task.function(**arguments), stop))
    return task.function(**arguments)


async def _until_asked(work: Coroutine[Any, Any, Any], stop: Stop) -> Any:
    """Run an async handler, and cancel it when it is asked to end."""
    loop, me = asyncio.get_running_loop(), asyncio.current_task()
    assert me is not None

    def cancel() -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(me.cancel)

    stop.on_ask(cancel)
    return await work
