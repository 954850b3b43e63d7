"""Say whether the API or this machine's worker is well."""

from __future__ import annotations

import asyncio
import socket
from typing import Annotated

import typer

from penstock.cli.exits import Exit
from penstock.cli.flags import JsonFlag, new_app, redis_url, server_url, with_settings
from penstock.cli.output import print_json, print_line
from penstock.config import Settings

app = new_app()

_PATIENCE_SECONDS = 5.0


@app.command()
@with_settings("client", "store")
def health(
    *,
    worker: Annotated[bool, typer.Option("--worker", help="Judge this machine's workers instead of the API.")] = False,
    as_json: JsonFlag = False,
    settings: Settings,
) -> int:
    """Ask the API for its health, or with --worker look whether this machine's workers consume.

    Made for the health checks of containers. Exits 1 when not well, 3 when nothing answers.
    """
    ok, detail = asyncio.run(_judge_worker(settings)) if worker else _ask_api(settings)
    if as_json:
        print_json({"ok": ok, "detail": detail})
    else:
        print_line(detail)
    return Exit.OK if ok else Exit.FAILED


def _ask_api(settings: Settings) -> tuple[bool, str]:
    from penstock.client import Client, ServerUnavailable

    url = server_url(settings)
    with Client(url, api_key=settings.api_key or "", retries=0, timeout=_PATIENCE_SECONDS) as client:
        try:
            answer = client.health()
        except ServerUnavailable as error:
            return False, str(error)
    return True, f"Penstock {answer.get('version', '')} at {url} is well"


async def _judge_worker(settings: Settings) -> tuple[bool, str]:
    from penstock.core.errors import StoreUnavailable
    from penstock.store import connect
    from penstock.worker.health import WorkerHealth

    store = await connect(settings.store_options(redis_url(settings)))
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            judged = WorkerHealth.judge_host(await store.workers(), socket.gethostname())
    except TimeoutError as error:
        raise StoreUnavailable(f"Redis did not answer within {_PATIENCE_SECONDS:g} s") from error
    finally:
        await store.close()
    return judged.ok, judged.detail
