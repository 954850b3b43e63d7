"""Declare the bare routes to the framework, for its documentation and its 405; ``penstock.api.hot`` serves them.

The front never hands these requests over, so the functions have no body to run.
"""

from __future__ import annotations

from typing import NoReturn

from litestar import post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from penstock.api.job_bodies import SubmitBody
from penstock.api.problems import (
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    NOT_DURABLE,
    NOT_JSON,
    QUEUE_FULL,
    STOPPING,
    STORE_FULL,
    STORE_UNAVAILABLE,
    UNIQUE_CONFLICT,
    UNSUPPORTED_MEDIA_TYPE,
)
from penstock.api.query import wait_parameter
from penstock.api.routes.common import PROBLEMS, QUERY
from penstock.api.views import Accepted, BatchAnswer, JobView
from penstock.core.limits import Limits

_BODY_PROBLEMS = (
    NOT_JSON,
    BODY_TIMEOUT,
    UNIQUE_CONFLICT,
    BODY_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    QUEUE_FULL,
    STOPPING,
    STORE_FULL,
    STORE_UNAVAILABLE,
    NOT_DURABLE,
)
_WAIT = wait_parameter(Limits().wait_ms)
_FINAL_IN_TIME = {
    200: ResponseSpec(data_container=JobView, description="The job, final within the wait", generate_examples=False)
}
_DESCRIPTION = (
    "The job is stored before the answer is sent. With `wait` (or the header `Prefer: wait=N`) the answer is the "
    "finished job, failed ones too, when it ends in time. All wrong fields are named at once."
)


def _served_in_front() -> NoReturn:
    raise AssertionError("the front serves this route")


@post(
    "/submit",
    status_code=202,
    operation_id="submitJob",
    summary="Submit a job",
    description=_DESCRIPTION,
    tags=["jobs"],
    responses=_FINAL_IN_TIME,
    opt={QUERY: (_WAIT,), PROBLEMS: _BODY_PROBLEMS, "prefer": True},
)
async def submit_job(data: JSONBody[SubmitBody]) -> Accepted:  # noqa: ARG001 - the signature is the documentation
    _served_in_front()


@post(
    "/jobs",
    status_code=202,
    operation_id="createJob",
    summary="Submit a job (the same as /submit)",
    description=_DESCRIPTION,
    tags=["jobs"],
    responses=_FINAL_IN_TIME,
    opt={QUERY: (_WAIT,), PROBLEMS: _BODY_PROBLEMS, "prefer": True},
)
async def submit_job_as_jobs(data: JSONBody[SubmitBody]) -> Accepted:  # noqa: ARG001 - the signature is the documentation
    _served_in_front()


@post(
    "/jobs/batch",
    status_code=200,
    operation_id="submitBatch",
    summary="Submit up to 10,000 jobs",
    description=(
        "Takes a JSON array, or one job a line (`application/x-ndjson`). Each item stands for itself: a wrong one is "
        "named in the answer and does not stop the rest. Answers come in the order of the items; as NDJSON when the "
        "request was, or when `Accept` asks for it."
    ),
    tags=["jobs"],
    opt={PROBLEMS: _BODY_PROBLEMS, "ndjson": True},
)
async def submit_batch(data: JSONBody[list[SubmitBody]]) -> BatchAnswer:  # noqa: ARG001 - as above
    _served_in_front()
