"""Define every error that the API answers, in the one shape of RFC 9457."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from penstock.core.errors import (
    FieldError,
    InvalidRequest,
    KeyHeld,
    KeyReused,
    NotDurable,
    PenstockError,
    QueueFull,
    SchedulesFull,
    StoreFull,
    StoreMismatch,
    StoreUnavailable,
    StoreUnfit,
)

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_SECONDS = 2


@dataclasses.dataclass(frozen=True)
class Kind:
    """Name one kind of problem; ``code`` never changes once released."""

    code: str
    status: int
    title: str


BAD_REQUEST = Kind("bad_request", 400, "The request cannot be read")
NOT_JSON = Kind("not_json", 400, "The body is not JSON")
UNAUTHORIZED = Kind("unauthorized", 401, "An API key is needed")
FOREIGN_ORIGIN = Kind("foreign_origin", 403, "Web pages of other origins may not call this API")
ROUTE_NOT_FOUND = Kind("route_not_found", 404, "There is no such route")
JOB_NOT_FOUND = Kind("job_not_found", 404, "There is no such job")
QUEUE_NOT_FOUND = Kind("queue_not_found", 404, "There is no such queue")
SCHEDULE_NOT_FOUND = Kind("schedule_not_found", 404, "There is no such schedule")
METHOD_NOT_ALLOWED = Kind("method_not_allowed", 405, "The route does not take this method")
BODY_TIMEOUT = Kind("body_timeout", 408, "The body did not arrive in time")
STATE_CONFLICT = Kind("state_conflict", 409, "The job's status does not allow this")
UNIQUE_CONFLICT = Kind("unique_conflict", 409, "Another job holds the unique key")
SCHEDULES_FULL = Kind("schedules_full", 409, "There are as many schedules as there may be")
BODY_TOO_LARGE = Kind("body_too_large", 413, "The body is too large")
UNSUPPORTED_MEDIA_TYPE = Kind("unsupported_media_type", 415, "The body has a content type that is not taken")
HOST_NOT_ALLOWED = Kind("host_not_allowed", 421, "The Host is not a name of this machine")
INVALID_REQUEST = Kind("invalid_request", 422, "Fields of the request are wrong")
QUEUE_FULL = Kind("queue_full", 429, "The queue is full")
INTERNAL_ERROR = Kind("internal_error", 500, "Something went wrong inside")
STORE_UNAVAILABLE = Kind("store_unavailable", 503, "The store does not answer")
NOT_DURABLE = Kind("not_durable", 503, "The disk or the replicas did not confirm in time")
STORE_FULL = Kind("store_full", 503, "The store is at its memory limit")
STORE_MISMATCH = Kind("store_mismatch", 503, "The store holds data of another format")
STORE_UNFIT = Kind("store_unfit", 503, "The server lacks what is needed")
STOPPING = Kind("stopping", 503, "The server is stopping")
TOO_MANY_STREAMS = Kind("too_many_streams", 503, "As many event streams are open as may be")

KINDS: tuple[Kind, ...] = (
    BAD_REQUEST,
    NOT_JSON,
    UNAUTHORIZED,
    FOREIGN_ORIGIN,
    ROUTE_NOT_FOUND,
    JOB_NOT_FOUND,
    QUEUE_NOT_FOUND,
    SCHEDULE_NOT_FOUND,
    METHOD_NOT_ALLOWED,
    BODY_TIMEOUT,
    STATE_CONFLICT,
    UNIQUE_CONFLICT,
    SCHEDULES_FULL,
    BODY_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    HOST_NOT_ALLOWED,
    INVALID_REQUEST,
    QUEUE_FULL,
    INTERNAL_ERROR,
    STORE_UNAVAILABLE,
    NOT_DURABLE,
    STORE_FULL,
    STORE_MISMATCH,
    STORE_UNFIT,
    STOPPING,
    TOO_MANY_STREAMS,
)

#: The codes of problems that leave open whether something was stored.
DOUBTFUL = frozenset({STORE_UNAVAILABLE.code, NOT_DURABLE.code})

#: What ``errors[].code`` can be, with its meaning.
FIELD_CODES: Mapping[str, str] = {
    "required": "the field must be there",
    "unknown_field": "no such field or query parameter; the detail names the right one where it is known",
    "not_supported": "the field will come in a later release, or the route does not take the header",
    "wrong_type": "the value has another JSON type than the field takes",
    "not_allowed": "the value is none of those that the field takes",
    "not_finite": "NaN or Infinity, which JSON does not have",
    "out_of_range": "the number, duration or time is below or above what is taken",
    "too_long": "the text, list or object is longer than what is taken",
    "empty": "the text is empty",
    "bad_name": "the name holds control characters or others that are not taken",
    "bad_duration": "neither seconds nor a duration such as `90s` or `PT15M`",
    "bad_cron": "not five fields of cron, or a day that never comes",
    "bad_timezone": "not a zone of the tz database",
    "bad_time": "not an RFC 3339 time with an offset",
    "in_past": "the time is more than 60 s in the past",
    "conflict": "two fields that exclude each other",
    "too_deep": "arrays and objects are nested in more than 100 levels",
    "too_large": "the value has more bytes than what is taken",
    "bad_cursor": "the cursor is not one that an answer gave",
    "bad_id": "not a job id",
    "key_reused": "the `Idempotency-Key` was used with another body before",
    "key_held": "another job holds the `unique_key`; `job_id` names it",
    "empty_filter": 'nothing chooses the jobs; `{"all": true}` takes all',
}


class ItemProblem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Say why one item of a batch was not taken."""

    code: str
    status: int
    detail: str
    errors: tuple[FieldError, ...] = ()
    job_id: str | None = None


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Be the body of every error (RFC 9457); ``code`` is stable, ``errors`` names each wrong field."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    errors: tuple[FieldError, ...] = ()
    job_id: str | None = None
    job_status: str | None = None
    created_at: str | None = None
    beyond_retention: bool | None = None


class ApiError(PenstockError):
    """Carry a problem to the one place that renders it; ``extra`` are further members of ``Problem``."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(f"{kind.code}: {detail}")
        self.kind = kind
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.extra = extra

    def body(self, request_id: str) -> bytes:
        """Return the problem as JSON text."""
        return msgspec.json.encode(
            Problem(
                type=f"urn:penstock:problem:{self.kind.code}",
                title=self.kind.title,
                status=self.kind.status,
                code=self.kind.code,
                detail=self.detail,
                request_id=request_id,
                errors=self.errors,
                **self.extra,
            )
        )

    def item(self) -> ItemProblem:
        """Return the problem of one item of a batch."""
        return ItemProblem(
            code=self.kind.code,
            status=self.kind.status,
            detail=self.detail,
            errors=self.errors,
            job_id=self.extra.get("job_id"),
        )


def invalid(*errors: FieldError) -> ApiError:
    """Return the problem of wrong fields."""
    if len(errors) == 1:
        return ApiError(INVALID_REQUEST, f"{errors[0].field or 'body'}: {errors[0].detail}", errors=errors)
    fields = ", ".join(error.field or "body" for error in errors)
    return ApiError(INVALID_REQUEST, f"{len(errors)} fields are wrong: {fields}", errors=errors)


def field_error(field: str, code: str, detail: str) -> FieldError:
    """Return a wrong field; ``code`` is one of ``FIELD_CODES``."""
    return FieldError(field=field, code=code, detail=detail)


def key_held(job_id: str, status: str | None) -> ApiError:
    """Return the problem of a unique key that another job holds."""
    held = f"held by job {job_id}" + (f", which is {status}" if status else "")
    error = field_error("unique_key", "key_held", held)
    return ApiError(UNIQUE_CONFLICT, f"unique_key: {held}", errors=[error], job_id=job_id, job_status=status)


def _sentence(error: BaseException) -> str:
    text = str(error)
    return text[:1].upper() + text[1:]


def from_exception(error: BaseException, *, detail: str = "") -> ApiError:
    """Turn any exception into the problem that users see; ``detail`` goes before the store's own words."""
    retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    lead = f"{detail} " if detail else ""
    match error:
        case ApiError():
            return error
        case InvalidRequest():
            return invalid(*error.errors)
        case KeyReused():
            detail = "was used with another body before; send a new key with a new request"
            problem = invalid(field_error("Idempotency-Key", "key_reused", detail))
            problem.extra["job_id"] = error.job_id
            return problem
        case KeyHeld():
            return key_held(error.job_id, error.status)
        case QueueFull():
            detail = f"The queue {error.queue!r} holds as many waiting jobs as it may; this one was not stored."
            return ApiError(QUEUE_FULL, detail, headers=retry)
        case SchedulesFull():
            detail = f"There are {error.most} schedules, as many as there may be: delete some, or raise the setting."
            return ApiError(SCHEDULES_FULL, detail)
        case StoreFull():
            return ApiError(STORE_FULL, "Nothing was stored; try again once there is room.", headers=retry)
        case StoreUnfit():
            return ApiError(STORE_UNFIT, f"{error}")
        case StoreMismatch():
            return ApiError(STORE_MISMATCH, f"{error}")
        case NotDurable():
            return ApiError(NOT_DURABLE, f"{lead}{_sentence(error)}", headers=retry)
        case StoreUnavailable():
            return ApiError(STORE_UNAVAILABLE, f"{lead}{_sentence(error)}", headers=retry)
        case _:
            return ApiError(INTERNAL_ERROR, "The server's log says more under this request_id.")
