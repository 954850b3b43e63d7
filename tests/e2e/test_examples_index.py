"""The example that indexes text files finds what grep and plain Python find."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.index_folder import build, find_files, grep
from examples.text_index import WORD, search
from tests.e2e.stack import Folder

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["import", "self", "yield", "GeneratorExit", "_", "0x80", "naïve", "é", "ß", "nowhere_at_all"]
EVERY = 6
FILES_PER_JOB = 10


@pytest.fixture(scope="module")
def indexing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    made = Folder(tmp_path_factory.mktemp("indexing"))
    (made.path / "examples").symlink_to(ROOT / "examples")
    try:
        made.up("examples.text_index")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold some hundred files of the interpreter's own library, other encodings and empty files among them."""
    library = Path(sysconfig.get_path("stdlib"))
    folder = tmp_path_factory.mktemp("texts")
    paths = [path for path in find_files(library, "*.py") if not path.startswith("site-packages")]
    odd = [path for path in paths if "encoded_modules" in path or path.endswith("__init__.py")]
    for path in {*paths[::EVERY], *odd}:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library / path, target)
    (folder / "words.py").write_text("naïve é ß\fstill line one\r\nline two, no line end: é")
    return folder


def scan(folder: Path, word: str) -> set[tuple[str, int]]:
    """Look a word up the plain way."""
    return {
        (path, number)
        for path in find_files(folder, "*.py")
        for number, line in enumerate((folder / path).read_bytes().decode("utf-8", "replace").split("\n"), start=1)
        if word in WORD.findall(line)
    }


def test_the_index_agrees_with_python_and_grep(indexing: Folder, texts: Path, tmp_path: Path) -> None:
    paths = find_files(texts, "*.py")
    assert len(paths) >= 200
    index = tmp_path / "text.index"
    with indexing.client() as client:
        totals = build(client, texts, paths, index, files_per_job=FILES_PER_JOB)
        jobs = [job for job in client.iter_jobs(tag="examples") if job.status == "completed"]
    assert totals["files"] == len(paths)
    assert totals["jobs"] == -(-len(paths) // FILES_PER_JOB)
    assert totals["unreadable"] == 0
    assert totals["lines"] == sum((texts / path).read_bytes().removesuffix(b"\n").count(b"\n") + 1 for path in paths)
    assert len(jobs) == totals["jobs"] + 1
    assert {job.attempt for job in jobs} == {1}
    for word in WORDS:
        found = list(search(index, word))
        assert len(found) == len(set(found))
        assert set(found) == scan(texts, word), word
    assert list(search(index, "nowhere_at_all")) == []
    assert [path.name for path in tmp_path.iterdir()] == ["text.index"]


def test_the_index_agrees_with_grep(indexing: Folder, texts: Path, tmp_path: Path) -> None:
    if "GNU" not in subprocess.run(["grep", "--version"], capture_output=True, text=True, check=False).stdout:
        pytest.skip("another grep than GNU's takes other characters for part of a word")
    for word in WORDS:
        assert grep(texts, "*.py", word) == scan(texts, word), word
    done = subprocess.run(
        [sys.executable, "-m", "examples.index_folder", str(texts), "--index", str(tmp_path / "index"), "--check"]
        + [argument for word in WORDS for argument in ("--word", word)],
        cwd=indexing.path,
        env=indexing.env | {"PENSTOCK_URL": indexing.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("grep finds the same") == len(WORDS)


def test_what_cannot_be_read_is_named_and_stops_nothing(indexing: Folder, tmp_path: Path) -> None:
    (tmp_path / "there.py").write_text("word\n")
    arguments = {"folder": str(tmp_path), "paths": ["there.py", "gone.py"], "part": str(tmp_path / "part.json")}
    with indexing.client() as client:
        result = client.wait(client.submit("index_files", arguments).id, timeout=30).result_or_raise()
        assert result == {"files": 1, "lines": 1, "characters": 5, "unreadable": ["gone.py"]}
        missing = client.submit("merge_index", {"parts": [str(tmp_path / "no.json")], "index": str(tmp_path / "i")})
        job = client.wait(missing.id, timeout=30)
    assert (job.status, job.reason, job.attempt) == ("failed", "discarded", 1)
    assert not (tmp_path / "i").exists()
