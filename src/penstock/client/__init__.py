"""Submit jobs and look at them over HTTP, from plain or async code."""

from __future__ import annotations

from penstock.client.asynchronous import AsyncClient
from penstock.client.errors import (
    ApiError,
    ConnectionFailed,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFinished,
    JobNotFound,
    JobUnsuccessful,
    NotAllowed,
    NotFound,
    PenstockClientError,
    RequestRejected,
    ServerUnavailable,
    StateConflict,
    UnexpectedAnswer,
    WaitTimeout,
)
from penstock.client.job import Attempt, Deleted, Job, JobError, JobPage, Queue, Redriven, Submission
from penstock.client.sync import Client

__all__ = [
    "ApiError",
    "AsyncClient",
    "Attempt",
    "Client",
    "ConnectionFailed",
    "Deleted",
    "Job",
    "JobCancelled",
    "JobError",
    "JobExpired",
    "JobFailed",
    "JobNotFinished",
    "JobNotFound",
    "JobPage",
    "JobUnsuccessful",
    "NotAllowed",
    "NotFound",
    "PenstockClientError",
    "Queue",
    "Redriven",
    "RequestRejected",
    "ServerUnavailable",
    "StateConflict",
    "Submission",
    "UnexpectedAnswer",
    "WaitTimeout",
]
