"""Serve health and metrics: each answers in time, whatever the store does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from litestar import MediaType, Response, get

import penstock
from penstock.api.problems import (
    NOT_DURABLE,
    RETRY_AFTER_SECONDS,
    STOPPING,
    STORE_FULL,
    STORE_MISMATCH,
    STORE_UNAVAILABLE,
    STORE_UNFIT,
    ApiError,
    from_exception,
)
from penstock.api.routes.common import PROBLEMS, AnyRequest, query_of, services_of
from penstock.api.services import Services
from penstock.api.views import Health
from penstock.core.errors import NotDurable, StoreError
from penstock.core.job import MemoryUse
from penstock.observability import metrics

T = TypeVar("T")


async def within(work: Coroutine[Any, Any, T], timeout_ms: int) -> T:
    """Return what ``work`` returns, unless it takes too long; does not wait for it to notice its end.

    Raises:
        TimeoutError: it took too long.
    """
    task = asyncio.create_task(work)
    done, _ = await asyncio.wait({task}, timeout=timeout_ms / 1_000)
    if not done:
        task.cancel()
        task.add_done_callback(_forget)
        raise TimeoutError
    return task.result()


def _forget(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


async def _ping(services: Services) -> float:
    """Return how many ms the store took to answer.

    Raises:
        ApiError: it did not answer in time, or said no.
    """
    retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    started_ns = time.perf_counter_ns()
    timeout_ms = services.options.health_timeout_ms
    try:
        await within(services.store.ping(), timeout_ms)
    except TimeoutError:
        raise ApiError(STORE_UNAVAILABLE, f"no answer to PING within {timeout_ms} ms", headers=retry) from None
    except StoreError as error:
        raise ApiError(STORE_UNAVAILABLE, f"{error}", headers=retry) from error
    return round((time.perf_counter_ns() - started_ns) / 1e6, 3)


async def _check(services: Services) -> None:
    """Find out once whether the server has what is needed: it may have been away when this process started.

    Raises:
        ApiError: it has not, or did not answer in time.
    """
    try:
        await within(services.store.check(), services.options.health_timeout_ms)
    except TimeoutError:
        retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        raise ApiError(STORE_UNAVAILABLE, "the store is slow to tell what it can do", headers=retry) from None
    except StoreError as error:
        raise from_exception(error) from error
    services.is_checked = True


@get(
    "/health",
    operation_id="getHealth",
    summary="Tell whether the store answers",
    description="200 when the store answers PING, 503 with the reason when not; within one second either way.",
    tags=["health"],
    opt={PROBLEMS: (STORE_UNAVAILABLE,)},
)
async def get_health(request: AnyRequest) -> Response[Health]:
    query_of(request)
    latency_ms = await _ping(services_of(request))
    return Response(Health(status="ok", version=penstock.__version__, store_latency_ms=latency_ms))


@get(
    "/health/live",
    operation_id="getLiveness",
    summary="Tell that this process runs",
    description="200 as long as the process serves requests at all; says nothing about the store.",
    tags=["health"],
)
async def get_liveness(request: AnyRequest) -> Response[Health]:
    query_of(request)
    return Response(Health(status="ok", version=penstock.__version__))


@get(
    "/health/ready",
    operation_id="getReadiness",
    summary="Tell whether work can be accepted",
    description="503 when the store does not answer; when it was out of memory, or did not confirm a submit as the "
    "durability asks, in the last 10 s; when it lacks what is needed; when the server stops.",
    tags=["health"],
    opt={PROBLEMS: (STORE_UNAVAILABLE, NOT_DURABLE, STORE_FULL, STORE_MISMATCH, STORE_UNFIT, STOPPING)},
)
async def get_readiness(request: AnyRequest) -> Response[Health]:
    query_of(request)
    services = services_of(request)
    retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    if services.stopping.is_set():
        raise ApiError(STOPPING, "no new work is taken", headers=retry)
    latency_ms = await _ping(services)
    if not services.is_checked:
        await _check(services)
    refusal = services.refusal
    if isinstance(refusal, NotDurable):
        raise ApiError(NOT_DURABLE, f"a submit was not confirmed a moment ago: {refusal}", headers=retry)
    if refusal is not None:
        raise ApiError(STORE_FULL, "a submit was refused for want of memory a moment ago", headers=retry)
    return Response(Health(status="ok", version=penstock.__version__, store_latency_ms=latency_ms))


@get(
    "/metrics",
    media_type=MediaType.TEXT,
    operation_id="getMetrics",
    summary="Show metrics for Prometheus",
    description="When the store does not answer, `penstock_store_up` is 0 and this process's own are there.",
    tags=["health"],
)
async def get_metrics(request: AnyRequest) -> Response[bytes]:
    query_of(request)
    services = services_of(request)
    snapshot: metrics.StoreSnapshot | None = None
    try:
        snapshot = await within(_snapshot(services), services.options.health_timeout_ms)
    except (TimeoutError, StoreError):
        # The scrape says so by penstock_store_up.
        pass
    now_ms = services.clock()
    ages = {name: max(0.0, (now_ms - at_ms) / 1_000) for name, at_ms in services.last_claims.items()}
    text = metrics.render(snapshot, services.metrics, version=penstock.__version__, claim_ages=ages)
    return Response(text, media_type=metrics.CONTENT_TYPE)


async def _memory(services: Services) -> MemoryUse:
    """Return zeros where the server forbids INFO; one that is down makes the other questions fail."""
    try:
        return await services.store.memory()
    except StoreError:
        return MemoryUse(used_bytes=0, max_bytes=0)


async def _snapshot(services: Services) -> metrics.StoreSnapshot:
    store = services.store
    counters, queues, workers, memory = await asyncio.gather(
        store.counters(), store.queues(), store.workers(), _memory(services)
    )
    # Kept for scrapes while the store is away: then they grow, which shows the outage.
    services.last_claims = {worker.name: worker.last_claim_at_ms or worker.started_at_ms for worker in workers}
    return metrics.StoreSnapshot(
        counters=counters,
        queues=queues,
        workers=len(workers),
        stuck_slots=sum(worker.stuck for worker in workers),
        memory=memory,
    )
