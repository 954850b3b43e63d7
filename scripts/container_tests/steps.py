"""Use the stack as an operator does, and break it as the world does; each step builds on those before it."""

from __future__ import annotations

import collections
import json
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from scripts.container_tests.stack import ROOT, Stack, expect, run, run_any, until

HARDENED = ("--read-only", "--tmpfs=/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
TASKS = """
from penstock import task

@task
def add(left: int, right: int) -> int:
    return left + right

@task(executor="process")
def count_primes(below: int) -> int:
    return sum(all(n % d for d in range(2, int(n ** 0.5) + 1)) for n in range(2, below))
"""


class Steps:
    """Hold what later steps need of earlier ones."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.redriven_failures = 0
        self.frozen = ""
        self.frozen_at = 0.0

    def all(self) -> Iterator[Callable[[], str]]:
        """Yield the steps in their order; each returns what it found."""
        yield self.image_is_small_and_not_root
        yield self.a_key_is_demanded
        yield self.up_becomes_healthy
        yield self.a_job_runs
        yield self.retries_and_dead_letter
        yield self.three_workers_share_the_work
        yield self.a_stopped_worker_drains
        yield self.a_killed_and_a_frozen_worker_lose_nothing
        yield self.a_killed_valkey_comes_back_with_its_data
        yield self.an_outage_shows_and_ends
        yield self.a_worker_that_cannot_claim_is_unhealthy
        yield self.the_image_alone_runs_own_tasks_as_process_1
        yield self.counts_agree
        yield self.down_and_up_keep_the_jobs
        yield self.down_removes_everything

    def image_is_small_and_not_root(self) -> str:
        """Look at the image and run it with as few rights as possible."""
        stack = self.stack
        config = json.loads(stack.inspect(stack.image, "{{json .Config}}"))
        expect(config["User"] == "10001:10001", config["User"])
        expect(config["Entrypoint"] == ["penstock"], config["Entrypoint"])
        expect(config["StopSignal"] == "SIGTERM", config["StopSignal"])
        expect(config["Healthcheck"]["Test"] == ["CMD", "penstock", "health"], config["Healthcheck"])
        program = (
            "import importlib.util as u, os, pathlib, penstock\n"
            "assert os.getuid() == os.getgid() == 10001, os.getuid()\n"
            "assert u.find_spec('hatchling') is None and u.find_spec('pip') is None, 'build tools are left'\n"
            "assert pathlib.Path(u.cache_from_source(penstock.__file__)).exists(), 'no bytecode'\n"
            "assert not os.access('/opt/penstock', os.W_OK) and not os.access('/app', os.W_OK), 'writable'\n"
        )
        run("docker", "run", "--rm", *HARDENED, "--entrypoint", "python", stack.image, "-c", program)
        version = run("docker", "run", "--rm", *HARDENED, stack.image, "--version")
        added = run("docker", "history", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", stack.image)
        size = next(int(line.split()[0]) for line in added.splitlines() if "/opt/penstock" in line and "COPY" in line)
        expect(size < 120_000_000, f"{size:,} B on top of Python")
        return f"{version}, {size / 1e6:.0f} MB on top of Python"

    def a_key_is_demanded(self) -> str:
        """Start neither the Compose file nor the image without a key."""
        stack = self.stack
        stack.configure(PENSTOCK_API_KEYS="")
        refused = stack.compose_any("config")
        stack.configure(VALKEY_PASSWORD=stack.password)
        expect(refused.returncode != 0, "Compose takes no key")
        expect("PENSTOCK_API_KEYS" in refused.stderr and "secrets.token_urlsafe" in refused.stderr, refused.stderr)
        alone = run_any("docker", "run", "--rm", "--env", "PENSTOCK_REDIS_URL=redis://127.0.0.1:1", stack.image)
        expect(alone.returncode == 2 and "PENSTOCK_API_KEYS" in alone.stderr, f"{alone.returncode} {alone.stderr}")
        return alone.stderr.strip().splitlines()[-1]

    def up_becomes_healthy(self) -> str:
        """Start Valkey with a password, the API and a worker."""
        stack, began = self.stack, time.monotonic()
        stack.compose("up", "--detach")
        stack.wait_healthy(redis=1, api=1, worker=1)
        address = stack.compose("port", "api", "5000")
        expect(address == f"127.0.0.1:{stack.port}", address)
        expect(stack.get("/health")["status"] == "ok", stack.get("/health"))
        return f"healthy after {time.monotonic() - began:.0f} s"

    def a_job_runs(self) -> str:
        """Submit with and without key, and use the process pool under the read-only file system."""
        stack = self.stack
        status, _, _ = stack.request("POST", "/submit", {"task": "echo"}, key=False)
        expect(status == 401, f"without a key: {status}")
        echo = stack.submit("completed", task="echo", input={"hello": "world"})
        text = (ROOT / "LICENSE").read_text()
        summary = stack.submit("completed", type="ai", task="summarize", input=text)
        jobs = stack.finals([echo, summary])
        expect(jobs[0]["result"] == {"hello": "world"}, jobs[0])
        expect(jobs[1]["status"] == "completed" and jobs[1]["result"]["method"] == "textrank", jobs[1])
        return "401 without a key; echo and a summary completed"

    def retries_and_dead_letter(self) -> str:
        """Let a job recover, another fail for good, and redrive that one."""
        stack, quick = self.stack, {"base": 0.1, "factor": 1}
        recovers = stack.submit("completed", task="fail", input={"times": 2}, backoff=quick)
        fails = stack.submit("failed", task="fail", max_attempts=2, backoff=quick)
        recovered, failed = stack.finals([recovers, fails])
        outcomes = [attempt["outcome"] for attempt in recovered["attempts"]]
        expect(outcomes == ["failed", "failed", "completed"], outcomes)
        expect((failed["status"], failed["reason"]) == ("failed", "exhausted"), failed)
        dead = [job["id"] for job in stack.get("/dead-letter")["items"]]
        expect(dead == [fails], dead)
        status, answer, _ = stack.request("POST", "/dead-letter/redrive", {"ids": [fails]})
        expect(status == 200 and answer["redriven"] == 1, answer)
        self.redriven_failures = 1
        again = stack.finals([fails])[0]
        expect(again["status"] == "failed" and len(again["attempts"]) == 4, again)
        return "recovered in attempt 3; exhausted, redriven, exhausted again"

    def three_workers_share_the_work(self) -> str:
        """Scale, and fill the slots of all three."""
        stack = self.stack
        stack.compose("up", "--detach", "--scale", "worker=3")
        stack.wait_healthy(worker=3)
        until("three workers announced", lambda: len(stack.get("/workers")["items"]) == 3, seconds=15)
        jobs = stack.finals(stack.submit_many({"task": "sleep", "input": 1} for _ in range(300)))
        shares = collections.Counter(job["worker"] for job in jobs)
        expect(len(shares) == 3 and {job["status"] for job in jobs} == {"completed"}, shares)
        return f"300 jobs shared as {sorted(shares.values())}"

    def a_stopped_worker_drains(self) -> str:
        """Stop a worker that runs jobs: it finishes them, and nothing is run twice."""
        stack = self.stack
        ids = stack.submit_many({"task": "sleep", "input": 3} for _ in range(90))
        running = until(
            "all jobs run", lambda: sum((found := stack.running()).values()) == len(ids) and found, seconds=10
        )
        worker, held = max(running.items(), key=lambda item: item[1])
        began = time.monotonic()
        run("docker", "stop", "-t", "40", worker)
        took = time.monotonic() - began
        code = stack.inspect(worker, "{{.State.ExitCode}}")
        expect(code == "0", f"exit {code}")
        jobs = stack.finals(ids)
        expect(all(len(job["attempts"]) == 1 for job in jobs), "a job ran twice")
        run("docker", "start", worker)
        return f"exit 0 after {took:.1f} s with {held} jobs held; each ran once"

    def a_killed_and_a_frozen_worker_lose_nothing(self) -> str:
        """Kill one of three workers and freeze another, both while they run jobs."""
        stack = self.stack
        workers = stack.containers("worker")
        until("three workers announced", lambda: len(stack.get("/workers")["items"]) == 3, seconds=15)
        # More than the slots of two, so that each has some.
        ids = stack.submit_many({"task": "sleep", "input": 3} for _ in range(280))
        until("all three run jobs", lambda: all(stack.running().values()), seconds=10)
        killed, self.frozen = workers[:2]
        began = time.monotonic()
        run("docker", "kill", killed)
        stack.signal_worker(self.frozen, signal.SIGSTOP)
        self.frozen_at = time.monotonic()
        jobs = stack.finals(ids, seconds=90)
        took = time.monotonic() - began
        lost = self._check_once(jobs)
        for container in (killed, self.frozen):
            expect(lost[container[:12]], f"{container[:12]} lost no job: {lost}")
        return f"{sum(lost.values())} of {len(ids)} runs lost and run elsewhere; all completed after {took:.0f} s"

    @staticmethod
    def _check_once(jobs: list[dict[str, Any]]) -> collections.Counter[str]:
        """Check that each job completed in one attempt, and count the other attempts by host."""
        lost: collections.Counter[str] = collections.Counter()
        for job in jobs:
            outcomes = [attempt["outcome"] for attempt in job["attempts"]]
            expect(job["status"] == "completed" and outcomes.count("completed") == 1, job)
            expect(set(outcomes[:-1]) <= {"worker_lost", "released"} and outcomes[-1] == "completed", job)
            lost.update(item["worker"][:12] for item in job["attempts"] if item["outcome"] == "worker_lost")
        return lost

    def a_killed_valkey_comes_back_with_its_data(self) -> str:
        """Kill Valkey while jobs wait and run."""
        stack = self.stack
        valkey = stack.containers("redis")[0]
        slow = stack.submit_many({"task": "sleep", "input": 2} for _ in range(150))
        waiting = stack.submit_many({"task": "echo", "input": n, "delay": 3} for n in range(500))
        until("jobs run", lambda: stack.get("/jobs?status=running&limit=1")["items"], seconds=10)
        # Only what is on disk is promised; the file is synced each second.
        synced = run("docker", "exec", valkey, "valkey-cli", "WAITAOF", "1", "0", "5000").split()[0]
        expect(synced == "1", f"WAITAOF: {synced}")
        started = stack.inspect(valkey, "{{.State.StartedAt}}")
        how = stack.kill_process(valkey, "valkey-server")
        until("Valkey runs again", lambda: stack.inspect(valkey, "{{.State.StartedAt}}") != started, seconds=20)
        jobs = stack.finals([*slow, *waiting], seconds=60)
        self._check_once(jobs)
        return f"{how}; all {len(jobs)} jobs completed"

    def an_outage_shows_and_ends(self) -> str:
        """Stop Valkey: health says so, submits are refused, nothing restarts; all of it works again afterwards."""
        stack = self.stack
        worker = next(item for item in stack.containers("worker") if item != self.frozen)
        stack.compose("stop", "redis")
        began = time.monotonic()
        status, answer, _ = stack.request("GET", "/health")
        took = time.monotonic() - began
        expect(status == 503 and took < 1, f"/health: {status} after {took:.1f} s")
        refused, problem, headers = stack.request("POST", "/submit", {"task": "echo"})
        expect(refused == 503 and headers["Retry-After"], f"/submit: {refused} {problem}")
        expect(stack.request("GET", "/health/live")[0] == 200, "/health/live")
        sick = stack.worker_health(worker)
        expect(sick.returncode != 0, sick)
        stack.compose("start", "redis")
        began = time.monotonic()
        until("/health is 200 again", lambda: stack.request("GET", "/health")[0] == 200, seconds=30)
        stack.finals([stack.submit("completed", task="echo")], seconds=20)
        back = f"a job runs {time.monotonic() - began:.1f} s after its return"
        return f"/health 503 ({answer['detail']}), submit 503, worker: {sick.stderr.strip()}; {back}"

    def a_worker_that_cannot_claim_is_unhealthy(self) -> str:
        """Judge the frozen worker while Valkey answers PING, then thaw it: it changes nothing and works again."""
        stack = self.stack
        before = {item: stack.get(f"/jobs/{item}") for item in stack.accepted}
        until("the check fails", lambda: stack.worker_health(self.frozen).returncode, seconds=90, pause=1)
        seconds = time.monotonic() - self.frozen_at
        sick = stack.worker_health(self.frozen)
        ping = run("docker", "exec", stack.containers("redis")[0], "valkey-cli", "PING")
        expect(sick.returncode == 1 and ping == "PONG", f"{sick} {ping}")
        stack.signal_worker(self.frozen, signal.SIGCONT)
        until("the thawed worker is well", lambda: not stack.worker_health(self.frozen).returncode, seconds=60)
        changed = [item for item, job in before.items() if stack.get(f"/jobs/{item}") != job]
        expect(not changed, f"the thawed worker changed final jobs: {changed}")
        return f"after {seconds:.0f} s: {sick.stdout.strip()}"

    def the_image_alone_runs_own_tasks_as_process_1(self) -> str:
        """Run a worker without Compose and without an init, with a module of one's own, and stop it."""
        stack = self.stack
        module = stack.folder / "my_tasks.py"
        module.write_text(TASKS)
        stack.folder.chmod(0o755)
        module.chmod(0o644)
        address = f"PENSTOCK_REDIS_URL=redis://:{stack.password}@redis:6379/0"
        place = ("--network", f"{stack.project}_default", "--volume", f"{module}:/app/my_tasks.py:ro", "--env", address)
        container = run("docker", "run", "--detach", *HARDENED, *place, stack.image, "worker", "my_tasks")
        try:
            ids = [
                stack.submit("completed", task="add", input={"left": 1, "right": 2}),
                stack.submit("completed", task="count_primes", input={"below": 10_000}),
            ]
            jobs = stack.finals(ids)
            expect([job["result"] for job in jobs] == [3, 1229], jobs)
            expect(run("docker", "exec", container, "cat", "/proc/1/comm") == "penstock", "not process 1")
            began = time.monotonic()
            run("docker", "stop", "-t", "40", container)
            took = time.monotonic() - began
            code = stack.inspect(container, "{{.State.ExitCode}}")
            expect(code == "0" and took < 15, f"exit {code} after {took:.1f} s")
        finally:
            run("docker", "rm", "--force", container)
        return f"both tasks completed; SIGTERM: exit 0 after {took:.1f} s"

    def counts_agree(self) -> str:
        """Count every accepted job by its own record, by the metrics, by the queue, and let the doctor look."""
        stack = self.stack
        jobs = stack.finals(stack.accepted)
        wrong = [job["id"] for job in jobs if job["status"] != stack.accepted[job["id"]]]
        expect(not wrong, f"{len(wrong)} jobs ended otherwise, such as {wrong[:3]}")
        ends = collections.Counter(job["status"] for job in jobs)
        counted, queue = stack.metrics(), stack.get("/queues/default")
        expected = {
            "penstock_jobs_submitted_total": len(jobs),
            "penstock_jobs_completed_total": ends["completed"],
            "penstock_jobs_failed_total": ends["failed"] + self.redriven_failures,
            "penstock_jobs_redriven_total": self.redriven_failures,
            "penstock_jobs_poisoned_total": 0,
            "penstock_jobs_running": 0,
            "penstock_queue_depth": 0,
            "penstock_jobs_delayed": 0,
        }
        found = {name: counted.get(name, 0) for name in expected}
        expect(found == expected, f"/metrics: {found}, expected {expected}")
        finished = {name: count for name, count in queue["finished"].items() if count}
        expect(finished == dict(ends), f"/queues: {finished}, expected {ends}")
        doctor = run("docker", "exec", stack.containers("api")[0], "penstock", "doctor")
        expect(f"{len(jobs):,} jobs, 0 findings" in doctor, doctor)
        return f"{len(jobs):,} accepted: {dict(ends)}, each once; the doctor finds nothing"

    def down_and_up_keep_the_jobs(self) -> str:
        """Take everything down and start again, this time without a password."""
        stack = self.stack
        stack.compose("down")
        left = [item for name in ("redis", "api", "worker") for item in stack.containers(name, running=False)]
        expect(not left, f"left: {left}")
        stack.configure()
        stack.compose("up", "--detach")
        until("the API answers", lambda: _status(stack) == 200, seconds=60)
        stack.submit("completed", task="echo", input="again")
        jobs = stack.finals(stack.accepted)
        wrong = [job["id"] for job in jobs if job["status"] != stack.accepted[job["id"]]]
        expect(not wrong, f"{len(wrong)} jobs ended otherwise, such as {wrong[:3]}")
        return f"all {len(jobs) - 1:,} jobs are there, and a new one runs"

    def down_removes_everything(self) -> str:
        """Remove containers, network and volume."""
        stack = self.stack
        stack.compose("down", "--volumes")
        label = f"label=com.docker.compose.project={stack.project}"
        kinds = ("container", "network", "volume")
        listed = {kind: run("docker", kind, "ls", "--quiet", "--filter", label) for kind in kinds}
        expect(not any(listed.values()), f"left: {listed}")
        return "no container, network or volume is left"


def _status(stack: Stack) -> int:
    try:
        return stack.request("GET", "/health")[0]
    except OSError:
        return 0
