"""Drive one Compose project and the API in it; standard library alone, so that any Python 3.11 will do."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_FINAL = {"completed", "failed", "cancelled", "expired"}


class Failed(AssertionError):
    """Say what was expected and what was found."""


def expect(condition: object, detail: object) -> None:
    """Raise Failed unless the condition holds."""
    if not condition:
        raise Failed(str(detail))


def run(*command: str) -> str:
    """Run a command and return what it printed; raises Failed with all of it on another exit code than 0."""
    done = run_any(*command)
    expect(done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def run_any(*command: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command, whatever its exit code."""
    return subprocess.run(
        command, cwd=ROOT, env=env, timeout=180, text=True, check=False, stdin=subprocess.DEVNULL, capture_output=True
    )


def until(what: str, condition: Callable[[], Any], *, seconds: float, pause: float = 0.2) -> Any:
    """Ask until the answer is true, and return it; raises Failed when the time is over."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds:g} s: {what}")
        time.sleep(pause)
    return answer


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Stack:
    """Be one Compose project with settings, a port and a key of its own.

    ``accepted`` holds every job that the API took, by id, with the status that it must end in.
    """

    def __init__(self, image: str) -> None:
        self.image = image
        self.project = f"penstock-test-{secrets.token_hex(3)}"
        self.port = free_port()
        self.key = secrets.token_urlsafe(24)
        self.accepted: dict[str, str] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="penstock-containers-")
        self._settings = Path(self._folder.name) / "settings.env"
        self.password = secrets.token_hex(16)
        self.configure(VALKEY_PASSWORD=self.password)
        is_v2 = run_any("docker", "compose", "version").returncode == 0
        self._compose = ("docker", "compose") if is_v2 else ("docker-compose",)

    @property
    def folder(self) -> Path:
        """Return a folder that is removed at the end."""
        return Path(self._folder.name)

    def configure(self, **settings: str) -> None:
        """Write the file that stands for ``.env``."""
        settings = {"PENSTOCK_API_KEYS": self.key, "PENSTOCK_PORT": str(self.port), **settings}
        self._settings.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def compose(self, *arguments: str) -> str:
        """Run Compose and return what it printed; raises Failed."""
        done = self.compose_any(*arguments)
        expect(
            done.returncode == 0, f"compose {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout.strip()

    def compose_any(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Compose with this project's settings and none of the caller's."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "VALKEY_"))}
        env["PENSTOCK_IMAGE"] = self.image
        files = ("--project-name", self.project, "--env-file", str(self._settings))
        return run_any(*self._compose, *files, *arguments, env=env)

    def containers(self, service: str, *, running: bool = True) -> list[str]:
        """Return the ids of a service's containers; the first 12 digits of one are its host name."""
        labels = (f"label=com.docker.compose.project={self.project}", f"label=com.docker.compose.service={service}")
        filters = [argument for label in labels for argument in ("--filter", label)]
        return run("docker", "ps", "--quiet", "--no-trunc", *([] if running else ["--all"]), *filters).split()

    def inspect(self, container: str, template: str) -> str:
        """Return a part of what Docker knows of a container."""
        return run("docker", "inspect", "--format", template, container)

    def wait_healthy(self, **services: int) -> None:
        """Wait until Docker calls so many containers of each service healthy."""

        def states() -> list[str]:
            return [self.inspect(item, "{{.State.Health.Status}}") for item in self.containers(service)]

        for service, count in services.items():
            until(f"{count} healthy {service}", lambda: states() == ["healthy"] * count, seconds=90)  # noqa: B023

    def worker_health(self, container: str) -> subprocess.CompletedProcess[str]:
        """Run the worker's health check."""
        return run_any("docker", "exec", container, "penstock", "health", "--worker")

    def signal_worker(self, container: str, number: signal.Signals) -> None:
        """Send a signal to the worker's processes from inside its container, where none of them is process 1.

        To all of them: a supervisor and its processes each keep the leases alone while the other is frozen.
        """
        program = (
            "import os, pathlib\n"
            "found = 0\n"
            "for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
            "    words, pid = path.read_bytes().split(b'\\0'), int(path.parent.name)\n"
            "    is_ours = any(b'penstock' in word for word in words) and b'health' not in words\n"
            "    if is_ours and pid not in (1, os.getpid()):\n"
            f"        os.kill(pid, {number.value})\n"
            "        found += 1\n"
            "print('done' if found >= 2 else found)\n"
        )
        printed = run("docker", "exec", container, "python", "-c", program)
        expect(printed == "done", f"no worker process found in {container}: {printed}")

    def kill_process(self, container: str, name: str) -> str:
        """Kill a container's process behind Docker's back, so that its restart policy acts; tell how it was done."""
        pid = int(self.inspect(container, "{{.State.Pid}}"))
        # Docker may run in a machine of its own, where the number means another process.
        with contextlib.suppress(OSError):
            if name in Path(f"/proc/{pid}/cmdline").read_text():
                with contextlib.suppress(PermissionError):
                    os.kill(pid, signal.SIGKILL)
                    return "killed from the host, restarted by its policy"
                if shutil.which("sudo") and run_any("sudo", "-n", "kill", "-9", str(pid)).returncode == 0:
                    return "killed from the host, restarted by its policy"
        run("docker", "kill", container)
        run("docker", "start", container)
        return "killed and started by hand"

    # ── HTTP ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def request(
        self, method: str, path: str, body: Any = None, *, key: bool = True
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Ask the API; returns status, JSON and headers. Raises OSError when nobody answers."""
        headers = {"Authorization": f"Bearer {self.key}"} if key else {}
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        # One connection a request: none can be an old one, which a restart has broken.
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=70)
        with contextlib.closing(connection):
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            text = answer.read()
        is_json = "json" in (answer.getheader("Content-Type") or "")
        return answer.status, json.loads(text) if is_json else text.decode(), answer.headers

    def get(self, path: str) -> Any:
        """Return what a GET answers; raises Failed unless it is 200."""
        status, answer, _ = self.request("GET", path)
        expect(status == 200, f"GET {path}: {status} {answer}")
        return answer

    def submit(self, ends: str, **job: Any) -> str:
        """Submit a job that must end in that status, and return its id."""
        status, answer, _ = self.request("POST", "/submit", job)
        expect(status == 202, f"POST /submit: {status} {answer}")
        self.accepted[answer["id"]] = ends
        return str(answer["id"])

    def submit_many(self, jobs: Iterable[Mapping[str, Any]]) -> list[str]:
        """Submit jobs that must complete, in one batch, and return their ids."""
        status, answer, _ = self.request("POST", "/jobs/batch", list(jobs))
        expect(status == 200 and not answer["rejected"], f"POST /jobs/batch: {status} {str(answer)[:500]}")
        ids = [item["id"] for item in answer["items"]]
        self.accepted.update(dict.fromkeys(ids, "completed"))
        return ids

    def finals(self, ids: Iterable[str], *, seconds: float = 60) -> list[dict[str, Any]]:
        """Wait until all the jobs are final and return them; an answer 503 is waited out. Raises Failed."""
        deadline = time.monotonic() + seconds
        jobs = []
        for job_id in ids:
            while True:
                status, job, _ = self.request("GET", f"/jobs/{job_id}?wait=2")
                if status == 200 and job["status"] in _FINAL:
                    break
                expect(status in {200, 503} and time.monotonic() < deadline, f"not final in time: {status} {job}")
                if status == 503:
                    time.sleep(0.2)
            jobs.append(job)
        return jobs

    def running(self) -> dict[str, int]:
        """Return how many jobs run, by the id of the container."""
        counts = dict.fromkeys(self.containers("worker"), 0)
        path = "/jobs?status=running&limit=200"
        page = self.get(path)
        items = page["items"]
        while page["next"]:
            page = self.get(f"{path}&cursor={page['next']}")
            items += page["items"]
        for container in counts:
            counts[container] = sum((item["worker"] or "").startswith(container[:12]) for item in items)
        return counts

    def metrics(self) -> dict[str, float]:
        """Return the store's counters, summed over queues."""
        sums: dict[str, float] = {}
        for line in self.get("/metrics").splitlines():
            if line.startswith("penstock_"):
                labelled, _, value = line.rpartition(" ")
                name = labelled.partition("{")[0]
                sums[name] = sums.get(name, 0) + float(value)
        return sums

    def remove(self) -> None:
        """Remove containers, networks, volumes and files, whatever state they are in."""
        self.compose_any("down", "--volumes", "--timeout", "5")
        self._folder.cleanup()
