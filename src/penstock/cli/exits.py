"""Name the exit codes, and turn every error into one line and one of them."""

from __future__ import annotations

import enum
from typing import Any

from penstock.client.errors import (
    ApiError,
    ConnectionFailed,
    JobNotFound,
    JobUnsuccessful,
    NotAllowed,
    NotFound,
    RequestRejected,
    ServerUnavailable,
    StateConflict,
    UnexpectedAnswer,
    WaitTimeout,
)
from penstock.core.errors import ConfigError, PenstockError, StoreMismatch, StoreUnavailable, TaskError


class Exit(enum.IntEnum):
    """Name the codes that scripts can rely on."""

    OK = 0
    #: The job failed, was cancelled or expired; doctor or health found something; the command could not do its work.
    FAILED = 1
    #: Wrong arguments, settings or fields of a job.
    USAGE = 2
    #: No answer from the server or from Redis, or it is not able to take the request now.
    UNREACHABLE = 3
    NOT_FOUND = 4
    #: The job's status does not allow it.
    CONFLICT = 5
    #: The key is missing, unknown or not good for this.
    DENIED = 6
    #: Not final within --wait.
    TIMEOUT = 7
    INTERRUPTED = 130


EXIT_HELP = {
    Exit.OK: "done; with `--wait` and `status`: the job completed or is under way",
    Exit.FAILED: "the job failed, was cancelled or expired; `doctor` or `health` found something; anything else failed",
    Exit.USAGE: "wrong arguments, settings or fields of a job",
    Exit.UNREACHABLE: "no answer from the server or from Redis, or it cannot take requests now",
    Exit.NOT_FOUND: "there is no such job",
    Exit.CONFLICT: "the job's status does not allow it",
    Exit.DENIED: "the API key is missing, unknown or not good for this",
    Exit.TIMEOUT: "the job was not final within `--wait`",
    Exit.INTERRUPTED: "interrupted by Ctrl-C",
}


class CommandFailed(PenstockError):
    """End a command with one line and a code."""

    def __init__(self, message: str, exit_code: Exit = Exit.FAILED, *, field: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.field = field


def exit_code_of(error: PenstockError) -> Exit:
    """Return the code of an error."""
    match error:
        case CommandFailed():
            return error.exit_code
        case RequestRejected() | ConfigError() | StoreMismatch() | TaskError():
            # The supervisor of `penstock up` does not start a child again that ends with this code.
            return Exit.USAGE
        case ConnectionFailed() | ServerUnavailable() | UnexpectedAnswer() | StoreUnavailable():
            return Exit.UNREACHABLE
        case NotFound():
            return Exit.NOT_FOUND
        case StateConflict():
            return Exit.CONFLICT
        case NotAllowed():
            return Exit.DENIED
        case WaitTimeout():
            return Exit.TIMEOUT
        case JobUnsuccessful():
            return Exit.FAILED
        case _:
            return Exit.FAILED


def line_of(error: PenstockError) -> str:
    """Return one line that names what is wrong and the way out."""
    text = " ".join(str(error).split())
    match error:
        case ConnectionFailed() if not error.sent:
            return f"{text}; start a server with 'penstock up', or name another with --url or PENSTOCK_URL"
        case JobNotFound():
            return f"{error.job_id}: {text}"
        case NotAllowed() if error.status == 401:
            return f"{text}; give the key with PENSTOCK_API_KEY or --api-key"
        case _:
            return text


def document_of(error: PenstockError) -> dict[str, Any]:
    """Return what ``--json`` prints of an error."""
    document: dict[str, Any] = {"code": exit_code_of(error).name.lower(), "detail": line_of(error)}
    match error:
        case ApiError():
            document["code"] = error.code
            document["errors"] = [
                {"field": item.field, "code": item.code, "detail": item.detail} for item in error.errors
            ]
        case ConfigError():
            document |= {"code": "setting", "field": error.key}
        case CommandFailed() if error.field:
            document["field"] = error.field
    return {"error": document}
