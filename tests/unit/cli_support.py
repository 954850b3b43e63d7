"""A server that answers as told, and a call of a command, for the tests of the command line."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from penstock.cli.app import run
from penstock.config import SETTINGS

JOB_ID = "01a20ab1-68ea-7033-afc6-5f4dab454df9"


class FakeServer(http.server.ThreadingHTTPServer):
    """Answer (method, path) as told; keep what came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[tuple[str, str], list[tuple[int, Any]]] = {}
        self.seen: list[tuple[str, str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, method: str, path: str, value: Any, status: int = 200) -> None:
        """Queue an answer; the last one of a path stays."""
        self.answers.setdefault((method, path), []).append((status, value))


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = urlsplit(self.path).path
        value: Any = json.loads(body) if body else None
        self.server.seen.append((self.command, self.path, value))
        queued = self.server.answers.get((self.command, path))
        if path == "/jobs/batch" and queued is None:
            items: list[dict[str, Any]] = [
                {"index": index, "id": JOB_ID, "status": "queued"}
                if item["input"] != "bad"
                else {"index": index, "error": {"code": "invalid_request", "status": 422, "detail": "input: is bad"}}
                for index, item in enumerate(value)
            ]
            queued = [(200, {"items": items})]
        problem = {"status": 404, "code": "job_not_found", "detail": "no such job"}
        status, answer = (404, problem) if not queued else queued.pop(0) if len(queued) > 1 else queued[0]
        # Text is a stream of events.
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = _do  # noqa: N815 - the framework's names

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeServer]:
    for setting in SETTINGS:
        monkeypatch.delenv(setting.env, raising=False)
    monkeypatch.chdir(tmp_path)
    fake = FakeServer()
    monkeypatch.setenv("PENSTOCK_URL", fake.url)
    thread = threading.Thread(target=fake.serve_forever, args=(0.01,))
    thread.start()
    yield fake
    fake.shutdown()
    thread.join()
    fake.server_close()


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def job(status: str, **fields: Any) -> dict[str, Any]:
    return {"id": JOB_ID, "status": status, "task": "echo", "queue": "default", "priority": "normal"} | fields


SCHEDULE: dict[str, Any] = {
    "name": "a b",
    "cron": "0 6 * * *",
    "timezone": "Europe/Berlin",
    "missed": "latest",
    "overlap": "allow",
    "source": "api",
    "job": {"task": "echo", "queue": "default", "priority": "normal", "input": {"a": 1}},
    "next": ["2030-01-31T05:00:00.000Z", "2030-02-01T05:00:00.000Z"],
    "last_tick": "2030-01-30T05:00:00.000Z",
    "last_job_id": JOB_ID,
    "ticks": {"fired": 1_234, "skipped": 2, "missed": 3},
}
FAILED = job("failed", attempt=3, reason="exhausted", error={"type": "OSError", "message": "no\x1b[31m disk"})
