"""The benchmarks run, at a size that says nothing about speed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.throughput import Parameters, measure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")


def test_jobs_are_counted_and_every_figure_holds(tmp_path: Path) -> None:
    parameters = Parameters(repeats=1, seconds=0.05, samples=3, idle_seconds=0.1, only=("run", "latency", "fairness"))
    report = measure(parameters)
    assert report.void == []
    keys = {figure.key for figure in report.figures}
    assert {"run.noop", "run.short", "run.threaded", "run.pooled", "latency.store", "latency.wait"} <= keys
    assert {"fairness.start", "fairness.cancel"} <= keys
    assert {"reference.commands", "reference.trips", "reference.loop"} <= keys
    assert all(figure.median > 0 for figure in report.figures)
    assert report.versions["valkey"]
