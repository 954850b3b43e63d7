"""Read what the server noted about scripts: time spent, slowest calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from benchmarks.processes import Bench
from penstock.store.redis.scripts import load_scripts

SLOW_US = 2_000
_NOTED = 10_000


def watch_slow_calls(bench: Bench) -> None:
    """Let the server note what takes over two milliseconds, from now on."""
    bench.client.config_set("slowlog-log-slower-than", SLOW_US)
    bench.client.config_set("slowlog-max-len", _NOTED)
    bench.ask("SLOWLOG", "RESET")


@contextlib.contextmanager
def every_call_noted(bench: Bench) -> Iterator[None]:
    """Let the server note each call, whatever it takes, and none of those before."""
    bench.client.config_set("slowlog-log-slower-than", 0)
    bench.ask("SLOWLOG", "RESET")
    try:
        yield
    finally:
        bench.client.config_set("slowlog-log-slower-than", SLOW_US)


def verbs() -> dict[str, str]:
    """Return the name of each script by its SHA."""
    return {script.sha: name for name, script in load_scripts().items()}


def slow_calls(bench: Bench) -> dict[str, float]:
    """Return the longest call of each verb and command noted, ms, the slowest first."""
    known = verbs()
    found: dict[str, float] = {}
    for entry in bench.client.slowlog_get(_NOTED):
        words = entry["command"].decode(errors="replace").split(" ")
        name = words[0].upper()
        if name in {"EVALSHA", "EVAL"}:
            name = known.get(words[1], "a script loaded for the first time")
        found[name] = max(found.get(name, 0.0), entry["duration"] / 1000)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def calls_over(bench: Bench, ms: float) -> int:
    """Return how many of the calls that were noted took longer."""
    return sum(entry["duration"] > ms * 1000 for entry in bench.client.slowlog_get(_NOTED))


def command_times(bench: Bench) -> dict[str, dict[str, Any]]:
    """Return calls and µs of each command since the last reset, the longest first."""
    found = {
        name.removeprefix("cmdstat_"): {"calls": stat["calls"], "usec": stat["usec"]}
        for name, stat in bench.info("commandstats").items()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]["usec"]))
