"""Submit a job, or many."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import IO, Annotated, Any

import msgspec
import typer

from penstock.cli.exits import CommandFailed, Exit
from penstock.cli.flags import JsonFlag, new_app, open_client, with_settings
from penstock.cli.inputs import AsText, Input, open_file, read_input
from penstock.cli.output import print_json, print_line, print_submitted, progress
from penstock.cli.waiting import seconds_of, wait_for_job, wait_for_many
from penstock.client.errors import ServerUnavailable
from penstock.config import Settings

app = new_app()

#: Fields that a submit takes as text; each is a flag.
_TIMES = ("delay", "run_at", "backoff", "timeout", "expires_in", "expires_at", "retention")
_FIELDS = ("type", "queue", "priority", *_TIMES)


@app.command()
@with_settings("client")
def submit(
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="Name of the task; with --ndjson it may be left out.")
    ] = None,
    input: Input = None,  # noqa: A002 - the field's name
    *,
    text: AsText = False,
    type: Annotated[str | None, typer.Option(help="Family of task: 'task' or 'ai'.")] = None,  # noqa: A002
    queue: Annotated[str | None, typer.Option(help="Queue to wait in.")] = None,
    priority: Annotated[str | None, typer.Option(help="critical, high, normal or low.")] = None,
    delay: Annotated[str | None, typer.Option(help="Seconds, or '90s', '15m', '2h': do not start earlier.")] = None,
    run_at: Annotated[str | None, typer.Option(help="RFC 3339 time: do not start earlier.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Tries, the first included.")] = None,
    backoff: Annotated[
        str | None, typer.Option(help="Wait before the second try, doubled for each one after: seconds, or '5s'.")
    ] = None,
    timeout: Annotated[str | None, typer.Option(help="Longest time of one attempt.")] = None,
    expires_in: Annotated[
        str | None, typer.Option(help="Give up if not started after that time: seconds, or '5m'.")
    ] = None,
    expires_at: Annotated[str | None, typer.Option(help="RFC 3339 time: give up if not started by then.")] = None,
    retention: Annotated[str | None, typer.Option(help="Keep the job so long once it is final: '7d'.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Name to find the job by; may be given often.")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Safe to repeat: the same KEY and job get the first answer, for 24 h."),
    ] = None,
    unique_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="No second job of KEY while this one holds it: until it has finished."),
    ] = None,
    unique_until: Annotated[
        str | None, typer.Option(metavar="EVENT", help="Hold --unique-key until 'started' or 'finished'.")
    ] = None,
    unique_for: Annotated[
        str | None, typer.Option(metavar="TIME", help="Hold --unique-key so long: seconds, or '10m'.")
    ] = None,
    on_conflict: Annotated[
        str | None,
        typer.Option(metavar="WAY", help="If another job holds it: 'reject' (exit 5), 'return_existing' or 'replace'."),
    ] = None,
    wait: Annotated[str | None, typer.Option(help="Wait so long for the result: seconds, or '5m'.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Submit so many alike.")] = 1,
    ndjson: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="One job a line ('-': stdin): an input if TASK is given, else a whole job."),
    ] = None,
    as_json: JsonFlag = False,
    settings: Settings,
) -> int:
    """Submit a job and show its id, or with --wait its result.

    With --count or --ndjson many go in batches; --json then prints one line a job. Exits 1 when a job that was waited
    for did not complete, or when a job was refused.
    """
    values = {"type": type, "queue": queue, "priority": priority, "delay": delay, "run_at": run_at}
    values |= {"backoff": backoff, "timeout": timeout, "expires_in": expires_in, "expires_at": expires_at}
    values |= {"retention": retention}
    options: dict[str, Any] = {name: value for name in _FIELDS if (value := values[name]) is not None}
    if max_attempts is not None:
        options["max_attempts"] = max_attempts
    if tag:
        options["tags"] = tag
    wait_seconds = seconds_of("--wait", wait)
    if idempotency_key is not None:
        if count > 1 or ndjson is not None:
            raise CommandFailed(
                "--idempotency-key is for one job; in --ndjson give each its 'idempotency_key'",
                Exit.USAGE,
                field="idempotency-key",
            )
        options["idempotency_key"] = idempotency_key
    unique = {"until": unique_until, "for": unique_for, "on_conflict": on_conflict}
    options |= _unique_fields(unique_key, unique, one=count == 1 and ndjson is None)
    if ndjson is not None:
        if input is not None:
            raise CommandFailed("--ndjson brings the inputs; leave INPUT out", Exit.USAGE, field="input")
        with open_file(ndjson, "--ndjson") as stream:
            return _submit_many(settings, _items(stream, task), options, wait_seconds, as_json=as_json, total=None)
    if task is None:
        raise CommandFailed("name the TASK to submit, or give jobs with --ndjson", Exit.USAGE, field="task")
    value = read_input(input, as_text=text)
    if count > 1:
        items = itertools.repeat((task, value), count)
        return _submit_many(settings, items, options, wait_seconds, as_json=as_json, total=count)
    with open_client(settings) as client:
        job = client.submit(task, value, **options)
    if wait_seconds is not None:
        return wait_for_job(settings, job.id, wait_seconds, as_json=as_json)
    if as_json:
        print_submitted(job)
    else:
        print_line(f"{job.id} {job.status}")
        if job.existing:
            print("penstock: another job holds the unique key; this is that one", file=sys.stderr)
    return Exit.OK


def _unique_fields(key: str | None, rest: dict[str, str | None], *, one: bool) -> dict[str, Any]:
    """Return the fields of a unique key. Raises CommandFailed."""
    given = {name: value for name, value in rest.items() if value is not None}
    if key is None:
        if given:
            raise CommandFailed("name the key with --unique-key", Exit.USAGE, field="unique-key")
        return {}
    if not one:
        raise CommandFailed(
            "--unique-key is for one job; in --ndjson give each its 'unique_key'", Exit.USAGE, field="unique-key"
        )
    return {"unique": {"key": key, **given}} if given else {"unique_key": key}


def _submit_many(
    settings: Settings,
    items: Iterator[Any],
    options: dict[str, Any],
    wait_seconds: float | None,
    *,
    as_json: bool,
    total: int | None,
) -> int:
    accepted: list[str] = []
    refused = unknown = 0
    with open_client(settings) as client, progress("submitting", total) as advance:
        for submission in client.submit_many(items, **options):
            advance(1)
            if submission.id is not None:
                accepted.append(submission.id)
            else:
                if isinstance(submission.error, ServerUnavailable) and submission.error.job_id:
                    unknown += 1
                else:
                    refused += 1
                print(f"penstock: job {submission.index + 1}: {submission.error}", file=sys.stderr)
            if as_json and (wait_seconds is None or submission.id is None):
                print_json(submission)
    if not as_json:
        line = f"submitted {len(accepted):,} jobs"
        line += f", {refused:,} were refused" if refused else ""
        line += f", {unknown:,} may have been taken" if unknown else ""
        print_line(line)
    is_whole = not refused and not unknown
    if wait_seconds is None:
        return Exit.OK if is_whole else Exit.FAILED
    code = wait_for_many(settings, accepted, wait_seconds, as_json=as_json)
    return code if code != Exit.OK or is_whole else Exit.FAILED


def _items(stream: IO[bytes], task: str | None) -> Iterator[Any]:
    """Yield the jobs of NDJSON lines; empty lines are skipped."""
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            value = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise CommandFailed(f"--ndjson, line {number}: not JSON: {error}", Exit.USAGE, field="ndjson") from error
        if task is not None:
            yield (task, value)
        elif isinstance(value, dict):
            yield value
        else:
            raise CommandFailed(
                f'--ndjson, line {number}: not a job, such as {{"task": "echo"}}; name TASK if the lines are inputs',
                Exit.USAGE,
                field="ndjson",
            )
