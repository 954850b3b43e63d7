"""Serve the dead letter: failed jobs, to look at, queue again or delete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated

import msgspec
import structlog
from litestar import Response, delete, get, post
from msgspec import Meta

from penstock.api import query
from penstock.api.fields import Checker
from penstock.api.problems import (
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    INTERNAL_ERROR,
    NOT_DURABLE,
    NOT_JSON,
    STORE_UNAVAILABLE,
    UNSUPPORTED_MEDIA_TYPE,
    from_exception,
    invalid,
)
from penstock.api.routes.common import PROBLEMS, QUERY, AnyRequest, exchange_of, json_body, query_of, services_of
from penstock.api.routes.jobs import page
from penstock.api.services import Services
from penstock.api.strict import BodyDecoder, check_nesting
from penstock.api.views import Deleted, JobPage, Redriven
from penstock.core import events
from penstock.core.errors import StoreError
from penstock.core.ids import JobId, parse_job_id
from penstock.core.job import ChangeCode, Changed, JobFilter
from penstock.core.states import State

_FILTERS = (query.QUEUE, query.TASK, query.TAG, query.CREATED_AFTER, query.CREATED_BEFORE)
_LIST = (*_FILTERS, query.LIMIT, query.CURSOR)
_PAGE = 200
_MOST = 1_000_000
_log = structlog.get_logger("penstock.api")


class DeadLetterSelection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Choose dead letters: `ids`, or filters that must all hold, or `all`; an empty choice is an error."""

    ids: Annotated[tuple[str, ...] | None, Meta(description="At most 10,000 job ids.")] = None
    all: Annotated[bool, Meta(description="Take all dead letters.")] = False
    queue: str | None = None
    task: str | None = None
    tag: str | None = None
    created_after: str | None = None
    created_before: str | None = None
    limit: Annotated[int | None, Meta(description="Stop after this many jobs.")] = None


@get(
    "/dead-letter",
    operation_id="listDeadLetters",
    summary="List failed jobs, newest first",
    tags=["dead letter"],
    opt={QUERY: _LIST, PROBLEMS: (STORE_UNAVAILABLE,)},
)
async def list_dead_letters(request: AnyRequest) -> Response[JobPage]:
    values = query_of(request, _LIST)
    filters = JobFilter(
        states=(State.FAILED,),
        queue=values.get("queue"),
        task=values.get("task"),
        tag=values.get("tag"),
        created_after_ms=values.get("created_after"),
        created_before_ms=values.get("created_before"),
    )
    return Response(await page(services_of(request), filters, values.get("limit", 50), values.get("cursor")))


_BODY_PROBLEMS = (NOT_JSON, BODY_TIMEOUT, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, STORE_UNAVAILABLE)


@post(
    "/dead-letter/redrive",
    status_code=200,
    operation_id="redriveDeadLetters",
    summary="Queue failed jobs again",
    description='Takes ids, or a filter, or `{"all": true}`. Attempts are counted anew; their records are kept.',
    tags=["dead letter"],
    opt={PROBLEMS: (*_BODY_PROBLEMS, NOT_DURABLE), "body": DeadLetterSelection},
)
async def redrive_dead_letters(request: AnyRequest) -> Response[Redriven]:
    services = services_of(request)

    async def redrive(ids: Sequence[JobId]) -> list[Changed | Exception]:
        return await services.store.redrive(ids, early=False)

    done, skipped, more = await _apply(request, redrive)
    return Response(Redriven(redriven=done, skipped=skipped, more=more))


@delete(
    "/dead-letter",
    status_code=200,
    operation_id="deleteDeadLetters",
    summary="Delete failed jobs",
    description='Takes ids, or a filter, or `{"all": true}`, in the body.',
    tags=["dead letter"],
    opt={PROBLEMS: _BODY_PROBLEMS, "body": DeadLetterSelection},
)
async def delete_dead_letters(request: AnyRequest) -> Response[Deleted]:
    services = services_of(request)

    async def remove_failed(ids: Sequence[JobId]) -> list[Changed | Exception]:
        # Other final jobs may be deleted too, but not by this route.
        answers = await asyncio.gather(*(_refusal(services, job_id) for job_id in ids))
        wanted = [index for index, answer in enumerate(answers) if answer is None]
        deleted = await services.store.delete([ids[index] for index in wanted]) if wanted else []
        found = dict(zip(wanted, deleted, strict=True))
        return [found[index] if answer is None else answer for index, answer in enumerate(answers)]

    selection = await _selection(request)
    remove = services.store.delete if selection.ids is None else remove_failed
    done, skipped, more = await _apply(request, remove, selection)
    return Response(Deleted(deleted=done, skipped=skipped, more=more))


async def _refusal(services: Services, job_id: JobId) -> Changed | Exception | None:
    """Return why a job is not to be deleted as a dead letter, None when it is one.

    Raises:
        StoreError: the store does not answer.
    """
    try:
        record = await services.store.get(job_id)
    except StoreError as error:
        if from_exception(error).kind is not INTERNAL_ERROR:
            raise
        # The job's own: it is damaged.
        return error
    if record is None or record.state is not State.FAILED:
        return Changed(code=ChangeCode.MISSING)
    return None


async def _selection(request: AnyRequest) -> DeadLetterSelection:
    query_of(request)
    text = await json_body(request)
    check_nesting(text)
    selection, errors = BodyDecoder(DeadLetterSelection).decode(text)
    if errors:
        raise invalid(*errors)
    return selection


async def _apply(
    request: AnyRequest,
    verb: Callable[[Sequence[JobId]], Awaitable[list[Changed | Exception]]],
    selection: DeadLetterSelection | None = None,
) -> tuple[int, int, bool]:
    """Apply a verb to what the body chooses; return how many it changed, how many not, and whether more is left.

    A job that cannot be changed, because it is damaged, counts among those not changed and is told in the log.
    """
    services = services_of(request)
    chosen = selection or await _selection(request)
    filters, ids = _read(chosen, Checker(services.clock()), services.options.limits.batch_items)
    left = chosen.limit or _MOST
    done = skipped = 0
    chunks = _given(ids) if filters is None else _found(services, filters)
    async for chunk in chunks:
        if left <= 0 or services.stopping.is_set():
            return done, skipped, True
        taken = chunk[:left]
        answers = await verb(taken)
        changed = 0
        for job_id, answer in zip(taken, answers, strict=True):
            if isinstance(answer, Exception):
                _note_failure(request, job_id, answer)
            elif answer.code is ChangeCode.DONE:
                changed += 1
        done += changed
        skipped += len(answers) - changed
        left -= len(taken)
        if len(taken) < len(chunk):
            return done, skipped, True
    return done, skipped, False


def _note_failure(request: AnyRequest, job_id: JobId, error: Exception) -> None:
    _log.error(
        events.CHANGE_FAILED,
        message=f"Job {job_id} could not be changed: {error}.",
        job_id=job_id,
        request_id=exchange_of(request).request_id,
    )


def _read(chosen: DeadLetterSelection, checker: Checker, most_ids: int) -> tuple[JobFilter | None, list[JobId]]:
    """Return the filter, or None and the ids."""
    filters = (chosen.queue, chosen.task, chosen.tag, chosen.created_after, chosen.created_before)
    has_filter = any(value is not None for value in filters)
    if chosen.limit is not None:
        checker.number("limit", chosen.limit, 1, _MOST)
    for field in ("queue", "task", "tag"):
        value = getattr(chosen, field)
        if value is not None:
            checker.name(field, value)
    ids: list[JobId] = []
    if chosen.ids is not None:
        checker.items("ids", chosen.ids, most_ids)
        for index, text in enumerate(chosen.ids[:most_ids]):
            job_id = parse_job_id(text.lower())
            if job_id is None:
                checker.wrong(f"ids.{index}", "bad_id", "is not a job id")
            else:
                ids.append(job_id)
        if has_filter or chosen.all:
            checker.wrong("ids", "conflict", "stands alone: send ids, or a filter, or all")
    elif chosen.all and has_filter:
        checker.wrong("all", "conflict", "stands alone: send ids, or a filter, or all")
    if not chosen.all and not has_filter and not chosen.ids:
        checker.wrong("", "empty_filter", 'nothing chooses the jobs; send ids, a filter, or {"all": true}')
    created_after_ms = checker.time("created_after", chosen.created_after)
    created_before_ms = checker.time("created_before", chosen.created_before)
    if checker.errors:
        raise invalid(*checker.errors)
    if chosen.ids is not None:
        return None, ids
    return (
        JobFilter(
            states=(State.FAILED,),
            queue=chosen.queue,
            task=chosen.task,
            tag=chosen.tag,
            created_after_ms=created_after_ms,
            created_before_ms=created_before_ms,
        ),
        [],
    )


async def _given(ids: Sequence[JobId]) -> AsyncIterator[Sequence[JobId]]:
    for start in range(0, len(ids), _PAGE):
        yield ids[start : start + _PAGE]


async def _found(services: Services, filters: JobFilter) -> AsyncIterator[Sequence[JobId]]:
    """Find page by page. Newest come first, so a job that fails again meanwhile is not met twice."""
    cursor: str | None = None
    while True:
        found = await services.store.list_jobs(filters, limit=_PAGE, cursor=cursor)
        if found.items:
            yield [record.id for record in found.items]
        cursor = found.next
        if cursor is None:
            return
