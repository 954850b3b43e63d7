"""What the peers are installed from is pinned and hashed, and names no registry."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.peers import environments

FILES = sorted(environments.REQUIREMENTS.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_requirements_are_pinned_and_hashed(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and not line.lstrip().startswith("#")]
    named = [number for number, line in enumerate(lines) if not line.startswith(" ")]
    assert named
    for number in named:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+( ;.*)? \\$", lines[number]), lines[number]
        assert re.match(r"    --hash=sha256:[0-9a-f]{64}", lines[number + 1]), lines[number]
    assert re.search(r"https?:|--index|--find-links| @ ", path.read_text()) is None


@pytest.mark.parametrize("peer", environments.PYTHON_PEERS)
def test_each_peer_is_among_its_own_pins(peer: str) -> None:
    assert peer in environments.versions_of(peer)
    assert (environments.REQUIREMENTS / f"{peer}.in").is_file()


def test_the_node_lock_holds_digests_and_no_address() -> None:
    lock = json.loads((environments.NODE / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert packages["node_modules/bullmq"]["version"] == environments.versions_of("bullmq")["bullmq"]
    for name, package in packages.items():
        assert package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name
