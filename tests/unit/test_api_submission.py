"""Turn bodies of submits into jobs, and name all that is wrong with one."""

from __future__ import annotations

import json
import os
from typing import Any

import msgspec
import pytest

from penstock.api.problems import FIELD_CODES, ApiError
from penstock.api.submission import Submission, SubmissionParser, traceparent_of
from penstock.core.durations import format_time
from penstock.core.ids import IdMaker, created_ms, digest_of, home_of, home_of_digest, parse_job_id
from penstock.core.job import HeldUntil, JobOptions, NewJob, OnConflict, TaskInfo, Unique
from penstock.core.limits import RUN_AT_HORIZON_MS, Limits, TaskDefaults
from penstock.core.retry import Backoff
from penstock.core.states import Priority

NOW_MS = 1_800_000_000_000
LATER = format_time(NOW_MS + 9_000)


def parse(text: bytes, **changes: Any) -> NewJob:
    fields: dict[str, Any] = {
        "now_ms": NOW_MS,
        "limits": Limits(),
        "defaults": TaskDefaults(),
        "tasks": {},
        "next_id": IdMaker(os.urandom),
        **changes,
    }
    return SubmissionParser().parse(text, Submission(**fields))


def job(**body: Any) -> NewJob:
    return parse(json.dumps({"task": "echo", **body}).encode())


def wrong(text: bytes) -> list[tuple[str, str]]:
    with pytest.raises(ApiError) as raised:
        parse(text)
    assert raised.value.kind.status == 422
    assert all(error.code in FIELD_CODES for error in raised.value.errors)
    return [(error.field, error.code) for error in raised.value.errors]


def wrong_fields(**body: Any) -> list[tuple[str, str]]:
    return wrong(json.dumps({"task": "echo", **body}).encode())


def test_the_least() -> None:
    made = job()
    assert (made.task, made.type, made.queue, made.priority) == ("echo", "task", "default", Priority.NORMAL)
    assert made.input == b"null"
    assert made.options == JobOptions()
    assert parse_job_id(made.id) == made.id
    assert created_ms(made.id) == NOW_MS


def test_everything() -> None:
    made = job(
        input={"a": [1]},
        type="ai",
        queue="q",
        priority="critical",
        run_at=format_time(NOW_MS + 5_000),
        max_attempts=1_000,
        backoff={"base": "2s", "factor": 3, "max": 60, "jitter": False},
        timeout="PT15M",
        expires_in="2h",
        tags=["x", "y"],
        metadata={"big": 123456789012345678901234567890},
        retention=0,
    )
    assert made.input == b'{"a": [1]}'
    assert (made.run_at_ms, made.delay_ms) == (NOW_MS + 5_000, None)
    assert (made.expires_at_ms, made.expires_in_ms) == (None, 7_200_000)
    assert made.retention_ms == 0
    assert made.options == JobOptions(
        max_attempts=1_000,
        backoff=Backoff(base_ms=2_000, factor=3, max_ms=60_000, jitter=False),
        timeout_ms=900_000,
        tags=("x", "y"),
        metadata={"big": 123456789012345678901234567890},
    )


@pytest.mark.parametrize(("given", "base_ms", "max_ms"), [(5, 5_000, 300_000), ("10m", 600_000, 600_000)])
def test_backoff_as_a_duration(given: Any, base_ms: int, max_ms: int) -> None:
    assert job(backoff=given).options.backoff == Backoff(base_ms=base_ms, max_ms=max_ms)


def test_the_queue_comes_from_the_task() -> None:
    tasks = {"echo": TaskInfo(name="echo", queue="own"), "@ai": TaskInfo(name="@ai", queue="models")}
    assert parse(b'{"task": "echo"}', tasks=tasks).queue == "own"
    assert parse(b'{"task": "echo", "type": "ai"}', tasks=tasks).queue == "models"
    assert parse(b'{"task": "echo", "queue": "said"}', tasks=tasks).queue == "said"
    assert parse(b'{"task": "other"}', tasks=tasks, defaults=TaskDefaults(queue="rest")).queue == "rest"


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ({"task": ""}, [("task", "empty")]),
        ({"task": 7}, [("task", "wrong_type")]),
        ({"task": None}, [("task", "wrong_type")]),
        ({"task": "x" * 129}, [("task", "too_long")]),
        ({"task": "a\nb"}, [("task", "bad_name")]),
        ({"task": "a\u0000"}, [("task", "bad_name")]),
        ({"task": "a\u2028"}, [("task", "bad_name")]),
        ({"task": "@ai"}, [("task", "bad_name")]),
        ({"queue": "a\tb"}, [("queue", "bad_name")]),
        ({"queue": "x" * 129}, [("queue", "too_long")]),
        ({"queue": "a/b"}, [("queue", "bad_name")]),
        ({"queue": ".."}, [("queue", "bad_name")]),
        ({"type": "taks"}, [("type", "not_allowed")]),
        ({"priority": "urgent"}, [("priority", "not_allowed")]),
        ({"priority": 1}, [("priority", "wrong_type")]),
        ({"max_attempts": 0}, [("max_attempts", "out_of_range")]),
        ({"max_attempts": -1}, [("max_attempts", "out_of_range")]),
        ({"max_attempts": 1_001}, [("max_attempts", "out_of_range")]),
        ({"max_attempts": 1.5}, [("max_attempts", "wrong_type")]),
        ({"max_attempts": True}, [("max_attempts", "wrong_type")]),
        ({"max_attempts": 10**30}, [("max_attempts", "out_of_range")]),
        ({"delay": -1}, [("delay", "out_of_range")]),
        ({"delay": "soon"}, [("delay", "bad_duration")]),
        ({"delay": True}, [("delay", "wrong_type")]),
        ({"delay": 1e15}, [("delay", "out_of_range")]),
        ({"timeout": 0}, [("timeout", "out_of_range")]),
        ({"timeout": "40d"}, [("timeout", "out_of_range")]),
        ({"retention": -1}, [("retention", "out_of_range")]),
        ({"run_at": "2001-01-01T00:00:00Z"}, [("run_at", "in_past")]),
        ({"run_at": "9999-12-31T23:59:59Z"}, [("run_at", "out_of_range")]),
        ({"run_at": "9999-12-31T23:59:59-23:00"}, [("run_at", "out_of_range")]),
        ({"run_at": "2030-01-01T00:00:00"}, [("run_at", "bad_time")]),
        ({"run_at": "2030-02-30T00:00:00Z"}, [("run_at", "bad_time")]),
        ({"run_at": 1_900_000_000}, [("run_at", "wrong_type")]),
        ({"expires_at": "2001-01-01T00:00:00Z"}, [("expires_at", "in_past")]),
        ({"expires_in": 0}, [("expires_in", "out_of_range")]),
        ({"run_at": format_time(NOW_MS + 1_000), "delay": 1}, [("delay", "conflict")]),
        ({"expires_at": format_time(NOW_MS + 1_000), "expires_in": 1}, [("expires_in", "conflict")]),
        ({"delay": 10, "expires_in": 5}, [("expires_in", "conflict")]),
        ({"run_at": LATER, "expires_at": LATER}, [("expires_at", "conflict")]),
        ({"backoff": {"bases": 1}}, [("backoff.bases", "unknown_field")]),
        ({"backoff": {"base": 10, "max": 5}}, [("backoff.max", "conflict")]),
        ({"backoff": {"factor": 0.5}}, [("backoff.factor", "out_of_range")]),
        ({"backoff": "x"}, [("backoff", "bad_duration")]),
        ({"backoff": []}, [("backoff", "wrong_type")]),
        ({"tags": "a"}, [("tags", "wrong_type")]),
        ({"tags": ["a", 1]}, [("tags.1", "wrong_type")]),
        ({"tags": [1, "", None]}, [("tags.0", "wrong_type"), ("tags.2", "wrong_type"), ("tags.1", "empty")]),
        ({"tags": [[]] * 1_000}, [*((f"tags.{index}", "wrong_type") for index in range(100)), ("tags", "too_long")]),
        ({"tags": ["ok", "x" * 129]}, [("tags.1", "too_long")]),
        ({"tags": ["a"] * 33}, [("tags", "too_long")]),
        ({"metadata": []}, [("metadata", "wrong_type")]),
        ({"metadata": {"x": "y" * 17_000}}, [("metadata", "too_large")]),
    ],
)
def test_wrong_values(body: dict[str, Any], errors: list[tuple[str, str]]) -> None:
    assert wrong_fields(**body) == errors


def test_a_list_that_is_no_utf8_behind_its_first_wrong_item() -> None:
    assert wrong(b'{"task": "echo", "tags": [1, "\xff"]}') == [("tags.0", "wrong_type")]


def test_all_wrong_fields_at_once() -> None:
    found = wrong_fields(task="", queue="\n", max_attempts=0, delay="x", tags=[1], surprise=1, priority="urgent")
    assert {field for field, _ in found} == {
        "task",
        "queue",
        "max_attempts",
        "delay",
        "tags.0",
        "surprise",
        "priority",
    }


@pytest.mark.parametrize("offset_ms", [-59_999, 0, 60_000, RUN_AT_HORIZON_MS - 1])
def test_run_at_within_bounds(offset_ms: int) -> None:
    assert job(run_at=format_time(NOW_MS + offset_ms)).run_at_ms == NOW_MS + offset_ms
    assert job(run_at=format_time(NOW_MS).replace("Z", "+00:00")).run_at_ms == NOW_MS


@pytest.mark.parametrize(
    ("name", "right"),
    [
        *((name, "'input'") for name in ("args", "kwargs", "payload", "data", "params", "body")),
        ("countdown", "'delay'"),
        ("delay_seconds", "'delay'"),
        ("eta", "'run_at'"),
        ("max_retries", "'max_attempts'"),
        ("ttl", "'expires_in'"),
        ("result_ttl", "'retention'"),
        ("priorty", "'priority'"),
    ],
)
def test_unknown_fields_name_the_right_one(name: str, right: str) -> None:
    with pytest.raises(ApiError) as raised:
        job(**{name: 1})
    (error,) = raised.value.errors
    assert (error.field, error.code) == (name, "unknown_field")
    assert right in error.detail


@pytest.mark.parametrize("name", ["webhook", "depends_on"])
def test_fields_of_later_releases_are_not_ignored(name: str) -> None:
    assert wrong_fields(**{name: "x"}) == [(name, "not_supported")]


def test_a_unique_key() -> None:
    short = job(unique_key="k")
    assert short.unique == Unique(key=digest_of("k"))
    assert home_of(short.id) == home_of_digest(digest_of("k"))
    assert short.options == JobOptions(unique_key="k")
    assert job(unique={"key": "k"}).unique == short.unique
    assert job().unique is None
    timed = job(unique={"key": "k", "for": "10m", "on_conflict": "replace"}).unique
    assert timed == Unique(key=digest_of("k"), until=None, for_ms=600_000, on_conflict=OnConflict.REPLACE)
    both = job(unique={"key": "k", "until": "started", "for": 1, "on_conflict": "return_existing"}).unique
    assert both is not None
    assert (both.until, both.for_ms, both.on_conflict) == (HeldUntil.STARTED, 1_000, OnConflict.RETURN_EXISTING)


def test_a_unique_key_gives_the_home_before_an_idempotency_key() -> None:
    made = job(unique_key="k", idempotency_key="other")
    assert made.idempotency is not None
    assert home_of(made.id) == home_of_digest(digest_of("k")) != home_of_digest(made.idempotency.key)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"unique_key": ""}, {("unique_key", "empty")}),
        ({"unique_key": "k" * 256}, {("unique_key", "too_long")}),
        ({"unique_key": "a\nb"}, {("unique_key", "bad_name")}),
        ({"unique_key": 7}, {("unique_key", "wrong_type")}),
        ({"unique_key": "k", "unique": {"key": "k"}}, {("unique", "conflict")}),
        ({"unique": "k"}, {("unique", "wrong_type")}),
        ({"unique": {}}, {("unique.key", "required")}),
        ({"unique": {"key": ""}}, {("unique.key", "empty")}),
        ({"unique": {"key": "k", "for": 0}}, {("unique.for", "out_of_range")}),
        ({"unique": {"key": "k", "for": "soon"}}, {("unique.for", "bad_duration")}),
        ({"unique": {"key": "k", "for": "367d"}}, {("unique.for", "out_of_range")}),
        (
            {"unique": {"key": 1, "until": "never", "for": [], "on_conflict": "shout", "ttl": 1}},
            {
                ("unique.key", "wrong_type"),
                ("unique.until", "not_allowed"),
                ("unique.for", "wrong_type"),
                ("unique.on_conflict", "not_allowed"),
                ("unique.ttl", "unknown_field"),
            },
        ),
        (
            {"unique": {"key": "", "for": "soon", "until": "never"}},
            {("unique.key", "empty"), ("unique.for", "bad_duration"), ("unique.until", "not_allowed")},
        ),
        ({"unique": {"for": -1}}, {("unique.key", "required"), ("unique.for", "out_of_range")}),
        (
            {"unique_key": "", "unique": {"key": 1}},
            {("unique_key", "empty"), ("unique", "conflict"), ("unique.key", "wrong_type")},
        ),
        (
            {"task": "", "unique": {"key": "", "for": -1}},
            {("task", "empty"), ("unique.key", "empty"), ("unique.for", "out_of_range")},
        ),
    ],
)
def test_wrong_unique_keys_name_every_member(fields: dict[str, Any], expected: set[tuple[str, str]]) -> None:
    assert set(wrong_fields(**fields)) == expected


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"priority": "urgent"}, "critical, high, normal, low"),
        ({"unique": {"key": "k", "until": "now"}}, "started, finished"),
        ({"unique": {"key": "k", "on_conflict": "wait"}}, "reject, return_existing, replace"),
        ({"unique": {"key": "k", "for": "400d"}}, "at most 31622400 s"),
        ({"timeout": "40d"}, "at most 2592000 s"),
    ],
)
def test_what_would_be_right_is_said(body: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError) as raised:
        job(**body)
    assert words in raised.value.errors[0].detail


def test_wrong_members_of_a_backoff_are_all_named() -> None:
    assert set(wrong_fields(backoff={"base": [], "jitter": 1, "most": 3})) == {
        ("backoff.base", "wrong_type"),
        ("backoff.jitter", "wrong_type"),
        ("backoff.most", "unknown_field"),
    }
    # Wrong types and wrong values at once, and nothing told of what stands in for a wrong one.
    assert wrong_fields(backoff={"base": [], "factor": 0.5, "max": 0.5}, task="") == [
        ("backoff.base", "wrong_type"),
        ("task", "empty"),
        ("backoff.factor", "out_of_range"),
    ]
    assert wrong_fields(backoff={"base": "soon", "jitter": 1}) == [
        ("backoff.jitter", "wrong_type"),
        ("backoff.base", "bad_duration"),
    ]


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_has_not(word: str) -> None:
    assert wrong(b'{"task": "a", "input": {"x": [1, %s]}}' % word.encode()) == [("input.x.1", "not_finite")]
    assert wrong(b'{"task": "a", "delay": %s}' % word.encode()) == [("delay", "not_finite")]
    assert job(input=word).input == f'"{word}"'.encode()


@pytest.mark.parametrize("number", ["1e999", "-1e309", "9" * 400 + ".5", "9" * 5_000])
def test_numbers_that_no_worker_could_read(number: str) -> None:
    ((field, code),) = wrong(b'{"task": "a", "input": [%s]}' % number.encode())
    assert field.startswith("input")
    assert code == "out_of_range"


def test_nesting() -> None:
    """The body itself is the first level."""
    assert parse(b'{"task": "a", "input": ' + b"[" * 99 + b"]" * 99 + b"}").input == b"[" * 99 + b"]" * 99
    for depth in (100, 5_000, 200_000):
        assert wrong(b'{"task": "a", "input": ' + b"[" * depth + b"]" * depth + b"}") == [("input", "too_deep")]
    objects = b'{"k": ' * 100 + b"1" + b"}" * 100
    assert wrong(b'{"input": 1, "metadata": ' + objects + b', "task": "a"}') == [("metadata", "too_deep")]
    assert len(job(input=[[]] * 1_000).input) > 1_000
    assert job(input="[" * 500).input == b'"' + b"[" * 500 + b'"'


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"nope",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b'{"task": "\xff"}',
        b'{"task": "a", "input": "\xff"}',
        b'{"task": "a", "input": "\\ud800"}',
        b'{"task": "a", "input": 01}',
        b'{"task": "a"} 1',
        b'{"task": "a",}',
    ],
)
def test_not_json(text: bytes) -> None:
    with pytest.raises(ApiError) as raised:
        parse(text)
    assert raised.value.kind.code == "not_json"


@pytest.mark.parametrize("text", [b"[]", b"1", b'"task"', b"null"])
def test_not_an_object(text: bytes) -> None:
    assert wrong(text) == [("", "wrong_type")]


def test_input_size_counts_its_text_only() -> None:
    limits = Limits(payload_bytes=10)
    assert parse(b'{"task": "aaaaaaaaaaaaaaaaaaaa", "input": "12345678"}', limits=limits).input == b'"12345678"'
    with pytest.raises(ApiError) as raised:
        parse(b'{"task": "a", "input": "123456789"}', limits=limits)
    assert (raised.value.kind.status, raised.value.errors[0].field) == (413, "input")


def test_a_repeated_member_counts_as_its_last() -> None:
    assert parse(b'{"task": "a", "task": "b"}').task == "b"


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        (b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        (b"00-00000000000000000000000000000000-b7ad6b7169203331-01", False),
        (b"nonsense\xff", False),
        (None, False),
    ],
)
def test_traceparent(header: bytes | None, taken: bool) -> None:
    found = traceparent_of(header)
    assert (found is not None) is taken
    assert parse(b'{"task": "a"}', traceparent=found).options.traceparent == found


#: Each of these turns a plain body into one that is looked at in full.
BEYOND_PLAIN: dict[str, Any] = {
    "type": "ai",
    "queue": "q",
    "run_at": LATER,
    "delay": 5,
    "max_attempts": 2,
    "backoff": 2,
    "timeout": 5,
    "expires_at": LATER,
    "expires_in": 5,
    "tags": ["x"],
    "metadata": {"a": 1},
    "retention": 5,
    "unique_key": "k",
    "unique": {"key": "k"},
    "idempotency_key": "k",
}


def test_every_field_is_plain_or_looked_at_in_full() -> None:
    assert {*SubmissionParser().decoder.names} == {"task", "input", "priority", *BEYOND_PLAIN}


@pytest.mark.parametrize("name", BEYOND_PLAIN)
def test_no_field_is_lost_on_the_short_way(name: str) -> None:
    plain, full = job(), job(**{name: BEYOND_PLAIN[name]})
    assert msgspec.structs.replace(full, id=plain.id) != plain


@pytest.mark.parametrize("body", [{}, {"input": None}, {"input": {"a": [1.5, "ü"]}}, {"priority": "critical"}])
@pytest.mark.parametrize("tasks", [{}, {"echo": TaskInfo(name="echo")}, {"echo": TaskInfo(name="echo", queue="mail")}])
def test_the_short_way_leads_to_the_same_job(body: dict[str, Any], tasks: dict[str, TaskInfo]) -> None:
    text = json.dumps({"task": "echo", **body})
    # What a retention says is all that the two differ in.
    long = json.dumps({"task": "echo", **body, "retention": 5})
    short_way, long_way = (parse(one.encode(), tasks=tasks) for one in (text, long))
    assert short_way == msgspec.structs.replace(long_way, id=short_way.id, retention_ms=None)


@pytest.mark.parametrize("task", ["", "a\nb", "x" * 129, "@task"])
def test_a_bad_name_is_named_on_the_short_way_too(task: str) -> None:
    assert wrong_fields(task=task) == wrong_fields(task=task, retention=5)
