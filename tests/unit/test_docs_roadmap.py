"""Every test and file that the docs name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ROADMAP = ROOT / "docs/explanation/roadmap.md"
_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
_FILE = re.compile(r"`((?:src|docs|examples|scripts|tests|\.github|\.ci)/[\w./-]*\w)`")
_STATUSES = {"there", "to come", "replaced"}


def named_tests(page: Path) -> list[tuple[str, str]]:
    return _TEST.findall(page.read_text())


def rows() -> list[list[str]]:
    """Return the cells of the roadmap's rows."""
    found = []
    for line in ROADMAP.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| ") else []
        if cells and cells[0] != "row":
            found.append(cells)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_named_tests_exist(page: Path) -> None:
    for path, name in named_tests(page):
        assert (ROOT / path).is_file(), path
        if name:
            pattern = rf"^ *(?:async )?def {name}\("
            assert re.search(pattern, (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_named_files_exist(page: Path) -> None:
    for name in _FILE.findall(page.read_text()):
        assert (ROOT / name).exists(), name


def test_each_row_of_the_roadmap_has_a_status() -> None:
    assert len(rows()) >= 25
    for cells in rows():
        assert cells[1] in _STATUSES, cells


def test_each_row_that_is_there_is_shown_by_something() -> None:
    for cells in rows():
        if cells[1] == "there":
            assert re.search(r"`[^`]+`", cells[2]), cells[0]


def test_all_azure_rows_are_to_come() -> None:
    azure = ROADMAP.read_text().split("## Azure", 1)[1].split("\n## ", 1)[0]
    statuses = re.findall(r"\| ([\w ]+) \|$", azure, re.MULTILINE)
    assert len(statuses) >= 5
    assert set(statuses) == {"status", "to come"}


def test_every_promise_names_a_test() -> None:
    text = (ROOT / "docs/explanation/promises.md").read_text()
    sections = re.split(r"^## \d+\. ", text, flags=re.MULTILINE)[1:]
    assert len(sections) == 9
    for section in sections:
        assert _TEST.search(section), section.splitlines()[0]
