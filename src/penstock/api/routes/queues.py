"""Serve queues and workers."""

from __future__ import annotations

from litestar import Response, get
from litestar.params import FromPath

from penstock.api import views
from penstock.api.problems import QUEUE_NOT_FOUND, STORE_UNAVAILABLE, ApiError
from penstock.api.routes.common import PROBLEMS, AnyRequest, query_of, services_of


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
    for info in await services_of(request).store.queues():
        if info.name == name:
            return Response(views.queue(info))
    raise ApiError(QUEUE_NOT_FOUND, f"No job was ever submitted to the queue {name[:128]!r}.")


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
