"""Serve queues and workers."""

from __future__ import annotations

import asyncio

from litestar import Response, get, post
from litestar.params import FromPath

from penstock.api import views
from penstock.api.problems import BODY_TIMEOUT, BODY_TOO_LARGE, QUEUE_NOT_FOUND, STORE_UNAVAILABLE, ApiError
from penstock.api.routes.common import PROBLEMS, AnyRequest, no_body, query_of, services_of


@get(
    "/queues",
    operation_id="listQueues",
    summary="Count what all queues hold",
    tags=["queues"],
    opt={PROBLEMS: (STORE_UNAVAILABLE,)},
)
async def list_queues(request: AnyRequest) -> Response[views.QueueList]:
    query_of(request)
    found = await services_of(request).store.queues()
    return Response(views.QueueList(items=[views.queue(info) for info in found]))


@get(
    "/queues/{name:str}",
    operation_id="getQueue",
    summary="Count what a queue holds",
    tags=["queues"],
    opt={PROBLEMS: (QUEUE_NOT_FOUND, STORE_UNAVAILABLE)},
)
async def get_queue(request: AnyRequest, name: FromPath[str]) -> Response[views.QueueView]:
    query_of(request)
    return Response(await _queue(request, name))


async def _queue(request: AnyRequest, name: str) -> views.QueueView:
    for info in await services_of(request).store.queues():
        if info.name == name:
            return views.queue(info)
    raise ApiError(QUEUE_NOT_FOUND, f"No job was ever submitted to the queue {name[:128]!r}.")


_CHANGE_PROBLEMS = (BODY_TIMEOUT, BODY_TOO_LARGE, QUEUE_NOT_FOUND, STORE_UNAVAILABLE)


@post(
    "/queues/{name:str}/pause",
    status_code=200,
    operation_id="pauseQueue",
    summary="Stop handing out a queue's jobs",
    description="Submits are still taken and what runs goes on. Lasts until a resume, across restarts.",
    tags=["queues"],
    opt={PROBLEMS: _CHANGE_PROBLEMS},
)
async def pause_queue(request: AnyRequest, name: FromPath[str]) -> Response[views.QueueView]:
    await _checked(request, name)
    await services_of(request).store.pause(name)
    return Response(await _queue(request, name))


@post(
    "/queues/{name:str}/resume",
    status_code=200,
    operation_id="resumeQueue",
    summary="Hand out a paused queue's jobs again",
    tags=["queues"],
    opt={PROBLEMS: _CHANGE_PROBLEMS},
)
async def resume_queue(request: AnyRequest, name: FromPath[str]) -> Response[views.QueueView]:
    await _checked(request, name)
    await services_of(request).store.resume(name)
    return Response(await _queue(request, name))


@post(
    "/queues/{name:str}/purge",
    status_code=200,
    operation_id="purgeQueue",
    summary="Cancel all jobs that are queued in a queue",
    description=(
        "Takes what is queued when the call arrives; it becomes `cancelled`. What is submitted meanwhile stays, and so "
        "do running, scheduled and retrying jobs. A million jobs take about half a minute."
    ),
    tags=["queues"],
    opt={PROBLEMS: _CHANGE_PROBLEMS},
)
async def purge_queue(request: AnyRequest, name: FromPath[str]) -> Response[views.Purged]:
    await _checked(request, name)
    services = services_of(request)
    store = services.store
    partitions = range(store.partitions)
    # The first step of every partition comes first: it says what was there when the call arrived.
    steps = dict(
        zip(partitions, await asyncio.gather(*(store.purge(partition, name) for partition in partitions)), strict=True)
    )
    purged = sum(step.cancelled for step in steps.values())
    for partition, step in steps.items():
        latest = step
        while latest.more:
            if services.stopping.is_set():
                return Response(views.Purged(queue=name, purged=purged, more=True))
            latest = await store.purge(partition, name, up_to=step.up_to)
            purged += latest.cancelled
    return Response(views.Purged(queue=name, purged=purged, more=False))


async def _checked(request: AnyRequest, name: str) -> None:
    """Refuse a body, a query and a queue that does not exist: mostly a slip of the pen."""
    query_of(request)
    await no_body(request)
    await _queue(request, name)


@get(
    "/workers",
    operation_id="listWorkers",
    summary="List the workers seen in the last 60 s",
    tags=["workers"],
    opt={PROBLEMS: (STORE_UNAVAILABLE,)},
)
async def list_workers(request: AnyRequest) -> Response[views.WorkerList]:
    query_of(request)
    found = await services_of(request).store.workers()
    return Response(views.WorkerList(items=[views.worker(info) for info in found]))
