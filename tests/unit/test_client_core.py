"""Check what the client sends, how it reads answers, and when it tries again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import penstock
import penstock.client
from penstock.client import (
    ApiError,
    AsyncClient,
    Client,
    ConnectionFailed,
    Job,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFinished,
    JobNotFound,
    NotAllowed,
    NotFound,
    PenstockClientError,
    RequestRejected,
    ServerUnavailable,
    StateConflict,
    UnexpectedAnswer,
    UniqueConflict,
    WaitTimeout,
)
from penstock.client.core import Answer, Call, ClientCore, Flow, NoAnswer, Pause, chunks
from penstock.client.transport import no_answer_of, transport_options

URL = "http://penstock.test:5000"
JOB_ID = "01a20ab1-68ea-7033-afc6-5f4dab454df9"


def drive(flow: Flow[Any], *answers: Answer | NoAnswer) -> tuple[list[Call | Pause], Any]:
    """Run a flow on prepared answers; return its steps and its result or error."""
    left = list(answers)
    steps: list[Call | Pause] = []
    answer: Answer | NoAnswer | None = None
    while True:
        try:
            step = flow.send(answer)
        except StopIteration as stop:
            assert not left, "not all answers were asked for"
            return steps, stop.value
        except PenstockClientError as error:
            assert not left, "not all answers were asked for"
            return steps, error
        steps.append(step)
        answer = left.pop(0) if isinstance(step, Call) else None


def core(**options: Any) -> ClientCore:
    defaults: dict[str, Any] = {"url": URL, "draw": lambda: 1.0, "random_key": lambda: "random"}
    return ClientCore(**(defaults | options))


def ok(value: Any, status: int = 200) -> Answer:
    return Answer(status=status, body=json.dumps(value).encode())


def problem(status: int, code: str, retry_after: str | None = None, **extra: Any) -> Answer:
    body = {"type": f"urn:penstock:problem:{code}", "status": status, "code": code, "detail": "why", **extra}
    return Answer(status=status, body=json.dumps(body).encode(), retry_after=retry_after)


REFUSED = NoAnswer(detail="connection refused", sent=False)
LOST = NoAnswer(detail="server disconnected", sent=True)


def test_submit_sends_one_request_and_reads_the_job() -> None:
    steps, job = drive(
        core().submit("resize", {"width": 3}, {"priority": "high"}),
        ok({"id": JOB_ID, "status": "queued", "created_at": "2030-01-31T12:00:00.000Z", "new_field": 1}, 202),
    )
    assert steps == [
        Call(
            method="POST",
            path="/submit",
            body=b'{"task":"resize","input":{"width":3},"priority":"high"}',
            headers=(("idempotency-key", '"random";for=600'),),
        )
    ]
    assert isinstance(job, Job)
    assert (job.id, job.status, job.is_final) == (JOB_ID, "queued", False)
    assert job.created_at is not None
    assert job.created_at.utcoffset() is not None


def test_submit_is_repeated_under_one_key_when_it_may_have_happened() -> None:
    steps, job = drive(core().submit("echo"), REFUSED, REFUSED, ok({"id": JOB_ID, "status": "queued"}))
    assert [type(step) for step in steps] == [Call, Pause, Call, Pause, Call]
    assert isinstance(job, Job)

    replayed = dataclasses.replace(ok({"id": JOB_ID, "status": "queued"}), replayed=True)
    steps, job = drive(core().submit("echo"), LOST, problem(503, "store_unavailable", "1"), LOST, replayed)
    calls = [step for step in steps if isinstance(step, Call)]
    assert len(calls) == 4
    assert len(set(calls)) == 1
    assert isinstance(job, Job)
    assert job.replayed

    steps, error = drive(core(retries=1).submit("echo"), LOST, LOST)
    assert isinstance(error, ConnectionFailed)
    assert error.sent

    steps, error = drive(core().submit("echo"), problem(503, "store_full", "1"))
    assert isinstance(error, ServerUnavailable)
    assert error.retry_after == 1
    assert len(steps) == 1


def test_a_key_of_ones_own_is_the_header() -> None:
    steps, _ = drive(
        core().submit("echo", None, {"idempotency_key": "order 4711"}), ok({"id": JOB_ID, "status": "queued"})
    )
    (call,) = steps
    assert isinstance(call, Call)
    assert call.headers == (("idempotency-key", '"order 4711"'),)
    assert call.body == b'{"task":"echo","input":null}'
    for key in ("ü", 'a"b', "line\n"):
        with pytest.raises(ValueError, match="idempotency_key"):
            drive(core().submit("echo", None, {"idempotency_key": key}))


def test_a_get_is_repeated_after_the_time_that_the_server_asks_for() -> None:
    steps, job = drive(
        core().get(JOB_ID),
        LOST,
        problem(503, "store_unavailable", "7"),
        problem(429, "too_many", "1000"),
        ok({"id": JOB_ID, "status": "running"}),
    )
    assert [step.seconds for step in steps if isinstance(step, Pause)] == [0.1, 7.0, 60.0]
    assert isinstance(job, Job)


def test_retries_end() -> None:
    steps, error = drive(core(retries=2).get(JOB_ID), REFUSED, REFUSED, REFUSED)
    assert isinstance(error, ConnectionFailed)
    assert not error.sent
    assert str(error) == f"cannot reach {URL}: connection refused"
    assert len([step for step in steps if isinstance(step, Call)]) == 3
    _, error = drive(core(retries=0).get(JOB_ID), problem(503, "stopping", "2"))
    assert isinstance(error, ServerUnavailable)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "not_json", RequestRejected),
        (401, "unauthorized", NotAllowed),
        (403, "foreign_origin", NotAllowed),
        (405, "method_not_allowed", ApiError),
        (409, "state_conflict", StateConflict),
        (409, "unique_conflict", UniqueConflict),
        (413, "body_too_large", RequestRejected),
        (415, "unsupported_media_type", RequestRejected),
        (422, "invalid_request", RequestRejected),
        (429, "too_many", ServerUnavailable),
        (500, "internal_error", ApiError),
        (503, "store_full", ServerUnavailable),
    ],
)
def test_each_status_has_its_error(status: int, code: str, kind: type[ApiError]) -> None:
    errors = [{"field": "input.width", "code": "wrong_type", "detail": "must be a number"}]
    _, error = drive(core().submit("x"), problem(status, code, errors=errors, request_id="abc"))
    assert type(error) is kind
    assert isinstance(error, ApiError)
    assert (error.status, error.code, error.detail, error.request_id) == (status, code, "why", "abc")
    assert [item.field for item in error.errors] == ["input.width"]
    assert str(error) == "input.width: must be a number"


def test_404_of_a_job_is_its_own_error() -> None:
    _, error = drive(core().get(JOB_ID), problem(404, "job_not_found"))
    assert isinstance(error, JobNotFound)
    _, error = drive(core().queues(), problem(404, "route_not_found"))
    assert type(error) is NotFound


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"text"', b'{"errors": 3, "status": "x"}', b"\xff"])
def test_an_error_that_is_no_problem_document_is_still_typed(body: bytes) -> None:
    _, error = drive(core().submit("x"), Answer(status=502, body=body))
    assert isinstance(error, ApiError)
    assert (error.status, error.code) == (502, "http_502")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"id": 3, "status": "x"}'])
def test_a_good_answer_of_another_program_is_named(body: bytes) -> None:
    _, error = drive(core().get(JOB_ID), Answer(status=200, body=body))
    assert isinstance(error, UnexpectedAnswer)


def test_wait_polls_until_the_job_is_final() -> None:
    now = 100.0

    def clock() -> float:
        return now

    flow = core(clock=clock).wait(JOB_ID, timeout=70)
    waits = []
    step = next(flow)
    for _ in range(2):
        assert isinstance(step, Call)
        waits.append(dict(step.params)["wait"])
        assert step.timeout_seconds > float(waits[-1])
        now += float(waits[-1])
        step = flow.send(ok({"id": JOB_ID, "status": "running"}))
    assert isinstance(step, Call)
    waits.append(dict(step.params)["wait"])
    with pytest.raises(StopIteration) as stop:
        flow.send(ok({"id": JOB_ID, "status": "completed", "result": [1, {"a": None}]}))
    assert waits == ["30", "30", "10"]
    assert stop.value.value.result_or_raise() == [1, {"a": None}]


def test_wait_ends_in_time_with_how_the_job_stood() -> None:
    now = 0.0
    flow = core(clock=lambda: now).wait(JOB_ID, timeout=0.25)
    step = next(flow)
    assert isinstance(step, Call)
    assert step.params == (("wait", "0.25"),)
    now = 0.25
    with pytest.raises(WaitTimeout, match=r"still retrying after 0\.25 s") as error:
        flow.send(ok({"id": JOB_ID, "status": "retrying"}))
    assert error.value.job.status == "retrying"
    assert isinstance(error.value, TimeoutError)


def test_wait_does_not_ask_in_a_tight_loop_when_the_server_answers_early() -> None:
    flow = core(clock=lambda: 5.0).wait(JOB_ID)
    next(flow)
    assert isinstance(flow.send(ok({"id": JOB_ID, "status": "queued"})), Pause)


def test_ids_are_quoted_in_paths() -> None:
    steps, _ = drive(core().get("../queues?x=1"), ok({"id": JOB_ID, "status": "queued"}))
    assert isinstance(steps[0], Call)
    assert steps[0].path == "/jobs/..%2Fqueues%3Fx%3D1"


def test_verbs_and_paths() -> None:
    job = ok({"id": JOB_ID, "status": "cancelled"})
    flows: list[tuple[Flow[Any], Answer, str, str, bytes | None]] = [
        (core().cancel(JOB_ID), job, "POST", f"/jobs/{JOB_ID}/cancel", None),
        (core().retry(JOB_ID), job, "POST", f"/jobs/{JOB_ID}/retry", None),
        (core().delete(JOB_ID), Answer(status=204, body=b""), "DELETE", f"/jobs/{JOB_ID}", None),
        (core().pause("a b"), ok({"name": "a b", "paused": True}), "POST", "/queues/a%20b/pause", None),
        (core().resume("mail"), ok({"name": "mail"}), "POST", "/queues/mail/resume", None),
        (core().purge("mail"), ok({"queue": "mail", "purged": 2, "more": False}), "POST", "/queues/mail/purge", None),
        (core().queues(), ok({"items": [{"name": "default", "depth": {"high": 2}}]}), "GET", "/queues", None),
        (
            core().redrive({"ids": [JOB_ID], "queue": None, "all": False}),
            ok({"redriven": 1}),
            "POST",
            "/dead-letter/redrive",
            b'{"ids":["' + JOB_ID.encode() + b'"]}',
        ),
        (core().delete_dead_letters({"all": True}), ok({"deleted": 1}), "DELETE", "/dead-letter", b'{"all":true}'),
        (
            core().put_schedule("a b", {"every": 5, "job": {"task": "t"}}),
            ok({"name": "a b", "next": ["2030-01-31T12:00:00.000Z"]}),
            "PUT",
            "/schedules/a%20b",
            b'{"every":5,"job":{"task":"t"}}',
        ),
        (core().schedule("x"), ok({"name": "x"}), "GET", "/schedules/x", None),
        (
            core().schedules(limit=5, cursor=None),
            ok({"items": [{"name": "x"}], "next": None}),
            "GET",
            "/schedules",
            None,
        ),
        (core().change_schedule("x", "pause"), ok({"name": "x"}), "POST", "/schedules/x/pause", None),
        (core().run_schedule("x"), job, "POST", "/schedules/x/run", None),
        (core().delete_schedule("x"), Answer(status=204, body=b""), "DELETE", "/schedules/x", None),
        (core().health(), ok({"status": "ok"}), "GET", "/health", None),
    ]
    for flow, answer, method, path, body in flows:
        steps, result = drive(flow, answer)
        assert not isinstance(result, Exception)
        assert isinstance(steps[0], Call)
        assert (steps[0].method, steps[0].path, steps[0].body) == (method, path, body)


def test_filters_become_parameters() -> None:
    flow = core().list_jobs({"status": ["failed", "expired"], "tag": None, "queue": "a b"}, limit=5, cursor=None)
    steps, _ = drive(flow, ok({"items": [], "next": None}))
    assert isinstance(steps[0], Call)
    assert steps[0].params == (("status", "failed"), ("status", "expired"), ("queue", "a b"), ("limit", "5"))


def test_batches_are_cut_by_count_and_size() -> None:
    cut = list(chunks((("echo", number) for number in range(2_500)), {"queue": "bulk"}))
    assert [(first, len(items)) for first, items in cut] == [(0, 1_000), (1_000, 1_000), (2_000, 500)]
    assert json.loads(cut[2][1][-1]) == {"queue": "bulk", "task": "echo", "input": 2_499}

    large = "x" * 1_000_000
    assert [len(items) for _, items in chunks([{"task": "echo", "input": large}] * 10, {})] == [4, 4, 2]
    assert list(chunks([], {})) == []
    with pytest.raises(TypeError, match="a job is a dict or"):
        list(chunks(["echo"], {}))  # type: ignore[list-item]


def test_a_batch_answers_in_order_with_errors_by_item() -> None:
    error = {"code": "invalid_request", "status": 422, "detail": "priority: is none of …", "errors": []}
    items = [{"index": 0, "id": JOB_ID, "status": "queued"}, {"index": 1, "error": error}]
    _, submissions = drive(
        core().submit_chunk(1_000, [b"{}", b"{}"]), ok({"accepted": 1, "rejected": 1, "items": items})
    )
    assert isinstance(submissions, list)
    assert [submission.index for submission in submissions] == [1_000, 1_001]
    assert submissions[0].id == JOB_ID
    assert submissions[0].error is None
    assert isinstance(submissions[1].error, RequestRejected)
    assert submissions[1].error.code == "invalid_request"

    _, short = drive(core().submit_chunk(0, [b"{}", b"{}"]), ok({"items": items[:1]}))
    assert isinstance(short, UnexpectedAnswer)


@pytest.mark.parametrize(
    ("status", "kind"),
    [("failed", JobFailed), ("cancelled", JobCancelled), ("expired", JobExpired), ("running", JobNotFinished)],
)
def test_result_or_raise(status: str, kind: type[Exception]) -> None:
    job = Job(id=JOB_ID, status=status, reason="exhausted" if status == "failed" else None)
    with pytest.raises(kind, match=JOB_ID) as error:
        job.result_or_raise()
    assert error.value.job is job  # type: ignore[attr-defined]


def test_the_key_travels_as_bearer_and_stays_out_of_repr() -> None:
    keyed = core(api_key="k" * 20)
    assert keyed.headers["authorization"] == f"Bearer {'k' * 20}"
    assert "authorization" not in core().headers
    assert "kkk" not in repr(keyed)


@pytest.mark.parametrize("url", ["penstock.test", "ftp://penstock.test", "http://", ""])
def test_a_wrong_url_is_named(url: str) -> None:
    with pytest.raises(ValueError, match="starts with http"):
        ClientCore(url=url)


def test_no_proxy_stands_before_this_machine() -> None:
    assert transport_options(core(url="http://127.0.0.1:5000"))["trust_env"] is False
    assert transport_options(core(url="https://jobs.test"))["trust_env"] is True
    assert "verify" not in transport_options(core(url="https://jobs.test"))


@pytest.mark.parametrize(
    ("error", "sent"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), False),
        (httpx.ConnectTimeout(""), False),
        (httpx.ReadTimeout(""), True),
        (httpx.RemoteProtocolError("Server disconnected"), True),
        (httpx.WriteError(""), True),
    ],
)
def test_what_was_never_sent_is_told_apart(error: httpx.TransportError, sent: bool) -> None:
    assert no_answer_of(error).sent is sent
    assert no_answer_of(error).detail


Handler = Callable[[httpx.Request], httpx.Response]


def server() -> tuple[list[httpx.Request], Handler]:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path == "/jobs/batch":
            items = [
                {"index": index, "id": JOB_ID, "status": "queued"}
                for index, _ in enumerate(json.loads(request.content))
            ]
            return httpx.Response(200, json={"accepted": len(items), "rejected": 0, "items": items})
        if request.url.path in {"/jobs", "/dead-letter"}:
            job = {"id": JOB_ID, "status": "failed"}
            if request.method == "DELETE":
                return httpx.Response(200, json={"deleted": 2, "skipped": 0, "more": False})
            following = None if "cursor" in request.url.params else "next-page"
            return httpx.Response(200, json={"items": [job], "next": following})
        if request.url.path == "/dead-letter/redrive":
            return httpx.Response(200, json={"redriven": 2, "skipped": 1, "more": False})
        if request.url.path == "/queues":
            return httpx.Response(200, json={"items": [{"name": "default", "waiting": 3}]})
        if request.url.path == "/health":
            return httpx.Response(200, json={"status": "ok"})
        if request.method == "DELETE":
            return httpx.Response(204)
        return httpx.Response(200, json={"id": JOB_ID, "status": "completed", "result": 1})

    return seen, handle


def test_the_plain_shell_carries_every_operation() -> None:
    seen, handle = server()
    with Client(URL, api_key="k" * 20, transport=httpx.MockTransport(handle)) as client:
        assert client.url == URL
        assert client.submit("echo", 1).id == JOB_ID
        assert [item.index for item in client.submit_many([("echo", 1), {"task": "echo"}], queue="q")] == [0, 1]
        assert client.get(JOB_ID).status == "completed"
        assert client.wait(JOB_ID, timeout=1).result_or_raise() == 1
        assert client.cancel(JOB_ID).id == client.retry(JOB_ID).id == JOB_ID
        client.delete(JOB_ID)
        assert len(client.list_jobs(status="failed").items) == 1
        assert len(list(client.iter_jobs())) == 2
        assert client.queues()[0].waiting == 3
        assert client.dead_letters().next == "next-page"
        assert client.redrive(all=True).redriven == 2
        assert client.delete_dead_letters([JOB_ID]).deleted == 2
        assert client.health() == {"status": "ok"}
    assert {request.headers["authorization"] for request in seen} == {f"Bearer {'k' * 20}"}
    assert {request.headers["content-type"] for request in seen if request.content} == {"application/json"}


async def test_the_async_shell_sends_the_same() -> None:
    seen, handle = server()
    async with AsyncClient(URL, api_key="k" * 20, transport=httpx.MockTransport(handle)) as client:
        assert client.url == URL
        assert (await client.submit("echo", 1)).id == JOB_ID
        items = client.submit_many([("echo", 1), {"task": "echo"}], queue="q")
        assert [item.index async for item in items] == [0, 1]
        assert (await client.get(JOB_ID)).status == "completed"
        assert (await client.wait(JOB_ID, timeout=1)).result_or_raise() == 1
        assert (await client.cancel(JOB_ID)).id == (await client.retry(JOB_ID)).id == JOB_ID
        await client.delete(JOB_ID)
        assert len((await client.list_jobs(status="failed")).items) == 1
        assert len([job async for job in client.iter_jobs()]) == 2
        assert (await client.queues())[0].waiting == 3
        assert (await client.dead_letters()).next == "next-page"
        assert (await client.redrive(all=True)).redriven == 2
        assert (await client.delete_dead_letters([JOB_ID])).deleted == 2
        assert await client.health() == {"status": "ok"}
    sent_async = [(request.method, str(request.url), request.content) for request in seen]
    seen.clear()
    with Client(URL, api_key="k" * 20, transport=httpx.MockTransport(handle)) as plain:
        plain.submit("echo", 1)
        list(plain.submit_many([("echo", 1), {"task": "echo"}], queue="q"))
        plain.get(JOB_ID)
        plain.wait(JOB_ID, timeout=1)
        plain.cancel(JOB_ID)
        plain.retry(JOB_ID)
        plain.delete(JOB_ID)
        plain.list_jobs(status="failed")
        list(plain.iter_jobs())
        plain.queues()
        plain.dead_letters()
        plain.redrive(all=True)
        plain.delete_dead_letters([JOB_ID])
        plain.health()
    assert [(request.method, str(request.url), request.content) for request in seen] == sent_async


def test_both_shells_have_the_same_methods() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")} - {"close", "aclose"}

    assert methods(Client) == methods(AsyncClient)


def test_submit_many_sends_no_more_than_is_consumed() -> None:
    seen, handle = server()
    with Client(URL, transport=httpx.MockTransport(handle)) as client:
        next(client.submit_many(("echo", number) for number in range(10_000)))
    assert len(seen) == 1


def test_the_client_reads_the_settings_when_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_URL", "http://jobs.test/")
    monkeypatch.setenv("PENSTOCK_API_KEY", "k" * 20)
    monkeypatch.setenv("PENSTOCK_OF_ANOTHER_PROGRAM", "1")
    seen, handle = server()
    with Client(transport=httpx.MockTransport(handle)) as client:
        client.get(JOB_ID)
    assert (seen[0].url.host, seen[0].headers["authorization"]) == ("jobs.test", f"Bearer {'k' * 20}")


def test_what_is_exported() -> None:
    assert sorted(penstock.client.__all__) == penstock.client.__all__
    assert penstock.Client is Client
    public = {name for name in vars(penstock.client.errors) if name[0].isupper()} - {"TYPE_CHECKING", "Sequence"}
    assert public - {"FieldError", "PenstockError"} <= set(penstock.client.__all__)
