"""Talk to a Penstock server from plain code."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from penstock.client.core import SCHEDULE_FIELDS, Answer, Call, Flow, JobItem, NoAnswer, chunks
from penstock.client.events import Following, JobEvent, LogPage
from penstock.client.job import Deleted, Job, JobPage, Purged, Queue, Redriven, Schedule, SchedulePage, Submission
from penstock.client.transport import answer_of, make_core, no_answer_of, request_options, transport_options

T = TypeVar("T")


class Client:
    """Submit jobs and look at them, over HTTP. Safe to share between threads.

    ``url`` and ``api_key`` default to ``PENSTOCK_URL`` (else http://127.0.0.1:5000) and ``PENSTOCK_API_KEY``.
    ``retries`` bounds how often a request is repeated where that is safe; ``timeout`` is seconds for one answer.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        retries: int = 3,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._core = make_core(url, api_key, retries=retries, timeout_seconds=timeout)
        self._http = httpx.Client(transport=transport, **transport_options(self._core))

    @property
    def url(self) -> str:
        return self._core.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, task: str, input: Any = None, **options: Any) -> Job:  # noqa: A002 - the field's name
        """Submit one job; ``options`` are the fields of ``POST /submit`` (queue, priority, delay, …).

        Repeated when the connection breaks, which never makes a second job: each call has a random idempotency key.
        With an ``idempotency_key`` of your own the same holds for a call that you repeat, for 24 h.
        """
        return self._run(self._core.submit(task, input, options))

    def submit_many(self, items: Iterable[JobItem], **options: Any) -> Iterator[Submission]:
        """Submit many jobs in batches and yield what became of each, in order; one bad item does not stop the rest.

        An item is a dict as for ``POST /submit`` or (task, input); ``options`` stand for what an item leaves out. The
        iterator drives the submitting: what is not consumed is not sent. An item whose error is a ServerUnavailable
        with a ``job_id`` may be stored all the same. When an answer is lost the error is raised, and the jobs of that
        batch may or may not be stored.
        """
        for index, chunk in chunks(items, options):
            yield from self._run(self._core.submit_chunk(index, chunk))

    def get(self, job_id: str) -> Job:
        """Fetch a job. Raises JobNotFound."""
        return self._run(self._core.get(job_id))

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """Wait until a job is final and return it. Raises WaitTimeout after ``timeout`` seconds."""
        return self._run(self._core.wait(job_id, timeout=timeout))

    def events(self, job_id: str, *, last_event_id: str | None = None) -> Generator[JobEvent, None, None]:
        """Follow a job: yield its states, progress, log lines and stream chunks, until it is final.

        Goes on by itself after a broken connection or a restart of the server, without telling anything twice; with the
        ``id`` of an event also from there. Raises JobNotFound.
        """
        following = Following(self._core, job_id, last_event_id)
        while (call := following.call) is not None:
            try:
                with self._http.stream(**request_options(call)) as response:
                    if response.status_code == 200:
                        for data in response.iter_raw():
                            yield from following.feed(data)
                    else:
                        response.read()
                        following.broke(answer_of(response))
            except httpx.TransportError as error:
                following.broke(no_answer_of(error))
            time.sleep(following.pause)

    def log(self, job_id: str, *, limit: int = 200, cursor: str | None = None) -> LogPage:
        """Fetch one page of what a job has logged, oldest line first. Raises JobNotFound."""
        return self._run(self._core.log(job_id, limit=limit, cursor=cursor, kind=LogPage))

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; one that runs is told, and ``cancel_requested_at`` says since when. Raises StateConflict."""
        return self._run(self._core.cancel(job_id))

    def retry(self, job_id: str) -> Job:
        """Queue a failed job again, or start a scheduled or retrying one now. Raises StateConflict."""
        return self._run(self._core.retry(job_id))

    def delete(self, job_id: str) -> None:
        """Delete a final job. Raises StateConflict."""
        self._run(self._core.delete(job_id))

    def list_jobs(self, *, limit: int = 50, cursor: str | None = None, **filters: Any) -> JobPage:
        """Fetch one page of jobs by ``status``, ``queue``, ``task``, ``tag``, ``created_after``, ``created_before``."""
        return self._run(self._core.list_jobs(filters, limit=limit, cursor=cursor))

    def iter_jobs(self, **filters: Any) -> Iterator[Job]:
        """Yield every job that ``list_jobs`` would page through."""
        cursor: str | None = None
        while True:
            page = self.list_jobs(limit=100, cursor=cursor, **filters)
            yield from page.items
            if (cursor := page.next) is None:
                return

    def queues(self) -> list[Queue]:
        """Fetch what every queue holds."""
        return self._run(self._core.queues())

    def pause(self, queue: str) -> Queue:
        """Stop handing out a queue's jobs; submits are taken, what runs goes on. Raises NotFound."""
        return self._run(self._core.pause(queue))

    def resume(self, queue: str) -> Queue:
        """Hand out a paused queue's jobs again. Raises NotFound."""
        return self._run(self._core.resume(queue))

    def purge(self, queue: str) -> Purged:
        """Cancel all that is queued in a queue. Raises NotFound."""
        return self._run(self._core.purge(queue))

    def put_schedule(self, name: str, task: str, input: Any = None, **fields: Any) -> Schedule:  # noqa: A002 - the field's name
        """Create or replace a schedule of a task; the same again changes nothing.

        ``cron`` (with ``timezone``) or ``every`` (with ``start_at``) say when, ``missed`` and ``overlap`` what becomes
        of ticks; the other fields are those of the job, such as ``queue`` or ``tags``.
        """
        body = {key: fields.pop(key) for key in SCHEDULE_FIELDS if key in fields}
        return self._run(self._core.put_schedule(name, {**body, "job": {"task": task, "input": input, **fields}}))

    def schedule(self, name: str) -> Schedule:
        """Fetch a schedule. Raises NotFound."""
        return self._run(self._core.schedule(name))

    def schedules(self, *, limit: int = 50, cursor: str | None = None) -> SchedulePage:
        """Fetch one page of the schedules, by name."""
        return self._run(self._core.schedules(limit=limit, cursor=cursor))

    def pause_schedule(self, name: str) -> Schedule:
        """Let a schedule start nothing until it is resumed. Raises NotFound."""
        return self._run(self._core.change_schedule(name, "pause"))

    def resume_schedule(self, name: str) -> Schedule:
        """Let a paused schedule tick again. Raises NotFound."""
        return self._run(self._core.change_schedule(name, "resume"))

    def run_schedule(self, name: str) -> Job:
        """Submit a schedule's job now, beside its ticks. Raises NotFound."""
        return self._run(self._core.run_schedule(name))

    def delete_schedule(self, name: str) -> None:
        """Delete a schedule; its jobs stay. Raises NotFound."""
        self._run(self._core.delete_schedule(name))

    def dead_letters(self, *, queue: str | None = None, limit: int = 50, cursor: str | None = None) -> JobPage:
        """Fetch one page of the failed jobs."""
        return self._run(self._core.dead_letters(queue=queue, limit=limit, cursor=cursor))

    def redrive(
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
        return self._run(self._core.redrive(choice))

    def delete_dead_letters(
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
        return self._run(self._core.delete_dead_letters(choice))

    def health(self) -> dict[str, Any]:
        """Fetch what the server says about itself. Raises ServerUnavailable when its Redis does not answer."""
        return self._run(self._core.health())

    def _run(self, flow: Flow[T]) -> T:
        answer: Answer | NoAnswer | None = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            if isinstance(step, Call):
                answer = self._send(step)
            else:
                time.sleep(step.seconds)
                answer = None

    def _send(self, call: Call) -> Answer | NoAnswer:
        try:
            return answer_of(self._http.request(**request_options(call)))
        except httpx.TransportError as error:
            return no_answer_of(error)
