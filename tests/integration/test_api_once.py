"""Submit once over real HTTP: repeats, floods, restarts and kills."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from penstock.client import Client
from tests.integration.api_support import Process, api_process, eventually_ok
from tests.integration.store_support import server_in


@pytest.fixture
def api(valkey_url: str, namespace: str) -> Iterator[Process]:
    with api_process(valkey_url, namespace) as running:
        yield running


def submitted(api: Process) -> int:
    return sum(queue["waiting"] for queue in httpx.get(f"{api.url}/queues").json()["items"])


def test_the_same_again_gets_the_first_answer(api: Process) -> None:
    with httpx.Client(base_url=api.url, headers={"idempotency-key": "order-1"}) as client:
        first = client.post("/submit", json={"task": "echo", "input": 1, "delay": 60})
        assert first.status_code == 202
        assert "idempotency-replayed" not in first.headers
        job_id = first.json()["id"]
        assert client.post(f"/jobs/{job_id}/cancel").status_code == 200
        again = client.post("/jobs", json={"task": "echo", "input": 1, "delay": 60})
        assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
        assert again.json() == first.json()
        assert again.headers["location"] == first.headers["location"]
        waited = client.post("/submit?wait=5", json={"task": "echo", "input": 1, "delay": 60})
        assert (waited.status_code, waited.headers["idempotency-replayed"]) == (200, "true")
        assert waited.json()["status"] == "cancelled"
        other = client.post("/submit", json={"task": "echo", "input": 2})
        assert other.status_code == 422
        assert other.json()["errors"][0]["field"] == "Idempotency-Key"
        assert other.json()["errors"][0]["code"] == "key_reused"
        assert other.json()["job_id"] == job_id
    quoted = httpx.post(
        f"{api.url}/submit",
        json={"task": "echo", "input": 1, "delay": 60},
        headers={"idempotency-key": '"order-1";for=600'},
    )
    assert quoted.json() == first.json()
    assert "penstock_submits_replayed_total 3.0" in httpx.get(f"{api.url}/metrics").text


def test_items_of_a_batch_have_keys(api: Process) -> None:
    items = [{"task": "echo", "idempotency_key": f"k{number % 3}"} for number in range(6)]
    items.append({"task": "other", "idempotency_key": "k0"})
    answer = httpx.post(f"{api.url}/jobs/batch", json=items).json()
    assert (answer["accepted"], answer["rejected"]) == (6, 1)
    assert [item.get("replayed", False) for item in answer["items"][:6]] == [False] * 3 + [True] * 3
    assert answer["items"][6]["error"]["errors"][0]["code"] == "key_reused"
    assert len({item["id"] for item in answer["items"][:6]}) == 3
    assert submitted(api) == 3


@pytest.mark.parametrize("partitions", [1, 8])
async def test_fifty_at_once_make_one_job(valkey_url: str, namespace: str, partitions: int) -> None:
    with (
        api_process(valkey_url, namespace, partitions=partitions) as one,
        api_process(valkey_url, namespace, partitions=partitions) as two,
    ):
        async with httpx.AsyncClient(timeout=30) as client:
            answers = await asyncio.gather(
                *(
                    client.post(f"{api.url}/submit", json={"task": "echo"}, headers={"idempotency-key": "same"})
                    for api in [one, two] * 25
                )
            )
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.text for answer in answers}) == 1
        assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
        assert submitted(one) == 1


def test_keys_outlive_a_restart_of_the_api_and_of_valkey(namespace: str, tmp_path: Path) -> None:
    headers = {"idempotency-key": "k"}
    with server_in(tmp_path, "--appendonly", "yes") as server:
        with api_process(server.url, namespace) as api:
            first = httpx.post(f"{api.url}/submit", json={"task": "echo"}, headers=headers)
            assert first.status_code == 202
            os.kill(api.process.pid, signal.SIGKILL)
            api.process.wait(timeout=30)
        with api_process(server.url, namespace) as api:
            again = httpx.post(f"{api.url}/submit", json={"task": "echo"}, headers=headers)
            assert (again.json(), again.headers["idempotency-replayed"]) == (first.json(), "true")
            server.kill()
            server.start()
            eventually_ok(api.url, "/health")
            last = httpx.post(f"{api.url}/submit", json={"task": "echo"}, headers=headers)
            assert (last.json(), last.headers["idempotency-replayed"]) == (first.json(), "true")
            assert submitted(api) == 1


def _message(connection: socket.socket) -> bytes:
    """Read a request or answer whose body is a JSON object, up to its end."""
    text = b""
    while not text.endswith(b"}"):
        data = connection.recv(65_536)
        assert data
        text += data
    return text


class CutsTheFirstAnswer:
    """Stand between a client and the API: the first request goes through, its answer does not."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, socket.create_connection(self._target) as target:
                target.sendall(_message(connection))
                answer = _message(target)
                if self.cut:
                    connection.sendall(answer)
                self.cut += 1

    def close(self) -> None:
        # Only a shutdown wakes a thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=30)


def test_the_client_repeats_a_submit_whose_answer_was_lost(api: Process) -> None:
    proxy = CutsTheFirstAnswer(api.url)
    try:
        with Client(proxy.url) as client:
            job = client.submit("echo", 1)
    finally:
        proxy.close()
    assert proxy.cut == 2
    assert job.replayed
    assert submitted(api) == 1
