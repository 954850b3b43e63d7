"""Keep ids in order of a score, as a Redis sorted set does."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from penstock.core.ids import JobId


class Index:
    """Order ids by score, then by id."""

    def __init__(self) -> None:
        self._scores: dict[JobId, int] = {}
        self._entries: list[tuple[int, JobId]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, job_id: JobId) -> bool:
        return job_id in self._scores

    def __iter__(self) -> Iterator[JobId]:
        return (job_id for _, job_id in self._entries)

    def add(self, job_id: JobId, score: int) -> None:
        """Put an id at its score, from wherever it stood."""
        self.discard(job_id)
        self._scores[job_id] = score
        bisect.insort(self._entries, (score, job_id))

    def discard(self, job_id: JobId) -> None:
        """Take an id out if it is there."""
        score = self._scores.pop(job_id, None)
        if score is not None:
            del self._entries[bisect.bisect_left(self._entries, (score, job_id))]

    def score(self, job_id: JobId) -> int:
        """Return an id's score."""
        return self._scores[job_id]

    def first_score(self) -> int | None:
        """Return the lowest score."""
        return self._entries[0][0] if self._entries else None

    def slice(self, start: int, count: int) -> list[JobId]:
        """Return up to ``count`` ids from position ``start`` on."""
        return [job_id for _, job_id in self._entries[start : start + count]]

    def up_to(self, score: int, limit: int) -> list[JobId]:
        """Return up to ``limit`` ids whose score is at most ``score``, lowest first."""
        end = bisect.bisect_right(self._entries, score, key=lambda entry: entry[0])
        return self.slice(0, min(end, limit))
