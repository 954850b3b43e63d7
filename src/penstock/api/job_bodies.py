"""Describe the bodies in which jobs come: one to submit, and that of a schedule, which share most fields."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, field

from penstock.core.job import HeldUntil, OnConflict
from penstock.core.states import Priority


class BackoffBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Grow the wait before each retry by `factor` from `base` to at most `max`; `jitter` draws from zero to that."""

    base: float | str = 1.0
    factor: float = 2.0
    max: float | str | None = None
    jitter: bool = True


class UniqueBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Let no second job of this `key` in while the first holds it.

    Held `until` the job has `started` or `finished`, or `for` a time from the submit on, or to the later of both.
    """

    key: Annotated[str, Meta(description="1 to 255 characters; one key is one in the whole deployment.")]
    until: Annotated[
        HeldUntil | None, Meta(description="`started` or `finished`. Default: `finished`, and nothing beside `for`.")
    ] = None
    for_: Annotated[
        float | str | None, Meta(description="A duration from the submit on, whatever the job does; at most a year.")
    ] = field(default=None, name="for")
    on_conflict: Annotated[
        OnConflict,
        Meta(
            description="What a submit gets while another job holds the key: `reject` a 409, `return_existing` that "
            "job, `replace` cancels it where it still waits (409 where not)."
        ),
    ] = OnConflict.REJECT


class JobFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold what a submit and the job of a schedule say in the same words."""

    task: Annotated[str, Meta(description="Name of what runs. At most 128 characters; must not start with `@`.")]
    # A factory, because the framework's documentation cannot hash a Raw as default.
    input: Annotated[msgspec.Raw, Meta(description="Any JSON value, kept byte for byte; at most 1 MiB.")] = field(
        default_factory=msgspec.Raw
    )
    type: Annotated[str, Meta(description="Family of task: `task` or `ai`.")] = "task"
    queue: Annotated[
        str | None, Meta(description="Where the job waits. Default: what the task says, else `default`.")
    ] = None
    priority: Annotated[
        Priority, Meta(description="`critical` jobs go first; `high`, `normal` and `low` share the workers 16 : 4 : 1.")
    ] = Priority.NORMAL
    max_attempts: Annotated[int | None, Meta(description="1 to 1,000 tries, the first included. Default 3.")] = None
    backoff: Annotated[
        float | str | BackoffBody | None,
        Meta(description="Wait before a retry: the base as a duration, or all of it as an object."),
    ] = None
    timeout: Annotated[float | str | None, Meta(description="How long one attempt may run. Default: no limit.")] = None
    expires_in: Annotated[
        float | str | None, Meta(description="Give up when the job has not started after this duration.")
    ] = None
    tags: Annotated[tuple[str, ...], Meta(description="Up to 32 names to find the job by.")] = ()
    metadata: Annotated[dict[str, Any], Meta(description="An object of yours, at most 16 KiB, kept with the job.")] = {}
    retention: Annotated[
        float | str | None,
        Meta(description="How long the job is kept once final. Default: 24 h; failed 30 days."),
    ] = None


class SubmitBody(JobFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe one job to submit."""

    run_at: Annotated[
        str | None, Meta(description="Do not start before this RFC 3339 time: at most ten years ahead.")
    ] = None
    delay: Annotated[float | str | None, Meta(description="Do not start before this duration has passed.")] = None
    expires_at: Annotated[
        str | None, Meta(description="Give up when the job has not started by this RFC 3339 time.")
    ] = None
    unique_key: Annotated[
        str | None,
        Meta(description="No second job of this key until this one is final: `unique` with its defaults."),
    ] = None
    unique: Annotated[
        UniqueBody | None, Meta(description="A unique key, how long it is held, and what a second job gets.")
    ] = None
    idempotency_key: Annotated[
        str | None,
        Meta(description="What the header `Idempotency-Key` says, for one item of a batch. At most 255 characters."),
    ] = None
