"""Translate between domain values and what is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from penstock.core.errors import KeyHeld, KeyReused, QueueFull, StoreError
from penstock.core.ids import JobId, Token
from penstock.core.job import (
    NO_OPTIONS,
    Attempt,
    ChangeCode,
    Changed,
    ClaimedJob,
    JobError,
    JobOptions,
    JobRecord,
    NewJob,
    Settle,
    SettleCode,
    Settled,
    Submitted,
    Verb,
)
from penstock.core.output import Followed, Output, OutputCode, OutputEntry, OutputKind, make_mark, merge
from penstock.core.states import AttemptOutcome, Priority, Reason, State


class StoredJob(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a job as it is stored; the scripts own its form. A field of another release is passed over."""

    status: State
    task: str
    queue: str
    priority: Priority
    created: int
    type: str = "task"
    head: str = ""
    input: str | None = None
    size: int | None = None
    result: str | None = None
    attempt: int = 0
    counted: int = 0
    lost: int = 0
    worker: str = ""
    started: int | None = None
    finished: int | None = None
    due: int | None = None
    expires: int | None = None
    retention: int | None = None
    cancel: int | None = None
    reason: Reason | None = None
    before: AttemptOutcome | None = None
    no_handler: int = 0
    progress: str | None = None


pack = msgspec.msgpack.Encoder().encode
_encode_options = msgspec.json.Encoder().encode
_decode_options = msgspec.json.Decoder(JobOptions).decode
_decode_error = msgspec.json.Decoder(JobError).decode
#: What reading a damaged answer or text can raise.
UNREADABLE = (KeyError, TypeError, ValueError, msgspec.MsgspecError)
#: Read a job's text. Raises one of ``UNREADABLE`` where it is damaged.
stored_job = msgspec.msgpack.Decoder(StoredJob).decode

# Enum look-ups by value run a few million times an hour; a dict is three times as fast as the call.
STATES = {state.value.encode(): state for state in State}
#: The answers to a settle of most; they are the same few values again and again.
_DONE = {status: Settled(code=SettleCode.DONE, state=state) for status, state in STATES.items()}
_COMPLETE, _FAILED, _EXHAUSTED = Verb.COMPLETE.value, AttemptOutcome.FAILED.value, Reason.EXHAUSTED.value


class ItemError(StoreError):
    """Say that the store could not handle one item of a batch; the rest was handled."""


def number(value: bytes | int | None) -> int | None:
    """Return a stored number; empty and missing mean None."""
    return None if value is None or value == b"" else int(value)


def new_job_item(job: NewJob) -> list[Any]:
    """Return the submit script's item.

    Raises:
        UnicodeDecodeError: the input is not UTF-8, so it is not JSON.
    """
    options = job.options
    item = [
        job.id,
        job.task,
        job.type,
        job.queue,
        job.priority,
        job.input.decode(),
        # The common case is one object, and comparing all its fields would cost as much as the rest of the item.
        "" if options is NO_OPTIONS or options == NO_OPTIONS else _encode_options(options).decode(),
        job.run_at_ms,
        job.delay_ms,
        job.expires_at_ms,
        job.expires_in_ms,
        job.retention_ms,
    ]
    if job.idempotency is not None or job.unique is not None:
        item += _once_fields(job)
    return item


def _once_fields(job: NewJob) -> tuple[str | int | None, ...]:
    once, unique = job.idempotency, job.unique
    fields = (once.key, once.fingerprint, once.keep_ms) if once else (None, None, None)
    if unique is None:
        return fields
    until = unique.until.value if unique.until else ""
    return (*fields, unique.key, until, unique.for_ms, unique.on_conflict.value)


def submit_answer(answer: Any, job: NewJob, now_ms: int) -> Submitted | Exception:
    """Read the submit script's answer to one job; most get a bare 1: created just now and queued, without an end."""
    if answer == 1:
        return Submitted(id=job.id, state=State.QUEUED, created=True, created_at_ms=now_ms)
    return submitted(answer, job.queue)


def submitted(answer: Sequence[Any], queue: str = "") -> Submitted | Exception:
    """Read the submit script's answer to one item for a queue, or that of reserve where it replays."""
    code = answer[0]
    if code != b"created" and code in _REFUSALS:
        return _refusal(answer, queue)
    try:
        _, job_id, status, created, due, expires, *existing = answer
        return Submitted(
            id=JobId(job_id.decode()),
            state=STATES[status],
            created=code == b"created",
            created_at_ms=int(created),
            run_at_ms=int(due) if due else None,
            expires_at_ms=int(expires) if expires else None,
            replayed=code == b"replayed",
            existing=bool(existing),
        )
    except UNREADABLE as error:
        # Others share the call: this must not become their error.
        return ItemError(f"the job that stands is damaged: {error!r}")


_REFUSALS = frozenset({b"full", b"error", b"reused", b"held", b"reserved"})


def _refusal(answer: Sequence[Any], queue: str) -> Exception:
    if answer[0] == b"full":
        return QueueFull(queue)
    if answer[0] == b"error":
        return ItemError(answer[1].decode(errors="replace"))
    if answer[0] == b"reused":
        return KeyReused(answer[1].decode())
    if answer[0] == b"held":
        return KeyHeld(answer[1].decode(), answer[2].decode())
    return ItemError("the idempotency key is reserved for a job of another partition")


def confirm_fields(job_id: JobId, answer: Submitted | Exception) -> list[str | int]:
    """Return what the confirm script takes of an answer; of a refusal that the key is free again."""
    if not isinstance(answer, Submitted):
        return [job_id, "", 0, "", "", job_id, 0]
    due = "" if answer.run_at_ms is None else str(answer.run_at_ms)
    expires = "" if answer.expires_at_ms is None else str(answer.expires_at_ms)
    return [job_id, answer.state.value, answer.created_at_ms, due, expires, answer.id, int(answer.existing)]


def stored_state(text: bytes | None) -> State | None:
    """Return the state of a job by its text; None when there is no such job or it is damaged."""
    try:
        return stored_job(text).status if text else None
    except UNREADABLE:
        return None


def claimed_job(job_id: bytes, text: bytes, big_input: bytes | None, nonce: str, deadline_ms: int) -> ClaimedJob | None:
    """Read one job of the claim script's answer; None when it is damaged: its lease lapses, and the rest runs."""
    try:
        job = stored_job(text)
        return ClaimedJob(
            token=Token(JobId(job_id.decode()), job.attempt, nonce),
            task=job.task,
            type=job.type,
            queue=job.queue,
            priority=job.priority,
            counted=job.counted,
            lost=job.lost,
            created_at_ms=job.created,
            deadline_ms=deadline_ms,
            options=_decode_options(job.head) if job.head else NO_OPTIONS,
            input=big_input if job.input is None else job.input.encode(),
            previous=job.before,
        )
    except UNREADABLE:
        return None


def stored_input(job_id: JobId, text: bytes | None) -> bytes | None:
    """Return the input that a job's text holds; None when it holds none or there is no such job.

    Raises:
        ItemError: the job is damaged.
    """
    try:
        job = stored_job(text) if text is not None else None
    except UNREADABLE as error:
        raise ItemError(f"job {job_id} is damaged: {error}") from error
    return job.input.encode() if job is not None and job.input is not None else None


def settle_item(item: Settle) -> list[str | int]:
    """Return the settle script's item."""
    token = item.token
    if item.verb is Verb.COMPLETE and item.over is None:
        # Nearly all of them; the script looks at none of the other fields. An enum's value costs a call.
        return [token.job_id, token.attempt, token.nonce, _COMPLETE, item.value.decode(), 0, _EXHAUSTED, _FAILED, ""]
    return [
        token.job_id,
        token.attempt,
        token.nonce,
        item.verb.value,
        item.value.decode(),
        item.delay_ms,
        item.reason.value if item.reason else Reason.EXHAUSTED.value,
        item.outcome.value,
        item.over.value if item.over else "",
    ]


def settled(answer: Any) -> Settled | Exception:
    """Read the settle script's answer to one item."""
    if isinstance(answer, bytes):
        return _DONE[answer]
    if answer[0] == b"error":
        return ItemError(answer[1].decode(errors="replace"))
    return Settled(code=SettleCode(answer[0].decode()), state=_state(answer[1]))


def _state(answer: Any) -> State | None:
    # That of a damaged job may be anything.
    return STATES.get(answer) if isinstance(answer, bytes) else None


def output_item(item: Output) -> list[Any]:
    """Return the output script's item."""
    return [
        item.token.job_id,
        item.token.attempt,
        item.token.nonce,
        item.made,
        item.dropped_lines,
        item.dropped_chunks,
        [entry.kind.value for entry in item.entries],
        [entry.value.decode() for entry in item.entries],
    ]


def output_code(answer: Sequence[Any]) -> OutputCode | Exception:
    """Read the output script's answer to one item."""
    if answer[0] == b"error":
        return ItemError(answer[1].decode(errors="replace"))
    return OutputCode(answer[0].decode())


def followed(answer: Sequence[Any], limit: int) -> Followed | None:
    """Read the follow script's answer.

    Raises:
        ItemError: the job is damaged.
    """
    if not answer:
        return None
    try:
        return _followed(answer, limit)
    except UNREADABLE as error:
        raise ItemError(f"the job is damaged: {error!r}") from error


def _followed(answer: Sequence[Any], limit: int) -> Followed:
    fields, log, stream = answer
    status, attempt, counted, lost, no_handler, due, cancel, finished, progress = fields
    state = STATES[status]
    entries, more = merge(_entries(OutputKind.LOG, log), _entries(OutputKind.STREAM, stream), limit=limit)
    return Followed(
        state=state,
        attempt=int(attempt or 0),
        mark=make_mark(
            state,
            attempt=int(attempt or 0),
            counted=int(counted or 0),
            lost=int(lost or 0),
            no_handler=int(no_handler or 0),
            run_at_ms=number(due),
            cancel_ms=number(cancel),
            finished_ms=number(finished),
        ),
        progress=progress,
        entries=entries,
        more=more or limit in (len(log[2]), len(stream[2])),
        log_dropped=log[1],
        stream_dropped=stream[1],
    )


def _entries(kind: OutputKind, answer: Sequence[Any]) -> list[OutputEntry]:
    before, _dropped, texts = answer
    return [read_entry(kind, position, text) for position, text in enumerate(texts, start=before + 1)]


def read_entry(kind: OutputKind, position: int, text: bytes) -> OutputEntry:
    """Read a stored entry."""
    attempt, at_ms, order, value = text.split(b"|", 3)
    return OutputEntry(
        kind=kind, position=position, order=int(order), attempt=int(attempt), at_ms=int(at_ms), value=value
    )


def changed(answer: Sequence[Any]) -> Changed | Exception:
    """Read an answer of cancel, redrive or delete to one job."""
    if answer[0] == b"error":
        return ItemError(answer[1].decode(errors="replace"))
    code, status, value = answer
    try:
        if code == b"held":
            return Changed(code=ChangeCode.HELD, state=_state(status), holder=JobId(value.decode()))
        return Changed(code=ChangeCode(code.decode()), state=_state(status), cancel_requested_at_ms=number(value))
    except (*UNREADABLE, AttributeError) as error:
        # Others share the call: this must not become their error.
        return ItemError(f"the job is damaged: {error!r}")


def ended_attempt(number_text: bytes, value: bytes) -> Attempt:
    """Read the record of an attempt that has ended. Raises one of ``UNREADABLE`` where it is damaged."""
    outcome, started, finished, length, rest = value.split(b"|", 4)
    worker, error = rest[: int(length)], rest[int(length) :]
    return Attempt(
        attempt=int(number_text),
        worker=worker.decode(),
        started_at_ms=number(started),
        finished_at_ms=number(finished),
        outcome=AttemptOutcome(outcome.decode()),
        error=_decode_error(error) if error else None,
    )


def _attempts(job: StoredJob, ended: Mapping[bytes, bytes]) -> tuple[Attempt, ...]:
    records = [ended_attempt(number_text, value) for number_text, value in ended.items()]
    if job.status in (State.RUNNING, State.COMPLETED):
        is_completed = job.status is State.COMPLETED
        records.append(
            Attempt(
                attempt=job.attempt,
                worker=job.worker,
                started_at_ms=job.started,
                finished_at_ms=job.finished if is_completed else None,
                outcome=AttemptOutcome.COMPLETED if is_completed else None,
            )
        )
    return tuple(sorted(records, key=lambda record: record.attempt))


def _value(text: str | None, big: bytes | None) -> bytes | None:
    return big if text is None else text.encode()


def job_record(
    job_id: JobId,
    text: bytes,
    *,
    attempts: Mapping[bytes, bytes],
    big_input: bytes | None = None,
    big_result: bytes | None = None,
    deadline: bytes | None = None,
) -> JobRecord:
    """Read a job from its text, the records of its attempts and its value keys.

    Raises:
        ItemError: the job is damaged.
    """
    try:
        return _job_record(job_id, text, attempts, big_input, big_result, deadline)
    except UNREADABLE as error:
        raise ItemError(f"job {job_id} is damaged: {error}") from error


def _job_record(
    job_id: JobId,
    text: bytes,
    attempts: Mapping[bytes, bytes],
    big_input: bytes | None,
    big_result: bytes | None,
    deadline: bytes | None,
) -> JobRecord:
    job = stored_job(text)
    state = job.status
    return JobRecord(
        id=job_id,
        state=state,
        task=job.task,
        type=job.type,
        queue=job.queue,
        priority=job.priority,
        attempt=job.attempt,
        counted=job.counted,
        lost=job.lost,
        created_at_ms=job.created,
        options=_decode_options(job.head) if job.head else NO_OPTIONS,
        input=_value(job.input, big_input),
        result=_value(job.result, big_result) if state is State.COMPLETED else None,
        progress=_value(job.progress, None),
        worker=job.worker or None,
        started_at_ms=job.started,
        finished_at_ms=job.finished if state.is_final else None,
        run_at_ms=job.due if state in (State.SCHEDULED, State.RETRYING) else None,
        expires_at_ms=job.expires,
        deadline_ms=number(deadline) if state is State.RUNNING else None,
        cancel_requested_at_ms=job.cancel,
        retention_ms=job.retention,
        reason=job.reason if state is State.FAILED else None,
        no_handler=job.no_handler,
        attempts=_attempts(job, attempts),
    )
