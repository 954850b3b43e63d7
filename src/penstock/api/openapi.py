"""Describe the API as OpenAPI 3.1: the framework's own description, and what it cannot see.

``python -m penstock.api.openapi`` prints it; ``openapi.json`` at the root of the repository holds the same.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig

import penstock
from penstock.api.bodies import NDJSON
from penstock.api.guard import is_open
from penstock.api.job_bodies import BackoffBody, SubmitBody, UniqueBody
from penstock.api.output_views import LogPage, ProgressEvent, StreamEvent
from penstock.api.problems import (
    FOREIGN_ORIGIN,
    HOST_NOT_ALLOWED,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    KINDS,
    PROBLEM_JSON,
    UNAUTHORIZED,
    Kind,
    Problem,
)
from penstock.api.query import QueryParameter
from penstock.api.routes import ROUTES
from penstock.api.routes.common import PROBLEMS, QUERY
from penstock.api.routes.dead_letters import DeadLetterSelection
from penstock.api.routes.output import LAST_ID
from penstock.api.scheduling import ScheduleBody, ScheduledJobBody
from penstock.api.views import (
    Accepted,
    BatchAnswer,
    Changed,
    Deleted,
    Health,
    JobPage,
    JobView,
    Purged,
    QueueList,
    Redriven,
    SchedulePage,
    ScheduleView,
    WorkerList,
)

_TEMPLATE = "#/components/schemas/{name}"
_SHOWN = (
    SubmitBody,
    BackoffBody,
    UniqueBody,
    DeadLetterSelection,
    ScheduleBody,
    ScheduledJobBody,
    Accepted,
    BatchAnswer,
    JobView,
    JobPage,
    LogPage,
    StreamEvent,
    ProgressEvent,
    Changed,
    QueueList,
    WorkerList,
    ScheduleView,
    SchedulePage,
    Purged,
    Redriven,
    Deleted,
    Health,
    Problem,
)
_DESCRIPTION = (
    "Submit jobs, look at them, cancel and retry them. Times are RFC 3339 UTC with milliseconds, durations seconds. "
    "Every error is an RFC 9457 problem with a stable `code` and a `request_id`; `errors` names each wrong field."
)
_TAGS = ("jobs", "queues", "dead letter", "schedules", "workers", "health", "documents")
#: Answers that are not JSON of ours.
_MEDIA_TYPES = {
    "/jobs/{job_id}/events": ("text/event-stream", "string"),
    "/metrics": ("text/plain", "string"),
    "/docs": ("text/html", "string"),
    "/openapi.json": ("application/json", "object"),
}
#: What "Try it out" starts from: the smallest request that does something.
_EXAMPLES: dict[str, dict[str, Any]] = {
    "/submit": {"application/json": {"task": "echo", "input": {"hello": "world"}}},
    "/jobs": {"application/json": {"task": "echo", "input": {"hello": "world"}, "delay": "10s"}},
    "/jobs/batch": {
        "application/json": [{"task": "echo", "input": 1}, {"task": "echo", "input": 2}],
        NDJSON: '{"task": "echo", "input": 1}\n{"task": "echo", "input": 2}\n',
    },
    "/schedules/{name}": {
        "application/json": {
            "cron": "0 6 * * MON-FRI",
            "timezone": "Europe/Berlin",
            "job": {"task": "echo", "input": {"hello": "world"}},
        }
    },
    "/dead-letter": {"application/json": {"queue": "default", "limit": 10}},
    "/dead-letter/redrive": {"application/json": {"queue": "default", "limit": 10}},
}
_HEADERS = {
    "RequestId": {
        "description": "Names this request in the log; a sane one that the client sent is kept.",
        "schema": {"type": "string"},
    },
    "RetryAfter": {"description": "Seconds.", "schema": {"type": "integer"}},
    "Location": {"description": "Where the job is.", "schema": {"type": "string"}},
    "IdempotencyReplayed": {
        "description": "`true` when the `Idempotency-Key` was used before and this is the answer of that time.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "UniqueExisting": {
        "description": "`true` when another job holds the `unique_key` and the answer is about that one.",
        "schema": {"type": "string", "enum": ["true"]},
    },
}
_REQUEST_ID = {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}}
_RETRY_AFTER = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}}
_REPLAYED = {"Idempotency-Replayed": {"$ref": "#/components/headers/IdempotencyReplayed"}}
_EXISTING = {"Unique-Existing": {"$ref": "#/components/headers/UniqueExisting"}}
_LOCATION = {"Location": {"$ref": "#/components/headers/Location"}}
# Our own words: those of the standard library differ between versions of Python.
_WORDS = {200: "Done", 202: "The job is stored", 204: "Done; there is nothing to say"}


def document() -> dict[str, Any]:
    """Return the OpenAPI document; the same for every deployment."""
    framework = Litestar(
        route_handlers=ROUTES,
        logging_config=None,
        openapi_config=OpenAPIConfig(title="Penstock", version=penstock.__version__, description=_DESCRIPTION),
    )
    described = framework.openapi_schema.to_schema()
    # msgspec made these types and knows every constraint and default of them.
    _, schemas = msgspec.json.schema_components(_SHOWN, ref_template=_TEMPLATE, schema_hook=_schema_of)
    for schema in schemas.values():
        # Docstrings are indented up to Python 3.12 and not from 3.13 on; the document is the same.
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    handlers = {(next(iter(handler.http_methods)).lower(), _path(handler)): handler for handler in ROUTES}
    paths: dict[str, Any] = {}
    for path, operations in sorted(described["paths"].items()):
        shown = path.replace(":str", "")
        paths[shown] = {}
        for method, operation in sorted(operations.items()):
            _complete(shown, operation, handlers[method, shown])
            paths[shown][method] = operation
    return {
        "openapi": "3.1.0",
        "info": {**described["info"], "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": [{"name": name} for name in _TAGS],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "headers": _HEADERS,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key. A server without keys takes requests from its own machine only.",
                }
            },
        },
    }


def _path(handler: HTTPRouteHandler) -> str:
    (path,) = handler.paths
    return re.sub(r":str}", "}", path)


def _schema_of(kind: type) -> dict[str, Any]:
    if kind is msgspec.Raw:
        return {"description": "Any JSON value."}
    # How msgspec is told by a schema hook that it does not know a type; the message then names the type.
    raise NotImplementedError


def _complete(path: str, operation: dict[str, Any], handler: HTTPRouteHandler) -> None:
    """Add to an operation what the framework cannot see."""
    opt = handler.opt
    parameters = [item for item in operation.get("parameters", []) if item["in"] == "path"]
    parameters += [_query_parameter(declared) for declared in opt.get(QUERY, ())]
    if opt.get("prefer"):
        parameters.append(
            {
                "name": "Prefer",
                "in": "header",
                "description": "`wait=N`: the same as the query parameter `wait`, which wins.",
                "schema": {"type": "string"},
            }
        )
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "Makes the request safe to repeat: the same key with the same body gets the first "
                'answer, for 24 h (or as long as `"KEY";for=SECONDS` says), another body 422.',
                "schema": {"type": "string", "minLength": 1, "maxLength": 300},
            }
        )
    if opt.get(LAST_ID):
        parameters.append(
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "The id of the last event that was received: go on from there.",
                "schema": {"type": "string"},
            }
        )
    if parameters:
        operation["parameters"] = parameters
    _complete_body(path, operation, opt)
    responses = _answers(path, operation["responses"], handler)
    responses.update(_problems(path, opt.get(PROBLEMS, ())))
    operation["responses"] = dict(sorted(responses.items()))
    if is_open(path):
        operation["security"] = []


def _complete_body(path: str, operation: dict[str, Any], opt: Mapping[str, Any]) -> None:
    if "body" in opt:
        reference = {"$ref": _TEMPLATE.format(name=opt["body"].__name__)}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    if "requestBody" not in operation:
        return
    content = operation["requestBody"]["content"]
    if opt.get("ndjson"):
        content[NDJSON] = {"schema": {"type": "string"}}
    for media_type, described in content.items():
        described["example"] = _EXAMPLES[path][media_type]


def _answers(path: str, described: Mapping[str, Any], handler: HTTPRouteHandler) -> dict[str, Any]:
    """Return the answers that are no errors."""
    responses = {status: answer for status, answer in described.items() if int(status) < 400}
    for status, answer in responses.items():
        answer["headers"] = dict(_REQUEST_ID)
        if "prefer" in handler.opt:
            answer["headers"] |= _LOCATION | _REPLAYED | _EXISTING
        if int(status) == handler.status_code:
            answer["description"] = _WORDS[int(status)]
    if LAST_ID in handler.opt:
        responses["204"] = {"description": "The job is final and all was received", "headers": dict(_REQUEST_ID)}
    if path in _MEDIA_TYPES:
        media_type, kind = _MEDIA_TYPES[path]
        responses["200"]["content"] = {media_type: {"schema": {"type": kind}}}
    if handler.opt.get("ndjson"):
        responses["200"]["content"][NDJSON] = {"schema": {"type": "string"}}
    return responses


def _query_parameter(declared: QueryParameter) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": declared.name,
        "in": "query",
        "description": declared.description,
        "schema": dict(declared.schema),
    }
    if declared.repeated:
        shown |= {"style": "form", "explode": True}
    return shown


def _problems(path: str, declared: tuple[Kind, ...]) -> dict[str, Any]:
    usual = [INVALID_REQUEST, INTERNAL_ERROR, FOREIGN_ORIGIN]
    if not path.startswith("/health"):
        usual.append(HOST_NOT_ALLOWED)
    if not is_open(path):
        usual.append(UNAUTHORIZED)
    kinds = {kind.code for kind in (*declared, *usual)}
    shown: dict[str, Any] = {}
    for kind in KINDS:
        if kind.code not in kinds:
            continue
        status = str(kind.status)
        answer = shown.setdefault(
            status,
            {
                "description": "",
                "headers": dict(_REQUEST_ID),
                "content": {PROBLEM_JSON: {"schema": {"$ref": _TEMPLATE.format(name="Problem")}}},
            },
        )
        answer["description"] += f"{'; ' if answer['description'] else ''}`{kind.code}`: {kind.title}"
        if kind.status == 503:
            answer["headers"] |= _RETRY_AFTER
    return shown


@functools.cache
def document_text() -> bytes:
    """Return the document as JSON, indented, ending with a newline; it depends on nothing but the code."""
    return msgspec.json.format(msgspec.json.encode(document()), indent=2) + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(document_text())
