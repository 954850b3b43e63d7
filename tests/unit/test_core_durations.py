from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.durations import format_time, parse_duration_ms, parse_time_ms


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (0, 0),
        (1, 1_000),
        (1.5, 1_500),
        (0.0004, 0),
        ("0", 0),
        ("90", 90_000),
        ("1.25", 1_250),
        ("250ms", 250),
        ("90s", 90_000),
        ("15m", 900_000),
        ("2h", 7_200_000),
        ("1d", 86_400_000),
        ("1w", 604_800_000),
        ("1h30m", 5_400_000),
        ("1.5h", 5_400_000),
        (" 5s ", 5_000),
        ("PT15M", 900_000),
        ("PT0.5S", 500),
        ("P1DT2H", 93_600_000),
        ("P2W", 1_209_600_000),
        ("P1W1DT1H1M1S", 694_861_000),
    ],
)
def test_durations_are_read(value: float | str, ms: int) -> None:
    assert parse_duration_ms(value) == ms


@pytest.mark.parametrize(
    "value",
    [
        -1,
        -0.5,
        math.nan,
        math.inf,
        True,
        False,
        "",
        " ",
        "x",
        "-5s",
        "5 s",
        "5S",
        "s",
        "5s!",
        "1h 30m",
        "P",
        "PT",
        "P1Y",
        "P1M",
        "pt5m",
        "PT5",
        "1e3",
        "1" * 13,
        "nan",
        "inf",
        "0x10",
        "1_000",
    ],
)
def test_anything_else_is_refused(value: float | str) -> None:
    with pytest.raises(ValueError):
        parse_duration_ms(value)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2030-01-31T12:00:00Z", 1_896_091_200_000),
        ("2030-01-31T14:00:00+02:00", 1_896_091_200_000),
        ("2030-01-31T12:00:00.123456Z", 1_896_091_200_123),
        ("1969-12-31T23:59:59.999Z", -1),
        ("9999-12-31T23:59:59Z", 253_402_300_799_000),
    ],
)
def test_times_are_read(text: str, ms: int) -> None:
    assert parse_time_ms(text) == ms


@pytest.mark.parametrize("text", ["", "x", "2030-01-31", "2030-01-31T12:00:00", "2030-02-30T12:00:00Z", "12:00Z", "0"])
def test_what_is_no_time_with_an_offset_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time_ms(text)


@given(st.integers(0, 253_402_300_799_999))
def test_times_are_written_as_they_are_read(unix_ms: int) -> None:
    text = format_time(unix_ms)
    assert text.endswith("Z")
    assert len(text) == len("2030-01-31T12:00:00.000Z")
    assert parse_time_ms(text) == unix_ms
