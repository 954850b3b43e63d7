"""Links between pages lead somewhere, every page can be reached, and nothing private is named."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from penstock.cli.app import COMMANDS
from penstock.config import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# In two parts each, because this file must not name them either.
_REGISTRIES = tuple(
    name + end
    for name, end in (
        ("pypi", ".org"),
        ("pythonhosted", ".org"),
        ("npmjs", "."),
        ("index", "-url"),
        ("ghcr", ".io"),
        ("docker", ".io"),
        ("quay", ".io"),
    )
)
_OTHERS_VARIABLES = {"PENSTOCK_TEST_REQUIRE", "PENSTOCK_TEST_SERVER", "PENSTOCK_IMAGE"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    return _LINK.findall(without_code(page.read_text()))


def anchors(page: Path) -> set[str]:
    """Return the anchors that a page's headings get."""
    titles = _HEADING.findall(without_code(page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def files_linked_from(page: Path) -> set[Path]:
    targets = (link.partition("#")[0] for link in links(page) if "://" not in link)
    return {(page.parent / target).resolve() for target in targets if target}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name_of(page)}: {link}"
        assert path.is_relative_to(ROOT), link
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{name_of(page)}: {link}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    coming = [ROOT / "README.md"]
    while coming:
        page = coming.pop()
        if page in reached:
            continue
        reached.add(page)
        coming += [path for path in files_linked_from(page) if path.suffix == ".md"]
    missing = {name_of(page) for page in PAGES} - {name_of(page) for page in reached}
    assert missing == set(), "add a line for each to docs/README.md (a decision: to docs/adr/README.md)"


def test_every_decision_stands_in_their_list() -> None:
    listed = files_linked_from(DOCS / "adr/README.md")
    pages = set((DOCS / "adr").glob("[0-9]*.md"))
    assert {name_of(page) for page in pages - listed} == set()
    numbers = [page.name[:4] for page in pages]
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=name_of)
def test_no_registry_is_named(page: Path) -> None:
    text = page.read_text()
    assert [host for host in _REGISTRIES if host in text] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_pages_is_python(page: Path) -> None:
    for body in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        compile(body, name_of(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_in_pages_are_settings(page: Path) -> None:
    known = {setting.env for setting in SETTINGS} | {setting.env_file for setting in SETTINGS} | _OTHERS_VARIABLES
    found = set(re.findall(r"\bPENSTOCK_[A-Z_]*[A-Z]\b", page.read_text()))
    assert found - known == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_pages_are_commands(page: Path) -> None:
    found = set(re.findall(r"(?:`|/bin/|^)penstock ([a-z][a-z-]+)", page.read_text(), re.MULTILINE))
    assert found - set(COMMANDS) == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_in_pages_are_targets(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = set(re.findall(r"(?:`|^)make ([a-z][a-z-]+)", page.read_text(), re.MULTILINE))
    assert found - targets == set()


def test_the_changelog_has_the_version_that_comes() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[(?:{re.escape(version)}|Unreleased)\]", text, re.MULTILINE)
    assert version in text
