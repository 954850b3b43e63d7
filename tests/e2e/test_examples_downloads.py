"""The example that downloads URLs meets every kind of trouble with the right number of attempts."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from examples.download_urls import download_all, report
from examples.downloads import judge, name_of, retry_after_seconds
from examples.flaky_server import MIX, FlakyServer, body_of, make_urls
from penstock import Discard, Retry
from penstock.client import Job
from tests.e2e.stack import Folder

ROOT = Path(__file__).resolve().parents[2]
COUNT = 300
PATIENCE_S = 3.0
#: Status, reason and attempts by kind of address.
EXPECTED = {
    "ok": ("completed", None, 1),
    "slow": ("completed", None, 1),
    "missing": ("failed", "discarded", 1),
    "busy": ("completed", None, 2),
    "reset": ("completed", None, 2),
    "cut": ("completed", None, 2),
    "silent": ("completed", None, 2),
    "down": ("failed", "exhausted", 4),
}


@pytest.fixture(scope="module")
def downloading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    made = Folder(tmp_path_factory.mktemp("downloading"))
    (made.path / "examples").symlink_to(ROOT / "examples")
    try:
        made.up("examples.downloads")
        yield made
    finally:
        made.close()


def path_of(job: Job) -> str:
    return str(urlsplit(job.input["url"]).path)


async def test_each_kind_of_answer_takes_its_attempts(downloading: Folder, tmp_path: Path) -> None:
    server, into = FlakyServer(), tmp_path / "files"
    with downloading.client() as client:
        async with server.running() as base_url:
            urls = make_urls(base_url, COUNT)
            jobs = await asyncio.to_thread(download_all, client, urls, into, patience=PATIENCE_S)
    assert [job.input["url"] for job in jobs] == urls
    for job in jobs:
        path = path_of(job)
        assert (job.status, job.reason, job.attempt) == EXPECTED[path.split("/")[1]], path
        assert job.attempt == server.seen[path], path
    per_kind = Counter(path_of(job).split("/")[1] for job in jobs)
    assert per_kind == {kind: share * COUNT // sum(MIX.values()) for kind, share in MIX.items()}

    check_files(into, [job for job in jobs if job.status == "completed"])
    stored = sum(len(body_of(path_of(job))) for job in jobs if job.status == "completed")
    assert f"{stored:,} bytes stored" in report(jobs)
    check_pause(next(job for job in jobs if path_of(job).startswith("/busy/")))


def check_files(into: Path, completed: list[Job]) -> None:
    """Check that each file is there, whole, and nothing else."""
    assert {path.name for path in into.iterdir()} == {name_of(job.input["url"]) for job in completed}
    for job in completed:
        body = body_of(path_of(job))
        assert (into / name_of(job.input["url"])).read_bytes() == body
        assert (job.result["bytes"], job.result["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


def check_pause(busy: Job) -> None:
    """Check that the second attempt waited for as long as the server asked: one second."""
    first, second = busy.attempts
    assert first.finished_at is not None
    assert second.started_at is not None
    assert (second.started_at - first.finished_at).total_seconds() >= 0.99
    assert first.error is not None
    assert "503" in first.error.message


async def test_what_is_no_address_is_not_tried_again(downloading: Folder, tmp_path: Path) -> None:
    with downloading.client() as client:
        jobs = await asyncio.to_thread(
            download_all, client, ["ftp://127.0.0.1/x", "nothing"], tmp_path, patience=PATIENCE_S
        )
    assert {(job.status, job.reason, job.attempt) for job in jobs} == {("failed", "discarded", 1)}
    check_files(tmp_path, [])


@pytest.mark.parametrize(
    ("status", "headers", "error", "after"),
    [
        (200, {}, None, None),
        (404, {}, Discard, None),
        (410, {}, Discard, None),
        (408, {}, Retry, None),
        (429, {"retry-after": "7"}, Retry, 7.0),
        (503, {"retry-after": "0"}, Retry, 0.0),
        (503, {"retry-after": "soon"}, Retry, None),
        (503, {"retry-after": "999999999"}, Retry, 3_600.0),
        (500, {"retry-after": "7"}, Retry, None),
    ],
)
def test_an_answer_is_judged(
    status: int, headers: dict[str, str], error: type[Exception] | None, after: float | None
) -> None:
    response = httpx.Response(status, headers=headers)
    if error is None:
        judge(response)
        return
    with pytest.raises(error) as raised:
        judge(response)
    assert getattr(raised.value, "after", None) == after


def test_a_date_is_read_as_retry_after() -> None:
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after_seconds("Tue, 21 Oct 2999 07:28:00 GMT") == 3_600.0
