"""Cut the power of a Valkey server: kill it, and take from its append-only file what was not synced to the disk.

A killed process loses nothing that it wrote, since the kernel writes it out later; only a power cut tells whether
anyone waited for the disk. What was synced is read from a trace of the server's system calls.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.missing import skip_or_fail

_LINE = re.compile(r"^(?P<thread>\d+) +(?P<text>.*)$")
_START = re.compile(r"^(?P<call>write|fdatasync|fsync)\((?P<descriptor>\d+)<(?P<path>[^>]*)>")
_RESUMED = re.compile(r"^<\.\.\. (?P<call>write|fdatasync|fsync) resumed>")
_RESULT = re.compile(r"\) += (?P<result>-?\d+)")


def tracing(log: Path) -> list[str]:
    """Return the command that runs a server under a trace; skips where there is none.

    The tracer is a child of the server (``-D``), so that the process that is started is the server itself.
    """
    strace = shutil.which("strace")
    if strace is None:
        skip_or_fail("strace is not installed (Debian: strace)")
    command = [strace, "-D", "-f", "-y", "-s", "0", "-e", "trace=write,fdatasync,fsync", "-o", str(log)]
    trial = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        skip_or_fail(f"strace may not trace here: {trial.stderr.strip()}")
    return command


def synced_bytes(trace: str, name: str) -> tuple[int, int]:
    """Return how many bytes of a file were written, and how many of them a completed sync had covered.

    A sync covers what was written before it began.
    """
    written = synced = 0
    #: What each thread is in the middle of: a write, or a sync that covers so many bytes.
    pending: dict[str, int | None] = {}
    for line in trace.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        thread, text = match["thread"], match["text"]
        if (started := _START.match(text)) is not None:
            if not started["path"].endswith(name):
                continue
            covers = None if started["call"] == "write" else written
            if "<unfinished" in text:
                pending[thread] = covers
                continue
        elif _RESUMED.match(text) is not None and thread in pending:
            covers = pending.pop(thread)
        else:
            continue
        result = _RESULT.search(text)
        if result is None or int(result["result"]) < 0:
            continue
        if covers is None:
            written += int(result["result"])
        else:
            synced = max(synced, covers)
    return written, synced


def cut_back(folder: Path, log: Path) -> tuple[int, int]:
    """Take from a killed server's append-only file what no sync had covered; return its size before and after."""
    (file,) = (folder / "appendonlydir").glob("*.incr.aof")
    written, synced = synced_bytes(log.read_text(), f"/{file.name}")
    # The kernel may have taken a last write whose return the server did not live to see.
    assert synced <= written <= file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(synced)
    return written, synced
