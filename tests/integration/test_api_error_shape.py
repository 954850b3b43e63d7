"""Assert the one shape of errors over every route that the OpenAPI document names, bare or not."""

from __future__ import annotations

import itertools
import json
from typing import Any

import httpx
import msgspec
import pytest

from penstock.api.openapi import document
from penstock.api.options import ApiOptions
from penstock.api.problems import FIELD_CODES, KINDS, Problem
from penstock.core.errors import StoreFull, StoreMismatch
from penstock.core.limits import Limits
from penstock.store.memory import MemoryStore
from tests.integration.api_support import DownStore, app_of, client_of

JOB = "01a20ab0-5d1d-7186-ba24-91b8627576c8"
KEY = "a-key-of-the-test"
DOCUMENT = document()
ROUTES = [
    (method.upper(), path, path.format(job_id=JOB, name="default"), operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
IDS = [f"{method} {path}" for method, path, _, _ in ROUTES]
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/submit"): {"task": "echo"},
    ("POST", "/jobs"): {"task": "echo"},
    ("POST", "/jobs/batch"): [{"task": "echo"}],
    ("POST", "/dead-letter/redrive"): {"all": True},
    ("DELETE", "/dead-letter"): {"all": True},
    ("PUT", "/schedules/{name}"): {"every": 60, "job": {"task": "echo"}},
}
#: Routes that tell something even while the store is away.
WITHOUT_STORE = {"/health/live", "/docs", "/openapi.json", "/metrics"}
every_route = pytest.mark.parametrize(("method", "template", "path", "operation"), ROUTES, ids=IDS)


def memory_store() -> MemoryStore:
    return MemoryStore(itertools.count(1_800_000_000_000).__next__)


def sent(method: str, path: str) -> dict[str, Any]:
    body = BODIES.get((method, path))
    return {} if body is None else {"json": body}


def check(response: httpx.Response, status: int, code: str, operation: dict[str, Any] | None = None) -> Problem:
    """Check the shape, and that the document names this status for this route."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = msgspec.json.decode(response.content, type=Problem)
    assert set(json.loads(response.content)) <= set(Problem.__struct_fields__)
    assert problem.status == status
    assert problem.code == code
    assert problem.type == f"urn:penstock:problem:{code}"
    assert problem.title == next(kind.title for kind in KINDS if kind.code == code)
    assert problem.detail
    assert problem.request_id == response.headers["x-request-id"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert all(error.code in FIELD_CODES and error.detail for error in problem.errors)
    if status == 503:
        assert int(response.headers["retry-after"]) > 0
    if operation is not None:
        assert f"`{code}`" in operation["responses"][str(status)]["description"]
    return problem


@every_route
async def test_store_down(method: str, template: str, path: str, operation: dict[str, Any]) -> None:
    async with client_of(app_of(DownStore())) as client:
        response = await client.request(method, path, **sent(method, template))
    if template in WITHOUT_STORE:
        assert response.status_code == 200
    else:
        check(response, 503, "store_unavailable", operation)


@every_route
async def test_store_crashes(method: str, template: str, path: str, operation: dict[str, Any]) -> None:
    async with client_of(app_of(DownStore(RuntimeError("a secret of the inside")))) as client:
        response = await client.request(method, path, **sent(method, template))
    if template in WITHOUT_STORE - {"/metrics"}:
        assert response.status_code == 200
    elif template == "/jobs/batch" and response.status_code == 200:
        assert response.json()["items"][0]["error"]["code"] == "internal_error"
    else:
        check(response, 500, "internal_error", operation)
    assert "secret" not in response.text


@every_route
async def test_no_key(method: str, template: str, path: str, operation: dict[str, Any]) -> None:
    async with client_of(app_of(memory_store(), api_keys=(KEY,))) as client:
        response = await client.request(method, path, **sent(method, template))
        if template.startswith(("/health", "/docs", "/openapi.json")):
            assert response.status_code == 200
            assert operation["security"] == []
            return
        check(response, 401, "unauthorized", operation)
        assert response.headers["www-authenticate"].startswith("Bearer")
        for wrong in (f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer"):
            refused = await client.request(method, path, headers={"authorization": wrong}, **sent(method, template))
            check(refused, 401, "unauthorized", operation)
        allowed = await client.request(
            method, path, headers={"authorization": f"bearer {KEY}"}, **sent(method, template)
        )
        assert allowed.status_code != 401


@every_route
async def test_unknown_query_parameter(method: str, template: str, path: str, operation: dict[str, Any]) -> None:
    async with client_of(app_of(memory_store())) as client:
        response = await client.request(method, f"{path}?surprise=1", **sent(method, template))
    problem = check(response, 422, "invalid_request", operation)
    assert [(error.field, error.code) for error in problem.errors] == [("surprise", "unknown_field")]


@every_route
async def test_wrong_method(method: str, template: str, path: str, operation: dict[str, Any]) -> None:
    async with client_of(app_of(memory_store())) as client:
        response = await client.request("PATCH", path)
    check(response, 405, "method_not_allowed")
    documented = {known for known, known_template, _, _ in ROUTES if known_template == template}
    assert set(response.headers["allow"].split(", ")) - {"HEAD", "OPTIONS"} == documented


@every_route
async def test_foreign_page(method: str, template: str, path: str, operation: dict[str, Any]) -> None:
    async with client_of(app_of(memory_store())) as client:
        for origin in ("https://evil.example", "null", "http://localhost:3000"):
            response = await client.request(method, path, headers={"origin": origin}, **sent(method, template))
            check(response, 403, "foreign_origin", operation)
        response = await client.request(method, path, headers={"host": "evil.example"}, **sent(method, template))
        if template.startswith("/health"):
            assert response.status_code == 200
        else:
            check(response, 421, "host_not_allowed", operation)


@pytest.mark.parametrize(("method", "path"), list(BODIES))
async def test_body_errors(method: str, path: str) -> None:
    operation = DOCUMENT["paths"][path][method.lower()]
    limits = Limits(payload_bytes=1_000, batch_bytes=67_000)
    json_type = {"content-type": "application/json"}
    async with client_of(app_of(memory_store(), limits=limits)) as client:
        wrong_type = await client.request(method, path, content=b"{}", headers={"content-type": "text/plain"})
        check(wrong_type, 415, "unsupported_media_type", operation)
        no_type = await client.request(method, path, content=b"{}")
        check(no_type, 415, "unsupported_media_type", operation)
        charset = await client.request(
            method, path, content=b"{}", headers={"content-type": "application/json; charset=latin-1"}
        )
        check(charset, 415, "unsupported_media_type", operation)
        packed = await client.request(method, path, content=b"{}", headers={**json_type, "content-encoding": "gzip"})
        check(packed, 415, "unsupported_media_type", operation)
        large = await client.request(method, path, content=b" " * 68_000, headers=json_type)
        check(large, 413, "body_too_large", operation)
        for text in (b"", b"{", b"{'a': 1}", b'\xff{"task": "x"}', b"\xef\xbb\xbf{}", b"{} {}"):
            broken = await client.request(method, path, content=text, headers=json_type)
            check(broken, 400, "not_json", operation)
        other_shape = await client.request(method, path, content=b'"text"', headers=json_type)
        check(other_shape, 422, "invalid_request", operation)
        deep = await client.request(method, path, content=b"[" * 3_000 + b"]" * 3_000, headers=json_type)
        if deep.status_code == 200:
            # A batch that this Python can take apart names its item.
            assert deep.json()["items"][0]["error"]["errors"][0]["code"] == "too_deep"
        else:
            assert check(deep, 422, "invalid_request", operation).errors[0].code == "too_deep"


async def test_unknown_route() -> None:
    async with client_of(app_of(memory_store())) as client:
        for path in ("/nope", "/jobs/a/b/c", "/docs/nope", "/docs/..%2fpage.html", "/schema", "/v1"):
            check(await client.get(path), 404, "route_not_found")
        check(await client.request("BREW", "/jobs"), 405, "method_not_allowed")


async def test_store_full_and_mismatch() -> None:
    app = app_of(DownStore(StoreFull("full")))
    async with client_of(app) as client:
        check(await client.post("/submit", json={"task": "a"}), 503, "store_full")
        check(await client.post("/jobs/batch", json=[{"task": "a"}]), 503, "store_full")
        assert app.services.refusal is not None
    async with client_of(app_of(DownStore(StoreMismatch("4 partitions, not 1")))) as client:
        response = await client.get("/queues")
        assert (response.status_code, response.json()["code"]) == (503, "store_mismatch")
        assert "retry-after" not in response.headers


async def test_readiness_while_the_store_is_full() -> None:
    app = app_of(memory_store())
    async with client_of(app) as client:
        assert (await client.get("/health/ready")).status_code == 200
        app.services.note_submit(StoreFull())
        check(await client.get("/health/ready"), 503, "store_full")
        assert (await client.get("/health")).status_code == 200
        assert (await client.post("/submit", json={"task": "a"})).status_code == 202
        assert (await client.get("/health/ready")).status_code == 200


async def test_an_unavailable_store_leaves_the_id_to_look_for() -> None:
    async with client_of(app_of(DownStore())) as client:
        problem = check(await client.post("/submit", json={"task": "a"}), 503, "store_unavailable")
        assert problem.job_id is not None
        assert "may or may not" in problem.detail
        batch = check(await client.post("/jobs/batch", json=[{"task": "a"}]), 503, "store_unavailable")
        assert "may or may not" in batch.detail


async def test_wrong_idempotency_keys_are_named() -> None:
    async with client_of(app_of(memory_store())) as client:
        for path in ("/submit", "/jobs"):
            for key, code in (("", "empty"), ("x" * 256, "too_long"), ('"a";for=0', "out_of_range")):
                response = await client.post(path, json={"task": "a"}, headers={"idempotency-key": key})
                problem = check(response, 422, "invalid_request")
                assert [(error.field, error.code) for error in problem.errors] == [("Idempotency-Key", code)]
        both = {"task": "a", "idempotency_key": "1"}
        problem = check(
            await client.post("/submit", json=both, headers={"idempotency-key": "2"}), 422, "invalid_request"
        )
        assert [(error.field, error.code) for error in problem.errors] == [("idempotency_key", "conflict")]
        batch = await client.post("/jobs/batch", json=[{"task": "a"}], headers={"idempotency-key": "1"})
        problem = check(batch, 422, "invalid_request")
        assert [(error.field, error.code) for error in problem.errors] == [("Idempotency-Key", "not_supported")]


async def test_request_id() -> None:
    async with client_of(app_of(memory_store())) as client:
        for path in ("/nope", "/health", "/queues"):
            assert (await client.get(path, headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
            for insane in ("a b", "x" * 129, "<script>"):
                answered = (await client.get(path, headers={"x-request-id": insane})).headers["x-request-id"]
                assert len(answered) == 32
        hot = await client.post("/submit", json={"task": "a"}, headers={"x-request-id": "abc-2"})
        assert hot.headers["x-request-id"] == "abc-2"


async def test_head_is_get_without_the_body() -> None:
    async with client_of(app_of(memory_store())) as client:
        for path in ("/health", "/queues", "/metrics"):
            assert (await client.head(path)).status_code == 200
        assert (await client.head("/jobs/x")).status_code == 404


async def test_batch_limits() -> None:
    limits = Limits(payload_bytes=100, batch_items=3)
    async with client_of(app_of(memory_store(), limits=limits)) as client:
        too_many = await client.post("/jobs/batch", json=[{"task": "a"}] * 4)
        check(too_many, 413, "body_too_large")
        answer = (await client.post("/jobs/batch", json=[{"task": "a"}, {"task": "a", "input": "x" * 100}])).json()
        assert (answer["accepted"], answer["items"][1]["error"]["code"]) == (1, "body_too_large")
        one = check(await client.post("/submit", json={"task": "a", "input": "x" * 99}), 413, "body_too_large")
        assert one.errors[0].field == "input"
        assert (await client.post("/submit", json={"task": "a", "input": "x" * 98})).status_code == 202
        assert (await client.post("/jobs/batch", json=[])).json() == {"accepted": 0, "rejected": 0, "items": []}


@pytest.mark.parametrize("prefer", ["wait=x", "respond-async, wait=-1", "wait=61"])
async def test_prefer_that_cannot_be(prefer: str) -> None:
    async with client_of(app_of(memory_store())) as client:
        response = await client.post("/submit", json={"task": "a"}, headers={"prefer": prefer})
        assert check(response, 422, "invalid_request").errors[0].field == "Prefer"
        ignored = await client.post("/submit", json={"task": "a"}, headers={"prefer": "handling=strict"})
        assert ignored.status_code == 202


def test_every_kind_is_documented_somewhere() -> None:
    described = json.dumps(DOCUMENT)
    # These come before any route is known, or from what no route can foresee.
    anywhere = {"bad_request", "route_not_found", "method_not_allowed", "store_mismatch", "store_unfit"}
    for kind in KINDS:
        assert kind.code in anywhere or f"`{kind.code}`" in described


def test_options_default_to_this_machine() -> None:
    assert ApiOptions().checks_loopback
