"""Run everything on this machine."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated

import typer

from penstock.cli.flags import JsonFlag, new_app, with_settings
from penstock.cli.output import print_json
from penstock.config import Settings
from penstock.core.durability import Durability
from penstock.core.errors import ConfigError

app = new_app()

Modules = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODULES", help="Modules with tasks, as in 'import'; the current folder is on the path."),
]


@app.command()
@with_settings("api", "store", "durability", "worker", "logs", "ai", "limits")
def up(modules: Modules = None, *, as_json: JsonFlag = False, settings: Settings, child_env: dict[str, str]) -> int:
    """Run Valkey, the API and a worker until Ctrl-C; the data stays in the data folder.

    With --redis-url no Valkey is started. With --json one document tells when it is ready.
    """
    from penstock.embedded import Instance, StackOptions, run_stack
    from penstock.embedded.ports import free_port
    from penstock.observability.logs import configure_logging

    configure_logging(json=settings.log_json, level=settings.log_level)
    if settings.port == 0:
        settings = dataclasses.replace(settings, port=free_port())
    # Wrong settings stop us here, before anything runs.
    settings.api_options()
    settings.worker_options(tuple(modules or ()))
    if settings.durability is Durability.REPLICA and settings.redis_url is None:
        detail = "the server that runs here has no replica: name one that has with --redis-url, or take fsync"
        raise ConfigError("PENSTOCK_DURABILITY", detail)
    # Not the folder that we stand in but ours comes first: a user's `queue.py` must not replace Python's.
    python = [sys.executable, "-P", "-m", "penstock"]

    def on_ready(instance: Instance) -> None:
        if as_json:
            print_json({"url": instance.api_url, "pid": instance.pid, "docs": f"{instance.api_url}/docs"})
        else:
            _greet(instance.api_url, settings)

    return run_stack(
        StackOptions(
            data_dir=settings.data_dir,
            host=settings.host,
            port=settings.port,
            redis_url=settings.redis_url,
            syncs_each_write=settings.durability is Durability.FSYNC,
            api_argv=[*python, "api"],
            worker_argv=[*python, "worker", "--", *(modules or ())],
            api_ready_url=f"{_local_url(settings)}/health/ready",
            drain_seconds=settings.drain_ms / 1_000,
            env=_environment(settings, child_env),
            on_ready=on_ready,
        )
    )


def _environment(settings: Settings, child_env: dict[str, str]) -> dict[str, str]:
    # A free port was chosen here; and lines must come at once where our output is a pipe.
    return {**child_env, "PENSTOCK_PORT": str(settings.port), "PYTHONUNBUFFERED": "1"}


def _local_url(settings: Settings) -> str:
    """Return where this machine reaches the API; listening on all addresses includes loopback."""
    host = settings.host
    if host in {"0.0.0.0", "", "localhost"}:  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _greet(url: str, settings: Settings) -> None:
    """Print what to open, and the two lines to paste."""
    key = " -H 'authorization: Bearer YOUR_KEY'" if settings.api_keys else ""
    body = '{"task": "echo", "input": {"hello": "world"}}'
    print(
        f"Penstock is ready at {url} (Ctrl-C stops it); {url}/docs shows every route.",
        "Paste these into another terminal:",
        f"  curl -X POST {url}/submit{key} -H 'content-type: application/json' -d '{body}'",
        f"  curl '{url}/jobs/ID?wait=10'{key}",
        sep="\n",
        flush=True,
    )
