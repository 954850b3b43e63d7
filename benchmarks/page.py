"""Write the figures into docs/performance.md, between its markers, and the plots beside it: `make bench-page`.

A block whose figures were not measured stays empty, with its heading.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import plots, records, tables
from benchmarks.records import Figure, Report
from benchmarks.tables import number, spread_of, value_of

PAGE = records.ROOT / "docs" / "performance.md"
PICTURES = PAGE.parent / "performance"
_BLOCK = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
Results = Mapping[str, Report]
#: What lies there, and how it is called in a table.
_KINDS = {"queued": "queued", "finished": "finished", "capped": "finished, at the cap", "delayed": "delayed"}
TIMES_BULLMQ = 2
#: What a rate may lose up to a million jobs.
FLAT = 0.2

_RUNNING = (
    "A queue is paused, jobs are submitted, the queue is resumed; the time counts from the first handler's start "
    "until the last result is stored. The worker has run some before. A job has an input of one number and "
    "returns it; its handler counts its run in memory that the benchmark shares."
)
_LATENCY = (
    "One job at a time, some ms after the last one ended, so that worker, API and Valkey sleep before each. The "
    "start is stamped by the handler, by a clock that all processes share."
)
_FAIRNESS = (
    "A worker serves two queues. One holds a thousand slow jobs more than may run at once, and they keep their slots "
    "until they are cancelled. Meanwhile jobs come into the other queue, and slow jobs are cancelled, one at a time. "
    "The first row compares with the first one above."
)
_IDLE = (
    "Processor time while nothing comes: a worker waits for a signal and does not poll; the sweeps run about once"
    " a second."
)
_PEERS = (
    "Each does the same on the same Valkey in the same run: jobs are submitted, a fresh worker is started, and "
    "the rate counts from when a fifth of the jobs have run until the last result is stored. Each stores its "
    "results, and each job must have run once. Of the settings tried the fastest is shown; bytes are what "
    "`used_memory` grew by, a job."
)
_SCALE = (
    "The same while so many other jobs are queued, finished and kept, or delayed. What is lost is between the best "
    "figure of a row and the one with the most jobs; up to 20 % counts as flat. Finished jobs lie below a cap that is "
    "set higher than shipped (`--finished-jobs`); at the cap, a million as shipped, each job that comes pushes one out."
)
_SLOWEST = (
    "The slowest script call meanwhile (ms, and which): `SLOWLOG` counts the time that a call waits for a processor, "
    "which load, API and worker want too. *Alone* are 20 calls of full size of each verb, one at a time with nothing "
    "else to do: the server's own time. Last, the memory of all processes of a worker and an API:"
)
_LIMIT = (
    "Worker and Valkey work at the same time, each on a core, so that the slower of the two sets the pace; "
    "processor times add up what all threads took."
)
_SUBMITTING = (
    "One API process, a job a request, requests on connections that stay open, each sent when the last one was "
    "answered. The load comes from a process of its own that speaks HTTP on bare sockets. Afterwards a worker "
    "runs what was submitted, and each job must have run once; in the last row it does so meanwhile, on the same cores."
)
_PROFILED = {"uvloop": "`uvloop`: the event loop itself, with reading, writing and waiting", "other": "other"}
_BATCH = "The same generator, a thousand jobs a request. The append-only file is written as shipped, or not at all."


def load_results(folder: Path = records.RESULTS) -> dict[str, Report]:
    """Return the reports that were measured, by name."""
    found = {name: records.load(folder / f"{name}.json") for name in ("throughput", "peers", "scale", "limit")}
    return {name: report for name, report in found.items() if report is not None}


def render(text: str, results: Results) -> str:
    """Return the page's text with its blocks written anew."""

    def block(match: re.Match[str]) -> str:
        body = BLOCKS[match[2]](results)
        return f"{match[1]}{body.strip()}\n{match[3]}" if body.strip() else f"{match[1]}{match[3]}"

    return _BLOCK.sub(block, text)


# What is wanted of a run, and how to read it off: a figure, or one of its further values.

_TARGETS: tuple[tuple[str, str, str, float, str], ...] = (
    ("no-op jobs, one worker process", "run.noop", "", 40_000, "jobs/s"),
    ("bulk submit, straight to the store", "submit.bulk", "", 80_000, "jobs/s"),
    ("`POST /submit`, 64 connections, one API process", "http.64", "", 12_000, "jobs/s"),
    ("the same, 99th percentile", "http.64", "p99 ms", 15, "ms"),
    ("the same with durability `fsync`", "fsync.64", "", 6_000, "jobs/s"),
    ("`POST /jobs/batch`, append-only file", "batch.json.aof", "", 40_000, "jobs/s"),
    ("`POST /jobs/batch`, no append-only file", "batch.json.memory", "", 50_000, "jobs/s"),
    ("submit → handler starts, idle system, median", "latency.store", "", 2, "ms"),
    ("the same, 99th percentile", "latency.store", "p99 ms", 10, "ms"),
    ("`POST /submit` with `Prefer: wait` → result, median", "latency.wait", "", 5, "ms"),
    (
        "a job of another queue starts beside a thousand slow ones, 99th percentile",
        "fairness.start",
        "p99 ms",
        10,
        "ms",
    ),
    ("a cancel reaches a slow job's handler beside them, 99th percentile", "fairness.cancel", "p99 ms", 1_000, "ms"),
    ("a delayed job's lateness, 99th percentile", "delayed.lateness", "p99 ms", 50, "ms"),
    ("processor time of an idle worker", "idle.worker", "", 0.5, "% of a core"),
)


def summary(results: Results) -> str:
    report = results.get("throughput")
    if report is None:
        return ""
    rows = []
    for name, key, part, target, unit in _TARGETS:
        figure = report.figure(key)
        if figure is None:
            continue
        value = figure.median_of(part) if part else figure.median
        if value is None:
            continue
        wants_less = figure.lower or bool(part)
        reached = value <= target if wants_less else value >= target
        shown = "**void**" if figure.void else f"{number(value)} {unit}"
        sign = "≤" if wants_less else "≥"
        rows.append([name, shown, f"{sign} {target:,g} {unit}", "yes" if reached and not figure.void else "no"])
        if key == "run.noop":
            rows += _times_row(results.get("peers"))
    parts = ["## In short", _where(report), tables.table(["", "median", "wanted", "reached"], rows, left=1)]
    return "\n\n".join(parts)


def _times_row(report: Report | None) -> list[list[str]]:
    """Say how many times the rate of BullMQ ours is, as measured beside each other."""
    found = [report.figure(f"{name}.run.noop") if report is not None else None for name in ("penstock", "bullmq")]
    if any(figure is None or figure.void or not figure.median for figure in found):
        return []
    ours, theirs = (figure.median for figure in found if figure is not None)
    times = ours / theirs
    name = "the same, as a multiple of BullMQ's in one run"
    return [[name, f"{times:.1f} times", f"≥ {TIMES_BULLMQ} times", "yes" if times >= TIMES_BULLMQ else "no"]]


def _where(report: Report) -> str:
    machine, versions = report.machine, report.versions
    used = ", ".join(
        f"{name} {versions[key]}"
        for name, key in (("Python", "python"), ("Valkey", "valkey"), ("uvloop", "uvloop"))
        if versions.get(key)
    )
    return (
        f"Measured {report.at[:10]} at commit `{versions['commit']}` on {machine['cores']} cores "
        f"({machine['processor']}, {machine['system']}), {used}. "
        f"Everything, Valkey and the load included, shares these cores.{_repeats(report)}"
    )


def _repeats(report: Report) -> str:
    """Say of how many runs a figure is the median; those of memory, bytes and slowest calls are of one."""
    repeated = (figure for figure in report.figures if figure.section != "reference" and len(figure.values) > 1)
    counts = sorted({len(figure.values) for figure in repeated})
    if not counts:
        return ""
    least, most = counts[0], counts[-1]
    return f" Medians of {least} runs." if least == most else f" Medians of {least} to {most} runs."


def _section(report: Report | None, section: str, title: str, text: str, more: Sequence[str] = ()) -> str:
    found = report.of(section) if report is not None else []
    if not found:
        return ""
    parts = [f"## {title}", text, tables.figures(found, more=more)]
    settings = {figure.settings for figure in found}
    if len(settings) == 1 and (only := settings.pop()):
        parts.append(f"Settings: {only}.")
    return "\n\n".join(part for part in parts if part)


def running(results: Results) -> str:
    return _section(results.get("throughput"), "run", "Running jobs, one worker process", _RUNNING)


def submitting(results: Results) -> str:
    report = results.get("throughput")
    parts = [_section(report, "http", "`POST /submit`", _SUBMITTING, ("p50 ms", "p99 ms"))]
    if report is not None and report.of("headroom"):
        parts += [
            "The generator is not the limit: at a server that does nothing but answer, it sends",
            tables.figures(report.of("headroom"), more=("p50 ms", "p99 ms")),
        ]
    parts.append(
        _section(
            report, "fsync", "`POST /submit` that waits for the disk",
            "With `--durability fsync` and `appendfsync always` the answer comes once the job is on the disk.",
            ("p50 ms", "p99 ms"),
        )
    )  # fmt: skip
    parts.append(
        _section(
            report, "batch", "`POST /jobs/batch`",
            _BATCH,
            ("p50 ms", "p99 ms"),
        )
    )  # fmt: skip
    parts.append(
        _section(
            report, "submit", "Submitting from Python, without HTTP",
            "A process makes ids and inputs and calls the store, as the API does for a batch.",
        )
    )  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def latency(results: Results) -> str:
    report = results.get("throughput")
    more = ("p99 ms", "worst ms")
    parts = [_section(report, "latency", "Latency on an idle system", _LATENCY, more)]
    parts.append(_section(report, "fairness", "Beside a thousand slow jobs", _FAIRNESS, more))
    parts.append(
        _section(report, "delayed", "Delayed jobs", "How late a handler starts after its job's due time.", more)
    )
    parts.append(
        _section(
            report, "idle", "Doing nothing",
            _IDLE,
        )
    )  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def peers(results: Results) -> str:
    report = results.get("peers")
    if report is None:
        return ""
    sections = {"run.noop": "no-op, jobs/s", "run.short": "1 ms, jobs/s", "submit.bulk": "bulk submit, jobs/s",
                "bytes.queued": "bytes queued", "bytes.finished": "bytes finished"}  # fmt: skip
    sections = {name: title for name, title in sections.items() if report.of(name)}
    order = sorted(report.of("run.noop"), key=lambda figure: -figure.median)
    rows = []
    for figure in order:
        found = [report.figure(f"{figure.name}.{section}") for section in sections]
        cells = [
            "" if one is None else value_of(one) + (f" ({spread_of(one)})" if one.unit == "jobs/s" else "")
            for one in found
        ]
        rows.append([_name_of(report, figure.name), *cells])
    parts = [
        "## Beside other job systems",
        _where(report),
        _PEERS,
        tables.table(["", *sections.values()], rows),
        _against_the_next(order),
        "![No-op jobs a second](performance/peers.svg)",
        _settings_of_peers(report, [figure.name for figure in order]),
    ]
    return "\n\n".join(part for part in parts if part)


def _against_the_next(order: Sequence[Figure]) -> str:
    """Say how the rate of ours stands to the fastest other one."""
    ours = next((figure for figure in order if figure.name == "penstock" and not figure.void), None)
    other = next((figure for figure in order if figure.name != "penstock" and not figure.void), None)
    if ours is None or other is None or not other.median:
        return ""
    times = ours.median / other.median
    return f"Penstock runs {times:.1f} times as many no-op jobs as {other.name}, the fastest of the others."


def _name_of(report: Report, name: str) -> str:
    version = report.notes.get(name, {}).get("versions", {}).get(name, "")
    return f"**{name}**" if name == "penstock" else f"{name} {version}".strip()


def _settings_of_peers(report: Report, names: Sequence[str]) -> str:
    rows = []
    for name in names:
        note = report.notes.get(name, {})
        links = ", ".join(f"[{place}]({link})" for place, link in enumerate(note.get("links", ()), 1))
        settings = note.get("settings", {})
        tried = {one for rates in note.get("tried", {}).values() for one in rates} - set(settings.values())
        rows.append(
            [
                name,
                settings.get("noop", ""),
                settings.get("short", ""),
                "; ".join(sorted(tried)),
                note.get("bulk", ""),
                links,
            ]
        )
    return tables.table(["", "no-op", "1 ms", "tried, slower", "bulk submit", "documented"], rows, left=6)


def scale(results: Results) -> str:
    report = results.get("scale")
    if report is None:
        return ""
    sizes = sorted({int(figure.key.split(".")[2]) for figure in report.of("run")})
    parts = []
    if sizes:
        parts += [
            "## As the work grows",
            _where(report),
            _SCALE,
            tables.table(["jobs/s", *(f"{size:,}" for size in sizes), "lost"], _depth_rows(report, sizes)),
            "![Jobs run a second as the work grows](performance/scale.svg)",
            _SLOWEST,
            tables.table(["", *(f"{size:,}" for size in sizes)], _limit_rows(report, sizes)),
            tables.table(["bytes of Valkey a job", *(f"{size:,}" for size in sizes)], _byte_rows(report, sizes)),
        ]
    for section, title in (("workers", "Processes of one worker"), ("partitions", "Partitions on one Valkey")):
        rates = [figure for figure in report.of(section) if figure.unit == "jobs/s"]
        if rates:
            parts += [f"### {title}", tables.figures(rates)]
        memory = [figure for figure in report.of(section) if figure.unit == "MiB"]
        if memory and section == "workers":
            shown = ", ".join(f"{figure.name} {value_of(figure)}" for figure in memory)
            parts.append(f"Resident memory of the worker with all its processes, MiB: {shown}.")
    return "\n\n".join(parts)


def _depth_rows(report: Report, sizes: Sequence[int]) -> list[list[str]]:
    names = {
        "run": "run (claim and complete)",
        "submit": "bulk submit",
        "http": "`POST /submit`, 64 connections",
        "batch": "`POST /jobs/batch`, 1,000 a request",
    }
    rows = []
    for section, name in names.items():
        for kind, title in _KINDS.items() if report.of(section) else ():
            found = [report.figure(f"{section}.{kind}.{size}") for size in sizes]
            # The cap has one size; what lies below it is what it compares with.
            below = [report.figure(f"{section}.finished.{size}") for size in sizes] if kind == "capped" else []
            if any(found):
                rows.append([f"{name}, {title}", *map(_shown, found), _lost([*below, *found])])
    return rows


def _lost(found: Sequence[Figure | None]) -> str:
    """Say which part of the best rate is lost where most jobs lie there."""
    rates = [0.0 if figure is None or figure.void else figure.median for figure in found]
    if len(rates) < 2 or not rates[-1]:
        return ""
    lost = 1 - rates[-1] / max(rates)
    return f"{lost:.0%}" if lost <= FLAT else f"**{lost:.0%}**"


def _limit_rows(report: Report, sizes: Sequence[int]) -> list[list[str]]:
    rows = []
    for kind, title in _KINDS.items():
        found = [report.figure(f"slowest.{kind}.{size}") for size in sizes]
        rows.append([f"slowest call, {title}", *(f"{_shown(one)} `{one.settings}`" if one else "" for one in found)])
        over = [one.median_of("calls over 5 ms") if one else None for one in found]
        rows.append([f"calls over 5 ms, {title}", *("" if calls is None else number(calls) for calls in over)])
    for kind, title in _KINDS.items():
        found = [report.figure(f"alone.{kind}.{size}") for size in sizes]
        rows.append([f"slowest alone, {title}", *(f"{_shown(one)} `{one.settings}`" if one else "" for one in found)])
    for kind, title in _KINDS.items():
        found = [report.figure(f"memory.{kind}.{size}") for size in sizes]
        rows.append(
            [
                f"worker · API, MiB, {title}",
                *(f"{_shown(one)} · {number(one.median_of('API') or 0)}" if one else "" for one in found),
            ]
        )
    return rows


def _byte_rows(report: Report, sizes: Sequence[int]) -> list[list[str]]:
    names = {"queued": "queued", "delayed": "delayed", "finished": "finished, kept with its result"}
    return [[name, *(_shown(report.figure(f"bytes.{kind}.{size}")) for size in sizes)] for kind, name in names.items()]


def _shown(figure: Figure | None) -> str:
    return "" if figure is None else value_of(figure)


def limit(results: Results) -> str:
    report = results.get("limit")
    if report is None:
        return ""
    parts = [
        "## Where each microsecond goes",
        _where(report),
        _LIMIT,
    ]
    for part, title in (("run", "A job that runs"), ("http", "A job that is submitted over HTTP")):
        found = [figure for figure in report.of("budget") if figure.key.startswith(f"budget.{part}.")]
        if found:
            parts += [f"### {title}", tables.figures(found)]
    group = report.figure("group.http")
    if group is not None:
        parts.append(f"A script call that submits took {number(group.median)} jobs on average.")
    if report.of("script"):
        parts += [
            "### The server's own time for each script",
            "A claim or a submit of one job costs more than one of many; so calls that come together share one.",
            tables.figures(report.of("script")),
        ]
    commands = report.notes.get("commands of a job that runs")
    if commands:
        times = report.notes.get("time of them, µs", {})
        shown = ", ".join(
            f"`{name}` {number(count)}" + (f" ({number(times[name])} µs)" if name in times else "")
            for name, count in commands.items()
        )
        parts.append(f"Commands that claim and complete run for a job: {shown}.")
    parts += _bare(report)
    for name in ("worker", "API"):
        profile = report.notes.get(f"profile of the {name}", {})
        if "parts" in profile:
            rows = [
                [_PROFILED.get(part, f"`{part}`"), f"{share:.1%}"]
                for part, share in profile["parts"].items()
                if share >= 0.005
            ]
            parts += [
                f"### What the {name} does",
                f"Of {profile['samples']:,} samples by `py-spy` at full load, by the innermost frame of a part:",
                tables.table(["part", "share"], rows),
            ]
    return "\n\n".join(parts)


def _bare(report: Report) -> list[str]:
    slow = report.notes.get("slowest calls, ms", {})
    events = report.notes.get("latency events, ms", {})
    bare = report.notes.get("bare server", {})
    found = []
    if slow:
        shown = ", ".join(f"`{name}` {number(ms)}" for name, ms in list(slow.items())[:6])
        found.append(f"Slowest calls by `SLOWLOG`, ms: {shown}.")
    if events:
        shown = ", ".join(f"`{name}` {ms}" for name, ms in sorted(events.items(), key=lambda item: -item[1]))
        found.append(f"Longest events by `LATENCY` (2 ms and more), ms: {shown}.")
    if bare:
        shown = ", ".join(f"{name} {number(rate)}/s" for name, rate in bare.items())
        found.append(f"The same server on bare commands, pipelined, by its own benchmark tool: {shown}.")
    return found


BLOCKS: dict[str, Callable[[Results], str]] = {
    "summary": summary,
    "running": running,
    "submitting": submitting,
    "latency": latency,
    "peers": peers,
    "scale": scale,
    "limit": limit,
}


def pictures(results: Results) -> dict[str, str]:
    """Return the plots by file name."""
    found = {}
    beside, grown = results.get("peers"), results.get("scale")
    if beside is not None:
        rates = sorted(beside.of("run.noop"), key=lambda figure: -figure.median)
        rows = [(figure.name, figure.median) for figure in rates if not figure.void]
        found["peers.svg"] = plots.bars("No-op jobs a second, one worker, results stored", rows, ours="penstock")
    if grown is not None and grown.of("run"):
        series: dict[str, list[tuple[float, float]]] = {}
        for figure in grown.of("run"):
            _, kind, size = figure.key.split(".")
            series.setdefault(kind, []).append((float(size), figure.median))
        found["scale.svg"] = plots.lines("Jobs run a second while so many others lie there", series)
    return found


def main() -> int:
    results = load_results()
    PAGE.write_text(render(PAGE.read_text(), results))
    for name, text in pictures(results).items():
        PICTURES.mkdir(exist_ok=True)
        (PICTURES / name).write_text(text)
    print(f"{PAGE}: {', '.join(results) or 'no results yet'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
