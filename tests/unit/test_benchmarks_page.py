"""The page about speed shows what was measured, and a comparison of two runs tells a slow machine from slow code."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import msgspec
import pytest

from benchmarks import page, plots
from benchmarks.check import compare, table
from benchmarks.limit import summarize
from benchmarks.peers.catalogue import PEERS
from benchmarks.records import Figure, Report
from benchmarks.scale import keep_other_parts


def figure(key: str, *values: float, unit: str = "jobs/s", **more: object) -> Figure:
    return Figure(key=key, section=key.partition(".")[0], name=key, unit=unit, values=values, **more)  # type: ignore[arg-type]


def report(what: str, *figures: Figure, **more: object) -> Report:
    machine = {"cores": "2", "processor": "a processor", "system": "Linux"}
    return Report(
        what=what,
        at="2026-01-02T03:04:05+00:00",
        machine=machine,
        versions={"commit": "abc", "python": "3.11.7", "valkey": "9.1.0"},
        parameters={},
        figures=figures,
        **more,  # type: ignore[arg-type]
    )


def test_the_page_shows_the_committed_figures() -> None:
    text = page.PAGE.read_text()
    results = page.load_results()
    assert page.render(text, results) == text, "run make bench-page"
    for name, picture in page.pictures(results).items():
        assert (page.PICTURES / name).read_text() == picture, "run make bench-page"


def test_the_page_has_a_place_for_every_block() -> None:
    text = page.PAGE.read_text()
    for name in page.BLOCKS:
        assert text.count(f"<!-- begin {name} -->") == 1
        assert text.count(f"<!-- end {name} -->") == 1


def test_what_was_not_measured_is_left_out() -> None:
    for block in page.BLOCKS.values():
        assert block({}) == ""


def test_figures_stand_between_the_markers() -> None:
    results = {
        "throughput": report(
            "throughput",
            figure("run.noop", 41_000, 42_000, 43_000),
            figure("http.64", 11_000, more={"p50 ms": (4.0,), "p99 ms": (9.0,)}),
            figure("latency.store", 0.7, unit="ms", lower=True, more={"p99 ms": (20.0,)}),
            figure("submit.bulk", 90_000, void="1 of 2 jobs never ran"),
        )
    }
    text = "".join(f"<!-- begin {name} -->\nold\n<!-- end {name} -->\nafter\n" for name in ("summary", "peers"))
    shown = page.render(text, results)
    assert "old" not in shown
    assert "| no-op jobs, one worker process | 42,000 jobs/s | ≥ 40,000 jobs/s | yes |" in shown
    assert "| `POST /submit`, 64 connections, one API process | 11,000 jobs/s | ≥ 12,000 jobs/s | no |" in shown
    assert "| the same, 99th percentile | 9.00 ms | ≤ 15 ms | yes |" in shown
    assert "| the same, 99th percentile | 20.0 ms | ≤ 10 ms | no |" in shown
    assert "| bulk submit, straight to the store | **void** | ≥ 80,000 jobs/s | no |" in shown
    assert "<!-- begin peers -->\n<!-- end peers -->" in shown
    assert page.render(shown, results) == shown
    assert "1,000" not in page.latency(results)
    assert "| latency.store | 0.700 |" in page.latency(results)


def test_peers_stand_in_order_with_their_settings() -> None:
    figures = [
        msgspec.structs.replace(figure(f"{name}.{section}", value), section=section, name=name)
        for name, value in (("bullmq", 20_000), ("penstock", 50_000))
        for section in ("run.noop", "run.short", "submit.bulk")
    ]
    notes = {
        "bullmq": {
            "versions": {"bullmq": "6.7.0"},
            "settings": {"noop": "concurrency 500", "short": "concurrency 200"},
            "tried": {"noop": {"concurrency 50": 1.0, "concurrency 500": 2.0}},
            "links": ["https://example.org"],
        }
    }
    shown = page.peers({"peers": report("peers", *figures, notes=notes)})
    assert shown.index("| **penstock** | 50,000") < shown.index("| bullmq 6.7.0 | 20,000")
    assert "2.5 times as many no-op jobs as bullmq" in shown
    assert "| bullmq | concurrency 500 | concurrency 200 | concurrency 50 |" in shown


def test_the_flatness_table_has_a_column_for_each_size() -> None:
    figures = [figure(f"run.{kind}.{size}", 10.0) for kind in ("queued", "delayed") for size in (1_000, 100_000)]
    shown = page.scale({"scale": report("scale", *figures)})
    assert "| jobs/s | 1,000 | 100,000 | lost |" in shown
    assert "| run (claim and complete), queued | 10.0 | 10.0 | 0% |" in shown
    assert list(page.pictures({"scale": report("scale", *figures)})) == ["scale.svg"]


def test_what_is_lost_as_the_work_grows_is_said_and_more_than_a_fifth_stands_out() -> None:
    rates = {"queued": (9.0, 10.0, 8.0), "finished": (10.0, 9.0, 7.9), "delayed": (10.0, 10.0, 0.0)}
    figures = [
        figure(f"run.{kind}.{size}", rate, void="" if rate else "1 of 2 jobs never ran")
        for kind, found in rates.items()
        for size, rate in zip((1_000, 100_000, 1_000_000), found, strict=True)
    ]
    figures.append(figure("workers.4.memory", 260.0, unit="MiB"))
    figures.append(figure("workers.4.noop", 18.0))
    shown = page.scale({"scale": report("scale", *figures)})
    assert "| run (claim and complete), queued | 9.00 | 10.0 | 8.00 | 20% |" in shown
    assert "| run (claim and complete), finished | 10.0 | 9.00 | 7.90 | **21%** |" in shown
    assert "| run (claim and complete), delayed | 10.0 | 10.0 | **void** |  |" in shown
    assert "Resident memory of the worker with all its processes, MiB: workers.4.memory 260." in shown


def test_a_page_says_how_often_it_was_measured() -> None:
    loop = figure("reference.loop", 1.0, 1.0, 1.0)
    few = report("throughput", figure("run.noop", 1.0, 2.0), figure("bytes.queued", 1.0), loop)
    assert "Medians of 2 runs." in page.summary({"throughput": few})
    several = report("throughput", figure("run.noop", 1.0, 2.0), figure("http.64", 1.0, 2.0, 3.0), loop)
    assert "Medians of 2 to 3 runs." in page.summary({"throughput": several})
    assert "Medians" not in page.summary({"throughput": report("throughput", figure("run.noop", 1.0))})


@pytest.mark.parametrize(
    ("ours", "row"), [(50_000, "2.5 times | ≥ 2 times | yes"), (30_000, "1.5 times | ≥ 2 times | no")]
)
def test_the_summary_compares_with_bullmq_of_the_same_run(ours: float, row: str) -> None:
    rates = {"penstock": ours, "bullmq": 20_000}
    peers = report("peers", *(figure(f"{name}.run.noop", rate) for name, rate in rates.items()))
    results = {"throughput": report("throughput", figure("run.noop", 90_000)), "peers": peers}
    assert f"| the same, as a multiple of BullMQ's in one run | {row} |" in page.summary(results)
    assert "BullMQ" not in page.summary({"throughput": results["throughput"]})


def test_times_beside_slow_jobs_stand_with_the_latency() -> None:
    more: dict[str, Any] = {"unit": "ms", "lower": True, "settings": "88 run"}
    start = figure("fairness.start", 1.5, more={"p99 ms": (4.0,), "worst ms": (5.0,)}, **more)
    cancel = figure("fairness.cancel", 2.5, more={"p99 ms": (6.0,), "worst ms": (7.0,)}, **more)
    results = {"throughput": report("throughput", start, cancel)}
    shown = page.latency(results)
    assert "## Beside a thousand slow jobs" in shown
    assert "| fairness.start | 1.50 | 1.50 – 1.50 | 4.00 | 5.00 |" in shown
    assert "Settings: 88 run." in shown
    assert "| a cancel reaches a slow job's handler beside them, 99th percentile | 6.00 ms | ≤ 1,000 ms | yes |" in (
        page.summary(results)
    )


def test_commands_are_shown_with_the_time_they_take_where_it_was_measured() -> None:
    notes = {"commands of a job that runs": {"hset": 2.0, "time": 0.041}}
    shown = page.limit({"limit": report("limit", notes=notes)})
    assert "run for a job: `hset` 2.00, `time` 0.041." in shown
    timed = report("limit", notes=notes | {"time of them, µs": {"hset": 3.14}})
    assert "run for a job: `hset` 2.00 (3.14 µs), `time` 0.041." in page.limit({"limit": timed})


def test_what_the_server_found_slow_is_told() -> None:
    notes = {"latency events, ms": {"fork": 4, "command": 10}, "slowest calls, ms": {"claim": 5.5}}
    shown = page.limit({"limit": report("limit", notes=notes)})
    assert "Longest events by `LATENCY` (2 ms and more), ms: `command` 10, `fork` 4." in shown
    assert "Slowest calls by `SLOWLOG`, ms: `claim` 5.50." in shown


@pytest.mark.parametrize(("value", "end"), [(0, 1), (1, 1), (12_828, 20_000), (41_000, 60_000), (9.5, 10)])
def test_an_axis_ends_at_a_round_number(value: float, end: float) -> None:
    assert plots.round_up(value) == pytest.approx(end)


def test_plots_are_pictures() -> None:
    bars = plots.bars("A & B", [("penstock", 40_000), ("other", 0)], ours="penstock")
    lines = plots.lines("Grown", {"queued": [(1_000, 10.0), (1_000_000, 9.0)], "delayed": [(1_000, 8.0)]})
    for text in (bars, lines):
        assert ET.fromstring(text).tag.endswith("svg")
    assert "A &amp; B" in bars
    assert "1,000,000" in lines


def test_a_slower_machine_is_no_regression() -> None:
    def run(rate: float, latency_ms: float, loop: float) -> Report:
        return report(
            "throughput",
            figure("run.noop", rate, reference="reference.loop"),
            figure("latency.store", latency_ms, unit="ms", lower=True, reference="reference.loop"),
            figure("idle.worker", 1.0, unit="%"),
            figure("reference.loop", loop),
        )

    committed = run(40_000, 1.0, 500_000)
    same = compare(committed, run(20_000, 2.0, 250_000))
    assert [one.gain for one in same] == [pytest.approx(1), pytest.approx(1)]
    assert not any(one.is_worse(0.3) for one in same)
    worse = compare(committed, run(20_000, 2.0, 500_000))
    assert [one.gain for one in worse] == [pytest.approx(0.5), pytest.approx(0.5)]
    assert table(worse, 0.3).count("worse") == 2
    assert compare(report("throughput"), committed) == []


def test_a_void_figure_of_the_fresh_run_is_worse() -> None:
    loop = figure("reference.loop", 1.0)
    committed = report("throughput", figure("run.noop", 1.0, reference="reference.loop"), loop)
    fresh = report("throughput", figure("run.noop", 9.0, reference="reference.loop", void="lost"), loop)
    assert compare(committed, fresh)[0].is_worse(0.3)


def test_a_profile_counts_for_the_innermost_known_part() -> None:
    stacks = [
        "main (penstock/worker/process.py:1);call (redis/client.py:2);recv (socket.py:3) 30",
        "main (penstock/worker/process.py:1);run (penstock/worker/runner.py:2) 60",
        "main (penstock/worker/process.py:1);EpollSelector.select (selectors.py:468) 500",
        "main (thing.py:1) 6",
        "main (penstock/worker/process.py:1);Runner.run (asyncio/runners.py:118) 4",
    ]
    found = summarize(stacks)
    assert found["samples"] == 100
    assert found["parts"] == {"penstock/worker": 0.6, "redis": 0.3, "other": 0.06, "uvloop": 0.04}
    assert found["functions"]["recv (socket.py:3)"] == 0.3


def test_parts_that_were_not_measured_again_are_kept() -> None:
    before = report("scale", figure("run.queued.10", 1.0), figure("workers.1.noop", 1.0))
    after = keep_other_parts(before, report("scale", figure("workers.1.noop", 2.0)))
    assert [(one.key, one.median) for one in after.figures] == [("run.queued.10", 1.0), ("workers.1.noop", 2.0)]


def test_each_peer_names_where_its_settings_are_documented() -> None:
    for peer in PEERS:
        assert peer.settings
        assert peer.links or peer.is_ours
        assert len({setting.name for setting in peer.settings}) == len(peer.settings)
