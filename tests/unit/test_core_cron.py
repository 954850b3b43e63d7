"""When schedules tick: expressions, zones, intervals, and what daylight saving does to them."""

from __future__ import annotations

import datetime as dt
import itertools
import zoneinfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.cron import Timing, check_cron, check_timezone, ticks_after

BERLIN = "Europe/Berlin"


def ms(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).timestamp() * 1_000)


def ticks(timing: Timing, after: str, count: int, *, zone: str = "UTC") -> list[str]:
    """Return the next ticks as local times with their offset."""
    found = itertools.islice(ticks_after(timing, ms(after)), count)
    local = zoneinfo.ZoneInfo(zone)
    return [dt.datetime.fromtimestamp(tick / 1_000, local).isoformat(timespec="minutes") for tick in found]


def berlin(cron: str, after: str, count: int) -> list[str]:
    return ticks(Timing(cron=cron, timezone=BERLIN), after, count, zone=BERLIN)


def restarted(timing: Timing, after: str, count: int) -> list[int]:
    """Return the next ticks, each computed from the one before as the store does."""
    found: list[int] = []
    at = ms(after)
    for _ in range(count):
        at = next(ticks_after(timing, at, phase_ms=found[-1] if found else None))
        found.append(at)
    return found


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("*/5 * * * *", "*/5 * * * *"),
        ("  0   2  * *  MON-FRI ", "0 2 * * MON-FRI"),
        ("0 0 L * *", "0 0 L * *"),
        ("0 9 * * MON#1", "0 9 * * MON#1"),
        ("@Hourly", "@hourly"),
        ("@daily", "@daily"),
        ("0 0 29 2 *", "0 0 29 2 *"),
    ],
)
def test_what_is_taken(given_text: str, shown: str) -> None:
    assert check_cron(given_text) == shown


@pytest.mark.parametrize(
    "text",
    [
        *("", "*", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "0 0 0 * *", "0 0 * 13 *", "0 0 * * 8"),
        *("0 0 31 2 *", "0 0 30 2 *", "0 0 31 4,6,9,11 *", "@reboot", "@", "5-1 * * * *", "*/0 * * * *", "a b c d e"),
        *("١ * * * *", "0 0 * * L", "0 0 LW/2,x * *", "* * * * *" + " " * 300, "0 0 L/2 * 1#9"),
    ],
)
def test_what_is_refused_says_so(text: str) -> None:
    with pytest.raises(ValueError):
        check_cron(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("60 * * * *", "the minute is wrong: 0 to 59"),
        ("* 24 * * *", "the hour is wrong: 0 to 23"),
        ("* * 32 * *", "the day of month is wrong"),
        ("* * * 13 *", "the month is wrong: 1 to 12"),
        ("* * * * 8", "the day of week is wrong: 0 to 7"),
    ],
)
def test_the_wrong_field_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_cron(text)


@settings(deadline=None)
@given(st.text(alphabet="0123456789*/,-#LWSUNMOJAabc@ ", max_size=30))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    try:
        shown = check_cron(text)
    except ValueError:
        return
    assert check_cron(shown) == shown
    assert next(ticks_after(Timing(cron=shown, timezone=BERLIN), ms("2026-03-01T00:00+00:00"))) > 0


@pytest.mark.parametrize(
    "name", ["UTC", BERLIN, "America/Argentina/Buenos_Aires", "Etc/GMT+3", "Asia/Kathmandu", "EST5EDT"]
)
def test_zones_that_are_taken(name: str) -> None:
    assert check_timezone(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "Berlin", "Europe", "Europe/Nowhere", "../UTC", "/etc/localtime", "localtime", "posixrules", "Factory"),
        *("right/UTC", "posix/UTC", "Europe/Berlin\n", "Ünterland/X", "a" * 300, "tzdata.zi", "+01:00"),
    ],
)
def test_zones_that_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        check_timezone(name)


def test_slim_systems_have_zones_too() -> None:
    # The package `tzdata` is asked where the system has none.
    import importlib.resources

    assert (importlib.resources.files("tzdata") / "zoneinfo" / "Europe" / "Berlin").is_file()


class TestDaylightSaving:
    def test_a_time_that_spring_skips_ticks_right_after(self) -> None:
        assert berlin("30 2 * * *", "2026-03-28T00:00+01:00", 3) == [
            "2026-03-28T02:30+01:00",
            "2026-03-29T03:00+02:00",
            "2026-03-30T02:30+02:00",
        ]

    def test_several_of_them_tick_once(self) -> None:
        assert berlin("15,45 2 * * *", "2026-03-28T12:00+01:00", 3) == [
            "2026-03-29T03:00+02:00",
            "2026-03-30T02:15+02:00",
            "2026-03-30T02:45+02:00",
        ]

    def test_a_time_that_autumn_repeats_ticks_once(self) -> None:
        assert berlin("30 2 * * *", "2026-10-24T12:00+02:00", 2) == ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]

    @pytest.mark.parametrize("after", ["2026-10-25T02:30+02:00", "2026-10-25T02:10+01:00", "2026-10-25T02:50+02:00"])
    def test_also_when_it_is_computed_from_within(self, after: str) -> None:
        assert berlin("30 2 * * *", after, 1) == ["2026-10-26T02:30+01:00"]

    def test_an_hourly_one_ticks_25_times_in_autumn_and_23_in_spring(self) -> None:
        for day, length in (
            ("2026-10-25T00:00+02:00", 25),
            ("2026-03-29T00:00+01:00", 23),
            ("2026-10-26T00:00+01:00", 24),
        ):
            found = list(
                itertools.islice(ticks_after(Timing(cron="0 * * * *", timezone=BERLIN), ms(day) - 1), length + 1)
            )
            assert [tick - ms(day) for tick in found] == [hour * 3_600_000 for hour in range(length + 1)]
            last = dt.datetime.fromtimestamp(found[-1] / 1_000, zoneinfo.ZoneInfo(BERLIN))
            assert (last.hour, last.day) == (0, int(day[8:10]) + 1)

    def test_midnight_may_be_what_is_skipped(self) -> None:
        # Cairo goes from 23:59 on Thursday to 01:00 on Friday.
        assert ticks(
            Timing(cron="0 0 * * *", timezone="Africa/Cairo"), "2026-04-23T12:00+00:00", 2, zone="Africa/Cairo"
        ) == [
            "2026-04-24T01:00+03:00",
            "2026-04-25T00:00+03:00",
        ]

    def test_a_daily_one_keeps_its_local_time(self) -> None:
        assert berlin("0 9 * * *", "2026-03-28T00:00+01:00", 2) == ["2026-03-28T09:00+01:00", "2026-03-29T09:00+02:00"]


@pytest.mark.parametrize(
    "zone", ["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "America/Havana"]
)
@pytest.mark.parametrize(
    "cron", ["*/20 * * * *", "0 * * * *", "30 2 * * *", "15,45 0-3 * * *", "@daily", "0 */3 * * *"]
)
@pytest.mark.parametrize("after", ["2026-03-07T00:00:00.250+00:00", "2026-10-24T10:00+00:00", "2026-04-03T00:00+00:00"])
def test_computing_each_tick_from_the_last_gives_the_same(zone: str, cron: str, after: str) -> None:
    timing = Timing(cron=cron, timezone=zone)
    found = list(itertools.islice(ticks_after(timing, ms(after)), 150))
    assert restarted(timing, after, 150) == found
    assert sorted(set(found)) == found
    assert found[0] > ms(after)


class TestIntervals:
    def test_it_counts_from_when_it_was_made(self) -> None:
        assert list(itertools.islice(ticks_after(Timing(every_ms=90), 1_000), 3)) == [1_090, 1_180, 1_270]

    @pytest.mark.parametrize(
        ("start_ms", "after_ms", "first_ms"),
        [(500, 1_000, 1_100), (1_000, 1_000, 1_300), (5_000, 1_000, 5_000), (700, 999, 1_000)],
    )
    def test_it_counts_from_its_start(self, start_ms: int, after_ms: int, first_ms: int) -> None:
        assert next(ticks_after(Timing(every_ms=300, start_at_ms=start_ms), after_ms)) == first_ms

    def test_it_keeps_its_phase(self) -> None:
        assert next(ticks_after(Timing(every_ms=300), 10_000, phase_ms=700)) == 10_000 + 300 - (10_000 - 700) % 300

    def test_neither_cron_nor_interval(self) -> None:
        with pytest.raises(ValueError):
            ticks_after(Timing(), 0)
        with pytest.raises(ValueError):
            next(ticks_after(Timing(every_ms=0), 0))
