"""Download many URLs by jobs and say what became of them.

Beside a running ``penstock up examples.downloads``, in the repository's folder. From a server that serves badly on
purpose:

    .venv/bin/python -m examples.flaky_server --port 8099 &
    .venv/bin/python -m examples.download_urls --flaky http://127.0.0.1:8099 --count 2000 --into /tmp/downloads

or from a file with one address a line:

    .venv/bin/python -m examples.download_urls addresses.txt --into /tmp/downloads
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from examples.flaky_server import make_urls
from penstock import Client
from penstock.client import Job


def download_all(client: Client, urls: Sequence[str], folder: Path, *, patience: float) -> list[Job]:
    """Submit a job for each URL and wait for all; the jobs come in the order of the URLs."""
    folder.mkdir(parents=True, exist_ok=True)
    items = [("download", {"url": url, "folder": str(folder.resolve()), "patience": patience}) for url in urls]
    ids = []
    for submission in client.submit_many(items, tags=["examples"]):
        if submission.error is not None:
            raise submission.error
        ids.append(str(submission.id))
    return [client.wait(job_id) for job_id in track(ids, "downloading", disable=not sys.stdout.isatty())]


def report(jobs: Sequence[Job]) -> list[str]:
    """Return how the jobs ended and how many attempts that took, as lines to print."""
    lines = [f"{count:>6,} {how}" for how, count in Counter(map(_ending, jobs)).most_common()]
    attempts = Counter(job.attempt for job in jobs)
    lines.append(
        "attempts: " + ", ".join(f"{count:,} jobs took {number}" for number, count in sorted(attempts.items()))
    )
    stored = sum(job.result["bytes"] for job in jobs if job.status == "completed")
    return [*lines, f"{stored:,} bytes stored"]


def _ending(job: Job) -> str:
    why = f" ({job.reason}: {job.error.message})" if job.reason and job.error else ""
    return f"{job.status}{why}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Download what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="addresses, one a line")
    parser.add_argument("--flaky", metavar="URL", help="take the addresses of examples.flaky_server at URL")
    parser.add_argument("--count", type=int, default=2_000, help="so many of them [default: 2000]")
    parser.add_argument("--into", type=Path, required=True, help="folder to store the files in")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds without a byte [default: 10]")
    options = parser.parse_args(arguments)
    if (options.file is None) == (options.flaky is None):
        parser.error("name a file with addresses, or --flaky URL")
    urls = make_urls(options.flaky, options.count) if options.flaky else options.file.read_text().split()

    started = time.monotonic()
    with Client() as client:
        jobs = download_all(client, urls, options.into, patience=options.patience)
    print("\n".join(report(jobs)))
    print(f"{len(jobs):,} jobs in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
