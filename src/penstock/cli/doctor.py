"""Check the Redis server and the data in it."""

from __future__ import annotations

import asyncio

from penstock.cli.exits import Exit
from penstock.cli.flags import JsonFlag, new_app, redis_url, with_settings
from penstock.cli.output import print_json, print_line, progress
from penstock.config import Settings

app = new_app()

_SHOWN = 100


@app.command()
@with_settings("store", "durability")
def doctor(*, as_json: JsonFlag = False, settings: Settings) -> int:
    """Check the connection, the server's version and settings, and that each job is in exactly one place.

    Changes nothing. Exits 1 when a check fails or a job or key is damaged, 3 when Redis does not answer.
    """
    from penstock.store.audit import audit

    options = settings.store_options(redis_url(settings))
    with progress("jobs", None) as advance:
        seen = 0

        def show(jobs: int) -> None:
            nonlocal seen
            advance(jobs - seen)
            seen = jobs

        report = asyncio.run(audit(options, progress=show))
    if as_json:
        print_json(
            {"healthy": report.healthy, "jobs": report.jobs, "checks": report.checks, "findings": report.findings}
        )
        return Exit.OK if report.healthy else Exit.FAILED
    for check in report.checks:
        print_line(f"{check.status:<8} {check.name}: {check.detail}")
    for finding in report.findings[:_SHOWN]:
        print_line(f"{'damaged':<8} {finding.subject}: {finding.code}: {finding.detail}")
    if len(report.findings) > _SHOWN:
        print_line(f"… and {len(report.findings) - _SHOWN:,} more; --json shows all")
    print_line(f"{report.jobs:,} jobs, {len(report.findings):,} findings")
    return Exit.OK if report.healthy else Exit.FAILED
