"""Read and write durations and times the way the API spells them."""

from __future__ import annotations

import datetime as dt
import functools
import math
import re

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_SHORT = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h|d|w)")
# ISO 8601 durations without years and months, whose lengths vary.
_ISO = re.compile(
    r"P(?:(?P<w>\d{1,9})W)?(?:(?P<d>\d{1,9})D)?(?:T(?:(?P<h>\d{1,9})H)?(?:(?P<m>\d{1,9})M)?(?:(?P<s>\d{1,9}(?:\.\d{1,9})?)S)?)?"
)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def parse_duration_ms(value: float | str) -> int:
    """Return a duration in ms from seconds (a number) or text such as ``"90s"``, ``"1h30m"``, ``"PT15M"`` (ISO 8601).

    Raises:
        ValueError: not a duration, negative, or not finite.
    """
    if isinstance(value, bool):  # JSON's true is an int to Python; callers expect one kind of error
        raise ValueError("expected seconds or a duration such as '90s', '15m', '2h' or 'PT15M'")  # noqa: TRY004 - see above
    if isinstance(value, int | float):
        if not math.isfinite(value) or value < 0:
            raise ValueError("must be a finite number of seconds, zero or more")
        return round(value * 1_000)
    text = value.strip()
    if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text):
        return round(float(text) * 1_000)
    parts = _SHORT.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return round(sum(float(number) * _UNITS_MS[unit] for number, unit in parts))
    match = _ISO.fullmatch(text)
    if match and any(match.groupdict().values()):
        return round(sum(float(number) * _UNITS_MS[unit] for unit, number in match.groupdict().items() if number))
    raise ValueError("expected seconds or a duration such as '90s', '15m', '2h' or 'PT15M'")


def parse_time_ms(text: str) -> int:
    """Return Unix ms from an RFC 3339 time with an offset.

    Raises:
        ValueError: not a time, or without an offset.
    """
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("expected an RFC 3339 time such as '2030-01-31T12:00:00Z'") from None
    if moment.tzinfo is None:
        raise ValueError("the time needs an offset: end it with 'Z' or '+02:00'")
    return (moment - _EPOCH) // dt.timedelta(milliseconds=1)


def format_time(unix_ms: int) -> str:
    """Return Unix ms as RFC 3339 UTC with milliseconds."""
    seconds, ms = divmod(unix_ms, 1_000)
    return f"{_format_second(seconds)}.{ms:03}Z"


@functools.lru_cache(maxsize=1_024)
def _format_second(unix_s: int) -> str:
    """Return a second's part of it; most times that are written at a moment share it."""
    return (_EPOCH + dt.timedelta(seconds=unix_s)).replace(tzinfo=None).isoformat(timespec="seconds")
