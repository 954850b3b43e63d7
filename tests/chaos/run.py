"""Break a running Penstock at random for a while, then demand that nothing was lost or finished twice.

    make chaos CHAOS_SECONDS=900 CHAOS_SEED=1 CHAOS_PARTS=always,everysec

The seed fixes the order of the faults, the process that each takes and what is submitted; the machine's timing it
cannot fix. Exit codes: 0 all promises held and every fault bit, 1 one was broken, 2 void: a fault bit too seldom.
`--short` takes each of a few kinds until it has bitten once, and then ends.
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
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.history import completions
from tests.chaos.host_faults import HostFaults
from tests.chaos.ledger import Run, Runs, Submitters
from tests.chaos.process_faults import ProcessFaults
from tests.chaos.report import Report, write
from tests.chaos.scene import Bite, Fault, Mark, Scene
from tests.chaos.server_faults import ServerFaults
from tests.chaos.stack import Stack
from tests.chaos.verdict import judge, settled
from tests.chaos.wire_faults import WireFaults

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"
PARTS = ("always", "everysec")
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
_SHORT_LIMIT_S = 300.0


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
    folder: Path, *, part: str, seed: int, seconds: float, least_bites: int, kinds: Sequence[str] = ()
) -> Report:
    """Run the load and the faults; each round takes every kind once in a random order."""
    short = bool(kinds)
    source = random.Random(f"{seed}-{part}")
    stack = Stack(folder, fsync=part, apis=1 if short else 2, workers=2 if short else 3, own_disk=not short)
    runs = Runs(folder / "runs")
    host: HostFaults | None = None
    loading: asyncio.Task[None] | None = None
    try:
        await stack.start(clocks=not short)
        urls = [api.url for api in stack.of("api")]
        submitters = Submitters(urls, seed, folder / "accepted", count=3 if short else 4)
        loading = asyncio.create_task(submitters.run())
        scene = Scene(stack=stack, runs=runs, submitters=submitters, source=source, look_s=30.0 if short else 15.0)
        host = HostFaults(scene)
        every: dict[str, Fault] = (
            ProcessFaults(scene).kinds | WireFaults(scene).kinds | ServerFaults(scene).kinds | host.kinds
        )
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
                    bite = await every[kind]()
                    bites[kind].append(bite)
                    print(f"{budget.lasted:7.1f} s  {kind}: {bite.evidence}", flush=True)
                    await asyncio.sleep(source.uniform(0.2, 0.8))
        lasted = budget.lasted
        submitters.stop()
        await loading
        await stack.stop_apis()  # a submit without an answer may still be on its way
        await settled(stack.valkey.url)
        history = completions(stack.valkey.disk.path)
        async with stack.valkey.admin() as admin:
            server = f"Valkey {(await admin.info('server'))['valkey_version']}, appendfsync {part}"
        return Report(
            part=f"appendfsync {part}",
            seed=seed,
            seconds=lasted,
            least_bites=least_bites,
            server=server,
            bites=bites,
            missing={} if short else host.missing,
            verdict=await judge(stack.valkey.url, submitters, runs, history=history, gaps=tuple(scene.gaps)),
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


def _recovery(marks: list[Mark], runs: list[Run]) -> dict[str, list[float]]:
    """Measure from a fault to the next start: of each job that it stopped, or of any where it names none."""
    times: dict[str, list[float]] = collections.defaultdict(list)
    for what, at_s, jobs in marks:
        starts = [run for run in runs if run.starts and run.at_s > at_s]
        for job in [""] if jobs is None else jobs:
            again = [run.at_s for run in starts if not job or run.job == job]
            times[what] += [min(again) - at_s] if again else []
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
    seconds = 0.0 if short else float(os.environ.get("CHAOS_SECONDS") or 900)
    parts = ["always"] if short else (os.environ.get("CHAOS_PARTS") or ",".join(PARTS)).split(",")
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
                    kinds=SHORT if short else (),
                )
            )
            print("\n".join(["", *reports[-1].lines()]), flush=True)
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if not short:
        write(reports, RESULTS)
    if any(report.wrong for report in reports):
        return 1
    return 2 if any(report.void for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
