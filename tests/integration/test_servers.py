"""The same store on every kind of server: telling conformance tests; `make test-servers` runs them all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fleets

ROOT = Path(__file__).parents[2]
LIMIT_S = 240


@pytest.mark.skipif(fleets.kind_under_test() != "valkey", reason="the suite runs on another kind already")
@pytest.mark.parametrize("kind", [kind for kind in fleets.KINDS if kind != "valkey"])
def test_the_telling_tests_pass(kind: str) -> None:
    if kind.startswith("redis7"):
        fleets.redis_binary()
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "-m", "every_server"]
    # One line a kind in the outer run: what is measured and reported is measured and reported there.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    run = subprocess.run(
        [*command, "tests/conformance"],
        cwd=ROOT,
        env=environ | {"PENSTOCK_TEST_SERVER": kind},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6_000:] + run.stderr[-2_000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout, run.stdout[-2_000:]
