"""Compare a fresh, short run with the committed figures, each as a ratio to a reference loop of its own run.

    .venv/bin/python -m benchmarks.check [--tolerance 0.3]          (`make bench-check`)

A slow machine slows the loop as well, so that it does not look like a regression. Exits with 1 when a figure is worse
by more than the tolerance, or void. It is a tool for people: no test runs it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from benchmarks import records, tables, throughput
from benchmarks.processes import end_cleanly
from benchmarks.records import Figure, Report

SECTIONS = ("run", "submit", "http", "batch", "latency", "fairness")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Hold a figure of both runs. ``gain`` is 1 where nothing changed, above 1 where it became better."""

    name: str
    unit: str
    committed: float
    fresh: float
    gain: float
    void: str

    def is_worse(self, tolerance: float) -> bool:
        return bool(self.void) or self.gain < 1 - tolerance


def gain_of(committed: Figure, fresh: Figure, committed_loop: float, fresh_loop: float) -> float:
    """Return how much better the fresh figure is, measured in loops; times count as loops per time."""
    if not all((committed.median, fresh.median, committed_loop, fresh_loop)):
        return 0.0
    if committed.lower:
        return (committed.median * committed_loop) / (fresh.median * fresh_loop)
    return (fresh.median / fresh_loop) / (committed.median / committed_loop)


def compare(committed: Report, fresh: Report) -> list[Comparison]:
    """Compare what both runs measured and has a reference loop."""
    found = []
    for new in fresh.figures:
        old = committed.figure(new.key)
        loops = [report.figure(new.reference) for report in (committed, fresh)] if new.reference else []
        if old is None or old.void or not loops or None in loops:
            continue
        old_loop, new_loop = (loop.median for loop in loops if loop is not None)
        found.append(
            Comparison(
                name=new.name,
                unit=new.unit,
                committed=old.median,
                fresh=new.median,
                gain=gain_of(old, new, old_loop, new_loop),
                void=new.void,
            )
        )
    return found


def table(found: list[Comparison], tolerance: float) -> str:
    head = ["", "committed", "now", "unit", "now, as a ratio", ""]
    rows = [
        [
            one.name,
            tables.number(one.committed),
            tables.number(one.fresh),
            one.unit,
            f"{one.gain:.2f}",
            (f"void: {one.void}" if one.void else "worse") if one.is_worse(tolerance) else "",
        ]
        for one in found
    ]
    return tables.table(head, rows)


def main() -> int:
    end_cleanly()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tolerance", type=float, default=0.3, help="what a figure may lose, as a part of it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between them")
    parser.add_argument("--against", type=Path, default=throughput.OUT)
    given = parser.parse_args()
    committed = records.load(given.against)
    if committed is None:
        print(f"there are no figures to compare with in {given.against}", file=sys.stderr)
        return 2
    fresh = throughput.measure(
        throughput.Parameters(
            repeats=given.repeats, seconds=given.seconds, samples=100, only=tuple(given.only.split(","))
        ),
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    found = compare(committed, fresh)
    print(table(found, given.tolerance))
    return int(any(one.is_worse(given.tolerance) for one in found))


if __name__ == "__main__":
    sys.exit(main())
