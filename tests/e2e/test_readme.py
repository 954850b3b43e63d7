"""Every command that the README and the guides show is run, in order, against a running stack.

``sh`` blocks are run; ``json`` blocks say what the last answer holds, "…" standing for anything; ``python`` blocks that
begin with a file's name are written to that file. Other blocks are for reading.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import Folder

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    "docs/tutorial/first-steps.md",
    "docs/how-to/monitor.md",
    "docs/how-to/retries.md",
    "docs/how-to/schedules.md",
    "docs/how-to/submit-many.md",
]
#: What the fixture has done already.
STARTS = {"git clone <this repository> penstock && cd penstock", "make run"}
WORKER = ".venv/bin/penstock worker "
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.py)\n")
_TASK = re.compile(r"^@task.*\n(?:async )?def (\w+)", re.MULTILINE)
_ID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}\b")


@pytest.fixture
def stack(folder: Folder) -> Folder:
    """Run the stack in a folder that looks like the repository after ``make run``."""
    tools = folder.path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name, command in {"python": "", "penstock": " -P -m penstock"}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{command} "$@"\n')
        (tools / name).chmod(0o755)
    shutil.copy(ROOT / "LICENSE", folder.path)
    folder.up()
    return folder


class Reader:
    """Follow a page step by step."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._authority = folder.url.removeprefix("http://")
        self._last_id = ""
        self.output = ""
        self.commands = 0

    def follow(self, page: str) -> None:
        """Do what each block says."""
        for language, body in _BLOCK.findall((ROOT / page).read_text()):
            if language == "sh":
                for line in body.splitlines():
                    self._run(line)
            elif language == "json":
                self._compare(body)
            elif language == "python" and (named := _FILE.match(body)):
                (self._folder.path / named[1]).write_text(body)

    def _run(self, line: str) -> None:
        self.commands += 1
        if line in STARTS:
            return
        if line.startswith(WORKER):
            self._start_worker(line.removeprefix(WORKER))
            return
        command = line.replace("localhost:5000", self._authority).replace("curl ", "curl -sS --fail-with-body ")
        if re.search(r"\bID\b", command):
            assert self._last_id, f"no id before {line!r}"
            command = re.sub(r"\bID\b", self._last_id, command)
        # The client finds port 5000 by itself, the command line the folder's instance; only the former needs help here.
        env = self._folder.env | ({"PENSTOCK_URL": self._folder.url} if "/python " in command else {})
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self._folder.path,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}\n{self._folder.stderr()}"
        self.output = done.stdout
        if ids := _ID.findall(done.stdout):
            self._last_id = ids[0]

    def _start_worker(self, module: str) -> None:
        self._folder.start("worker", module)
        for name in _TASK.findall((self._folder.path / f"{module}.py").read_text()):
            self._folder.wait_for_task(name)

    def _compare(self, body: str) -> None:
        assert matches(json.loads(body), json.loads(self.output)), f"shown:\n{body}\ncame:\n{self.output}"


def matches(shown: Any, came: Any) -> bool:
    """Tell whether an answer holds what is shown; it may have more members."""
    if shown == "…":
        return isinstance(came, str)
    if isinstance(shown, dict) and isinstance(came, dict):
        return all(name in came and matches(value, came[name]) for name, value in shown.items())
    if isinstance(shown, list) and isinstance(came, list):
        return len(shown) == len(came) and all(map(matches, shown, came))
    return bool(shown == came)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_works(stack: Folder, page: str) -> None:
    reader = Reader(stack)
    reader.follow(page)
    assert reader.commands >= 2


def test_no_other_page_shows_commands_that_nobody_runs() -> None:
    """Pages that are not followed keep their commands in `text` blocks."""
    others = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")} - set(PAGES)
    with_commands = {page for page in others if re.search(r"^```sh$", (ROOT / page).read_text(), re.MULTILINE)}
    assert with_commands == set()
