"""Turn the body of a submit into a job; says everything that is wrong with it at once."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping

import msgspec

from penstock.api.fields import Checker
from penstock.api.job_bodies import BackoffBody, SubmitBody, UniqueBody
from penstock.api.problems import BODY_TOO_LARGE, ApiError, field_error, from_exception, invalid
from penstock.api.strict import BodyDecoder, check_nesting, not_json, validation_error
from penstock.core.ids import JobId, at_home, digest_of, home_of, home_of_digest
from penstock.core.job import (
    NO_OPTIONS,
    HeldUntil,
    Idempotency,
    JobOptions,
    NewJob,
    TaskInfo,
    Unique,
    handler_name,
)
from penstock.core.limits import DAY_MS, MAX_ATTEMPTS, NAME_CHARACTERS, Limits, TaskDefaults
from penstock.core.retry import Backoff

TYPES = ("task", "ai")
TAGS = 32
METADATA_BYTES = 16 * 1024
#: Room for all other fields beside an input of the largest size.
ENVELOPE_BYTES = 64 * 1024
LONGEST_TIMEOUT_MS = 30 * DAY_MS

_ANY = msgspec.json.Decoder()
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_QUOTED_KEY = re.compile(r'"(?P<key>[^"]*)"(?:\s*;\s*for=(?P<seconds>\d{1,9}))?')
_LONGEST_FOR_S = 366 * 86_400
#: A unique key may be held for so long by time alone.
LONGEST_UNIQUE_MS = 366 * DAY_MS
_HINTS: Mapping[str, str] = {
    **dict.fromkeys(("args", "kwargs", "payload", "data", "params", "body"), "'input'"),
    "countdown": "'delay'",
    "delay_seconds": "'delay'",
    "eta": "'run_at' (a time) or 'delay' (a duration)",
    "max_retries": "'max_attempts', which counts the first try too",
    "retries": "'max_attempts', which counts the first try too",
    "ttl": "'expires_in'",
    "result_ttl": "'retention'",
    "name": "'task'",
}
_LATER = frozenset({"webhook", "depends_on"})


@dataclasses.dataclass(frozen=True, slots=True)
class IdempotencyHeader:
    """Hold what the header ``Idempotency-Key`` says; ``keep_ms`` None means for as long as the deployment's setting."""

    key: str
    keep_ms: int | None = None


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what parsing needs besides the text; ``now_ms`` is Unix ms, ``tasks`` the registry of tasks."""

    now_ms: int
    limits: Limits
    defaults: TaskDefaults
    tasks: Mapping[str, TaskInfo]
    next_id: Callable[[int], JobId]
    traceparent: str | None = None
    idempotency: IdempotencyHeader | None = None


class SubmissionParser:
    """Parse submits; one object serves all requests."""

    def __init__(self) -> None:
        self.decoder = BodyDecoder(SubmitBody, hints=_HINTS, later=_LATER)

    def parse(self, text: bytes | msgspec.Raw, submission: Submission) -> NewJob:
        """Return the job that a JSON text describes.

        Raises:
            ApiError: everything that is wrong with it.
        """
        text = bytes(text)
        check_nesting(text)
        body, errors = self.decoder.decode(text)
        value = bytes(body.input) or b"null"
        if len(value) > submission.limits.payload_bytes:
            raise input_too_large(len(value), submission.limits.payload_bytes)
        try:
            # Raw text is passed on as it is: whatever is stored must be something that a worker can read.
            _ANY.decode(value)
        except msgspec.ValidationError as error:
            errors.append(validation_error("input", error))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise not_json(text, error) from None
        if not errors and (plain := _plain_job(body, value, submission)) is not None:
            return plain
        checker = Checker(submission.now_ms, errors)
        job = _new_job(body, value, submission, checker)
        if body.unique is not None or body.unique_key is not None:
            job = _alone(job, body, checker)
        if body.idempotency_key is not None or submission.idempotency is not None:
            job = _once(job, text, body.idempotency_key, submission, checker)
        if errors:
            raise invalid(*errors)
        return job

    def parse_item(self, text: bytes | msgspec.Raw, submission: Submission) -> NewJob | ApiError:
        """Return the job of one item of a batch, or what is wrong with it."""
        try:
            return self.parse(text, submission)
        except ApiError as error:
            return from_exception(error)


def new_job(body: SubmitBody, submission: Submission, checker: Checker) -> NewJob:
    """Return the job of a decoded body, and note what is wrong with it; its size is the caller's to check."""
    value = bytes(body.input) or b"null"
    try:
        _ANY.decode(value)
    except msgspec.MsgspecError as error:
        checker.wrong("input", "out_of_range", f"{error}: a worker could not read it")
    return _new_job(body, value, submission, checker)


def input_too_large(size: int, high: int) -> ApiError:
    """Return the problem of an input over the limit (bytes)."""
    detail = f"has {size} bytes; at most {high} are taken"
    return ApiError(BODY_TOO_LARGE, f"input {detail}", errors=[field_error("input", "too_large", detail)])


def idempotency_of(header: bytes | None) -> IdempotencyHeader | None:
    """Return what the header ``Idempotency-Key`` says: text, in quotation marks or not, and ``;for=`` seconds.

    Raises:
        ApiError: ``for`` is no number of seconds from 1 on.
    """
    if header is None:
        return None
    text = header.decode("latin-1").strip()
    quoted = _QUOTED_KEY.fullmatch(text)
    if quoted is None:
        return IdempotencyHeader(text)
    seconds = quoted["seconds"]
    if seconds is None:
        return IdempotencyHeader(quoted["key"])
    if not 1 <= int(seconds) <= _LONGEST_FOR_S:
        raise invalid(field_error("Idempotency-Key", "out_of_range", f"'for' must be 1 to {_LONGEST_FOR_S} seconds"))
    return IdempotencyHeader(quoted["key"], int(seconds) * 1_000)


def traceparent_of(header: bytes | None) -> str | None:
    """Return a W3C trace context that is well-formed, else None: tracing never fails a request."""
    if header is None:
        return None
    text = header.decode("latin-1")
    return text if _TRACEPARENT.fullmatch(text) else None


def _plain_job(body: SubmitBody, value: bytes, submission: Submission) -> NewJob | None:
    """Return the job of a sound body that says what runs and no more, as most do; None for others.

    It is what ``_new_job`` returns for it, in a third of the time.
    """
    task = body.task
    if (
        body.queue is None
        and body.type == "task"
        and body.run_at is None
        and body.delay is None
        and body.max_attempts is None
        and body.backoff is None
        and body.timeout is None
        and body.expires_at is None
        and body.expires_in is None
        and not body.tags
        and not body.metadata
        and body.retention is None
        and body.unique_key is None
        and body.unique is None
        and body.idempotency_key is None
        and submission.idempotency is None
        and submission.traceparent is None
        and 0 < len(task) <= NAME_CHARACTERS
        and task.isprintable()
        and task[0] != "@"
    ):
        known = submission.tasks.get(task)
        return NewJob(
            id=submission.next_id(submission.now_ms),
            task=task,
            input=value,
            queue=(known.queue if known is not None else None) or submission.defaults.queue,
            priority=body.priority,
        )
    return None


def _new_job(body: SubmitBody, value: bytes, submission: Submission, checker: Checker) -> NewJob:
    task = body.task
    # The checks of the common case, without a call each.
    if not (0 < len(task) <= NAME_CHARACTERS and task.isprintable()):
        checker.name("task", task)
    elif task.startswith("@"):
        checker.wrong("task", "bad_name", "must not start with '@'")
    if body.type not in TYPES:
        checker.wrong("type", "not_allowed", f"must be one of {', '.join(TYPES)}")
    queue = body.queue
    if queue is None:
        known = submission.tasks.get(handler_name(body.type, task))
        queue = (known.queue if known is not None else None) or submission.defaults.queue
    else:
        checker.queue("queue", queue)
    now_ms = submission.now_ms
    if body.run_at is None and body.delay is None and body.expires_at is None and body.expires_in is None:
        run_at_ms = delay_ms = expires_at_ms = expires_in_ms = None
    else:
        run_at_ms = checker.future("run_at", body.run_at)
        delay_ms = checker.duration("delay", body.delay)
        expires_at_ms = checker.future("expires_at", body.expires_at)
        expires_in_ms = checker.duration("expires_in", body.expires_in, low_ms=1)
        checker.one_of_pair("run_at", body.run_at, "delay", body.delay)
        checker.one_of_pair("expires_at", body.expires_at, "expires_in", body.expires_in)
        _check_order(run_at_ms, delay_ms, expires_at_ms, expires_in_ms, checker)
    return NewJob(
        id=submission.next_id(now_ms),
        task=task,
        input=value,
        type=body.type,
        queue=queue,
        priority=body.priority,
        options=_options(body, submission.traceparent, checker),
        run_at_ms=run_at_ms,
        delay_ms=delay_ms,
        expires_at_ms=expires_at_ms,
        expires_in_ms=expires_in_ms,
        retention_ms=None if body.retention is None else checker.duration("retention", body.retention),
    )


def _alone(job: NewJob, body: SubmitBody, checker: Checker) -> NewJob:
    """Return the job with its unique key, whose home it takes: so one script does both."""
    checker.one_of_pair("unique_key", body.unique_key, "unique", body.unique)
    if body.unique_key is not None:
        checker.key("unique_key", body.unique_key)
    given = body.unique if body.unique is not None else UniqueBody(key=body.unique_key or "")
    if body.unique is not None:
        checker.key("unique.key", given.key)
    for_ms = checker.duration("unique.for", given.for_, low_ms=1, high_ms=LONGEST_UNIQUE_MS)
    if checker.errors:
        # A text that cannot be encoded is among them.
        return job
    digest = digest_of(given.key)
    until = HeldUntil.FINISHED if given.until is None and for_ms is None else given.until
    return msgspec.structs.replace(
        job,
        id=at_home(job.id, home_of_digest(digest)),
        options=msgspec.structs.replace(job.options, unique_key=given.key),
        unique=Unique(key=digest, until=until, for_ms=for_ms, on_conflict=given.on_conflict),
    )


def _once(job: NewJob, text: bytes, key: str | None, submission: Submission, checker: Checker) -> NewJob:
    """Return the job with its idempotency key, whose home it takes unless a unique key has given it one."""
    header, field = submission.idempotency, "Idempotency-Key"
    keep_ms = None
    if header is not None:
        if key is not None and key != header.key:
            checker.wrong("idempotency_key", "conflict", "differs from the header 'Idempotency-Key': send one")
        key, keep_ms = header.key, header.keep_ms
    else:
        field = "idempotency_key"
    assert key is not None
    checker.key(field, key)
    if checker.errors:
        # A text that cannot be encoded is among them.
        return job
    most_ms = submission.limits.idempotency_ms
    digest = digest_of(key)
    once = Idempotency(
        key=digest,
        fingerprint=hashlib.blake2b(text, digest_size=16).hexdigest(),
        keep_ms=most_ms if keep_ms is None else min(keep_ms, most_ms),
    )
    home = home_of(job.id) if job.unique is not None else home_of_digest(digest)
    return msgspec.structs.replace(job, id=at_home(job.id, home), idempotency=once)


def _check_order(
    run_at_ms: int | None, delay_ms: int | None, expires_at_ms: int | None, expires_in_ms: int | None, checker: Checker
) -> None:
    """Refuse a job that would expire before it may start."""
    start_ms = run_at_ms if run_at_ms is not None else checker.now_ms + (delay_ms or 0)
    end_ms = expires_at_ms if expires_at_ms is not None else checker.now_ms + (expires_in_ms or 0)
    field = "expires_at" if expires_at_ms is not None else "expires_in"
    has_end = expires_at_ms is not None or expires_in_ms is not None
    if has_end and (run_at_ms is not None or delay_ms) and end_ms <= start_ms:
        checker.wrong(field, "conflict", "lies before the job may start, so it would never run")


def _options(body: SubmitBody, traceparent: str | None, checker: Checker) -> JobOptions:
    if (
        body.max_attempts is None
        and body.backoff is None
        and body.timeout is None
        and not body.tags
        and not body.metadata
        and traceparent is None
    ):
        return NO_OPTIONS
    if body.max_attempts is not None:
        checker.number("max_attempts", body.max_attempts, 1, MAX_ATTEMPTS)
    checker.items("tags", body.tags, TAGS)
    for index, tag in enumerate(body.tags[:TAGS]):
        checker.name(f"tags.{index}", tag)
    if body.metadata and len(msgspec.json.encode(body.metadata)) > METADATA_BYTES:
        checker.wrong("metadata", "too_large", f"has more than {METADATA_BYTES} bytes")
    return JobOptions(
        max_attempts=body.max_attempts,
        backoff=_backoff(body.backoff, checker),
        timeout_ms=checker.duration("timeout", body.timeout, low_ms=1, high_ms=LONGEST_TIMEOUT_MS),
        tags=body.tags,
        metadata=body.metadata,
        traceparent=traceparent,
    )


def _backoff(value: float | str | BackoffBody | None, checker: Checker) -> Backoff | None:
    if value is None:
        return None
    if not isinstance(value, BackoffBody):
        base_ms = checker.duration("backoff", value, high_ms=DAY_MS)
        return Backoff() if base_ms is None else Backoff(base_ms=base_ms, max_ms=max(base_ms, Backoff().max_ms))
    base_ms = checker.duration("backoff.base", value.base, high_ms=DAY_MS)
    max_ms = checker.duration("backoff.max", value.max, high_ms=30 * DAY_MS)
    checker.number("backoff.factor", value.factor, 1, 1_000)
    if base_ms is None or (max_ms is None and value.max is not None):
        return None
    highest_ms = max(base_ms, Backoff().max_ms) if max_ms is None else max_ms
    # A base that is no duration is told as that; its default is nothing to compare with.
    if highest_ms < base_ms and all(error.field != "backoff.base" for error in checker.errors):
        checker.wrong("backoff.max", "conflict", "is less than 'backoff.base'")
    return Backoff(base_ms=base_ms, factor=value.factor, max_ms=highest_ms, jitter=value.jitter)
