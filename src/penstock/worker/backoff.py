"""Wait longer each time while the store is away, and tell of it once."""

from __future__ import annotations

import random
import time
from typing import Any

import structlog

from penstock.core import events

FIRST_S = 0.1
LAST_S = 5.0


class Outage:
    """Count failures in a row of one loop: log the first as ``store.lost``, the end as ``store.back``."""

    def __init__(self, what: str) -> None:
        self._log: Any = structlog.get_logger("penstock.worker").bind(loop=what)
        self._failures = 0
        self._since = 0.0

    def failed(self, error: BaseException) -> float:
        """Return how many seconds to wait before the next try: doubling from 0.1 to 5, with jitter of half of it."""
        if self._failures == 0:
            self._since = time.monotonic()
            self._log.warning(
                events.STORE_LOST, message="The store does not answer; trying again until it does.", error=str(error)
            )
        # The exponent is bounded because a float overflows after a few days of failures.
        whole: float = min(LAST_S, FIRST_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        return whole * (0.5 + random.random() / 2)

    @property
    def lasts(self) -> bool:
        """Tell whether the latest try failed."""
        return self._failures > 0

    def over(self) -> None:
        """Note a success."""
        if self._failures:
            self._failures = 0
            away_s = round(time.monotonic() - self._since, 1)
            self._log.warning(events.STORE_BACK, message="The store answers again.", away_s=away_s)
