"""Serve schedules."""

from __future__ import annotations

from litestar import Response, delete, get, post, put
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath

from penstock.api import query, views
from penstock.api.problems import (
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    NOT_DURABLE,
    NOT_JSON,
    QUEUE_FULL,
    SCHEDULE_NOT_FOUND,
    SCHEDULES_FULL,
    STORE_FULL,
    STORE_UNAVAILABLE,
    UNSUPPORTED_MEDIA_TYPE,
    ApiError,
    field_error,
    invalid,
)
from penstock.api.routes.common import PROBLEMS, QUERY, AnyRequest, json_body, no_body, query_of, services_of
from penstock.api.scheduling import ScheduleBody
from penstock.api.submission import Submission
from penstock.core.ids import at_home
from penstock.core.job import NewJob
from penstock.core.schedule import PutCode, ScheduleRecord, home_of_schedule, options_of_tick

_LIST = (query.SCHEDULE_LIMIT, query.CURSOR)
_ONE = (SCHEDULE_NOT_FOUND, STORE_UNAVAILABLE)
_CHANGE = (BODY_TIMEOUT, BODY_TOO_LARGE, *_ONE)


@get(
    "/schedules",
    operation_id="listSchedules",
    summary="List schedules by name",
    tags=["schedules"],
    opt={QUERY: _LIST, PROBLEMS: (STORE_UNAVAILABLE,)},
)
async def list_schedules(request: AnyRequest) -> Response[views.SchedulePage]:
    values = query_of(request, _LIST)
    try:
        found = await services_of(request).store.list_schedules(
            limit=values.get("limit", 50), cursor=values.get("cursor")
        )
    except ValueError:
        raise invalid(field_error("cursor", "bad_cursor", "is not one that an answer gave")) from None
    return Response(views.SchedulePage(items=[views.schedule(record) for record in found.items], next=found.next))


@get(
    "/schedules/{name:str}",
    operation_id="getSchedule",
    summary="Look at a schedule",
    tags=["schedules"],
    opt={PROBLEMS: _ONE},
)
async def get_schedule(request: AnyRequest, name: FromPath[str]) -> Response[views.ScheduleView]:
    query_of(request)
    return Response(views.schedule(_found(await services_of(request).store.get_schedule(name), name)))


@put(
    "/schedules/{name:str}",
    operation_id="putSchedule",
    summary="Create or replace a schedule",
    description=(
        "The same again changes nothing. A change of anything but the timing leaves the next tick where it is; a new "
        "timing counts from now. A pause stays."
    ),
    tags=["schedules"],
    status_code=200,
    responses={
        201: ResponseSpec(data_container=views.ScheduleView, description="The schedule is new", generate_examples=False)
    },
    opt={
        PROBLEMS: (
            NOT_JSON,
            BODY_TIMEOUT,
            BODY_TOO_LARGE,
            UNSUPPORTED_MEDIA_TYPE,
            SCHEDULES_FULL,
            STORE_FULL,
            STORE_UNAVAILABLE,
            NOT_DURABLE,
        ),
        "body": ScheduleBody,
    },
)
async def put_schedule(request: AnyRequest, name: FromPath[str]) -> Response[views.ScheduleView]:
    services = services_of(request)
    query_of(request)
    text = await json_body(request)
    submission = Submission(
        now_ms=services.clock(),
        limits=services.options.limits,
        defaults=services.options.defaults,
        tasks=await services.tasks.get(),
        next_id=services.next_id,
    )
    schedule = services.schedule_parser.parse(name, text, submission)
    answer = await services.store.put_schedule(schedule)
    services.nudge_ticker()
    return Response(views.schedule(answer.record), status_code=201 if answer.code is PutCode.CREATED else 200)


@delete(
    "/schedules/{name:str}",
    operation_id="deleteSchedule",
    summary="Delete a schedule",
    description="Its jobs stay. One that a task module declares comes back when a worker with that module starts.",
    tags=["schedules"],
    status_code=204,
    opt={PROBLEMS: _CHANGE},
)
async def delete_schedule(request: AnyRequest, name: FromPath[str]) -> None:
    query_of(request)
    await no_body(request)
    if not await services_of(request).store.delete_schedule(name):
        raise _not_found(name)


@post(
    "/schedules/{name:str}/pause",
    status_code=200,
    operation_id="pauseSchedule",
    summary="Let a schedule start nothing until it is resumed",
    description="Jobs that its ticks have started go on. Lasts across restarts, and when the schedule is put anew.",
    tags=["schedules"],
    opt={PROBLEMS: _CHANGE},
)
async def pause_schedule(request: AnyRequest, name: FromPath[str]) -> Response[views.ScheduleView]:
    query_of(request)
    await no_body(request)
    return Response(views.schedule(_found(await services_of(request).store.pause_schedule(name), name)))


@post(
    "/schedules/{name:str}/resume",
    status_code=200,
    operation_id="resumeSchedule",
    summary="Let a paused schedule tick again",
    description="The ticks of the pause were missed, and are treated as the schedule's `missed` says.",
    tags=["schedules"],
    opt={PROBLEMS: _CHANGE},
)
async def resume_schedule(request: AnyRequest, name: FromPath[str]) -> Response[views.ScheduleView]:
    services = services_of(request)
    query_of(request)
    await no_body(request)
    record = _found(await services.store.resume_schedule(name), name)
    services.nudge_ticker()
    return Response(views.schedule(record))


@post(
    "/schedules/{name:str}/run",
    status_code=202,
    operation_id="runSchedule",
    summary="Submit a schedule's job now",
    description="Beside its ticks: the next one stays, and neither a pause nor `overlap` matters.",
    tags=["schedules"],
    opt={PROBLEMS: (*_CHANGE, QUEUE_FULL, STORE_FULL, NOT_DURABLE)},
)
async def run_schedule(request: AnyRequest, name: FromPath[str]) -> Response[views.Accepted]:
    services = services_of(request)
    query_of(request)
    await no_body(request)
    schedule = _found(await services.store.get_schedule(name), name).schedule
    now_ms = await services.store.now_ms()
    job = schedule.job
    new = NewJob(
        id=at_home(services.next_id(now_ms), home_of_schedule(name)),
        task=job.task,
        input=bytes(job.input),
        type=job.type,
        queue=job.queue,
        priority=job.priority,
        options=options_of_tick(schedule, now_ms),
        expires_in_ms=job.expires_in_ms,
        retention_ms=job.retention_ms,
    )
    await services.refuse_when_nearly_full()
    answer = (await services.store.submit([new]))[0]
    if isinstance(answer, Exception):
        raise answer
    headers = {"Location": f"/jobs/{answer.id}"}
    return Response(views.accepted(answer, queue=job.queue, priority=job.priority), headers=headers)


def _found(record: ScheduleRecord | None, name: str) -> ScheduleRecord:
    if record is None:
        raise _not_found(name)
    return record


def _not_found(name: str) -> ApiError:
    return ApiError(SCHEDULE_NOT_FOUND, f"There is no schedule {name[:128]!r}.")
