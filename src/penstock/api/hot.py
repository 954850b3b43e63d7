"""Serve submits as bare ASGI in front of the framework, which costs a third of the time of a framework's route."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from penstock.api.bodies import JSON, NDJSON, content_type, read_body
from penstock.api.exchange import Exchange, Reply
from penstock.api.fields import Checker
from penstock.api.problems import (
    BODY_TOO_LARGE,
    DOUBTFUL,
    NOT_DURABLE,
    QUEUE_FULL,
    RETRY_AFTER_SECONDS,
    STOPPING,
    STORE_FULL,
    STORE_UNAVAILABLE,
    ApiError,
    ItemProblem,
    field_error,
    from_exception,
    invalid,
)
from penstock.api.query import prefer_wait, read_query, read_wait_ms, wait_parameter
from penstock.api.services import Services
from penstock.api.strict import not_json, too_deep
from penstock.api.submission import ENVELOPE_BYTES, IdempotencyHeader, Submission, idempotency_of, traceparent_of
from penstock.api.views import BatchAnswer, BatchItem, accepted
from penstock.api.waits import wait_final
from penstock.core.errors import NotDurable, NotSent, StoreError, StoreFull, StoreMismatch
from penstock.core.job import NewJob, Submitted

HotRoute = Callable[[Exchange], Awaitable[Reply]]

#: Jobs that a batch gives to the store at once; parsing the next ones goes on meanwhile.
CHUNK_ITEMS = 500
#: Jobs that are parsed without a break: a fraction of a millisecond where inputs are small.
PARSE_ITEMS = 50
_MAYBE = (
    "The job may or may not have been taken; GET /jobs/{id} tells, and sending it again is safe with the same "
    "Idempotency-Key."
)
_NOT_SENT = "Not taken: the store stopped answering before this item was sent."
#: Of what is given to ``Services.note_submit``, what it remembers.
_NOTED = (StoreFull, NotDurable, StoreMismatch)
_REPLAYED = (b"idempotency-replayed", b"true")
_EXISTING = (b"unique-existing", b"true")
_encoder = msgspec.json.Encoder()


def hot_routes(services: Services) -> Mapping[tuple[str, str], HotRoute]:
    """Return the bare routes by method and path."""
    routes = HotRoutes(services)
    return {
        ("POST", "/submit"): routes.submit,
        ("POST", "/jobs"): routes.submit,
        ("POST", "/jobs/batch"): routes.batch,
    }


class HotRoutes:
    """Take jobs, one or many a request."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._limits = services.options.limits
        self._wait = (wait_parameter(self._limits.wait_ms),)
        self._batch = msgspec.json.Decoder(list[msgspec.Raw])

    async def submit(self, exchange: Exchange) -> Reply:
        """Take one job; with a wait, answer with the finished job when it ends in time."""
        services = self._services
        headers = exchange.headers
        wait_ms = self._wait_ms(exchange)
        content_type(headers, (JSON,))
        body = await read_body(
            exchange.receive,
            headers,
            limit=self._limits.payload_bytes + ENVELOPE_BYTES,
            timeout_ms=services.options.body_timeout_ms,
        )
        job = services.parser.parse(
            body, await self._submission(exchange, idempotency_of(headers.get(b"idempotency-key")))
        )
        self._refuse_when_stopping()
        exchange.job_id = job.id
        try:
            await services.refuse_when_nearly_full()
            answer = (await services.store.submit([job]))[0]
            if isinstance(answer, Exception):
                raise answer
        except StoreError as error:
            services.note_submit(error)
            raise _problem_of(error, job) from error
        services.note_submit()
        exchange.job_id = answer.id
        answer_headers: tuple[tuple[bytes, bytes], ...] = ((b"location", f"/jobs/{answer.id}".encode()),)
        if answer.replayed:
            services.metrics.replayed()
            answer_headers += (_REPLAYED,)
        if answer.existing:
            answer_headers += (_EXISTING,)
        state = answer.state
        if wait_ms:
            state = await wait_final(services, answer.id, wait_ms, exchange.receive) or state
            if state.is_final:
                record = await services.store.get(answer.id)
                if record is not None:
                    view = (await services.renderer([record])).job(record)
                    return Reply(200, _encoder.encode(view), headers=answer_headers)
        queue, priority = job.queue, job.priority
        if answer.existing and (standing := await services.store.get(answer.id)) is not None:
            queue, priority = standing.queue, standing.priority
        view_accepted = accepted(answer, queue=queue, priority=priority, state=state)
        return Reply(202, _encoder.encode(view_accepted), headers=answer_headers)

    async def batch(self, exchange: Exchange) -> Reply:
        """Take many jobs; each item stands for itself."""
        services = self._services
        headers = exchange.headers
        read_query(exchange.query, (), Checker(services.clock()))
        _refuse_key_of_a_batch(headers)
        media_type = content_type(headers, (JSON, NDJSON))
        body = await read_body(
            exchange.receive, headers, limit=self._limits.batch_bytes, timeout_ms=services.options.body_timeout_ms
        )
        texts = self._split(body, media_type)
        if len(texts) > self._limits.batch_items:
            raise ApiError(
                BODY_TOO_LARGE,
                f"the batch has {len(texts)} items; at most {self._limits.batch_items} are taken",
            )
        self._refuse_when_stopping()
        items = await self._submit_all(texts, await self._submission(exchange))
        errors = [item.error for item in items if item.error is not None]
        taken = len(items) - len(errors)
        _refuse_when_nothing_was_taken(errors, taken)
        for error in errors:
            services.metrics.refused(error.code)
        if _wants_ndjson(headers.get(b"accept"), media_type):
            return Reply(200, _encoder.encode_lines(items), content_type=NDJSON)
        answer = BatchAnswer(accepted=taken, rejected=len(errors), items=items)
        return Reply(200, _encoder.encode(answer))

    def _split(self, body: bytes, media_type: str) -> Sequence[bytes | msgspec.Raw]:
        if media_type == NDJSON:
            return [line for line in body.split(b"\n") if line.strip()]
        try:
            return self._batch.decode(body)
        except msgspec.ValidationError:
            try:
                msgspec.json.decode(body, type=msgspec.Raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise not_json(body, error) from None
            detail = "expected an array of jobs; send one job to POST /submit"
            raise invalid(field_error("", "wrong_type", detail)) from None
        except RecursionError:
            raise too_deep("") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise not_json(body, error) from None

    async def _submit_all(self, texts: Sequence[bytes | msgspec.Raw], submission: Submission) -> list[BatchItem]:
        """Parse and store in chunks; one chunk is stored at a time, so jobs keep the order of the request."""
        items: list[BatchItem] = []
        in_flight: asyncio.Task[list[BatchItem]] | None = None
        is_away = False
        for start in range(0, len(texts), CHUNK_ITEMS):
            parsed = await self._parse(texts[start : start + CHUNK_ITEMS], submission)
            if in_flight is not None:
                chunk = await in_flight
                in_flight = None
                items += chunk
                is_away = any(item.error is not None and item.error.code in DOUBTFUL for item in chunk)
            if is_away:
                # The store is away: trying each further chunk would only add its time limits up.
                items += [_not_tried(start + offset, item) for offset, item in enumerate(parsed)]
                continue
            in_flight = asyncio.create_task(self._submit_chunk(start, parsed))
        if in_flight is not None:
            items += await in_flight
        return items

    async def _parse(self, texts: Sequence[bytes | msgspec.Raw], submission: Submission) -> list[NewJob | ApiError]:
        """Parse a chunk in steps, between which what is stored meanwhile goes on, and others are served."""
        parse = self._services.parser.parse_item
        parsed: list[NewJob | ApiError] = []
        for start in range(0, len(texts), PARSE_ITEMS):
            await asyncio.sleep(0)
            parsed += [parse(text, submission) for text in texts[start : start + PARSE_ITEMS]]
        return parsed

    async def _submit_chunk(self, start: int, parsed: Sequence[NewJob | ApiError]) -> list[BatchItem]:
        services = self._services
        jobs = [item for item in parsed if isinstance(item, NewJob)]
        answers: Sequence[Submitted | Exception] = []
        try:
            if jobs:
                await services.refuse_when_nearly_full()
                answers = await services.store.submit(jobs)
                services.note_submit(next((answer for answer in answers if isinstance(answer, _NOTED)), None))
        except StoreError as error:
            services.note_submit(error)
            answers = [error] * len(jobs)
        replies = iter(answers)
        return [
            BatchItem(index=index, error=item.item())
            if isinstance(item, ApiError)
            else self._item(index, item, next(replies))
            for index, item in enumerate(parsed, start)
        ]

    def _item(self, index: int, job: NewJob, answer: Submitted | Exception) -> BatchItem:
        if not isinstance(answer, Submitted):
            return BatchItem(index=index, error=_problem_of(answer, job).item())
        if answer.replayed:
            self._services.metrics.replayed()
        elif not answer.existing:
            return BatchItem(index=index, id=answer.id, status=answer.state)
        return BatchItem(
            index=index, id=answer.id, status=answer.state, replayed=answer.replayed, existing=answer.existing
        )

    async def _submission(self, exchange: Exchange, idempotency: IdempotencyHeader | None = None) -> Submission:
        services = self._services
        return Submission(
            now_ms=services.clock(),
            limits=self._limits,
            defaults=services.options.defaults,
            tasks=await services.tasks.get(),
            next_id=services.next_id,
            traceparent=traceparent_of(exchange.headers.get(b"traceparent")),
            idempotency=idempotency,
        )

    def _wait_ms(self, exchange: Exchange) -> int:
        prefer = prefer_wait(exchange.headers.get(b"prefer"))
        if not exchange.query and prefer is None:
            return 0
        checker = Checker(0)
        wait_ms = read_query(exchange.query, self._wait, checker).get("wait")
        if wait_ms is None and prefer is not None:
            wait_ms = read_wait_ms(checker, "Prefer", prefer, self._limits.wait_ms)
            if checker.errors:
                raise invalid(*checker.errors)
        return int(wait_ms or 0)

    def _refuse_when_stopping(self) -> None:
        if self._services.stopping.is_set():
            raise ApiError(
                STOPPING,
                "Nothing was stored; send it again, to another server or once this one is back.",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS), "Connection": "close"},
            )


def _problem_of(error: Exception, job: NewJob) -> ApiError:
    if isinstance(error, NotSent):
        return ApiError(STORE_UNAVAILABLE, _NOT_SENT, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
    if isinstance(error, StoreFull):
        # Others of the same batch may have been.
        detail = "This job was not stored; try again once there is room."
        return ApiError(STORE_FULL, detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
    problem = from_exception(error, detail=_MAYBE.format(id=job.id))
    if problem.kind.code in DOUBTFUL:
        problem.extra["job_id"] = job.id
    return problem


def _refuse_key_of_a_batch(headers: Mapping[bytes, bytes]) -> None:
    if b"idempotency-key" in headers:
        detail = "a batch has no key of its own; give each item an 'idempotency_key'"
        raise invalid(field_error("Idempotency-Key", "not_supported", detail))


def _not_tried(index: int, item: NewJob | ApiError) -> BatchItem:
    if isinstance(item, ApiError):
        return BatchItem(index=index, error=item.item())
    return BatchItem(index=index, error=_problem_of(NotSent(), item).item())


def _refuse_when_nothing_was_taken(errors: Sequence[ItemProblem], taken: int) -> None:
    """Answer 503 or 429 when nothing was taken of what was given, for clients that look at the status only."""
    refused = [error for error in errors if error.status == STORE_FULL.status]
    if taken or not errors:
        return
    if not refused:
        if all(error.code == QUEUE_FULL.code for error in errors):
            raise ApiError(
                QUEUE_FULL,
                "Nothing was stored: the queues hold as many waiting jobs as they may.",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        return
    doubtful = {problem.code for problem in refused} & DOUBTFUL
    if doubtful:
        kind = NOT_DURABLE if NOT_DURABLE.code in doubtful else STORE_UNAVAILABLE
        why = "neither disk nor replicas confirmed them" if kind is NOT_DURABLE else "the store did not answer"
        raise ApiError(
            kind,
            f"The jobs may or may not have been taken: {why}. Sending them again is safe for those with an "
            "'idempotency_key'.",
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        )
    raise from_exception(StoreFull())


def _wants_ndjson(accept: bytes | None, media_type: str) -> bool:
    """Answer in what the client asks for, else in what it sent."""
    text = (accept or b"").decode("latin-1").lower()
    if NDJSON in text:
        return True
    return media_type == NDJSON and JSON not in text
