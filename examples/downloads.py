"""Download URLs: input and output, a hundred jobs at once on one event loop.

Start it in the repository's folder with ``penstock up examples.downloads`` (or, beside a running instance, with
``penstock worker examples.downloads``), then let ``python -m examples.download_urls`` submit the jobs.

It fetches whatever address a job names, from where the worker stands. Let only those submit who may do that.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import email.utils
import hashlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec

from penstock import Context, Discard, Retry, task

MAX_BYTES = 64 * 1024 * 1024
MAX_RETRY_AFTER_SECONDS = 3_600.0


class Downloaded(msgspec.Struct, frozen=True, kw_only=True):
    """Say what was stored where."""

    url: str
    path: str
    bytes: int
    sha256: str


@contextlib.asynccontextmanager
async def lifespan() -> AsyncIterator[httpx.AsyncClient]:
    """Hold the connections that all downloads of this worker share; jobs see it as ``ctx.resources``."""
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=20)
    async with httpx.AsyncClient(limits=limits, follow_redirects=True, headers={"accept-encoding": "identity"}) as http:
        yield http


@task(max_attempts=4, backoff={"base": "200ms", "max": "30s"}, timeout="10m")
async def download(url: str, folder: str, ctx: Context, patience: float = 10.0) -> Downloaded:
    """Store what a URL holds in ``folder``; no byte for ``patience`` seconds counts as a failure.

    A 429 or 503 is tried again when its ``Retry-After`` says; other 5xx, resets, cut bodies and silence are tried again
    with the backoff; any other 4xx goes to the dead letter at once.
    """
    http: httpx.AsyncClient = ctx.resources
    target = Path(folder) / name_of(url)
    fresh = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    digest, size = hashlib.sha256(), 0
    try:
        # A transport error (refused, reset, cut short, too slow) needs no word here: any exception is tried again.
        async with http.stream("GET", url, timeout=httpx.Timeout(patience, pool=None)) as response:
            judge(response)
            with fresh.open("wb") as file:
                async for chunk in response.aiter_raw():
                    size += len(chunk)
                    if size > MAX_BYTES:
                        raise Discard(f"more than {MAX_BYTES} bytes")
                    digest.update(chunk)
                    file.write(chunk)
        # In one step, so that nobody sees half a file, and a second run replaces a file with the same file.
        fresh.replace(target)
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise Discard(f"not an address to download from: {error}") from error
    finally:
        fresh.unlink(missing_ok=True)
    return Downloaded(url=url, path=str(target), bytes=size, sha256=digest.hexdigest())


def judge(response: httpx.Response) -> None:
    """Raise what becomes of an answer other than 2xx."""
    status = response.status_code
    if response.is_success:
        return
    if status in {429, 503} and (after := retry_after_seconds(response.headers.get("retry-after"))) is not None:
        raise Retry(f"the server answered {status} and asked to wait {after:g} s", after=after)
    if 400 <= status < 500 and status not in {408, 425, 429}:
        raise Discard(f"the server answered {status}")
    raise Retry(f"the server answered {status}")


def retry_after_seconds(value: str | None) -> float | None:
    """Read a ``Retry-After``, seconds or a date; None when there is none that makes sense."""
    if value is None:
        return None
    try:
        seconds = float(int(value))
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (moment - dt.datetime.now(dt.UTC)).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def name_of(url: str) -> str:
    """Return a file name that only this URL has."""
    return hashlib.sha256(url.encode()).hexdigest()[:32]
