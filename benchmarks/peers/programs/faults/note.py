"""Do the same work for every system: note the start, take 0.2 s, note the end."""

from __future__ import annotations

import os
import time

URL = os.environ.get("FAULTS_URL", "")
TUNED = os.environ.get("FAULTS_TUNED") == "1"
SECONDS = 0.2
JOBS = int(os.environ.get("FAULTS_JOBS") or 1000)


def note(mark: str, number: int) -> None:
    """Write one whole line, so that a kill tears none."""
    file = os.open(os.environ["FAULTS_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{mark} {number} {time.monotonic():.3f}\n".encode())
    os.close(file)


def work(number: int) -> int:
    """Be a plain handler."""
    note("S", number)
    time.sleep(SECONDS)
    note("E", number)
    return number
