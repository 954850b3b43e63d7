"""Do one thing to each of several jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from penstock.cli.exits import Exit, document_of, exit_code_of
from penstock.cli.output import print_json, print_line
from penstock.client import ApiError, Job

JobIds = Annotated[list[str], typer.Argument(metavar="ID", help="Ids of jobs.")]


def change_each(ids: Sequence[str], change: Callable[[str], Job | None], *, as_json: bool, done: str) -> int:
    """Change each job and print what became of it; one that cannot be changed does not stop the rest."""
    code: int = Exit.OK
    for job_id in ids:
        try:
            job = change(job_id)
        except ApiError as error:
            code = exit_code_of(error)
            if code in {Exit.UNREACHABLE, Exit.DENIED}:
                raise
            if as_json:
                print_json({"id": job_id, **document_of(error)})
            print(f"penstock: {job_id}: {error}", file=sys.stderr)
            continue
        status = job.status if job is not None else done
        if as_json:
            print_json(job if job is not None else {"id": job_id, "status": done})
        elif job is not None and job.cancel_requested_at is not None and not job.is_final:
            print_line(f"{job_id} {status}, its handler is being told")
        else:
            print_line(f"{job_id} {status}")
    return code
