"""Show on a running server what happens to jobs."""

from __future__ import annotations

from typing import Any

from penstock.cli.exits import CommandFailed, Exit
from penstock.cli.flags import JsonFlag, new_app, open_client, with_settings
from penstock.cli.output import as_text, print_json, print_line
from penstock.client import Client, Job
from penstock.config import Settings

app = new_app()

_WAIT_SECONDS = 60.0
#: So that the demo does not wait for seconds between attempts.
_BACKOFF = {"base": 0.2, "factor": 1, "jitter": False}


class _Demo:
    """Run steps and show each with the curl line that does the same."""

    def __init__(self, client: Client, *, as_json: bool) -> None:
        self._client = client
        self._as_json = as_json
        self._number = 0

    def submit(self, text: str, task: str, value: Any, **options: Any) -> Job:
        """Submit a job and wait for its end."""
        body = as_text({"task": task, "input": value, **options})
        self._step(text, f"curl -X POST {self._client.url}/submit -H 'content-type: application/json' -d '{body}'")
        job = self._client.submit(task, value, **options)
        self._show(job, f"{job.status}, id {job.id}")
        return self.wait(job.id)

    def wait(self, job_id: str) -> Job:
        """Show a job once it is final."""
        self._step("Its end, as soon as it is there", f"curl '{self._client.url}/jobs/{job_id}?wait=60'")
        job = self._client.wait(job_id, timeout=_WAIT_SECONDS)
        outcome = f"result {as_text(job.result)}" if job.status == "completed" else f"reason {job.reason}"
        attempts = f"{job.attempt} attempt" + ("" if job.attempt == 1 else "s")
        self._show(job, f"{job.status} after {attempts}, {outcome}")
        return job

    def find_dead_letter(self, job_id: str) -> None:
        """Show that a failed job lies in the dead letter."""
        self._step("Failed jobs lie in the dead letter", f"curl {self._client.url}/dead-letter")
        page = self._client.dead_letters(limit=200)
        job = next((job for job in page.items if job.id == job_id), None)
        if job is None:
            raise CommandFailed(f"job {job_id} is not among the newest dead letters")
        error = f"{job.error.type}: {job.error.message}" if job.error else "no error"
        self._show(job, f"{job.id}: {error}")

    def redrive(self, job_id: str) -> None:
        """Queue a failed job again."""
        body = as_text({"ids": [job_id]})
        self._step(
            "Redrive it: it is queued again, with new attempts",
            f"curl -X POST {self._client.url}/dead-letter/redrive -H 'content-type: application/json' -d '{body}'",
        )
        answer = self._client.redrive([job_id])
        self._show(answer, f"redriven {answer.redriven}")
        if answer.redriven != 1:
            raise CommandFailed(f"job {job_id} was not redriven")

    def _step(self, text: str, curl: str) -> None:
        self._number += 1
        if self._as_json:
            print_json({"step": self._number, "text": text, "curl": curl})
        else:
            print_line(f"{self._number}. {text}")
            print_line(f"   {curl}")

    def _show(self, answer: Any, text: str) -> None:
        if self._as_json:
            print_json({"step": self._number, "answer": answer})
        else:
            print_line(f"   → {text}")


@app.command()
@with_settings("client")
def demo(*, as_json: JsonFlag = False, settings: Settings) -> int:
    """Submit a job that succeeds, one that recovers and one that ends in the dead letter, and redrive that.

    Each step is shown with the curl line that does the same. Needs a running server: 'penstock up'.
    """
    with open_client(settings) as client:
        demo = _Demo(client, as_json=as_json)
        echoed = demo.submit("A job that returns its input", "echo", {"hello": "world"})
        recovered = demo.submit(
            "A job whose first two attempts fail, and whose third succeeds", "fail", {"times": 2}, backoff=_BACKOFF
        )
        failed = demo.submit("A job that fails each time", "fail", {"times": 100}, max_attempts=2, backoff=_BACKOFF)
        demo.find_dead_letter(failed.id)
        demo.redrive(failed.id)
        again = demo.wait(failed.id)
    expected = (echoed.status, recovered.status, failed.status, again.status)
    if expected != ("completed", "completed", "failed", "failed"):
        raise CommandFailed(f"the jobs should have completed, completed, failed and failed, not: {', '.join(expected)}")
    return Exit.OK
