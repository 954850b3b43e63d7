"""Define the routes that the framework serves, and declare the bare ones for its documentation."""

from __future__ import annotations

from litestar.handlers import HTTPRouteHandler

from penstock.api.routes.bare import submit_batch, submit_job, submit_job_as_jobs
from penstock.api.routes.dead_letters import delete_dead_letters, list_dead_letters, redrive_dead_letters
from penstock.api.routes.documents import get_documentation_file, get_documentation_page, get_openapi, get_root
from penstock.api.routes.health import get_health, get_liveness, get_metrics, get_readiness
from penstock.api.routes.jobs import cancel_job, delete_job, get_job, list_jobs, retry_job
from penstock.api.routes.output import follow_job, get_job_log
from penstock.api.routes.queues import (
    get_queue,
    list_queues,
    list_workers,
    pause_queue,
    purge_queue,
    resume_queue,
)
from penstock.api.routes.schedules import (
    delete_schedule,
    get_schedule,
    list_schedules,
    pause_schedule,
    put_schedule,
    resume_schedule,
    run_schedule,
)

ROUTES: tuple[HTTPRouteHandler, ...] = (
    submit_job,
    submit_job_as_jobs,
    submit_batch,
    get_job,
    list_jobs,
    cancel_job,
    retry_job,
    delete_job,
    get_job_log,
    follow_job,
    list_queues,
    get_queue,
    pause_queue,
    resume_queue,
    purge_queue,
    list_dead_letters,
    redrive_dead_letters,
    delete_dead_letters,
    list_schedules,
    get_schedule,
    put_schedule,
    delete_schedule,
    pause_schedule,
    resume_schedule,
    run_schedule,
    list_workers,
    get_metrics,
    get_health,
    get_liveness,
    get_readiness,
    get_root,
    get_openapi,
    get_documentation_page,
    get_documentation_file,
)
