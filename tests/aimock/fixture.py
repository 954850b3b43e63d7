"""Run npm's `@copilotkit/aimock`, an OpenAI-style server that knows nothing of Penstock, for tests.

Use it in a test module (or a `conftest.py`) by naming the two fixtures there:

    from tests.aimock import fixture as aimock_fixture

    aimock_server = aimock_fixture.aimock_server
    aimock = aimock_fixture.aimock

    def test_something(aimock):
        aimock.script(error(429, retry_after=2), answer("short"))   # the last entry answers all later calls
        ...                                                         # point PENSTOCK_AI_BASE_URL at aimock.base_url,
        assert len(aimock.calls()) == 2                             # PENSTOCK_AI_API_KEY at aimock.api_key

The server is installed once, by npm, into `$XDG_CACHE_HOME/penstock-tests` (`~/.cache` when unset), a folder for each
version. Without npm or Node.js the tests are skipped with one line; with `PENSTOCK_TEST_REQUIRE=all` that is a failure.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.missing import skip_or_fail

PACKAGE = "@copilotkit/aimock"
MANIFEST = Path(__file__).with_name("package.json")
API_KEY = "test-key-of-the-mock"
START_SECONDS = 30
INSTALL_SECONDS = 120


def answer(text: str, *, usage: Mapping[str, int] | None = None, model: str | None = None) -> dict[str, Any]:
    """Describe a chat completion; the server counts the usage itself when it is not given."""
    response: dict[str, Any] = {"content": text}
    if usage is not None:
        response["usage"] = dict(usage)
    if model is not None:
        response["model"] = model
    return response


def error(status: int, *, message: str = "scripted", retry_after: int | None = None) -> dict[str, Any]:
    """Describe an error in OpenAI's shape; `retry_after` in seconds becomes the header."""
    response: dict[str, Any] = {"status": status, "error": {"message": message, "type": "scripted_error"}}
    if retry_after is not None:
        response["retryAfter"] = retry_after
    return response


class AIMock:
    """Steer one running server; `base_url` and `api_key` are what a client needs."""

    def __init__(self, address: str) -> None:
        self.base_url = f"{address}/v1"
        self.api_key = API_KEY
        self._http = httpx.Client(
            base_url=f"{address}/__aimock",
            headers={"Authorization": f"Bearer {API_KEY}"},
            timeout=10,
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connection to the server."""
        self._http.close()

    def reset(self) -> None:
        """Forget all scripts, faults and calls."""
        self._http.post("/reset").raise_for_status()

    def script(self, *responses: Mapping[str, Any]) -> None:
        """Answer the next chat completions in this order; the last entry answers all that follow."""
        fixtures = [
            {
                "match": {"endpoint": "chat"} | ({} if place == len(responses) - 1 else {"sequenceIndex": place}),
                "response": response,
            }
            for place, response in enumerate(responses)
        ]
        self._http.post("/fixtures", json={"fixtures": fixtures}).raise_for_status()

    def disturb(self, **rates: float) -> None:
        """Set faults for all calls: `disconnectRate`, `malformedRate`, `rateLimitRate` (0 to 1), `latencyMs`."""
        self._http.post("/chaos", json=rates).raise_for_status()

    def calls(self) -> list[dict[str, Any]]:
        """List the chat completions asked for so far, oldest first, each with `headers`, `body` and `response`."""
        found = self._http.get("/journal", params={"path": "/chat/completions"}).raise_for_status().json()
        assert isinstance(found, list)
        return found


@pytest.fixture(scope="session")
def aimock_server() -> Iterator[AIMock]:
    """Start one server for the session on a free port; it demands `API_KEY` from its callers."""
    program = _installed()
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "fixtures.json")
        empty.write_text('{"fixtures": []}', encoding="utf-8")
        with subprocess.Popen(
            [program, "--port", "0", "--host", "127.0.0.1", "--fixtures", str(empty), "--journal-max", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"AIMOCK_API_KEYS": API_KEY},
        ) as process:
            try:
                with contextlib.closing(AIMock(_address(process))) as server:
                    yield server
            finally:
                process.terminate()
                process.communicate(timeout=10)


@pytest.fixture
def aimock(aimock_server: AIMock) -> AIMock:
    """Give the session's server without scripts, faults or calls."""
    aimock_server.reset()
    return aimock_server


def _address(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    seen = b""
    deadline = time.monotonic() + START_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            # os.read and not readline: a buffered line would hide from the selector.
            chunk = os.read(process.stdout.fileno(), 65_536)
            seen += chunk
            if found := re.search(rb"listening on (http://[0-9.]+:\d+)", seen):
                return found[1].decode()
            if not chunk:
                break
    raise RuntimeError(f"aimock did not start: {seen.decode(errors='replace')}")


def _installed() -> str:
    """Return the server's program, installing it first where it is missing; one install at a time on a machine."""
    version = json.loads(MANIFEST.read_text(encoding="utf-8"))["dependencies"][PACKAGE]
    if shutil.which("npm") is None or shutil.which("node") is None:
        skip_or_fail(f"npm {PACKAGE}: npm and Node.js 20 or newer are needed")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock-tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"aimock-{version}"
    program = folder / "node_modules" / ".bin" / "llmock"
    with (cache / "aimock.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _install(cache, folder)
    return str(program)


def _install(cache: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache) as build:
        shutil.copy(MANIFEST, build)
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
        try:
            run = subprocess.run(
                command, cwd=build, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            skip_or_fail(f"npm {PACKAGE}: npm install took over {INSTALL_SECONDS} s")
        if run.returncode != 0:
            skip_or_fail(f"npm {PACKAGE}: npm install failed: " + " ".join(run.stderr.split())[-300:])
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(build, folder, symlinks=True)
