"""Serve single jobs and lists of them."""

from __future__ import annotations

from collections.abc import Sequence

from litestar import Response, delete, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath

from penstock.api import query
from penstock.api.problems import (
    INTERNAL_ERROR,
    JOB_NOT_FOUND,
    NOT_DURABLE,
    STATE_CONFLICT,
    STORE_UNAVAILABLE,
    UNIQUE_CONFLICT,
    ApiError,
    field_error,
    invalid,
    key_held,
)
from penstock.api.routes.common import PROBLEMS, QUERY, AnyRequest, exchange_of, no_body, query_of, services_of
from penstock.api.services import Services
from penstock.api.views import Changed, JobPage, JobView
from penstock.api.waits import wait_final
from penstock.core.durations import format_time
from penstock.core.ids import JobId, created_ms, parse_job_id
from penstock.core.job import ChangeCode, JobFilter
from penstock.core.job import Changed as StoreChanged
from penstock.core.limits import Limits

_WAIT = query.wait_parameter(Limits().wait_ms)
_FILTERS = (query.QUEUE, query.TASK, query.TAG, query.CREATED_AFTER, query.CREATED_BEFORE)
_LIST = (query.STATUS, *_FILTERS, query.LIMIT, query.CURSOR)
_ONE = (JOB_NOT_FOUND, STORE_UNAVAILABLE)


def job_id_of(request: AnyRequest, text: str) -> JobId:
    """Return the id of the path, and note it for the log.

    Raises:
        ApiError: not a job id; such a job cannot be.
    """
    job_id = parse_job_id(text.lower())
    if job_id is None:
        raise ApiError(JOB_NOT_FOUND, "This is not a job id: ids are UUIDv7, as a submit answers them.")
    exchange_of(request).job_id = job_id
    return job_id


def not_found(job_id: JobId, services: Services) -> ApiError:
    """Say that a job is not there, and whether its id is so old that retention may have removed it."""
    limits = services.options.limits
    made_ms = created_ms(job_id)
    age_ms = services.clock() - made_ms
    # Years beyond 9999 cannot be written; such an id was never made by a clock that runs.
    created_at = format_time(made_ms) if made_ms < 253_402_300_800_000 else None
    kept = f"completed jobs are kept for {limits.retention_ms / 3_600_000:g} h"
    if age_ms > limits.failed_retention_ms:
        detail = f"The id was made at {created_at}, beyond every default retention: it was probably removed since."
    elif age_ms > limits.retention_ms:
        detail = (
            f"The id was made at {created_at}, beyond the default retention ({kept}): it may have been removed since."
        )
    else:
        detail = f"No such job: it was never stored, was deleted, or had a shorter retention than the default ({kept})."
    return ApiError(
        JOB_NOT_FOUND, detail, job_id=job_id, created_at=created_at, beyond_retention=age_ms > limits.retention_ms
    )


@get(
    "/jobs/{job_id:str}",
    operation_id="getJob",
    summary="Look at a job",
    description="With `wait` the answer comes once the job is final or the time is over, whichever is first.",
    tags=["jobs"],
    opt={QUERY: (_WAIT,), PROBLEMS: _ONE},
)
async def get_job(request: AnyRequest, job_id: FromPath[str]) -> Response[JobView]:
    services = services_of(request)
    wanted = job_id_of(request, job_id)
    wait = query.wait_parameter(services.options.limits.wait_ms)
    wait_ms = query_of(request, (wait,)).get("wait", 0)
    if wait_ms:
        await wait_final(services, wanted, wait_ms, exchange_of(request).receive)
    record = await services.store.get(wanted)
    if record is None:
        raise not_found(wanted, services)
    return Response((await services.renderer([record])).job(record))


@get(
    "/jobs",
    operation_id="listJobs",
    summary="List jobs",
    description=(
        "Running jobs come first, then queued, retrying, scheduled, failed, completed, cancelled and expired ones. At "
        "most 1,000 jobs are looked at a page, so a page may be short and still have a `next`."
    ),
    tags=["jobs"],
    opt={QUERY: _LIST, PROBLEMS: (STORE_UNAVAILABLE,)},
)
async def list_jobs(request: AnyRequest) -> Response[JobPage]:
    values = query_of(request, _LIST)
    filters = JobFilter(
        states=values.get("status", ()),
        queue=values.get("queue"),
        task=values.get("task"),
        tag=values.get("tag"),
        created_after_ms=values.get("created_after"),
        created_before_ms=values.get("created_before"),
    )
    return Response(await page(services_of(request), filters, values.get("limit", 50), values.get("cursor")))


async def page(services: Services, filters: JobFilter, limit: int, cursor: str | None) -> JobPage:
    """Return one page of jobs.

    Raises:
        ApiError: the cursor is not one of ours.
    """
    try:
        found = await services.store.list_jobs(filters, limit=limit, cursor=cursor)
    except ValueError:
        raise invalid(field_error("cursor", "bad_cursor", "is not one that an answer gave")) from None
    renderer = await services.renderer(found.items)
    return JobPage(items=[renderer.summary(record) for record in found.items], next=found.next)


@post(
    "/jobs/{job_id:str}/cancel",
    status_code=200,
    operation_id="cancelJob",
    summary="Cancel a job",
    description="Cancels at once what waits. A running job is told, and the request is kept until it has ended.",
    tags=["jobs"],
    responses={
        202: ResponseSpec(data_container=Changed, description="The running job is being told", generate_examples=False)
    },
    opt={PROBLEMS: (*_ONE, STATE_CONFLICT)},
)
async def cancel_job(request: AnyRequest, job_id: FromPath[str]) -> Response[Changed]:
    services = services_of(request)
    wanted = job_id_of(request, job_id)
    query_of(request)
    await no_body(request)
    changed = _only(await services.store.cancel([wanted]))
    if changed.code is ChangeCode.CONFLICT:
        status = changed.state.value if changed.state else "unknown"
        raise _conflict(wanted, changed, f"The job is {status}, which is final: there is nothing to cancel.")
    return _answer(wanted, changed, services)


@post(
    "/jobs/{job_id:str}/retry",
    status_code=200,
    operation_id="retryJob",
    summary="Run a job again, or now",
    description="Queues a failed job again with all its attempts; starts a scheduled or retrying one now. A failed job "
    "whose `unique_key` another job holds by now stays failed.",
    tags=["jobs"],
    opt={PROBLEMS: (*_ONE, NOT_DURABLE, STATE_CONFLICT, UNIQUE_CONFLICT)},
)
async def retry_job(request: AnyRequest, job_id: FromPath[str]) -> Response[Changed]:
    services = services_of(request)
    wanted = job_id_of(request, job_id)
    query_of(request)
    await no_body(request)
    changed = _only(await services.store.redrive([wanted], early=True))
    if changed.code is ChangeCode.HELD and changed.holder is not None:
        raise key_held(changed.holder, None)
    if changed.code is ChangeCode.CONFLICT:
        status = changed.state.value if changed.state else "unknown"
        detail = f"The job is {status}; only failed, scheduled and retrying jobs can be retried."
        raise _conflict(wanted, changed, detail)
    return _answer(wanted, changed, services)


@delete(
    "/jobs/{job_id:str}",
    status_code=204,
    operation_id="deleteJob",
    summary="Delete a final job",
    description="Removes a job that is completed, failed, cancelled or expired, with its input and result.",
    tags=["jobs"],
    opt={PROBLEMS: (*_ONE, STATE_CONFLICT)},
)
async def delete_job(request: AnyRequest, job_id: FromPath[str]) -> None:
    services = services_of(request)
    wanted = job_id_of(request, job_id)
    query_of(request)
    await no_body(request)
    changed = _only(await services.store.delete([wanted]))
    if changed.code is ChangeCode.CONFLICT:
        status = changed.state.value if changed.state else "unknown"
        detail = f"The job is {status}; only final jobs can be deleted. POST /jobs/{wanted}/cancel ends it first."
        raise _conflict(wanted, changed, detail)
    if changed.code is ChangeCode.MISSING:
        raise not_found(wanted, services)


def _only(answers: Sequence[StoreChanged | Exception]) -> StoreChanged:
    """Return the answer for one job; raise the error that stands in its place."""
    (answer,) = answers
    if isinstance(answer, Exception):
        raise answer
    return answer


def _conflict(job_id: JobId, changed: StoreChanged, detail: str) -> ApiError:
    return ApiError(STATE_CONFLICT, detail, job_id=job_id, job_status=changed.state.value if changed.state else None)


def _answer(job_id: JobId, changed: StoreChanged, services: Services) -> Response[Changed]:
    if changed.code is ChangeCode.MISSING:
        raise not_found(job_id, services)
    if changed.state is None:
        raise ApiError(INTERNAL_ERROR, "The store did not say what became of the job.", job_id=job_id)
    requested_ms = changed.cancel_requested_at_ms
    body = Changed(
        id=job_id,
        status=changed.state,
        cancel_requested_at=None if requested_ms is None else format_time(requested_ms),
    )
    return Response(body, status_code=202 if changed.code is ChangeCode.REQUESTED else 200)
