"""Follow a job for one client, as server-sent events: snapshot, then each change, until the job is final.

An event's id is ``<revision>-<attempt>-<log position>.<stream position>``. It says what the client has seen, so that
any process can go on from it: nothing is remembered here.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import re
from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING, Any, cast

import msgspec
from litestar import Response
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from penstock.api.output_views import ProgressEvent, StreamEvent, log_entry
from penstock.api.problems import field_error, invalid
from penstock.core.durations import format_time
from penstock.core.errors import StoreUnavailable
from penstock.core.ids import JobId
from penstock.core.output import Followed, OutputEntry, OutputKind, mark_of, rev_of
from penstock.core.states import State

if TYPE_CHECKING:
    from penstock.api.services import Services

EVENT_STREAM = "text/event-stream"
LAST_EVENT_ID = b"last-event-id"
#: A comment goes out when nothing happened for so long, so that a dead connection shows; in ms.
KEEP_ALIVE_MS = 15_000
_PAGE = 200
_AGAIN_S = 1.0
_RETRY_MS = 1_000
_FIRST = asyncio.FIRST_COMPLETED
_ID = re.compile(r"([0-9a-f]{8})-(\d{1,9})-(\d{1,12})\.(\d{1,12})")


@dataclasses.dataclass(frozen=True)
class Seen:
    """Say what a client has seen of a job."""

    rev: str = ""
    attempt: int = 0
    log: int = 0
    stream: int = 0

    def __str__(self) -> str:
        return f"{self.rev or '0' * 8}-{self.attempt}-{self.log}.{self.stream}"


def read_seen(header: bytes | None) -> Seen:
    """Read a ``Last-Event-ID``.

    Raises:
        ApiError: it is not one of ours.
    """
    if header is None:
        return Seen()
    match = _ID.fullmatch(header.decode("latin-1"))
    if match is None:
        raise invalid(field_error("Last-Event-ID", "bad_cursor", "is not the id of an event of this route"))
    return Seen(match[1], int(match[2]), int(match[3]), int(match[4]))


class EventStream(Response[str]):
    """Answer with the events of one job."""

    def __init__(self, follower: Follower) -> None:
        super().__init__("", media_type=EVENT_STREAM)
        self._follower = follower

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIResponse:
        """Return what serves the request, which is all that the framework wants of it."""
        return cast("ASGIResponse", self._follower.serve)


class Follower:
    """Serve one client; everything that it holds is free again when ``serve`` returns."""

    def __init__(self, services: Services, job_id: JobId, seen: Seen, *, missing: Exception, head: bool) -> None:
        self._services = services
        self._job_id = job_id
        self._seen = seen
        self._missing = missing
        self._is_head = head
        #: Of the last state that was sent; None when it must be sent whatever it is.
        self._mark: str | None = None
        self._progress: bytes | None = None
        self._ends: set[asyncio.Task[Any]] = set()

    async def serve(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the job is final, the client is gone or the server stops.

        Raises:
            ApiError: no such job, or too many streams; nothing was sent then.
            StoreError: the store does not answer; the same.
        """
        with self._services.streams.taking():
            first = await self._look(0)
            if first is None:
                raise self._missing
            if self._seen.rev and first.state.is_final and first.rev == self._seen.rev and not first.entries:
                # All was seen. This answer stops a browser's reconnecting.
                await _start(send, 204)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            if first.rev == self._seen.rev:
                self._mark, self._progress = first.mark, first.progress
            await _start(send, 200)
            if not self._is_head:
                await self._send_events(first, receive, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, first: Followed, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_disconnected(receive))
        self._ends = {gone, asyncio.create_task(self._services.stopping.wait())}
        try:
            async with contextlib.aclosing(self._events(first)) as events:
                async for block in events:
                    await send({"type": "http.response.body", "body": block, "more_body": True})
                    if gone.done():
                        return
        finally:
            for task in self._ends:
                task.cancel()
            await asyncio.gather(*self._ends, return_exceptions=True)

    async def _events(self, first: Followed) -> AsyncGenerator[bytes, None]:
        """Yield blocks of events."""
        yield f"retry: {_RETRY_MS}\n\n".encode()
        found: Followed | None = first
        while not any(task.done() for task in self._ends):
            try:
                found = found or await self._next_look()
                if found is None:
                    return
                block = await self._news(found)
            except StoreUnavailable:
                # The client keeps its place, and need not know.
                found = None
                yield b": the store does not answer\n\n"
                await asyncio.wait(self._ends, timeout=_AGAIN_S * (0.5 + random.random()), return_when=_FIRST)
                continue
            yield block
            if found.state.is_final and not found.more and self._mark == found.mark:
                return
            found = None

    async def _next_look(self) -> Followed | None:
        """Return the next news, or the same after a while; None when there is nobody to tell."""
        looking = asyncio.create_task(self._look(KEEP_ALIVE_MS))
        try:
            await asyncio.wait({looking, *self._ends}, return_when=_FIRST)
            return looking.result() if looking.done() else None
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _look(self, timeout_ms: int) -> Followed | None:
        return await self._services.store.follow(
            self._job_id,
            log_after=self._seen.log,
            stream_after=self._seen.stream,
            rev=self._seen.rev,
            limit=_PAGE,
            timeout_ms=timeout_ms,
        )

    async def _news(self, found: Followed) -> bytes:
        """Return what a look has brought: the output of an attempt after its start and before its end.

        Raises:
            StoreUnavailable: it could not all be told, so nothing counts as seen.
        """
        seen = self._seen
        changed = found.mark != self._mark
        before: Iterable[OutputEntry] = found.entries
        after: Iterable[OutputEntry] = ()
        if changed and found.state is State.RUNNING:
            before = [entry for entry in found.entries if entry.attempt < found.attempt]
            after = [entry for entry in found.entries if entry.attempt >= found.attempt]
        block = b"".join(self._entry(entry) for entry in before)
        try:
            # The end of an attempt waits until all that it wrote is out.
            if changed and (found.state is State.RUNNING or not found.more):
                block += await self._state(found)
            elif not changed and found.progress != self._progress:
                block += self._told_progress(found)
        except StoreUnavailable:
            self._seen = seen
            raise
        block += b"".join(self._entry(entry) for entry in after)
        return block or b": keep-alive\n\n"

    async def _state(self, found: Followed) -> bytes:
        """Return the event of the job's status; empty when the job is further on than what was looked at."""
        record = await self._services.store.get(self._job_id)
        if record is None or (record.state.is_final and not found.state.is_final):
            # What it wrote in between must come before its end; the next look brings both.
            return b""
        self._mark, self._progress = mark_of(record), record.progress
        self._seen = dataclasses.replace(self._seen, rev=rev_of(self._mark, self._progress), attempt=record.attempt)
        renderer = await self._services.renderer([record])
        return self._event("state", renderer.summary(record))

    def _told_progress(self, found: Followed) -> bytes:
        self._progress = found.progress
        self._seen = dataclasses.replace(self._seen, rev=found.rev, attempt=found.attempt)
        progress = msgspec.Raw(found.progress or b"null")
        return self._event("progress", ProgressEvent(attempt=found.attempt, progress=progress))

    def _entry(self, entry: OutputEntry) -> bytes:
        if entry.kind is OutputKind.LOG:
            self._seen = dataclasses.replace(self._seen, attempt=entry.attempt, log=entry.position)
            return self._event("log", log_entry(entry))
        self._seen = dataclasses.replace(self._seen, attempt=entry.attempt, stream=entry.position)
        chunk = StreamEvent(
            attempt=entry.attempt,
            number=entry.position,
            time=format_time(entry.at_ms),
            chunk=msgspec.Raw(entry.value),
        )
        return self._event("stream", chunk)

    def _event(self, kind: str, data: Any) -> bytes:
        encoded = msgspec.json.encode(data)
        if b"\n" in encoded or b"\r" in encoded:
            # White space in JSON that someone else wrote would end the event.
            encoded = msgspec.json.format(encoded, indent=-1)
        return f"id: {self._seen}\nevent: {kind}\ndata: ".encode() + encoded + b"\n\n"


async def _start(send: Send, status: int) -> None:
    headers = [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
    if status == 200:
        headers.append((b"content-type", EVENT_STREAM.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
