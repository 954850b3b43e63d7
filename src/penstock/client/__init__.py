"""Submit jobs and look at them over HTTP, from plain or async code."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
        UniqueConflict,
        WaitTimeout,
    )
    from penstock.client.events import JobEvent, LogLine, LogPage
    from penstock.client.job import (
        Attempt,
        Deleted,
        Job,
        JobError,
        JobPage,
        Purged,
        Queue,
        Redriven,
        Schedule,
        SchedulePage,
        Submission,
    )
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
    "JobEvent",
    "JobExpired",
    "JobFailed",
    "JobNotFinished",
    "JobNotFound",
    "JobPage",
    "JobUnsuccessful",
    "LogLine",
    "LogPage",
    "NotAllowed",
    "NotFound",
    "PenstockClientError",
    "Purged",
    "Queue",
    "Redriven",
    "RequestRejected",
    "Schedule",
    "SchedulePage",
    "ServerUnavailable",
    "StateConflict",
    "Submission",
    "UnexpectedAnswer",
    "UniqueConflict",
    "WaitTimeout",
]

#: Where each name lives; loaded when first asked for, because the HTTP library takes most of a short command's start.
_HOMES = {
    "ApiError": "penstock.client.errors",
    "AsyncClient": "penstock.client.asynchronous",
    "Attempt": "penstock.client.job",
    "Client": "penstock.client.sync",
    "ConnectionFailed": "penstock.client.errors",
    "Deleted": "penstock.client.job",
    "Job": "penstock.client.job",
    "JobCancelled": "penstock.client.errors",
    "JobError": "penstock.client.job",
    "JobEvent": "penstock.client.events",
    "JobExpired": "penstock.client.errors",
    "JobFailed": "penstock.client.errors",
    "JobNotFinished": "penstock.client.errors",
    "JobNotFound": "penstock.client.errors",
    "JobPage": "penstock.client.job",
    "JobUnsuccessful": "penstock.client.errors",
    "LogLine": "penstock.client.events",
    "LogPage": "penstock.client.events",
    "NotAllowed": "penstock.client.errors",
    "NotFound": "penstock.client.errors",
    "PenstockClientError": "penstock.client.errors",
    "Purged": "penstock.client.job",
    "Queue": "penstock.client.job",
    "Redriven": "penstock.client.job",
    "RequestRejected": "penstock.client.errors",
    "Schedule": "penstock.client.job",
    "SchedulePage": "penstock.client.job",
    "ServerUnavailable": "penstock.client.errors",
    "StateConflict": "penstock.client.errors",
    "Submission": "penstock.client.job",
    "UnexpectedAnswer": "penstock.client.errors",
    "UniqueConflict": "penstock.client.errors",
    "WaitTimeout": "penstock.client.errors",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'penstock.client' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
