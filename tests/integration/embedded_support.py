"""Run real stacks with stand-ins for the API and the worker, and watch them without sleeping."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from penstock.embedded import Instance, find_instance
from penstock.embedded.ports import free_port
from tests.waiting import Log, wait_gone

# What tells of itself by datagrams: they queue in the order of sending, across processes.
_TELL = """
import os, signal, socket, subprocess, sys, threading, time
from penstock.embedded import exit_with_parent
_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def tell(text):
    _socket.sendto(text.encode(), ("127.0.0.1", int(os.environ["TEST_EVENTS_PORT"])))
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())
signal.signal(signal.SIGINT, lambda *_: tell("SIGINT reached " + sys.argv[1]))
if os.environ.get("TEST_WATCH_PARENT", "yes") == "yes":
    exit_with_parent(int(os.environ["PENSTOCK_PARENT_FD"]))
"""

API = (
    _TELL
    + """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(os.environ.get("TEST_API_STATUS", "200")))
        self.end_headers()
    def log_message(self, *_):
        pass
class Server(http.server.ThreadingHTTPServer):
    allow_reuse_address = True
server = Server(("127.0.0.1", int(sys.argv[2])), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
tell(f"api started {os.getpid()}")
stopping.wait()
tell("api stopping")
sys.exit(0)
"""
)

WORKER = (
    _TELL
    + """
import redis
url = os.environ["PENSTOCK_REDIS_URL"]
same_group = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
# Only Linux hands such a one to the supervisor when the worker ends.
away = sys.platform == "linux"
own_session = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=away)
tell(f"worker started {os.getpid()} {same_group.pid} {own_session.pid}")
if "TEST_WORKER_EXIT" in os.environ:
    sys.exit(int(os.environ["TEST_WORKER_EXIT"]))
stopping.wait()
tell("worker stopping")
drain = os.environ.get("TEST_DRAIN", "at once")
if drain == "never":
    threading.Event().wait()
if drain != "at once":
    with open(drain, "rb") as gate:
        gate.read()
with redis.Redis.from_url(url) as client:
    tell("worker drained " + str(client.incr("drained")))
sys.exit(0)
"""
)

_RUNNER = """
import json, logging, os, sys
from pathlib import Path
from penstock.embedded import EmbeddedError, StackOptions, run_stack, valkey
logging.basicConfig(level=logging.INFO, format="%(message)s")
given = json.loads(sys.argv[1])
valkey._CONFIG += given.pop("valkey_extra", "")
valkey._READY_SECONDS = given.pop("valkey_ready_seconds", 30.0)
given["data_dir"] = Path(given["data_dir"])
def ready(instance):
    print("ready", flush=True)
try:
    sys.exit(run_stack(StackOptions(**given, env=dict(os.environ), on_ready=ready)))
except EmbeddedError as error:
    print(f"penstock: {error}", file=sys.stderr)
    sys.exit(1)
"""

IS_LINUX = sys.platform == "linux"


class Stack:
    """Run one stack after another on a data folder."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "data"
        self.folder = folder
        self.port = free_port()
        self.mark = f"TEST_MARK={uuid.uuid4().hex}"
        self.log = Log()
        self.told: list[str] = []
        self.worker_pids: list[int] = []
        """The last worker that started, its child in the same group, its child in a session of its own."""
        self._events = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._events.bind(("127.0.0.1", 0))
        self._runs: list[subprocess.Popen[bytes]] = []

    def start(self, *, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        given = {
            "data_dir": str(self.data_dir),
            "host": "127.0.0.1",
            "port": self.port,
            "api_argv": [sys.executable, "-c", API, "api", str(self.port)],
            "worker_argv": [sys.executable, "-c", WORKER, "worker"],
            "api_ready_url": f"http://127.0.0.1:{self.port}/health",
            "drain_seconds": 60.0,
            **options,
        }
        name, _, value = self.mark.partition("=")
        environment = {**os.environ, name: value, "TEST_EVENTS_PORT": str(self._events.getsockname()[1]), **(env or {})}
        run = subprocess.Popen(
            [sys.executable, "-c", _RUNNER, json.dumps(given)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self.log.writer,
            start_new_session=True,
        )
        self._runs.append(run)
        return run

    def start_ready(self, *, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        run = self.start(env=env, **options)
        assert self.is_ready(run), self.stderr()
        if "worker_argv" not in options:
            # Only now does it heed SIGTERM rather than die of it.
            self.worker_pids = [int(word) for word in self.expect("worker started")]
        return run

    def is_ready(self, run: subprocess.Popen[bytes], seconds: float = 30.0) -> bool:
        """Wait for the call of on_ready; False when the stack ended without it."""
        assert run.stdout is not None
        assert select.select([run.stdout], [], [], seconds)[0], self.stderr()
        return run.stdout.readline() == b"ready\n"

    def stderr(self) -> str:
        return self.log.text()

    def instance(self) -> Instance:
        instance = find_instance(self.data_dir)
        assert instance is not None
        return instance

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.instance().redis_url, decode_responses=True)

    def expect(self, start: str, seconds: float = 15.0) -> list[str]:
        """Wait for the next message that starts so; return the words after it."""
        self._events.settimeout(seconds)
        while True:
            try:
                text = self._events.recv(1000).decode()
            except TimeoutError:
                raise AssertionError(f"no {start!r} after {self.told}\n{self.stderr()}") from None
            self.told.append(text)
            if text.startswith(start):
                return text.removeprefix(start).split()

    def children(self) -> dict[str, int]:
        return {child["name"]: child["pid"] for child in json.loads((self.data_dir / "children.json").read_bytes())}

    def marked(self) -> list[int]:
        """Return every process that this stack has led to, by its inherited environment or, for the server, its folder.

        Only where /proc shows them; elsewhere nothing is found.
        """
        found = []
        for entry in Path("/proc").iterdir() if IS_LINUX else ():
            try:
                if entry.name.isdigit() and (
                    self.mark.encode() in (entry / "environ").read_bytes()
                    or (entry / "cwd").readlink() == self.data_dir
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def close(self) -> None:
        for run in self._runs:
            if run.poll() is None:
                run.kill()
            run.wait()
            if run.stdout is not None:
                run.stdout.close()
        for pid in self.marked():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            wait_gone(pid, 5)
        self._events.close()
        self.log.close()


def stack_in(folder: Path) -> Iterator[Stack]:
    stack = Stack(folder)
    try:
        yield stack
    finally:
        stack.close()
