"""Figures keep their values, say when they are void, and are written as tables."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from benchmarks import records, tables
from benchmarks.load import Load, Order, content_length
from benchmarks.marks import Marks
from benchmarks.peers.run import rate_of
from benchmarks.records import Figure, percentile


def figure(key: str = "run.noop", *values: float, **more: object) -> Figure:
    return Figure(key=key, section=key.partition(".")[0], name="no-op", unit="jobs/s", values=values, **more)  # type: ignore[arg-type]


def test_a_figure_tells_median_and_spread() -> None:
    measured = figure("run.noop", 3.0, 1.0, 2.0, more={"p99 ms": (4.0, 6.0)})
    assert (measured.median, measured.least, measured.most) == (2.0, 1.0, 3.0)
    assert measured.median_of("p99 ms") == 5.0
    assert measured.median_of("p50 ms") is None
    assert figure().median == 0.0


def test_percentiles() -> None:
    values = [float(n) for n in range(100)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([7.0], 0.99) == 7
    assert percentile([], 0.5) == 0


def test_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    made = records.make_report("test", [figure("run.noop", 1.0, void="1 of 2 jobs never ran")], {"repeats": 1})
    records.save(made, tmp_path / "deep" / "report.json")
    assert records.load(tmp_path / "deep" / "report.json") == made
    assert records.load(tmp_path / "none.json") is None
    assert made.figure("run.noop") in made.void
    assert made.versions["python"]
    assert made.machine["cores"]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.0234, "0.023"), (1.234, "1.23"), (12.34, "12.3"), (12_345.6, "12,346")]
)
def test_numbers_are_written_with_the_digits_that_count(value: float, text: str) -> None:
    assert tables.number(value) == text


def test_a_void_figure_shows_no_number() -> None:
    good = figure("run.noop", 10.0, 20.0, 30.0)
    bad = figure("run.short", 99.0, void="1 of 2 jobs never ran")
    made = records.make_report("test", [good, bad], {})
    text = tables.report(made)
    assert "| no-op | 20.0 | 10.0 – 30.0 |" in text
    assert "| no-op | **void** |  |" in text
    assert "99" not in text
    assert "VOID: run.short: 1 of 2 jobs never ran" in text


def test_marks_tell_what_did_not_run_once(tmp_path: Path) -> None:
    marks = Marks.create(tmp_path / "marks", 10)
    assert marks.jobs == 16
    for number in (1, 2, 3):
        marks.runs[number] += 1
    marks.stamps[3] = 123_456_789_012
    other = Marks(tmp_path / "marks")
    assert other.stamps[3] == 123_456_789_012
    assert other.ran(0, 10) == 3
    assert other.verdict(1, 3) == ""
    assert other.verdict(0, 3) == "1 of 3 jobs never ran"
    other.runs[1] += 1
    assert marks.verdict(0, 4) == "1 of 4 jobs never ran, 1 of 4 jobs ran more than once"
    assert [ran for _, ran in marks.watch(1, 3, timeout_s=30)] == [3]
    marks.close()
    other.close()


def test_the_load_generator_numbers_its_jobs_and_stops() -> None:
    load = Load(Order(port=1, connections=1, seconds=60, first=5, last=7))
    assert load.request() is not None
    request = load.request()
    assert request is not None
    assert request.endswith(b'\r\n\r\n{"task":"noop","input":{"n":6}}')
    assert content_length(request.split(b"\r\n\r\n")[0]) == len(request.split(b"\r\n\r\n")[1])
    assert load.request() is None
    load.answered(b"HTTP/1.1 503 Service Unavailable", load.begin)
    assert load.summary()["refused"] == 1
    assert load.summary()["sent"] == 2


def test_a_batch_with_a_refused_item_is_refused() -> None:
    load = Load(Order(port=1, connections=1, seconds=60, first=0, last=10, items=2))
    assert load.request() is not None
    load.answered(b'HTTP/1.1 200 OK\r\n\r\n{"items":[{"index":0,"error":{"code":"queue_full"}}]}', load.begin)
    assert load.summary()["refused"] == 1


def test_a_rate_of_batches_counts_the_beginning_and_the_end() -> None:
    load = Load(Order(port=1, connections=1, seconds=60, first=0, last=100, items=10))
    load.begin = load.end - 60
    load.answers = [load.begin + 1, load.begin + 2]
    assert load.summary()["rate"] == pytest.approx(10)
    single = Load(Order(port=1, connections=1, seconds=60, first=0, last=100))
    single.answers = [single.begin + 1, single.begin + 2, single.begin + 3]
    assert single.summary()["rate"] == pytest.approx(1)


def test_a_rate_counts_from_a_fifth_on() -> None:
    curve = list(itertools.accumulate([(1.0, 10)] * 10, lambda one, two: (one[0] + two[0], one[1] + two[1])))
    assert rate_of(curve, 100, 10.0) == pytest.approx(10)
    assert rate_of([], 100, 10.0) == 0
    assert rate_of([(10.0, 100)], 100, 10.0) > 0
