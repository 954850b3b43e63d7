"""Take one piece at a time out of a Lua script and check that a test notices.

Each mutant is a textual patch that must apply exactly once: a script that has changed stops the run, so that no mutant
goes stale unseen. The patched package lives in a temporary folder; conformance runs first, the property test where that
passes. Exits 1 when a mutant survives, 2 when a patch does not apply or the tests fail without one.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.mutant import Mutant
from scripts.mutants_of_libraries import OF_LIBRARIES
from scripts.mutants_of_verbs import OF_VERBS

ROOT = Path(__file__).resolve().parent.parent
LUA = Path("penstock/store/lua")
RUN_SECONDS = 400
#: The tests most likely to notice come first, in this order.
FIRST = {
    "submit": ["test_submit"],
    "claim": ["test_claim", "test_shares", "test_alone", "test_damaged_jobs", "test_damaged", "test_together"],
    "extend": ["test_lease"],
    "settle": ["test_settle"],
    "cancel": ["test_change", "test_wait", "test_output"],
    "redrive": ["test_change", "test_unique", "test_claim", "test_settle"],
    "delete": ["test_change", "test_unique", "test_damaged_sweeps"],
    "promote": ["test_sweeps", "test_damaged_sweeps", "test_damaged_jobs", "test_damaged"],
    "reap": ["test_sweeps", "test_damaged_sweeps", "test_damaged"],
    "release_held": ["test_lease", "test_alone", "test_damaged"],
    "lib/lose": ["test_sweeps", "test_alone"],
    "lib/lease": ["test_sweeps"],
    "lib/once": ["test_once"],
    "lib/create": ["test_submit", "test_unique", "test_queues", "test_claim", "test_together"],
    "lib/unique": ["test_unique"],
    "purge": ["test_queues", "test_damaged_sweeps", "test_damaged"],
    "pause": ["test_queues"],
    "reserve": ["test_once"],
    "confirm": ["test_once"],
    "prune": ["test_removal", "test_damaged_sweeps", "test_sweeps", "test_damaged"],
    "put_schedule": ["test_schedules"],
    "pause_schedule": ["test_schedules"],
    "delete_schedule": ["test_schedules"],
    "due_schedules": ["test_schedules"],
    "tick": ["test_schedules"],
    "lib/schedule": ["test_schedules"],
    "announce": ["test_read"],
    "watch": ["test_wait"],
    "lib/wake": ["test_wait"],
    "lib/watch": ["test_output"],
    "lib/output": ["test_output"],
    "follow": ["test_output"],
    "output": ["test_output", "test_damaged"],
    "lib/place": [
        "test_sweeps",
        "test_damaged_sweeps",
        "test_unique",
        "test_damaged_jobs",
        "test_change",
        "test_removal",
        "test_wait",
    ],
    "lib/together": ["test_together", "test_wait", "test_unique", "test_damaged_jobs", "test_removal"],
    "lib/job": ["test_change"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", nargs="+", default=[""], help="mutants with TEXT in script or name")
    parser.add_argument("--list", action="store_true", help="check that all patches apply, and list them")
    options = parser.parse_args()
    chosen = [
        mutant
        for mutant in OF_VERBS + OF_LIBRARIES
        if any(text in f"{mutant.script}: {mutant.name}" for text in options.only)
    ]
    stale = [problem for mutant in chosen if (problem := _problem(mutant))]
    if stale or not chosen:
        print("\n".join(stale) or "no such mutant", file=sys.stderr)
        return 2
    if options.list:
        for mutant in chosen:
            print(f"{mutant.script:14} {mutant.name}")
        print(f"{len(chosen)} mutants")
        return 0
    with tempfile.TemporaryDirectory(prefix="penstock-mutants-") as folder:
        shutil.copytree(ROOT / "src", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        return _run(chosen, Path(folder))


def _run(chosen: list[Mutant], source: Path) -> int:
    noticed_by, seconds = _noticed_by(source, None)
    if noticed_by:
        print(f"the tests fail without a mutant: {noticed_by}", file=sys.stderr)
        return 2
    print(f"{len(chosen)} mutants; without one the tests pass in {seconds:.0f} s", flush=True)
    survivors = []
    for number, mutant in enumerate(chosen, start=1):
        script = source / LUA / f"{mutant.script}.lua"
        text = script.read_text()
        script.write_text(text.replace(mutant.old, mutant.new))
        try:
            noticed_by, seconds = _noticed_by(source, mutant.script)
        finally:
            script.write_text(text)
        if not noticed_by:
            survivors.append(mutant)
        verdict = noticed_by or "SURVIVED"
        print(f"{number:3} {mutant.script:14} {mutant.name:52} {seconds:4.0f} s  {verdict}", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were noticed")
    for mutant in survivors:
        print(f"survived: {mutant.script}: {mutant.name}", file=sys.stderr)
    return 1 if survivors else 0


def _problem(mutant: Mutant) -> str | None:
    path = ROOT / "src" / LUA / f"{mutant.script}.lua"
    count = path.read_text().count(mutant.old) if path.is_file() else 0
    if count == 1 and mutant.old != mutant.new:
        return None
    return f"{mutant.script}: {mutant.name}: the patch applies {count} times; it must apply once"


def _noticed_by(source: Path, script: str | None) -> tuple[str | None, float]:
    """Return the test that fails on the package in ``source``, None when all pass, and how long it took."""
    started = time.monotonic()
    suite = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests/conformance").glob("test_*.py"))
    if script is not None:
        first = [f"tests/conformance/{name}.py" for name in FIRST[script]]
        suite = first + [path for path in suite if path not in first]
    # Only Redis runs the scripts.
    found = _failing([*suite, "-k", "redis"], source) or _failing(["tests/property"], source)
    return found, time.monotonic() - started


def _failing(arguments: list[str], source: Path) -> str | None:
    environment = {**os.environ, "PYTHONPATH": str(source), "PENSTOCK_TEST_FAST": "1", "CI": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *arguments]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as run:
        try:
            output, _ = run.communicate(timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            # The session holds the server that the tests started as well.
            os.killpg(run.pid, signal.SIGKILL)
            return "hangs"
    if run.returncode == 0:
        return None
    named = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", output, re.MULTILINE)
    if run.returncode != 1 or named is None:
        raise SystemExit(f"the tests could not run:\n{output}")
    return named[1].removeprefix("conformance/")


if __name__ == "__main__":
    sys.exit(main())
