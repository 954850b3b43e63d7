"""Read the events of a job, and go on where they broke off; without doing I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import msgspec

from penstock.client.core import Answer, Call, ClientCore, NoAnswer
from penstock.client.errors import ApiError, ConnectionFailed, ServerUnavailable, UnexpectedAnswer
from penstock.client.job import Job

#: The server says something at least every 15 s.
_SILENCE_SECONDS = 45.0
#: Who follows a job wants its end, not the news that the server restarts.
_RETRIES = 8


class JobEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Tell one thing of a job: ``kind`` is ``state``, ``progress``, ``log`` or ``stream``.

    ``data`` of a ``state`` is the job as in a list, of a ``progress`` has ``progress``, of a ``log`` ``level``,
    ``message``, ``fields`` and ``exception``, of a ``stream`` ``chunk``. ``id`` is what ``events`` goes on from.
    """

    id: str
    kind: str
    attempt: int
    data: dict[str, Any]

    @property
    def job(self) -> Job | None:
        """Return the job of a ``state``, without input and result."""
        return msgspec.convert(self.data, Job, strict=False) if self.kind == "state" else None

    @property
    def chunk(self) -> Any:
        """Return what a ``stream`` brought: text or any JSON value."""
        return self.data.get("chunk")


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one line of a job's log; ``number`` counts from 1 over all attempts."""

    number: int
    attempt: int
    time: str
    level: str
    message: str
    fields: dict[str, Any] = {}
    exception: str | None = None
    cut: bool = False


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a part of a job's log, oldest first; ``dropped`` counts the lines that were not kept."""

    items: tuple[LogLine, ...]
    next: str | None = None
    dropped: int = 0


class EventParser:
    """Cut a stream of server-sent events into events; bytes may break anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[JobEvent]:
        """Yield the events that are whole now.

        Raises:
            UnexpectedAnswer: one is not of a Penstock server.
        """
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            fields: dict[bytes, bytes] = {}
            for line in block.split(b"\n"):
                name, _, value = line.partition(b":")
                if name:
                    fields[name] = value.removeprefix(b" ")
            if b"data" in fields:
                yield _event(fields)


def _event(fields: dict[bytes, bytes]) -> JobEvent:
    try:
        data = msgspec.json.decode(fields[b"data"], type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise UnexpectedAnswer(f"the event is not one of a Penstock server: {error}") from error
    return JobEvent(
        id=fields.get(b"id", b"").decode(),
        kind=fields.get(b"event", b"").decode(),
        attempt=int(data.get("attempt") or 0),
        data=data,
    )


@dataclasses.dataclass
class Following:
    """Follow one job over as many connections as it takes: a shell opens ``call`` until it is None.

    After each connection it waits ``pause`` seconds. What came is never told twice.
    """

    core: ClientCore
    job_id: str
    last_id: str | None
    failures: int = 0
    ended: bool = False
    parser: EventParser = dataclasses.field(default_factory=EventParser)

    @property
    def call(self) -> Call | None:
        """Return the next request; None once the job is final and all has come."""
        if self.ended:
            return None
        self.parser = EventParser()
        headers = [("accept", "text/event-stream")]
        if self.last_id:
            headers.append(("last-event-id", self.last_id))
        path = self.core.job_path(self.job_id) + "/events"
        return Call(method="GET", path=path, headers=tuple(headers), timeout_seconds=_SILENCE_SECONDS)

    def feed(self, data: bytes) -> Iterator[JobEvent]:
        """Yield the events that came."""
        self.failures = 0
        for event in self.parser.feed(data):
            self.last_id = event.id or self.last_id
            job = event.job
            if job is not None and job.is_final:
                self.ended = True
            yield event

    def broke(self, why: NoAnswer | Answer) -> None:
        """Note that a connection failed or was answered otherwise; raises what another try would not cure."""
        error: ConnectionFailed | ApiError
        if isinstance(why, NoAnswer):
            error = ConnectionFailed(self.core.url, why.detail, sent=why.sent)
        elif why.status == 204:
            self.ended = True
            return
        else:
            error = self.core.error_of(why, self.core.job_path(self.job_id))
            if not isinstance(error, ServerUnavailable):
                raise error
        self.failures += 1
        if self.failures > (max(self.core.retries, _RETRIES) if self.core.retries else 0):
            raise error

    @property
    def pause(self) -> float:
        """Return how long to wait before the next connection, in seconds."""
        return 0.0 if self.ended else self.core.pause_seconds(self.failures)
