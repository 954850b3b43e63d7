"""Check single values of requests: names, durations, times, numbers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from penstock.core.durations import parse_duration_ms, parse_time_ms
from penstock.core.errors import FieldError
from penstock.core.limits import KEY_CHARACTERS, NAME_CHARACTERS, RUN_AT_HORIZON_MS

#: A time this far in the past is still taken as "now": the clocks of two machines differ.
CLOCK_SKEW_MS = 60_000


class Checker(msgspec.Struct):
    """Check values and gather what is wrong with them; ``now_ms`` is Unix ms."""

    now_ms: int
    errors: list[FieldError] = []

    def wrong(self, field: str, code: str, detail: str) -> None:
        """Note one wrong field."""
        self.errors.append(FieldError(field=field, code=code, detail=detail))

    def name(self, field: str, value: str) -> None:
        """Check a name: 1 to 128 characters, none of them a control character."""
        if not value:
            self.wrong(field, "empty", "must have at least one character")
        elif len(value) > NAME_CHARACTERS:
            self.wrong(field, "too_long", f"has {len(value)} characters; at most {NAME_CHARACTERS} are taken")
        elif not value.isprintable():
            self.wrong(field, "bad_name", f"holds characters that cannot be printed: {value!r}")

    def key(self, field: str, value: str) -> None:
        """Check a key that a user chooses: 1 to 255 printable characters."""
        if not value:
            self.wrong(field, "empty", "must have at least one character")
        elif len(value) > KEY_CHARACTERS:
            self.wrong(field, "too_long", f"has {len(value)} characters; at most {KEY_CHARACTERS} are taken")
        elif not value.isprintable():
            self.wrong(field, "bad_name", f"holds characters that cannot be printed: {value!r}")

    def queue(self, field: str, value: str) -> None:
        """Check the name of a queue, which is also a part of URLs."""
        self.name(field, value)
        if "/" in value or value in {".", ".."}:
            self.wrong(field, "bad_name", "a queue's name is part of URLs: no '/', and not '.' or '..'")

    def duration(
        self, field: str, value: float | str | None, *, low_ms: int = 0, high_ms: int = RUN_AT_HORIZON_MS
    ) -> int | None:
        """Return a duration in ms between the bounds."""
        if value is None:
            return None
        try:
            duration_ms = parse_duration_ms(value)
        except (ValueError, OverflowError) as error:
            if isinstance(value, str):
                self.wrong(field, "bad_duration", str(error))
            else:
                self.wrong(field, "out_of_range", str(error))
            return None
        if duration_ms < low_ms:
            self.wrong(field, "out_of_range", f"must be at least {low_ms / 1_000:.15g} s")
        elif duration_ms > high_ms:
            self.wrong(field, "out_of_range", f"must be at most {high_ms / 1_000:.15g} s")
        else:
            return duration_ms
        return None

    def time(self, field: str, text: str | None) -> int | None:
        """Return an RFC 3339 time as Unix ms."""
        if text is None:
            return None
        try:
            return parse_time_ms(text)
        except (ValueError, OverflowError) as error:
            self.wrong(field, "bad_time", str(error))
            return None

    def future(self, field: str, text: str | None) -> int | None:
        """Return a time as Unix ms; not over a minute in the past, not over ten years ahead."""
        unix_ms = self.time(field, text)
        if unix_ms is None:
            return None
        if unix_ms < self.now_ms - CLOCK_SKEW_MS:
            self.wrong(field, "in_past", "lies in the past")
        elif unix_ms > self.now_ms + RUN_AT_HORIZON_MS:
            self.wrong(field, "out_of_range", "lies more than ten years ahead")
        else:
            return unix_ms
        return None

    def one_of_pair(self, first: str, one: object, second: str, other: object) -> None:
        """Check that at most one of two fields is there."""
        if one is not None and other is not None:
            self.wrong(second, "conflict", f"'{first}' and '{second}' exclude each other: send one")

    def number(self, field: str, value: float, low: float, high: float) -> None:
        """Check a number against both bounds."""
        if not low <= value <= high:
            self.wrong(field, "out_of_range", f"must be between {low:g} and {high:g}")

    def items(self, field: str, values: Sequence[object], high: int) -> None:
        """Check the length of a list."""
        if len(values) > high:
            self.wrong(field, "too_long", f"has {len(values)} items; at most {high} are taken")
