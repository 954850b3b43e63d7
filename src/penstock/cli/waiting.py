"""Wait for one job or many."""

from __future__ import annotations

import asyncio
import collections
import sys
import time
from collections.abc import AsyncIterator, Sequence

from penstock.cli.exits import CommandFailed, Exit
from penstock.cli.flags import open_client, server_url
from penstock.cli.output import print_job, print_json, print_line, progress
from penstock.client import AsyncClient, Job, WaitTimeout
from penstock.config import Settings
from penstock.core.durations import parse_duration_ms

_AT_ONCE = 16
_RETRIES = 5


def seconds_of(flag: str, text: str | None) -> float | None:
    """Return a duration flag in seconds. Raises CommandFailed."""
    if text is None:
        return None
    try:
        return parse_duration_ms(text) / 1_000
    except ValueError as error:
        raise CommandFailed(f"{flag}: {error}", Exit.USAGE, field=flag.removeprefix("--")) from error


def wait_for_job(settings: Settings, job_id: str, seconds: float, *, as_json: bool) -> int:
    """Wait for a job and show it; the exit code says how it ended. Raises WaitTimeout."""
    with open_client(settings, retries=_RETRIES) as client:
        return show_final(client.wait(job_id, timeout=seconds), as_json=as_json)


def show_final(job: Job, *, as_json: bool) -> int:
    """Show a job; FAILED when it ended in another way than completed."""
    if as_json:
        print_json(job)
    else:
        print_job(job)
    return Exit.FAILED if job.is_final and job.status != "completed" else Exit.OK


def wait_for_many(settings: Settings, ids: Sequence[str], seconds: float, *, as_json: bool) -> int:
    """Wait for many jobs, show a line each (``--json``) or their count by status, and return the exit code."""
    statuses: collections.Counter[str] = collections.Counter()

    async def collect() -> bool:
        in_time = True
        with progress("waiting", len(ids)) as advance:
            async for job, is_final in _finals(settings, ids, seconds):
                statuses[job.status] += 1
                in_time = in_time and is_final
                if as_json:
                    print_json(job)
                advance(1)
        return in_time

    in_time = asyncio.run(collect())
    if not as_json:
        print_line(", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items())) or "no jobs")
    if not in_time:
        print(f"penstock: not all jobs were final after {seconds:g} s", file=sys.stderr)
        return Exit.TIMEOUT
    return Exit.OK if set(statuses) <= {"completed"} else Exit.FAILED


async def _finals(settings: Settings, ids: Sequence[str], seconds: float) -> AsyncIterator[tuple[Job, bool]]:
    """Yield each job in order, with whether it was final in time."""
    deadline = time.monotonic() + seconds
    async with AsyncClient(server_url(settings), api_key=settings.api_key or "", retries=_RETRIES) as client:

        async def wait(job_id: str) -> tuple[Job, bool]:
            try:
                return await client.wait(job_id, timeout=max(0.0, deadline - time.monotonic())), True
            except WaitTimeout as error:
                return error.job, False

        waiting: collections.deque[asyncio.Task[tuple[Job, bool]]] = collections.deque()
        try:
            for job_id in ids:
                waiting.append(asyncio.create_task(wait(job_id)))
                if len(waiting) == _AT_ONCE:
                    yield await waiting.popleft()
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
