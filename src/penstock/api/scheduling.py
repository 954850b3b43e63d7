"""Turn the body of a PUT of a schedule into a schedule; says everything that is wrong with it at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, field

from penstock.api.fields import Checker
from penstock.api.job_bodies import JobFields, SubmitBody
from penstock.api.problems import ApiError, field_error, invalid
from penstock.api.strict import BodyDecoder, check_nesting
from penstock.api.submission import Submission, new_job
from penstock.core.cron import Timing, check_cron, check_timezone
from penstock.core.errors import FieldError
from penstock.core.limits import RUN_AT_HORIZON_MS, SCHEDULE_INPUT_BYTES, SHORTEST_INTERVAL_MS
from penstock.core.schedule import Missed, Overlap, Schedule, ScheduledJob, first_tick, name_problem


class ScheduledJobBody(JobFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe the job that each tick submits, in the words of a submit."""

    input: Annotated[msgspec.Raw, Meta(description="Any JSON value, kept byte for byte; at most 64 KiB.")] = field(
        default_factory=msgspec.Raw
    )
    queue: Annotated[
        str | None,
        Meta(description="Where the jobs wait. Default: what the task says when the schedule is put, else `default`."),
    ] = None
    expires_in: Annotated[
        float | str | None,
        Meta(description="Give up when the job has not started so long after the tick's planned time."),
    ] = None


class ScheduleBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe a schedule: when it ticks, by `cron` or `every`, and the `job` that each tick submits."""

    job: Annotated[
        msgspec.Raw,
        Meta(
            description="What each tick submits.",
            extra_json_schema={"$ref": "#/components/schemas/ScheduledJobBody"},
        ),
    ]
    cron: Annotated[
        str | None,
        Meta(description="Minute, hour, day of month, month, day of week, as in `*/5 * * * *`; or `@daily` and such."),
    ] = None
    timezone: Annotated[
        str | None, Meta(description="Zone of `cron`, by its IANA name, such as `Europe/Berlin`. Default: `UTC`.")
    ] = None
    every: Annotated[float | str | None, Meta(description="An interval of a second or more, in place of `cron`.")] = (
        None
    )
    start_at: Annotated[
        str | None,
        Meta(
            description="First tick of `every`, RFC 3339; from one in the past the phase is kept. Default: one later."
        ),
    ] = None
    missed: Annotated[
        Missed,
        Meta(description="What becomes of ticks that were missed: none runs, the newest does, or the newest 1,000 do."),
    ] = Missed.LATEST
    overlap: Annotated[
        Overlap, Meta(description="`skip` skips a tick while the job of the one before is not final.")
    ] = Overlap.ALLOW


_JOB_FIELDS = ScheduledJobBody.__struct_fields__
_HINTS: Mapping[str, str] = {
    **{name: f"'job.{name}'" for name in _JOB_FIELDS},
    **dict.fromkeys(("crontab", "schedule", "expression"), "'cron'"),
    **dict.fromkeys(("interval", "seconds", "period"), "'every'"),
    **dict.fromkeys(("tz", "time_zone", "zone"), "'timezone'"),
    **dict.fromkeys(("catchup", "catch_up", "misfire"), "'missed'"),
    "concurrency_policy": "'overlap'",
    "start": "'start_at'",
}
_JOB_HINTS: Mapping[str, str] = {
    **dict.fromkeys(("args", "kwargs", "payload", "data", "params", "body"), "'input'"),
    **dict.fromkeys(("max_retries", "retries"), "'max_attempts', which counts the first try too"),
    **dict.fromkeys(("ttl", "expires_at"), "'expires_in'"),
    **dict.fromkeys(("run_at", "delay", "eta", "countdown"), "the schedule's 'cron' or 'every'"),
    **dict.fromkeys(("unique_key", "unique"), "the schedule's 'overlap'"),
    "result_ttl": "'retention'",
    "name": "'task'",
}


class ScheduleParser:
    """Parse schedules; one object serves all requests."""

    def __init__(self) -> None:
        self._decoder = BodyDecoder(ScheduleBody, hints=_HINTS)
        self._job_decoder = BodyDecoder(ScheduledJobBody, hints=_JOB_HINTS)

    def parse(self, name: str, text: bytes, submission: Submission) -> Schedule:
        """Return the schedule of that name that a JSON text describes.

        Raises:
            ApiError: everything that is wrong with it.
        """
        check_nesting(text)
        body, errors = self._decoder.decode(text)
        checker = Checker(submission.now_ms, errors)
        problem = name_problem(name)
        if problem is not None:
            checker.wrong("name", "bad_name", problem)
        timing = _timing(body, checker)
        has_job = not any(error.field == "job" for error in errors)
        job = self._job(body.job, submission, checker) if has_job else None
        if errors or job is None:
            raise invalid(*errors)
        return Schedule(name=name, timing=timing, job=job, missed=body.missed, overlap=body.overlap)

    def _job(self, text: msgspec.Raw, submission: Submission, checker: Checker) -> ScheduledJob | None:
        """Return the job, and note what is wrong with it under ``job``."""
        try:
            body, errors = self._job_decoder.decode(text)
        except ApiError as error:
            checker.errors.extend(_below_job(error.errors))
            return None
        inner = Checker(checker.now_ms, errors)
        value = bytes(body.input) or b"null"
        if len(value) > SCHEDULE_INPUT_BYTES:
            inner.wrong("input", "too_large", f"has {len(value)} bytes; a schedule's job takes {SCHEDULE_INPUT_BYTES}")
        fields = {name: getattr(body, name) for name in _JOB_FIELDS}
        new = new_job(SubmitBody(**fields), submission, inner)
        checker.errors.extend(_below_job(inner.errors))
        return ScheduledJob(
            task=new.task,
            input=msgspec.Raw(new.input),
            type=new.type,
            queue=new.queue,
            priority=new.priority,
            options=new.options,
            expires_in_ms=new.expires_in_ms,
            retention_ms=new.retention_ms,
        )


def _below_job(errors: tuple[FieldError, ...] | list[FieldError]) -> list[FieldError]:
    return [field_error(f"job.{error.field}".rstrip("."), error.code, error.detail) for error in errors]


def _timing(body: ScheduleBody, checker: Checker) -> Timing:
    wrong_before = len(checker.errors)
    checker.one_of_pair("cron", body.cron, "every", body.every)
    if body.cron is None and body.every is None and not wrong_before:
        checker.wrong("cron", "required", "is missing: say when, with 'cron' or 'every'")
    for name in ("timezone",) if body.cron is None else ("start_at",):
        if getattr(body, name) is not None:
            belongs_to = "cron" if name == "timezone" else "every"
            checker.wrong(name, "conflict", f"belongs to '{belongs_to}', which is not there")
    every_ms = checker.duration("every", body.every, low_ms=SHORTEST_INTERVAL_MS)
    start_at_ms = checker.time("start_at", body.start_at)
    if start_at_ms is not None and start_at_ms > checker.now_ms + RUN_AT_HORIZON_MS:
        checker.wrong("start_at", "out_of_range", "lies more than ten years ahead")
    cron, timezone = body.cron, body.timezone or "UTC"
    try:
        cron = None if cron is None else check_cron(cron)
    except ValueError as error:
        checker.wrong("cron", "bad_cron", f"{error}")
    try:
        timezone = check_timezone(timezone)
    except ValueError as error:
        checker.wrong("timezone", "bad_timezone", f"{error}")
    timing = Timing(cron=cron, timezone=timezone, every_ms=every_ms, start_at_ms=start_at_ms)
    if cron is not None and len(checker.errors) == wrong_before and first_tick(timing, checker.now_ms) is None:
        checker.wrong("cron", "bad_cron", "names a day that never comes")
    return timing
