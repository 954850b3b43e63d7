"""Bound how many requests of one kind are open at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from penstock.api.problems import RETRY_AFTER_SECONDS, TOO_MANY_STREAMS, ApiError


class StreamSlots:
    """Count open event streams; above ``limit`` no more are opened."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    @contextlib.contextmanager
    def taking(self) -> Iterator[None]:
        """Hold a slot.

        Raises:
            ApiError: all are taken.
        """
        if self.taken >= self.limit:
            detail = f"This server keeps {self.limit} event streams open at once; try again, or poll the job."
            raise ApiError(TOO_MANY_STREAMS, detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
