"""Compare the OpenAPI document with what is committed, what is served, and the reference pages."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import httpx
import msgspec

from penstock.api.hot import hot_routes
from penstock.api.job_bodies import SubmitBody
from penstock.api.openapi import document, document_text
from penstock.api.options import ApiOptions
from penstock.api.problems import FIELD_CODES, KINDS
from penstock.api.services import Services
from penstock.api.submission import SubmissionParser
from penstock.config import SETTINGS
from penstock.core.states import State
from penstock.observability.metrics import METRICS
from penstock.store.memory import MemoryStore
from tests.integration.api_support import app_of, client_of

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


def store() -> MemoryStore:
    return MemoryStore(itertools.count(1_800_000_000_000).__next__)


def test_the_committed_document_is_current() -> None:
    message = "run: .venv/bin/python -m penstock.api.openapi > openapi.json"
    assert (ROOT / "openapi.json").read_bytes() == document_text(), message


async def test_the_document_is_served() -> None:
    async with client_of(app_of(store())) as client:
        response = await client.get("/openapi.json")
    assert response.content == document_text()
    assert response.headers["content-type"] == "application/json"


def test_every_reference_in_the_document_leads_somewhere() -> None:
    text = document_text().decode()
    components = document()["components"]
    for kind, name in re.findall(r'"\$ref": "#/components/(\w+)/(\w+)"', text):
        assert name in components[kind]


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for path in document()["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


def test_bare_routes_are_documented() -> None:
    paths = document()["paths"]
    services = Services(store(), ApiOptions())
    for method, path in hot_routes(services):
        assert method.lower() in paths[path]


def test_the_documented_fields_are_those_that_are_read() -> None:
    schema = document()["components"]["schemas"]["SubmitBody"]
    assert tuple(schema["properties"]) == SubmissionParser().decoder.names
    assert schema["required"] == ["task"]
    assert set(schema["properties"]) == {field.encode_name for field in msgspec.structs.fields(SubmitBody)}


def test_the_documented_statuses_are_the_states() -> None:
    assert document()["components"]["schemas"]["State"]["enum"] == sorted(state.value for state in State)


async def test_documented_examples_are_taken() -> None:
    taken = 0
    async with client_of(app_of(store())) as client:
        for path, operations in document()["paths"].items():
            for method, operation in operations.items():
                for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                    example = content["example"]
                    text = example.encode() if isinstance(example, str) else msgspec.json.encode(example)
                    response = await client.request(
                        method.upper(), path, content=text, headers={"content-type": media_type}
                    )
                    assert response.status_code < 300, response.text
                    taken += 1
    assert taken == 7


async def test_answers_match_their_schemas() -> None:
    """Every member of an answer is documented, and every documented one is there."""
    schemas = document()["components"]["schemas"]
    async with client_of(app_of(store())) as client:
        accepted = (await client.post("/submit", json={"task": "a"})).json()
        assert set(accepted) == set(schemas["Accepted"]["properties"])
        job = (await client.get(f"/jobs/{accepted['id']}")).json()
        assert set(job) == set(schemas["JobView"]["properties"])
        page = (await client.get("/jobs")).json()
        assert set(page) == set(schemas["JobPage"]["properties"]) == {"items", "next"}
        assert set(page["items"][0]) == set(schemas["JobSummary"]["properties"])
        queues = (await client.get("/queues")).json()
        assert set(queues["items"][0]) == set(schemas["QueueView"]["properties"])


async def test_swagger_page_has_nothing_inline_and_nothing_from_elsewhere() -> None:
    async with client_of(app_of(store())) as client:
        page = await client.get("/docs")
        policy = page.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page.text, re.DOTALL)
        assert len(scripts) == 3
        assert all("src=" in attributes and not text.strip() for attributes, text in scripts)
        assert not re.search(r"\son\w+=|style=|https?://", page.text)
        for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            if name.startswith("data:"):
                continue
            found = await client.get(httpx.URL("http://localhost:5000/docs").join(name))
            assert found.status_code == 200, name
        script = (await client.get("/docs/start.js")).text
        assert 'url: "openapi.json"' in script


async def test_the_servers_address_leads_to_the_page() -> None:
    async with client_of(app_of(store())) as client:
        root = await client.get("/")
        assert (root.status_code, root.headers["location"]) == (307, "docs")
        assert (await client.get("/?x=1")).status_code == 422
        assert (await client.post("/")).status_code == 405


def test_errors_page_lists_every_code() -> None:
    page = (REFERENCE / "errors.md").read_text()
    for kind in KINDS:
        assert f"| `{kind.code}` | {kind.status} | {kind.title}" in page
    for code, meaning in FIELD_CODES.items():
        assert f"| `{code}` | {meaning} |" in page
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted([*(kind.code for kind in KINDS), *FIELD_CODES])


def test_metrics_page_lists_every_metric() -> None:
    page = (REFERENCE / "metrics.md").read_text()
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
        assert f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |" in page
    assert len(re.findall(r"^\| `penstock_", page, re.MULTILINE)) == len(METRICS)


def test_metrics_page_tells_which_metric_shows_each_limit() -> None:
    table = (REFERENCE / "metrics.md").read_text().split("## Which limit bites")[1]
    named = set(re.findall(r"`(PENSTOCK_\w+)`", table))
    assert named == {setting.env for setting in SETTINGS if "limits" in setting.parts}
    names = {name for metric in METRICS for name in (metric.name, f"{metric.name}_bucket")}
    assert set(re.findall(r"`(penstock_\w+)", table)) <= names


def test_http_page_lists_every_route_and_field() -> None:
    page = (REFERENCE / "http-api.md").read_text()
    listed = set(re.findall(r"^\| `(GET|POST|PUT|DELETE) (\S+?)` \|", page, re.MULTILINE))
    documented = {(method.upper(), path) for path, methods in document()["paths"].items() for method in methods}
    assert listed == documented
    for field in SubmissionParser().decoder.names:
        assert f"| `{field}` |" in page


async def test_metrics_names_are_those_declared() -> None:
    async with client_of(app_of(store())) as client:
        await client.post("/submit", json={"task": "a"})
        text = (await client.get("/metrics")).text
    shown = set(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert shown == {(metric.name, metric.kind) for metric in METRICS}
    for metric in METRICS:
        assert f"# HELP {metric.name} {metric.help}" in text
