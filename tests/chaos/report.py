"""Say what a run did and found: for people, and for machines."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos.scene import Bite
from tests.chaos.stack import LEASE_S
from tests.chaos.verdict import Verdict


@dataclasses.dataclass(kw_only=True)
class Report:
    """Hold one part of a run."""

    part: str
    seed: int
    seconds: float
    least_bites: int
    server: str
    bites: dict[str, list[Bite]]
    missing: dict[str, str]
    verdict: Verdict
    recovery: dict[str, list[float]]
    refused: dict[str, int]

    @property
    def void(self) -> list[str]:
        """Return the kinds of fault that bit too seldom, or could not be tried: with any of them nothing is proven."""
        counts = {kind: sum(bite.count > 0 for bite in bites) for kind, bites in self.bites.items()}
        found = [f"{kind}: bit {count} of {self.least_bites} times" for kind, count in counts.items()]
        found = [text for text, count in zip(found, counts.values(), strict=True) if count < self.least_bites]
        return found + [f"{kind}: not tried, {what} is missing" for kind, what in self.missing.items()]

    @property
    def wrong(self) -> list[str]:
        return self.verdict.wrong()

    def lines(self) -> list[str]:
        """Return what people read, as Markdown."""
        verdict = self.verdict
        found = [
            f"## {self.part}",
            "",
            f"Seed {self.seed}, {self.seconds:.0f} s of load, leases of {LEASE_S:g} s, {self.server}.",
            "",
        ]
        found += ["| fault | tried | bit | touched | last evidence |", "|---|---:|---:|---:|---|"]
        for kind, bites in self.bites.items():
            bit = [bite for bite in bites if bite.count > 0]
            evidence = (bit or bites)[-1].evidence if bites else ""
            found.append(f"| {kind} | {len(bites)} | {len(bit)} | {sum(bite.count for bite in bit)} | {evidence} |")
        found += ["", "| | |", "|---|---:|"]
        found += [f"| {name} | {value} |" for name, value in self._counts()]
        found += ["", "| runs per job | jobs |", "|---:|---:|"]
        found += [f"| {runs} | {jobs} |" for runs, jobs in verdict.runs_per_job.items()]
        times = [(name, sorted(values)) for name, values in self.recovery.items() if values]
        if times:
            found += ["", "| recovery | n | median | worst |", "|---|---:|---:|---:|"]
        for name, values in times:
            found.append(f"| {name} | {len(values)} | {values[len(values) // 2]:.2f} s | {values[-1]:.2f} s |")
        found += ["", *(f"VOID {text}" for text in self.void), *(f"BROKEN {text}" for text in self.wrong)]
        return found

    def _counts(self) -> list[tuple[str, object]]:
        verdict = self.verdict
        counts: list[tuple[str, object]] = [
            ("jobs accepted (2xx), written down outside the server", verdict.accepted),
            ("jobs stored (with those whose answer was lost)", verdict.stored),
            ("accepted and lost", len(verdict.lost)),
            ("accepted and not final", len(verdict.unfinished)),
        ]
        if verdict.lost_in_gaps or verdict.doubles_in_gaps:
            counts.append(("accepted in a last second that was cut off, and lost with it", verdict.lost_in_gaps))
            counts.append(("keys used anew after that", verdict.doubles_in_gaps))
        if verdict.history is not None:
            counts.append(("jobs by completions in the server's history", _by_number(verdict.history)))
        counts += [
            ("finished more than once", verdict.doubly_finished + len(verdict.not_once)),
            ("wrong results", len(verdict.wrong_results)),
            ("submits with a key, of these sent more than once", f"{verdict.keyed}, {verdict.repeated}"),
            ("keys that made two jobs", len(verdict.doubles)),
            ("findings of the audit, keys of nobody", f"{len(verdict.findings)}, {len(verdict.foreign_keys)}"),
            ("submits refused or unanswered", sum(n for code, n in self.refused.items() if ":" not in code)),
        ]
        return counts

    def document(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"void": self.void, "wrong": self.wrong}


def _by_number(jobs: dict[int, int]) -> str:
    return ", ".join(f"{count} x {times}" for times, count in jobs.items())


def machine() -> dict[str, Any]:
    """Describe where this runs, and what."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
        "penstock": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


def _commit() -> str:
    from penstock import __version__

    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return f"{__version__} {done.stdout.strip()}".strip()


def write(reports: Sequence[Report], folder: Path, name: str = "chaos") -> None:
    """Write the results as a table and as a document."""
    folder.mkdir(parents=True, exist_ok=True)
    where = machine()
    head = [
        "# `make chaos`",
        "",
        "A running system, broken at random; what each fault counts as a bite, and how the end is judged, is told in",
        "[How it is broken on purpose](../../docs/explanation/proof.md).",
        "",
        ", ".join(
            [
                *(str(where[name]) for name in ("at", "system", "processor")),
                f"{where['cores']} cores",
                f"{where['memory_gib']} GiB, Python {where['python']}, Penstock {where['penstock']}.",
            ]
        ),
        "",
    ]
    lines = head + [line for report in reports for line in [*report.lines(), ""]]
    (folder / f"{name}.md").write_text("\n".join(lines).rstrip() + "\n")
    document = {"machine": where, "parts": [report.document() for report in reports]}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
