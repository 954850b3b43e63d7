"""Run the API as a real process on a real socket: limits, health, stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from penstock.api.options import ApiOptions
from penstock.api.server import bind
from penstock.core.errors import ConfigError
from tests.integration.api_support import Process, api_process, eventually_ok, free_port, valkey_process
from tests.waiting import until


@pytest.fixture
def api(valkey_url: str, namespace: str) -> Iterator[Process]:
    with api_process(valkey_url, namespace) as running:
        yield running


def connect(api: Process) -> socket.socket:
    parts = urlsplit(api.url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 0), timeout=20)


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    reader = connection.makefile("rb")
    status = int(reader.readline().split()[1])
    length = 0
    while (line := reader.readline().strip()) != b"":
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return status, reader.read(length)


def timed(api: Process, path: str) -> httpx.Response:
    """Ask for what must be answered within a second; setting the client up is not part of it."""
    with httpx.Client(base_url=api.url) as client:
        started = time.monotonic()
        response = client.get(path)
        assert time.monotonic() - started < 1
        return response


def test_health_up_and_a_job_end_to_end(api: Process) -> None:
    assert httpx.get(f"{api.url}/health").json()["status"] == "ok"
    job_id = httpx.post(f"{api.url}/submit", json={"task": "echo", "input": [1]}).json()["id"]
    assert httpx.get(f"{api.url}/jobs/{job_id}").json()["input"] == [1]
    other_id = job_id[:-1] + ("1" if job_id.endswith("0") else "0")
    assert httpx.get(f"{api.url}/jobs/{other_id}").status_code == 404
    assert api.stop() == 0
    requests = [line for line in api.log() if line["event"] == "request.finished"]
    # The submit that succeeded has no line; everything else has one.
    assert [line["path"] for line in requests] == ["/health", f"/jobs/{job_id}", f"/jobs/{other_id}"]
    for line in requests:
        assert {"timestamp", "level", "message", "method", "status_code", "duration_ms", "request_id"} <= set(line)
    assert requests[1]["job_id"] == job_id
    assert "job_id" not in requests[0]
    assert [line["event"] for line in api.log() if line["event"].startswith("api.")] == [
        "api.started",
        "api.stopping",
        "api.stopped",
    ]


def test_health_down_then_back(namespace: str) -> None:
    """The server starts without Redis, says so at once, and needs no help once Redis is there."""
    port = free_port()
    with api_process(f"redis://127.0.0.1:{port}/0", namespace) as api:
        response = timed(api, "/health")
        assert response.status_code == 503
        assert response.json()["code"] == "store_unavailable"
        assert int(response.headers["retry-after"]) > 0
        assert httpx.get(f"{api.url}/health/ready").status_code == 503
        assert httpx.get(f"{api.url}/health/live").status_code == 200
        assert "penstock_store_up 0.0" in httpx.get(f"{api.url}/metrics").text
        refused = httpx.post(f"{api.url}/submit", json={"task": "a"})
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        with valkey_process(port):
            assert eventually_ok(api.url, "/health").status_code == 200
            assert httpx.post(f"{api.url}/submit", json={"task": "a"}).status_code == 202
            assert "penstock_store_up 1.0" in httpx.get(f"{api.url}/metrics").text
            assert api.stop() == 0


def test_health_answers_within_a_second_while_redis_hangs(namespace: str) -> None:
    port = free_port()
    with valkey_process(port) as server, api_process(f"redis://127.0.0.1:{port}/0", namespace) as api:
        assert eventually_ok(api.url, "/health/ready").status_code == 200
        os.kill(server.pid, signal.SIGSTOP)
        for path, status in (("/health", 503), ("/health/ready", 503), ("/metrics", 200), ("/health/live", 200)):
            response = timed(api, path)
            assert response.status_code == status
            if path == "/metrics":
                assert "penstock_store_up 0.0" in response.text
        os.kill(server.pid, signal.SIGCONT)
        assert eventually_ok(api.url, "/health").status_code == 200


def test_stop_ends_waits_and_closes_connections(api: Process) -> None:
    job_id = httpx.post(f"{api.url}/submit", json={"task": "echo"}).json()["id"]
    with connect(api) as waiting, connect(api) as idle:
        waiting.sendall(f"GET /jobs/{job_id}?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        idle.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(idle)[0] == 200
        started = time.monotonic()
        api.process.send_signal(signal.SIGTERM)
        status, body = read_answer(waiting)
        assert (status, json.loads(body)["status"]) == (200, "queued")
        assert api.process.wait(timeout=30) == 0
        assert time.monotonic() - started < 10


def test_a_client_that_hangs_up_ends_its_wait(api: Process) -> None:
    job_id = httpx.post(f"{api.url}/submit", json={"task": "echo"}).json()["id"]
    with connect(api) as waiting:
        waiting.sendall(f"GET /jobs/{job_id}?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        # An answer on another connection shows that the server has gone on reading.
        assert httpx.get(f"{api.url}/health/live").status_code == 200
    with connect(api) as submitting:
        body = b'{"task": "echo"}'
        head = "POST /submit?wait=60 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        submitting.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: len(httpx.get(f"{api.url}/jobs").json()["items"]) == 2, "a second job")
    assert httpx.get(f"{api.url}/health/live").status_code == 200
    started = time.monotonic()
    assert api.stop() == 0
    assert time.monotonic() - started < 10
    statuses = [line["status_code"] for line in api.log() if line["event"] == "request.finished"]
    assert statuses.count(499) == 2
    assert [line for line in api.log() if line["level"] == "error"] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_stop_cleanly(api: Process, number: signal.Signals) -> None:
    api.process.send_signal(number)
    assert api.process.wait(timeout=30) == 0


def test_413_before_the_body_is_read(api: Process) -> None:
    """Neither request ever sends all of its body."""
    head = "POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connect(api) as declared:
        declared.sendall(f"{head}Content-Length: 100000000\r\n\r\n".encode())
        status, body = read_answer(declared)
        assert (status, json.loads(body)["code"]) == (413, "body_too_large")
    with connect(api) as chunked:
        chunked.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        sender = threading.Thread(target=chunked.sendall, args=(chunk * 20,))
        sender.start()
        status, body = read_answer(chunked)
        sender.join()
        assert (status, json.loads(body)["code"]) == (413, "body_too_large")


def test_payload_limit(api: Process) -> None:
    mebibyte = 1024 * 1024
    largest = httpx.post(f"{api.url}/submit", json={"task": "a", "input": "x" * (mebibyte - 2)})
    assert largest.status_code == 202
    job = httpx.get(f"{api.url}/jobs/{largest.json()['id']}").json()
    assert len(job["input"]) == mebibyte - 2
    above = httpx.post(f"{api.url}/submit", json={"task": "a", "input": "x" * (mebibyte - 1)})
    assert (above.status_code, above.json()["errors"][0]["field"]) == (413, "input")


def test_a_body_that_does_not_come(valkey_url: str, namespace: str) -> None:
    with api_process(valkey_url, namespace, body_timeout_ms=200) as api, connect(api) as connection:
        head = (
            "POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n"
        )
        connection.sendall(head.encode() + b'{"task"')
        status, body = read_answer(connection)
        assert (status, json.loads(body)["code"]) == (408, "body_timeout")


def test_keys_over_a_socket(valkey_url: str, namespace: str) -> None:
    with api_process(valkey_url, namespace, host="0.0.0.0", api_keys=["one-key", "other-key"]) as api:
        url = api.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.get(f"{url}/jobs").status_code == 401
        for key in ("one-key", "other-key"):
            response = httpx.get(f"{url}/jobs", headers={"authorization": f"Bearer {key}", "host": "any.example"})
            assert response.status_code == 200
        assert api.stop() == 0
        assert "one-key" not in json.dumps(api.log())


def test_a_port_in_use_names_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"PENSTOCK_PORT={port + 1}") as raised:
            bind(ApiOptions(port=port))
    assert raised.value.key == "PENSTOCK_PORT"
    with pytest.raises(ConfigError) as unknown:
        bind(ApiOptions(host="256.1.1.1", api_keys=("k",)))
    assert unknown.value.key == "PENSTOCK_HOST"


def test_ten_thousand_jobs_in_one_batch(api: Process) -> None:
    items = [{"task": "echo", "input": index} for index in range(10_000)]
    answer = httpx.post(f"{api.url}/jobs/batch", json=items, timeout=60).json()
    assert answer["accepted"] == 10_000
    assert httpx.get(f"{api.url}/queues/default").json()["waiting"] == 10_000
    assert 'penstock_jobs_submitted_total{queue="default"} 10000.0' in httpx.get(f"{api.url}/metrics").text
