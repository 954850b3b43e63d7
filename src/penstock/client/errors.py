"""Define every error of the client.

::

    PenstockError
    └── PenstockClientError
        ├── ConnectionFailed            no answer; ``sent`` says whether the server may have seen the request
        ├── ApiError                    the server refused: ``status``, ``code``, ``detail``, ``errors``, ``request_id``
        │   ├── RequestRejected         400, 413, 415, 422: the request is wrong; ``errors`` names the fields
        │   ├── NotAllowed              401, 403: the key is missing, unknown or not good for this
        │   ├── NotFound                404 of anything but a job
        │   │   └── JobNotFound         404 of a job; it may lie beyond its retention
        │   ├── StateConflict           409: the job's status does not allow it
        │   │   └── UniqueConflict      409: another job holds the unique key; ``job_id`` is that one
        │   └── ServerUnavailable       429, 503: try again after ``retry_after`` seconds; ``job_id`` may be stored
        ├── UnexpectedAnswer            the answer is not one of a Penstock server
        ├── WaitTimeout                 the job was not final in time (also a TimeoutError)
        └── JobUnsuccessful             raised by ``Job.result_or_raise``; ``job`` is the job
            ├── JobFailed
            ├── JobCancelled
            ├── JobExpired
            └── JobNotFinished
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock.core.errors import FieldError, PenstockError

if TYPE_CHECKING:
    from penstock.client.job import Job


class PenstockClientError(PenstockError):
    """Be the root of what the client raises."""


class ConnectionFailed(PenstockClientError):
    """Say that no answer came; with ``sent`` false the server never saw the request."""

    def __init__(self, url: str, detail: str, *, sent: bool) -> None:
        super().__init__(f"cannot reach {url}: {detail}")
        self.url = url
        self.detail = detail
        self.sent = sent


class ApiError(PenstockClientError):
    """Say why the server refused; ``code`` is stable, ``errors`` names the fields."""

    def __init__(
        self,
        *,
        status: int,
        code: str,
        detail: str,
        errors: Sequence[FieldError] = (),
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        fields = "; ".join(f"{error.field}: {error.detail}" if error.field else error.detail for error in errors)
        super().__init__(fields or detail or code)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.request_id = request_id
        self.retry_after = retry_after


class RequestRejected(ApiError):
    """Say that the request is wrong."""


class NotAllowed(ApiError):
    """Say that the key is missing, unknown or not good for this."""


class NotFound(ApiError):
    """Say that the server knows no such thing."""


class JobNotFound(NotFound):
    """Say that there is no job of that id, or none any more; ``job_id`` is the id that was asked for."""

    job_id: str = ""


class StateConflict(ApiError):
    """Say that the job's status does not allow it."""


class UniqueConflict(StateConflict):
    """Say that another job holds the unique key; ``job_id`` is that one."""

    job_id: str = ""


class ServerUnavailable(ApiError):
    """Say that the server cannot take the request now.

    ``job_id``, where it is not empty, is that of a job which may have been stored all the same: ask for it.
    """

    job_id: str = ""


class UnexpectedAnswer(PenstockClientError):
    """Say that the answer is not one of a Penstock server."""


class WaitTimeout(PenstockClientError, TimeoutError):
    """Say that a job was not final in time; ``job`` is how it stood last."""

    def __init__(self, job: Job, seconds: float) -> None:
        super().__init__(f"job {job.id} is still {job.status} after {seconds:g} s")
        self.job = job


class JobUnsuccessful(PenstockClientError):
    """Say that a job has no result."""

    def __init__(self, job: Job, message: str) -> None:
        super().__init__(message)
        self.job = job


class JobFailed(JobUnsuccessful):
    """Say that a job failed for good."""


class JobCancelled(JobUnsuccessful):
    """Say that a job was cancelled."""


class JobExpired(JobUnsuccessful):
    """Say that a job did not start before it expired."""


class JobNotFinished(JobUnsuccessful):
    """Say that a job is not final yet."""
