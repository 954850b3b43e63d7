"""What becomes of due ticks."""

from __future__ import annotations

import itertools

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.cron import Timing, ticks_after
from penstock.core.ids import home_of, parse_job_id
from penstock.core.schedule import (
    MISSED_AFTER_MS,
    MOST_MISSED,
    STEP_TICKS,
    Missed,
    Schedule,
    ScheduledJob,
    ScheduleRecord,
    definition_of,
    home_of_schedule,
    job_id_of_tick,
    next_ticks,
    plan,
    read_definition,
    resumed_at,
)

START_MS = 1_800_000_000_000


def record_of(timing: Timing, missed: Missed, next_ms: int | None) -> ScheduleRecord:
    schedule = Schedule(
        name="s", timing=timing, job=ScheduledJob(task="echo", input=msgspec.Raw(b"[1, 2.50]")), missed=missed
    )
    return ScheduleRecord(
        schedule=schedule, revision=1, next_ms=next_ms, created_at_ms=START_MS, updated_at_ms=START_MS
    )


timings = st.one_of(
    st.builds(Timing, every_ms=st.integers(1_000, 100_000)),
    st.builds(
        Timing,
        cron=st.sampled_from(["* * * * *", "*/7 * * * *", "0 * * * *", "30 2 * * *"]),
        timezone=st.sampled_from(["UTC", "Europe/Berlin"]),
    ),
)


@settings(deadline=None, max_examples=60)
@given(
    timings,
    st.sampled_from(Missed),
    st.lists(st.one_of(st.integers(-90_000, 200_000), st.integers(0, 70_000_000)), min_size=1, max_size=6),
)
def test_every_tick_is_fired_or_missed_once_and_in_order(timing: Timing, missed: Missed, gaps: list[int]) -> None:
    """Step as the loops do, under a clock that jumps: every tick up to now is accounted for, and none is early."""
    first = next(ticks_after(timing, START_MS))
    record = record_of(timing, missed, first)
    now_ms, fired, gone = START_MS, list[int](), 0
    for gap in gaps:
        now_ms += gap
        steps = 0
        while (tick := plan(record, now_ms)) is not None:
            assert len(tick.fire) <= STEP_TICKS
            assert all(planned <= now_ms for planned in tick.fire)
            assert tick.fire or tick.missed
            fired += tick.fire
            gone += tick.missed
            record = msgspec.structs.replace(record, next_ms=tick.next_ms)
            steps += 1
        assert steps <= 400
        assert record.next_ms is not None
        assert plan(record, now_ms) is None
    expected = itertools.takewhile(
        lambda tick: tick < (record.next_ms or 0), itertools.chain([first], ticks_after(timing, first, phase_ms=first))
    )
    every = list(expected)
    assert len(fired) + gone == len(every)
    assert sorted(set(fired)) == fired
    assert set(fired) <= set(every)
    if missed is Missed.ALL and len(every) <= MOST_MISSED:
        assert fired == every


def test_a_year_of_a_second_is_counted_in_one_step() -> None:
    year_ms = 365 * 86_400_000
    tick = plan(record_of(Timing(every_ms=1_000), Missed.LATEST, START_MS), START_MS + year_ms)
    assert tick is not None
    assert (tick.fire, tick.missed) == ((START_MS + year_ms,), year_ms // 1_000)


def test_nothing_is_due() -> None:
    timing = Timing(every_ms=1_000)
    assert plan(record_of(timing, Missed.ALL, None), START_MS) is None
    assert plan(record_of(timing, Missed.ALL, START_MS + 1), START_MS) is None


def test_a_minute_late_is_missed() -> None:
    record = record_of(Timing(every_ms=3_600_000), Missed.SKIP, START_MS)
    on_time, late = plan(record, START_MS + MISSED_AFTER_MS), plan(record, START_MS + MISSED_AFTER_MS + 1)
    assert on_time is not None
    assert late is not None
    assert (on_time.fire, on_time.missed) == ((START_MS,), 0)
    assert (late.fire, late.missed, late.next_ms) == ((), 1, START_MS + 3_600_000)


def test_an_id_names_schedule_and_tick() -> None:
    ids = {job_id_of_tick(name, START_MS + ms) for name in ("a", "b", "ä") for ms in range(100)}
    assert len(ids) == 300
    one = job_id_of_tick("a", START_MS)
    assert parse_job_id(one) == one
    assert home_of(one) == home_of_schedule("a")
    # Pinned: processes of two releases must compute the same.
    assert one == "01a3185c-5000-727c-801c-337d545ce7b1"


def test_a_definition_is_read_as_it_was_written() -> None:
    schedule = record_of(Timing(cron="@daily"), Missed.ALL, None).schedule
    assert read_definition(definition_of(schedule)) == schedule
    assert b"[1, 2.50]" in definition_of(schedule)


def test_next_ticks() -> None:
    record = record_of(Timing(every_ms=1_000), Missed.ALL, START_MS)
    assert next_ticks(record, 3) == (START_MS, START_MS + 1_000, START_MS + 2_000)
    assert next_ticks(msgspec.structs.replace(record, paused_at_ms=1), 3) == ()


def test_resuming() -> None:
    record = record_of(Timing(every_ms=1_000), Missed.ALL, START_MS)
    assert resumed_at(record, START_MS) == START_MS
    assert resumed_at(record, START_MS - 2_500) == START_MS - 2_000
