"""Read the `Retry-After` header (RFC 9110, section 10.2.3)."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER_SECONDS = 3_600.0
"""A server that asks for more (by mistake, or by a wrong clock) is asked again after an hour."""


def retry_after_seconds(value: str | None, *, now: datetime) -> float | None:
    """Return the wait in seconds, between 0 and an hour; None where the header is missing or makes no sense.

    `value` is a number of seconds (a fraction is accepted) or an HTTP date, which is compared with `now` (aware UTC).
    """
    if value is None or len(value) > 64:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, now)
    if not math.isfinite(seconds) or seconds < 0:
        return None
    return min(seconds, MAX_RETRY_AFTER_SECONDS)


def _seconds_until(value: str, now: datetime) -> float:
    try:
        then = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return math.nan
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, (then - now).total_seconds())
