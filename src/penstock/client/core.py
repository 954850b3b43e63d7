"""Build every request and read every answer, without doing I/O.

An operation is a generator: it yields a ``Call`` or a ``Pause`` and is sent the ``Answer`` or ``NoAnswer`` of the call
(None after a pause). What it returns is the operation's result. So all rules about retries and waiting stand here once,
and the two shells only move bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

import msgspec

from penstock.client.errors import (
    ApiError,
    ConnectionFailed,
    JobNotFound,
    NotAllowed,
    NotFound,
    RequestRejected,
    ServerUnavailable,
    StateConflict,
    UnexpectedAnswer,
    UniqueConflict,
    WaitTimeout,
)
from penstock.client.job import Deleted, Job, JobPage, Purged, Queue, Redriven, Schedule, SchedulePage, Submission
from penstock.core.errors import FieldError

CHUNK_ITEMS = 1_000
CHUNK_BYTES = 4 * 1024 * 1024
#: One request waits at most this long, so that a proxy or a restart in between costs little.
POLL_SECONDS = 30.0
#: A server that waits for N seconds answers a little later than that.
_ANSWER_MARGIN_SECONDS = 10.0
#: A purge answers once all is cancelled; a million jobs take about half a minute.
_PURGE_SECONDS = 600.0
_BACKOFF_FIRST_SECONDS, _BACKOFF_LAST_SECONDS = 0.1, 5.0
_RETRY_AFTER_MAX_SECONDS = 60.0
#: A key that nobody else knows need not outlive the repeats of its one call; keys that users choose last 24 h.
_RANDOM_KEY_SECONDS = 600
#: Who waits for a job wants its end, not the news that the server restarts: eight repeats last about 15 s.
_WAIT_RETRIES = 8

#: What says when a schedule ticks and what becomes of its ticks; the other fields of a put are those of its job.
SCHEDULE_FIELDS = ("cron", "timezone", "every", "start_at", "missed", "overlap")

T = TypeVar("T")
#: What ``submit_many`` takes: a dict as ``POST /submit`` does, or (task, input).
JobItem = Mapping[str, Any] | tuple[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """Ask the shell to send one request; ``timeout_seconds`` bounds the wait for the answer."""

    method: str
    path: str
    params: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    timeout_seconds: float = 30.0


@dataclasses.dataclass(frozen=True)
class Pause:
    """Ask the shell to wait."""

    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """Hold what came back."""

    status: int
    body: bytes
    retry_after: str | None = None
    replayed: bool = False
    existing: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoAnswer:
    """Say that none came; with ``sent`` false the server never saw the request."""

    detail: str
    sent: bool


Step = Call | Pause
Flow = Generator[Step, Answer | NoAnswer | None, T]


def _random_key() -> str:
    return uuid.uuid4().hex


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientCore:
    """Hold where the server is and how patient to be; the methods are the operations as flows.

    ``retries`` counts repeats after the first try. ``clock`` returns seconds that never go back.
    """

    url: str
    api_key: str | None = dataclasses.field(default=None, repr=False)
    retries: int = 3
    timeout_seconds: float = 30.0
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random
    random_key: Callable[[], str] = _random_key

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"the URL of a Penstock server starts with http:// or https://, not {self.url!r}")

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of every request."""
        headers = {"accept": "application/json", "user-agent": "penstock-client"}
        return headers | ({"authorization": f"Bearer {self.api_key}"} if self.api_key else {})

    def submit(self, task: str, input: Any = None, options: Mapping[str, Any] | None = None) -> Flow[Job]:  # noqa: A002
        """Submit one job; repeated safely under the ``idempotency_key`` given, else under a random one."""
        fields = dict(options or {})
        key = fields.pop("idempotency_key", None)
        if key is not None and not (key.isascii() and key.isprintable() and '"' not in key):
            raise ValueError("an idempotency_key holds printable ASCII characters only, and no quotation marks")
        header = f'"{self.random_key()}";for={_RANDOM_KEY_SECONDS}' if key is None else f'"{key}"'
        answer = yield from self._send(
            "POST",
            "/submit",
            body=_encode({"task": task, "input": input, **fields}),
            headers=(("idempotency-key", header),),
            repeatable=True,
        )
        return msgspec.structs.replace(_read(answer, Job), replayed=answer.replayed, existing=answer.existing)

    def submit_chunk(self, index: int, items: Sequence[bytes]) -> Flow[list[Submission]]:
        """Submit encoded jobs in one batch; ``index`` is the first one's number."""
        answer = yield from self._send("POST", "/jobs/batch", body=b"[" + b",".join(items) + b"]")
        entries = _read(answer, _BatchAnswer).items
        if len(entries) != len(items):
            raise UnexpectedAnswer(f"the server answered {len(entries)} of {len(items)} jobs")
        return [_submission(index + offset, entry) for offset, entry in enumerate(entries)]

    def get(self, job_id: str, *, wait_seconds: float | None = None, retries: int | None = None) -> Flow[Job]:
        """Fetch a job, with ``wait_seconds`` once it is final or that time is over."""
        params: tuple[tuple[str, str], ...] = ()
        timeout = self.timeout_seconds
        if wait_seconds is not None:
            params = (("wait", f"{wait_seconds:.3f}".rstrip("0").rstrip(".")),)
            timeout = wait_seconds + max(_ANSWER_MARGIN_SECONDS, timeout)
        answer = yield from self._send(
            "GET", _job_path(job_id), params=params, timeout_seconds=timeout, retries=retries
        )
        return _read(answer, Job)

    def wait(self, job_id: str, *, timeout: float | None = None) -> Flow[Job]:
        """Fetch a job once it is final, by as many long polls as it takes. Raises WaitTimeout."""
        retries = max(self.retries, _WAIT_RETRIES) if self.retries else 0
        deadline = None if timeout is None else self.clock() + timeout
        while True:
            left = POLL_SECONDS if deadline is None else max(0.0, deadline - self.clock())
            started = self.clock()
            job = yield from self.get(job_id, wait_seconds=min(POLL_SECONDS, round(left, 3)), retries=retries)
            if job.is_final:
                return job
            if deadline is not None and self.clock() >= deadline:
                assert timeout is not None
                raise WaitTimeout(job, timeout)
            if self.clock() - started < min(left, 0.5):
                # A server that answers before the time is over would otherwise be asked in a tight loop.
                yield Pause(min(left, 0.5))

    def log(self, job_id: str, *, limit: int, cursor: str | None, kind: type[T]) -> Flow[T]:
        """Fetch one page of a job's log."""
        params = _params({"limit": limit, "cursor": cursor})
        answer = yield from self._send("GET", f"{_job_path(job_id)}/log", params=params)
        return _read(answer, kind)

    def job_path(self, job_id: str) -> str:
        """Return where a job is."""
        return _job_path(job_id)

    def error_of(self, answer: Answer, path: str) -> ApiError:
        """Return the error of an answer that is none of the good ones."""
        return _api_error(answer, path)

    def pause_seconds(self, failures: int) -> float:
        """Return how long to wait after so many failures in a row."""
        return self._pause_seconds(failures, None)

    def cancel(self, job_id: str) -> Flow[Job]:
        """Cancel a job; one that runs is told, and ``cancel_requested_at`` says since when."""
        return (yield from self._change("POST", job_id, "/cancel"))

    def retry(self, job_id: str) -> Flow[Job]:
        """Queue a failed job again, or start a scheduled or retrying one now."""
        return (yield from self._change("POST", job_id, "/retry"))

    def delete(self, job_id: str) -> Flow[None]:
        """Delete a final job."""
        yield from self._send("DELETE", _job_path(job_id))

    def list_jobs(self, filters: Mapping[str, Any], *, limit: int, cursor: str | None) -> Flow[JobPage]:
        """Fetch one page of jobs."""
        answer = yield from self._send("GET", "/jobs", params=_params({**filters, "limit": limit, "cursor": cursor}))
        return _read(answer, JobPage)

    def queues(self) -> Flow[list[Queue]]:
        """Fetch what every queue holds."""
        answer = yield from self._send("GET", "/queues")
        return _read(answer, _Queues).items

    def pause(self, queue: str) -> Flow[Queue]:
        """Stop handing out a queue's jobs."""
        answer = yield from self._send("POST", f"{_queue_path(queue)}/pause")
        return _read(answer, Queue)

    def resume(self, queue: str) -> Flow[Queue]:
        """Hand out a paused queue's jobs again."""
        answer = yield from self._send("POST", f"{_queue_path(queue)}/resume")
        return _read(answer, Queue)

    def purge(self, queue: str) -> Flow[Purged]:
        """Cancel all that is queued in a queue."""
        timeout = max(self.timeout_seconds, _PURGE_SECONDS)
        answer = yield from self._send("POST", f"{_queue_path(queue)}/purge", timeout_seconds=timeout)
        return _read(answer, Purged)

    def put_schedule(self, name: str, body: Mapping[str, Any]) -> Flow[Schedule]:
        """Create or replace a schedule; repeated safely, because the same again changes nothing."""
        answer = yield from self._send("PUT", _schedule_path(name), body=_encode(body), repeatable=True)
        return _read(answer, Schedule)

    def schedule(self, name: str) -> Flow[Schedule]:
        """Fetch a schedule."""
        answer = yield from self._send("GET", _schedule_path(name))
        return _read(answer, Schedule)

    def schedules(self, *, limit: int, cursor: str | None) -> Flow[SchedulePage]:
        """Fetch one page of schedules."""
        answer = yield from self._send("GET", "/schedules", params=_params({"limit": limit, "cursor": cursor}))
        return _read(answer, SchedulePage)

    def change_schedule(self, name: str, verb: str) -> Flow[Schedule]:
        """Pause or resume a schedule."""
        answer = yield from self._send("POST", f"{_schedule_path(name)}/{verb}")
        return _read(answer, Schedule)

    def run_schedule(self, name: str) -> Flow[Job]:
        """Submit a schedule's job now."""
        answer = yield from self._send("POST", f"{_schedule_path(name)}/run")
        return _read(answer, Job)

    def delete_schedule(self, name: str) -> Flow[None]:
        """Delete a schedule."""
        yield from self._send("DELETE", _schedule_path(name))

    def dead_letters(self, *, queue: str | None, limit: int, cursor: str | None) -> Flow[JobPage]:
        """Fetch one page of the dead letter."""
        params = _params({"queue": queue, "limit": limit, "cursor": cursor})
        answer = yield from self._send("GET", "/dead-letter", params=params)
        return _read(answer, JobPage)

    def redrive(self, choice: Mapping[str, Any]) -> Flow[Redriven]:
        """Queue failed jobs again, by ids or filter, or all of them."""
        answer = yield from self._send("POST", "/dead-letter/redrive", body=_choice(choice))
        return _read(answer, Redriven)

    def delete_dead_letters(self, choice: Mapping[str, Any]) -> Flow[Deleted]:
        """Delete failed jobs, by ids or filter, or all of them."""
        answer = yield from self._send("DELETE", "/dead-letter", body=_choice(choice))
        return _read(answer, Deleted)

    def health(self) -> Flow[dict[str, Any]]:
        """Fetch what the server says about itself; raises ServerUnavailable when it is not well."""
        answer = yield from self._send("GET", "/health")
        return _read(answer, dict[str, Any])

    def _change(self, method: str, job_id: str, verb: str) -> Flow[Job]:
        answer = yield from self._send(method, _job_path(job_id) + verb)
        return _read(answer, Job)

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: tuple[tuple[str, str], ...] = (),
        body: bytes | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        timeout_seconds: float | None = None,
        retries: int | None = None,
        repeatable: bool = False,
    ) -> Flow[Answer]:
        """Send a request, again where that is safe; return a good answer or raise what the server said.

        ``repeatable`` says that the server tells a repeat of this request from a new one.
        """
        call = Call(
            method=method,
            path=path,
            params=params,
            body=body,
            headers=headers,
            timeout_seconds=timeout_seconds or self.timeout_seconds,
        )
        retries = self.retries if retries is None else retries
        for repeat in range(retries + 1):
            answer = yield call
            assert answer is not None
            if isinstance(answer, NoAnswer):
                error: ConnectionFailed | ApiError = ConnectionFailed(self.url, answer.detail, sent=answer.sent)
                # What was never sent is safe to repeat; what may have happened only where it changes nothing.
                if method != "GET" and answer.sent and not repeatable:
                    raise error
            elif answer.status < 300:
                return answer
            else:
                error = _api_error(answer, path)
                # Of a submit only what may have happened; a plain refusal is the caller's to weigh.
                doubtful = repeatable and error.code in {"store_unavailable", "not_durable"}
                if not (method == "GET" or doubtful) or not isinstance(error, ServerUnavailable):
                    raise error
            if repeat == retries:
                raise error
            yield Pause(self._pause_seconds(repeat, getattr(error, "retry_after", None)))
        raise AssertionError("unreachable")

    def _pause_seconds(self, repeat: int, retry_after: float | None) -> float:
        if retry_after is not None:
            return min(retry_after, _RETRY_AFTER_MAX_SECONDS)
        whole = min(_BACKOFF_LAST_SECONDS, _BACKOFF_FIRST_SECONDS * 2.0**repeat)
        return whole * (0.5 + self.draw() / 2)


def chunks(items: Iterable[JobItem], options: Mapping[str, Any]) -> Iterator[tuple[int, list[bytes]]]:
    """Encode jobs and group them by count and size; yields (number of the first, encoded jobs).

    ``options`` stand for what an item leaves out. Raises TypeError for an item of another form.
    """
    chunk: list[bytes] = []
    size = first = 0
    for number, item in enumerate(items):
        encoded = _encode({**options, **_as_object(item)})
        if chunk and (len(chunk) >= CHUNK_ITEMS or size + len(encoded) > CHUNK_BYTES):
            yield first, chunk
            chunk, size, first = [], 0, number
        chunk.append(encoded)
        size += len(encoded) + 1
    if chunk:
        yield first, chunk


def _choice(choice: Mapping[str, Any]) -> bytes:
    # What was not given is left out; the server refuses a choice that chooses nothing.
    return _encode({name: value for name, value in choice.items() if value not in (None, False, (), [])})


def _as_object(item: Any) -> Mapping[str, Any]:
    if isinstance(item, Mapping):
        return item
    if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str):
        return {"task": item[0], "input": item[1]}
    raise TypeError(f"a job is a dict or (task, input), not {type(item).__name__}")


class _BatchEntry(msgspec.Struct, frozen=True):
    id: str | None = None
    status: str | None = None
    replayed: bool = False
    existing: bool = False
    error: dict[str, Any] | None = None


class _BatchAnswer(msgspec.Struct, frozen=True):
    items: list[_BatchEntry]


class _Queues(msgspec.Struct, frozen=True):
    items: list[Queue]


def _submission(index: int, entry: _BatchEntry) -> Submission:
    error = None if entry.error is None else _error_of(422, entry.error)
    return Submission(
        index=index, id=entry.id, status=entry.status, replayed=entry.replayed, existing=entry.existing, error=error
    )


def _encode(value: Any) -> bytes:
    """Encode to JSON. Raises TypeError for what JSON cannot say."""
    return msgspec.json.encode(value)


def _read(answer: Answer, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except msgspec.MsgspecError as error:
        raise UnexpectedAnswer(f"the answer is not one of a Penstock server: {error}") from error


_KINDS: Mapping[int, type[ApiError]] = {
    400: RequestRejected,
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    409: StateConflict,
    413: RequestRejected,
    415: RequestRejected,
    422: RequestRejected,
    429: ServerUnavailable,
    503: ServerUnavailable,
}
_CODES: Mapping[str, type[ApiError]] = {"unique_conflict": UniqueConflict}


def _api_error(answer: Answer, path: str) -> ApiError:
    try:
        problem = msgspec.json.decode(answer.body, type=dict[str, Any])
    except msgspec.MsgspecError:
        problem = {"detail": f"the server answered {answer.status}"}
    return _error_of(answer.status, problem, path=path, retry_after=_seconds(answer.retry_after))


def _error_of(status: int, problem: Mapping[str, Any], *, path: str = "", retry_after: float | None = None) -> ApiError:
    """Make the typed error of a problem document, however much of it is there."""
    number = problem.get("status")
    status = number if isinstance(number, int) else status
    is_job = status == 404 and path.startswith("/jobs/")
    kind = JobNotFound if is_job else _CODES.get(str(problem.get("code")), _KINDS.get(status, ApiError))
    entries = problem.get("errors")
    errors = [
        FieldError(field=str(entry.get("field", "")), code=str(entry.get("code", "")), detail=str(entry["detail"]))
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and "detail" in entry
    ]
    request_id = problem.get("request_id")
    made = kind(
        status=status,
        code=str(problem.get("code") or f"http_{status}"),
        detail=str(problem.get("detail") or problem.get("title") or ""),
        errors=errors,
        request_id=str(request_id) if request_id else None,
        retry_after=retry_after,
    )
    if isinstance(made, JobNotFound):
        made.job_id = unquote(path.split("/")[2])
    if isinstance(made, UniqueConflict | ServerUnavailable):
        made.job_id = str(problem.get("job_id") or "")
    return made


def _seconds(text: str | None) -> float | None:
    with contextlib.suppress(ValueError):
        return max(0.0, float(text)) if text else None
    return None


def _queue_path(queue: str) -> str:
    return f"/queues/{quote(queue, safe='')}"


def _schedule_path(name: str) -> str:
    return f"/schedules/{quote(name, safe='')}"


def _job_path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


def _params(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Turn filters into query parameters; None is left out, a list repeats."""
    pairs = (
        (name, item)
        for name, value in values.items()
        for item in (value if isinstance(value, list | tuple) else (value,))
    )
    return tuple((name, str(item)) for name, item in pairs if item is not None)
