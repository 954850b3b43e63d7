"""Run one job inside a child process of the pool."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from typing import Any

import msgspec

from penstock.core.errors import TaskError
from penstock.core.outcome import Outcome
from penstock.handlers.context import Context
from penstock.handlers.registry import Task, find_tasks
from penstock.worker import loader, outcomes
from penstock.worker.pool_child import TELL

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
    """Run the handler and describe how it ended; nothing but an end of the process escapes."""
    try:
        value = _call(_task(job), job)
    except BaseException as error:  # noqa: BLE001 - a handler that calls sys.exit() has failed, not the child
        return outcomes.raised(error, limit=job.error_bytes)
    return outcomes.succeeded(value, limit=job.result_bytes)


def _task(job: ChildJob) -> Task[..., Any]:
    for found in find_tasks(loader.import_module(job.module)):
        if found.name == job.name:
            return found
    raise LookupError(f"module {job.module!r} has no task {job.name!r} in a child process")


def _call(task: Task[..., Any], job: ChildJob) -> Any:
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
            report=lambda value: tell(PROGRESS, value),
            write=lambda kind, value: tell(kind.value, value),
        )
    if inspect.iscoroutinefunction(task.function):
        return asyncio.run(task.function(**arguments))
    return task.function(**arguments)
