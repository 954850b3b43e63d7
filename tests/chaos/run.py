"""Break a running Penstock at random for a while, then demand that nothing was lost or finished twice.

    make chaos CHAOS_SECONDS=840 CHAOS_SEED=1 CHAOS_PARTS=always,everysec,sentinel

The seed fixes the order of the faults, the process that each takes and what is submitted; the machine's timing it
cannot fix. Exit codes: 0 all promises held and every fault bit, 1 one was broken, 2 void: a fault bit too seldom.
`CHAOS_KINDS='child SIGKILL;API SIGKILL'` takes these kinds alone, and writes no results. `--short` takes
each of a few kinds until it has bitten once, and then ends.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import redis.exceptions

from tests.chaos.fleet import SETTINGS as REPLICA
from tests.chaos.fleet import FleetFaults, Sentinels
from tests.chaos.history import completions
from tests.chaos.host_faults import HostFaults
from tests.chaos.ledger import Run, Runs, Submitters
from tests.chaos.process_faults import ProcessFaults
from tests.chaos.report import Report, write
from tests.chaos.scene import Bite, Fault, Mark, Scene
from tests.chaos.server_faults import ServerFaults
from tests.chaos.stack import Server, Stack, Valkey
from tests.chaos.verdict import judge, settled
from tests.chaos.wire_faults import WireFaults

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"
PARTS = ("always", "everysec", "sentinel")
#: Kinds of the short form: they need nothing but Python, and always find something to bite.
SHORT = (
    "worker SIGKILL (group)",
    "child SIGKILL",
    "worker SIGSTOP past the lease",
    "handler segfault",
    "API SIGKILL",
    "Valkey SIGKILL",
    "wire: answers cut",
    "CLIENT KILL",
    "SCRIPT FLUSH",
    "memory limit",
)
#: Kinds that are mixed with failovers.
BESIDE_FAILOVERS = (
    "worker SIGKILL (group)",
    "child SIGKILL",
    "worker SIGSTOP past the lease",
    "worker SIGTERM (deploy)",
    "API SIGKILL",
)
FSYNC = {"PENSTOCK_DURABILITY": "fsync"}
_SHORT_LIMIT_S = 300.0


_TITLES = {
    "always": "One Valkey, appendfsync always, a 2xx means that the disk has the job",
    "everysec": "One Valkey, appendfsync everysec",
    "sentinel": "Failovers, a 2xx means that both replicas have the job",
}


class Budget:
    """Say when a run has had enough: after its time, and when each kind has bitten often enough."""

    def __init__(self, *, seconds: float, least_bites: int, limit_s: float) -> None:
        self.seconds = seconds
        self.least_bites = least_bites
        self._limit_s = limit_s
        self._began = time.monotonic()

    @property
    def lasted(self) -> float:
        return time.monotonic() - self._began

    def wants(self, bites: Sequence[Bite]) -> bool:
        """Tell whether a kind is to be tried in this round."""
        if self.lasted > self._limit_s:
            return False
        return self.lasted < self.seconds or sum(bite.count > 0 for bite in bites) < self.least_bites


async def chaos(
    folder: Path,
    *,
    part: str,
    seed: int,
    seconds: float,
    least_bites: int,
    kinds: Sequence[str] = (),
    short: bool = False,
) -> Report:
    """Run the load and the faults; each round takes every kind once in a random order."""
    source = random.Random(f"{seed}-{part}")
    server, settings = _server(folder, part, short=short)
    stack = Stack(folder, server, apis=1 if short else 2, workers=2 if short else 3, api_settings=settings)
    runs = Runs(folder / "runs")
    host: HostFaults | None = None
    loading: asyncio.Task[None] | None = None
    try:
        await stack.start(clocks=not short and isinstance(server, Valkey))
        urls = [api.url for api in stack.of("api")]
        submitters = Submitters(urls, seed, folder / "accepted", count=3 if short else 4)
        loading = asyncio.create_task(submitters.run())
        scene = Scene(stack=stack, runs=runs, submitters=submitters, source=source, look_s=30.0 if short else 15.0)
        every = ProcessFaults(scene).kinds
        if isinstance(server, Sentinels):
            every = FleetFaults(scene, server).kinds | {kind: every[kind] for kind in BESIDE_FAILOVERS}
        else:
            host = HostFaults(scene)
            every |= WireFaults(scene).kinds | ServerFaults(scene).kinds | host.kinds
        chosen = list(kinds or every)
        bites: dict[str, list[Bite]] = {kind: [] for kind in chosen}
        await scene.until(lambda: any(run.starts for run in runs.read()), 120)
        print("load", flush=True)
        budget = Budget(
            seconds=seconds, least_bites=least_bites, limit_s=_SHORT_LIMIT_S if short else seconds * 1.5 + 60
        )
        order = list(chosen)
        while any(budget.wants(bites[kind]) for kind in chosen):
            source.shuffle(order)
            for kind in order:
                if budget.wants(bites[kind]):
                    bite = await _tried(every[kind])
                    bites[kind].append(bite)
                    stack.revive()
                    print(f"{budget.lasted:7.1f} s  {kind}: {bite.evidence}", flush=True)
                    await asyncio.sleep(source.uniform(0.2, 0.8))
        lasted = budget.lasted
        submitters.stop()
        await loading
        await stack.stop_apis()  # a submit without an answer may still be on its way
        await settled(server.url)
        # A replica begins its file anew with what it gets from its primary, so there only the jobs' records tell.
        history = completions(server.disk.path) if isinstance(server, Valkey) else None
        return Report(
            part="The short form" if short else _TITLES[part],
            seed=seed,
            seconds=lasted,
            least_bites=least_bites,
            server=await _version(server),
            bites=bites,
            missing={} if short or host is None else host.missing,
            verdict=await judge(server.url, submitters, runs, history=history, gaps=tuple(scene.gaps)),
            recovery=_recovery(scene.marks, runs.read()),
            refused=dict(submitters.refused),
        )
    finally:
        if loading is not None:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        await stack.stop()
        if host is not None:
            host.group.close()


async def _tried(fault: Fault) -> Bite:
    """Take a fault; one that found its victim gone has missed, and is tried again."""
    try:
        return await fault()
    except (OSError, redis.exceptions.RedisError) as error:
        return Bite(0, f"could not be given: {type(error).__name__}: {error}")


def _server(folder: Path, part: str, *, short: bool) -> tuple[Server, Mapping[str, str]]:
    """Return the server of a part, and what its APIs promise by a 2xx."""
    if part == "sentinel":
        return Sentinels(folder), REPLICA
    return Valkey(folder, part, own_disk=not short), FSYNC if part == "always" and not short else {}


async def _version(server: Server) -> str:
    if isinstance(server, Valkey):
        async with server.admin() as admin:
            return f"Valkey {(await admin.info('server'))['valkey_version']}"
    return "a primary and two replicas under three sentinels"


def _recovery(marks: list[Mark], runs: list[Run]) -> dict[str, list[float]]:
    """Measure from a fault to the next start: of each job that it stopped, or of any where it names none."""
    times: dict[str, list[float]] = collections.defaultdict(list)
    for mark in marks:
        starts = [run for run in runs if run.starts and run.at_s > max(mark.at_s, mark.from_s)]
        for job in [""] if mark.jobs is None else mark.jobs:
            again = [run.at_s for run in starts if not job or run.job == job]
            times[mark.what] += [min(again) - mark.at_s] if again else []
    return dict(times)


async def _run_part(folder: Path, **given: object) -> Report:
    """Run a part so that SIGTERM ends it as Ctrl-C does: with everything that it started."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await chaos(folder, **given)  # type: ignore[arg-type]


def _in_a_folder(part: str, **given: object) -> Report:
    folder = Path(tempfile.mkdtemp(prefix="penstock-chaos-"))
    keep = False
    try:
        report = asyncio.run(_run_part(folder, part=part, **given))
        keep = bool(report.wrong)
        return report
    finally:
        if keep:
            print(f"left for a look: {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    short = parser.parse_args().short
    seed = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(1_000_000))
    seconds = 0.0 if short else float(os.environ.get("CHAOS_SECONDS") or 840)
    parts = ["always"] if short else (os.environ.get("CHAOS_PARTS") or ",".join(PARTS)).split(",")
    kinds = SHORT if short else tuple(filter(None, (os.environ.get("CHAOS_KINDS") or "").split(";")))
    print(f"chaos: CHAOS_SEED={seed} CHAOS_SECONDS={seconds:g} CHAOS_PARTS={','.join(parts)}", flush=True)
    reports = []
    try:
        for part in parts:
            reports.append(
                _in_a_folder(
                    part,
                    seed=seed,
                    seconds=seconds / len(parts),
                    least_bites=1 if short or seconds < 300 else 3,
                    kinds=kinds,
                    short=short,
                )
            )
            print("\n".join(["", *reports[-1].lines()]), flush=True)
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if not kinds:
        write(reports, RESULTS)
    if any(report.wrong for report in reports):
        return 1
    return 2 if any(report.void for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
