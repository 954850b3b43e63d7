"""Compute the times at which a schedule ticks: cron expressions in a time zone, or a fixed interval. Times are Unix ms.

Daylight saving follows Debian's cron. Where hour and minute are given (neither field starts with ``*``), a time that
the spring change skips ticks right after the change, and one that the autumn change repeats ticks once, the first time.
Other expressions follow the clock through the change: an hourly one ticks 23 and 25 times on those days.
"""

from __future__ import annotations

import datetime as dt
import itertools
import re
import zoneinfo
from collections.abc import Iterator

import msgspec
from cronsim import CronSim

_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
#: What the library says of a field, and what helps more.
_MISTAKES = {
    "Bad minute": "the minute is wrong: 0 to 59, with *, lists, ranges and steps",
    "Bad hour": "the hour is wrong: 0 to 23, with *, lists, ranges and steps",
    "Bad month": "the month is wrong: 1 to 12 or JAN to DEC, with *, lists, ranges and steps",
    "Bad day-of-week": "the day of week is wrong: 0 to 7 or SUN to SAT, with *, lists, ranges and steps",
}
_FIELDS = 5
_CRON_CHARACTERS = 256
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MS = dt.timedelta(milliseconds=1)
#: Names of the tz database; files beside it that say what this machine's zone is, or count leap seconds, are none.
_ZONE = re.compile(r"(?!(?:posix|right)/)[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}")
_NO_ZONES = frozenset({"localtime", "posixrules", "Factory"})
#: A time that autumn repeats is found again from within the repetition; far more steps than that are never needed.
_PASSED_TICKS = 3_600


class Timing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Say when a schedule ticks: by ``cron`` (five fields or an alias such as ``@daily``) in ``timezone``, or each
    ``every_ms`` from ``start_at_ms`` on; without a start the first tick comes one interval after the schedule was made.
    """

    cron: str | None = None
    timezone: str = "UTC"
    every_ms: int | None = None
    start_at_ms: int | None = None


def check_cron(text: str) -> str:
    """Return a cron expression with single spaces.

    Raises:
        ValueError: it is none, or names a day that never comes.
    """
    fields = text.split() if len(text) <= _CRON_CHARACTERS and text.isascii() else []
    shown = " ".join(fields)
    if shown.startswith("@"):
        if shown.lower() not in _ALIASES:
            raise ValueError(f"is none of {', '.join(_ALIASES)}")
        return shown.lower()
    if len(fields) != _FIELDS:
        raise ValueError("needs five fields: minute, hour, day of month, month, day of week, as in '*/5 * * * *'")
    try:
        next(CronSim(shown, _EPOCH))
    except StopIteration:
        raise ValueError("names a day that never comes") from None
    except Exception as error:  # noqa: BLE001 - the library tells some mistakes by errors of its inside
        detail = f"{error}"
        if detail == "Bad day-of-month":
            raise ValueError("the day of month is wrong, or never comes in these months") from None
        raise ValueError(_MISTAKES.get(detail, "cannot be read: see the fields of cron")) from None
    return shown


def check_timezone(name: str) -> str:
    """Return the name of a time zone.

    Raises:
        ValueError: the tz database has no such zone.
    """
    if not _ZONE.fullmatch(name) or name in _NO_ZONES:
        raise ValueError("is no time zone of the tz database, such as 'Europe/Berlin' or 'UTC'")
    try:
        zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError("is no time zone of the tz database, such as 'Europe/Berlin' or 'UTC'") from None
    return name


def ticks_after(timing: Timing, after_ms: int, *, phase_ms: int | None = None) -> Iterator[int]:
    """Return the ticks after a time, first to last; cron expressions can end, intervals never do.

    ``phase_ms`` is any tick of an interval: the others lie whole intervals away from it. Without it the start counts,
    and without that ``after_ms`` itself.

    Raises:
        ValueError: the expression or the zone cannot be read (any more).
    """
    if timing.every_ms is not None:
        return _interval(timing.every_ms, timing.start_at_ms, phase_ms, after_ms)
    if timing.cron is None:
        raise ValueError("says neither 'cron' nor 'every'")
    return _cron(timing.cron, timing.timezone, after_ms)


def _interval(every_ms: int, start_at_ms: int | None, phase_ms: int | None, after_ms: int) -> Iterator[int]:
    if every_ms < 1:
        raise ValueError("the interval is not positive")
    base_ms = next(found for found in (phase_ms, start_at_ms, after_ms) if found is not None)
    first_ms = base_ms + ((after_ms - base_ms) // every_ms + 1) * every_ms
    if start_at_ms is not None and first_ms < start_at_ms:
        first_ms = start_at_ms
    return itertools.count(first_ms, every_ms)


def _cron(cron: str, timezone: str, after_ms: int) -> Iterator[int]:
    zone = zoneinfo.ZoneInfo(check_timezone(timezone))
    expression = _ALIASES.get(cron, cron)
    if len(expression.split()) != _FIELDS:
        raise ValueError("a cron expression has five fields")
    try:
        moments = CronSim(expression, (_EPOCH + after_ms * _MS).astimezone(zone))
    except Exception as error:
        raise ValueError(f"the cron expression cannot be read: {error}") from error
    return _later(moments, after_ms)


def _later(moments: Iterator[dt.datetime], after_ms: int) -> Iterator[int]:
    last_ms, passed = after_ms, 0
    for moment in moments:
        tick_ms = (moment.astimezone(dt.UTC) - _EPOCH) // _MS
        # The library forgets which of two equal local times it started from, so that one may lie before it.
        if tick_ms > last_ms:
            yield tick_ms
            last_ms, passed = tick_ms, 0
        elif (passed := passed + 1) > _PASSED_TICKS:
            return
