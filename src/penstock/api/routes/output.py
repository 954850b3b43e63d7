"""Serve what jobs log and stream."""

from __future__ import annotations

from litestar import Response, get
from litestar.params import FromPath

from penstock.api.fields import Checker
from penstock.api.follow import LAST_EVENT_ID, EventStream, Follower, read_seen
from penstock.api.output_views import LogPage, log_entry
from penstock.api.problems import JOB_NOT_FOUND, STORE_UNAVAILABLE, TOO_MANY_STREAMS
from penstock.api.query import QueryParameter, read_number
from penstock.api.routes.common import PROBLEMS, QUERY, AnyRequest, exchange_of, query_of, services_of
from penstock.api.routes.jobs import job_id_of, not_found

LAST_ID = "last_event_id"
_LINES = 1_000


def _read_position(checker: Checker, name: str, texts: list[str]) -> int:
    if not texts[0].isdecimal() or not texts[0].isascii() or len(texts[0]) > 12:
        checker.wrong(name, "bad_cursor", "is not one that an answer gave")
        return 0
    return int(texts[0])


_LIMIT = QueryParameter(
    name="limit",
    description="How many lines a page has at most.",
    schema={"type": "integer", "minimum": 1, "maximum": _LINES, "default": 200},
    read=lambda checker, name, texts: read_number(checker, name, texts[0], 1, _LINES),
)
_CURSOR = QueryParameter(
    name="cursor", description="The `next` of the page before.", schema={"type": "string"}, read=_read_position
)


@get(
    "/jobs/{job_id:str}/log",
    operation_id="getJobLog",
    summary="Read what a job has logged",
    description="Lines of all attempts, oldest first. The newest 1,000 lines and 256 KiB are kept, as long as the job.",
    tags=["jobs"],
    opt={QUERY: (_LIMIT, _CURSOR), PROBLEMS: (JOB_NOT_FOUND, STORE_UNAVAILABLE)},
)
async def get_job_log(request: AnyRequest, job_id: FromPath[str]) -> Response[LogPage]:
    services = services_of(request)
    wanted = job_id_of(request, job_id)
    values = query_of(request, (_LIMIT, _CURSOR))
    found = await services.store.follow(
        wanted, log_after=values.get("cursor", 0), stream_after=None, limit=values.get("limit", 200)
    )
    if found is None:
        raise not_found(wanted, services)
    items = [log_entry(entry) for entry in found.entries]
    following = str(items[-1].number) if found.more and items else None
    return Response(LogPage(items=items, next=following, dropped=found.log_dropped))


@get(
    "/jobs/{job_id:str}/events",
    operation_id="followJob",
    summary="Follow a job",
    description=(
        "Server-sent events: `state` (the job as in a list, at once and at each change), `progress`, `log` and "
        "`stream`, each with the number of its attempt. Ends after the final state. A client that comes back with the "
        "id of the last event it got (`Last-Event-ID`) gets the output that it missed and the job's present state; "
        "204 says that there is nothing more. Comments keep the connection alive."
    ),
    tags=["jobs"],
    opt={PROBLEMS: (JOB_NOT_FOUND, STORE_UNAVAILABLE, TOO_MANY_STREAMS), LAST_ID: True},
)
async def follow_job(request: AnyRequest, job_id: FromPath[str]) -> EventStream:
    services = services_of(request)
    wanted = job_id_of(request, job_id)
    query_of(request)
    exchange = exchange_of(request)
    return EventStream(
        Follower(
            services,
            wanted,
            read_seen(exchange.headers.get(LAST_EVENT_ID)),
            missing=not_found(wanted, services),
            head=exchange.method == "HEAD",
        )
    )
