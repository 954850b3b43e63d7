"""Talk to a Penstock server from async code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from penstock.client.core import SCHEDULE_FIELDS, Answer, Call, Flow, JobItem, NoAnswer, chunks
from penstock.client.events import Following, JobEvent, LogPage
from penstock.client.job import Deleted, Job, JobPage, Purged, Queue, Redriven, Schedule, SchedulePage, Submission
from penstock.client.transport import answer_of, make_core, no_answer_of, request_options, transport_options

T = TypeVar("T")


class AsyncClient:
    """Do what ``Client`` does, for async code; use it on one event loop."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        retries: int = 3,
        timeout: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._core = make_core(url, api_key, retries=retries, timeout_seconds=timeout)
        self._http = httpx.AsyncClient(transport=transport, **transport_options(self._core))

    @property
    def url(self) -> str:
        return self._core.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def submit(self, task: str, input: Any = None, **options: Any) -> Job:  # noqa: A002 - the field's name
        """Submit one job; see ``Client.submit``."""
        return await self._run(self._core.submit(task, input, options))

    async def submit_many(self, items: Iterable[JobItem], **options: Any) -> AsyncIterator[Submission]:
        """Submit many jobs in batches and yield what became of each, in order; see ``Client.submit_many``."""
        for index, chunk in chunks(items, options):
            for submission in await self._run(self._core.submit_chunk(index, chunk)):
                yield submission

    async def get(self, job_id: str) -> Job:
        """Fetch a job. Raises JobNotFound."""
        return await self._run(self._core.get(job_id))

    async def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """Wait until a job is final and return it. Raises WaitTimeout after ``timeout`` seconds."""
        return await self._run(self._core.wait(job_id, timeout=timeout))

    async def events(self, job_id: str, *, last_event_id: str | None = None) -> AsyncGenerator[JobEvent, None]:
        """Follow a job until it is final; see ``Client.events``."""
        following = Following(self._core, job_id, last_event_id)
        while (call := following.call) is not None:
            try:
                async with self._http.stream(**request_options(call)) as response:
                    if response.status_code == 200:
                        async for data in response.aiter_raw():
                            for event in following.feed(data):
                                yield event
                    else:
                        await response.aread()
                        following.broke(answer_of(response))
            except httpx.TransportError as error:
                following.broke(no_answer_of(error))
            await asyncio.sleep(following.pause)

    async def log(self, job_id: str, *, limit: int = 200, cursor: str | None = None) -> LogPage:
        """Fetch one page of what a job has logged; see ``Client.log``."""
        return await self._run(self._core.log(job_id, limit=limit, cursor=cursor, kind=LogPage))

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job; see ``Client.cancel``."""
        return await self._run(self._core.cancel(job_id))

    async def retry(self, job_id: str) -> Job:
        """Queue a failed job again, or start a scheduled or retrying one now; see ``Client.retry``."""
        return await self._run(self._core.retry(job_id))

    async def delete(self, job_id: str) -> None:
        """Delete a final job; see ``Client.delete``."""
        await self._run(self._core.delete(job_id))

    async def list_jobs(self, *, limit: int = 50, cursor: str | None = None, **filters: Any) -> JobPage:
        """Fetch one page of jobs; see ``Client.list_jobs``."""
        return await self._run(self._core.list_jobs(filters, limit=limit, cursor=cursor))

    async def iter_jobs(self, **filters: Any) -> AsyncIterator[Job]:
        """Yield every job that ``list_jobs`` would page through."""
        cursor: str | None = None
        while True:
            page = await self.list_jobs(limit=100, cursor=cursor, **filters)
            for job in page.items:
                yield job
            if (cursor := page.next) is None:
                return

    async def queues(self) -> list[Queue]:
        """Fetch what every queue holds."""
        return await self._run(self._core.queues())

    async def pause(self, queue: str) -> Queue:
        """Stop handing out a queue's jobs; submits are taken, what runs goes on. Raises NotFound."""
        return await self._run(self._core.pause(queue))

    async def resume(self, queue: str) -> Queue:
        """Hand out a paused queue's jobs again. Raises NotFound."""
        return await self._run(self._core.resume(queue))

    async def purge(self, queue: str) -> Purged:
        """Cancel all that is queued in a queue. Raises NotFound."""
        return await self._run(self._core.purge(queue))

    async def put_schedule(self, name: str, task: str, input: Any = None, **fields: Any) -> Schedule:  # noqa: A002 - the field's name
        """Create or replace a schedule of a task; the same again changes nothing.

        ``cron`` (with ``timezone``) or ``every`` (with ``start_at``) say when, ``missed`` and ``overlap`` what becomes
        of ticks; the other fields are those of the job, such as ``queue`` or ``tags``.
        """
        body = {key: fields.pop(key) for key in SCHEDULE_FIELDS if key in fields}
        return await self._run(self._core.put_schedule(name, {**body, "job": {"task": task, "input": input, **fields}}))

    async def schedule(self, name: str) -> Schedule:
        """Fetch a schedule. Raises NotFound."""
        return await self._run(self._core.schedule(name))

    async def schedules(self, *, limit: int = 50, cursor: str | None = None) -> SchedulePage:
        """Fetch one page of the schedules, by name."""
        return await self._run(self._core.schedules(limit=limit, cursor=cursor))

    async def pause_schedule(self, name: str) -> Schedule:
        """Let a schedule start nothing until it is resumed. Raises NotFound."""
        return await self._run(self._core.change_schedule(name, "pause"))

    async def resume_schedule(self, name: str) -> Schedule:
        """Let a paused schedule tick again. Raises NotFound."""
        return await self._run(self._core.change_schedule(name, "resume"))

    async def run_schedule(self, name: str) -> Job:
        """Submit a schedule's job now, beside its ticks. Raises NotFound."""
        return await self._run(self._core.run_schedule(name))

    async def delete_schedule(self, name: str) -> None:
        """Delete a schedule; its jobs stay. Raises NotFound."""
        await self._run(self._core.delete_schedule(name))

    async def dead_letters(self, *, queue: str | None = None, limit: int = 50, cursor: str | None = None) -> JobPage:
        """Fetch one page of the failed jobs."""
        return await self._run(self._core.dead_letters(queue=queue, limit=limit, cursor=cursor))

    async def redrive(
        self,
        ids: Sequence[str] = (),
        *,
        queue: str | None = None,
        task: str | None = None,
        tag: str | None = None,
        all: bool = False,  # noqa: A002 - the field's name
    ) -> Redriven:
        """Queue failed jobs again: by ids, by queue, task and tag, or with ``all``."""
        choice = {"ids": list(ids), "queue": queue, "task": task, "tag": tag, "all": all}
        return await self._run(self._core.redrive(choice))

    async def delete_dead_letters(
        self,
        ids: Sequence[str] = (),
        *,
        queue: str | None = None,
        task: str | None = None,
        tag: str | None = None,
        all: bool = False,  # noqa: A002 - the field's name
    ) -> Deleted:
        """Delete failed jobs: by ids, by queue, task and tag, or with ``all``."""
        choice = {"ids": list(ids), "queue": queue, "task": task, "tag": tag, "all": all}
        return await self._run(self._core.delete_dead_letters(choice))

    async def health(self) -> dict[str, Any]:
        """Fetch what the server says about itself; see ``Client.health``."""
        return await self._run(self._core.health())

    async def _run(self, flow: Flow[T]) -> T:
        answer: Answer | NoAnswer | None = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            if isinstance(step, Call):
                answer = await self._send(step)
            else:
                await asyncio.sleep(step.seconds)
                answer = None

    async def _send(self, call: Call) -> Answer | NoAnswer:
        try:
            return answer_of(await self._http.request(**request_options(call)))
        except httpx.TransportError as error:
            return no_answer_of(error)
