"""Count each job's completions in the append-only file: all that the server ever wrote, nothing rewritten.

This is what makes "finished once" a statement about each job. A total would hide a job that finished twice beside one
that never did.
"""

from __future__ import annotations

import collections
import re
from pathlib import Path

import msgspec

#: A job's text is written whole, by `SET` and `MSET`.
_JOB = re.compile(rb":job:([0-9a-f-]{36})\r\n\$(\d+)\r\n")
_NUMBER = re.compile(r"\.(\d+)\.incr\.aof$")
_CHUNK = 1 << 24
#: More than any job's text takes.
_OVERLAP = 1 << 20


def completions(folder: Path) -> collections.Counter[str]:
    """Return how often each job was completed, by the files of a server that was told never to rewrite them."""
    found: collections.Counter[str] = collections.Counter()
    files = [(match, path) for path in folder.rglob("*.aof") if (match := _NUMBER.search(path.name))]
    for _, path in sorted(files, key=lambda file: int(file[0][1])):
        found.update(_in_file(path))
    return found


def _in_file(path: Path) -> list[str]:
    found = []
    kept = b""
    with path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK)
            kept += chunk
            end = 0
            for match in _JOB.finditer(kept):
                last = match.end() + int(match[2])
                if last > len(kept):
                    # Cut off here: the next chunk holds the rest, or a crash cut the file.
                    break
                end = last
                if _status(kept[match.end() : last]) == "completed":
                    found.append(match[1].decode())
            if not chunk:
                return found
            kept = kept[max(end, len(kept) - _OVERLAP) :]


def _status(text: bytes) -> str:
    fields: dict[str, str] = msgspec.msgpack.decode(text)
    return fields["status"]
