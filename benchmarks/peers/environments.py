"""Make an environment of its own for each peer, from pinned and hashed requirements, and keep it for the next run.

    .venv/bin/python -m benchmarks.peers.environments [peer …]

They lie in ``$XDG_CACHE_HOME/penstock-benchmarks`` (``~/.cache`` when unset), a folder for each set of pins.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
REQUIREMENTS = FOLDER / "requirements"
NODE = FOLDER / "node"
PYTHON_PEERS = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))
NODE_PEERS = ("bullmq",)
_INSTALL_SECONDS = 600


class EnvironmentFailed(Exception):
    """Say in one line why a peer cannot be installed here."""


def python_of(peer: str) -> Path:
    """Return the Python that has a peer installed; installs it first where it is missing.

    Raises:
        EnvironmentFailed: pip could not install it.
    """
    return environment(peer, REQUIREMENTS / f"{peer}.txt")


def environment(name: str, requirements: Path) -> Path:
    """Return the Python of an environment that holds what a file of requirements pins.

    Raises:
        EnvironmentFailed: pip could not install it.
    """
    version = ".".join(str(part) for part in sys.version_info[:3])
    folder = _cache() / f"{name}-{_digest(requirements.read_bytes(), version.encode())}"
    python = folder / "bin" / "python"
    with _one_at_a_time(name):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run(name, [sys.executable, "-m", "venv", str(folder)])
            pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
            _run(name, [*pip, "--no-deps", "--require-hashes", "-r", str(requirements)])
            (folder / "complete").touch()
    return python


def node_modules() -> Path:
    """Return the ``node_modules`` of the peers on Node.js; installs them first where they are missing.

    Raises:
        EnvironmentFailed: Node.js or npm is missing, or npm could not install them.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise EnvironmentFailed("bullmq: Node.js and npm are missing")
    lock = NODE / "package-lock.json"
    folder = _cache() / f"node-{_digest(lock.read_bytes())}"
    with _one_at_a_time("node"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for file in (lock, NODE / "package.json"):
                shutil.copy(file, folder)
            _run("bullmq", ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder)
            (folder / "complete").touch()
    return folder / "node_modules"


def versions_of(peer: str) -> dict[str, str]:
    """Return the pinned versions of a peer and its libraries."""
    if peer in NODE_PEERS:
        text = (NODE / "package.json").read_text()
        return dict(re.findall(r'"(bullmq|ioredis)": "([\d.]+)"', text))
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", (REQUIREMENTS / f"{peer}.txt").read_text(), re.MULTILINE))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock-benchmarks"


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@contextlib.contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(peer: str, command: list[str], cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=_INSTALL_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFailed(f"{peer}: {error}") from error
    if done.returncode != 0:
        raise EnvironmentFailed(f"{peer}: {' '.join(done.stderr.split())[-300:]}")


def main() -> int:
    failed = False
    for peer in sys.argv[1:] or (*PYTHON_PEERS, *NODE_PEERS):
        try:
            place = node_modules() if peer in NODE_PEERS else python_of(peer)
        except EnvironmentFailed as error:
            failed = True
            print(error, file=sys.stderr)
        else:
            print(f"{peer}: {place}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
