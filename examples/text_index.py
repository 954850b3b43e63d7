"""Index text files: CPU work, one job for a chunk of files, in processes of the pool.

Start it in the repository's folder with ``penstock up examples.text_index`` (or, beside a running instance, with
``penstock worker examples.text_index``), then let ``python -m examples.index_folder FOLDER`` submit the jobs.

Each job may run twice, as any job may. So ``index_files`` writes its part of the index under a name that it is given
and puts it in place in one step: the second run replaces a part with the same part.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec

from penstock import Discard, task

#: What ``grep --word-regexp`` takes for a word, too.
WORD = re.compile(r"\w+")

#: word -> path -> numbers of the lines that hold it.
Part = dict[str, dict[str, list[int]]]


class Indexed(msgspec.Struct, frozen=True, kw_only=True):
    """Say what one job read; ``unreadable`` holds the paths that it could not read."""

    files: int
    lines: int
    characters: int
    unreadable: list[str]


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """Say what the index holds."""

    words: int
    entries: int


@task(executor="process", timeout="10m")
def index_files(folder: str, paths: list[str], part: str) -> Indexed:
    """Read files below ``folder`` and write which line holds which word to the file ``part``."""
    words: Part = defaultdict(lambda: defaultdict(list))
    lines = characters = 0
    unreadable = []
    for path in paths:
        try:
            text = (Path(folder) / path).read_bytes().decode("utf-8", "replace")
        except OSError:
            unreadable.append(path)
            continue
        characters += len(text)
        # Not splitlines(): a form feed inside a line does not begin a new one, for grep neither.
        for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
            lines += 1
            for word in set(WORD.findall(line)):
                words[word][path].append(number)
    with replaced(Path(part)) as fresh:
        fresh.write_bytes(msgspec.json.encode(words))
    return Indexed(files=len(paths) - len(unreadable), lines=lines, characters=characters, unreadable=unreadable)


@task(executor="process", timeout="30m")
def merge_index(parts: list[str], index: str) -> Merged:
    """Put the parts together into one SQLite file that ``search`` reads."""
    with replaced(Path(index)) as fresh, contextlib.closing(sqlite3.connect(fresh)) as database, database:
        database.execute("CREATE TABLE entry (word TEXT, path TEXT, lines TEXT)")
        for part in parts:
            database.executemany("INSERT INTO entry VALUES (?, ?, ?)", _rows(Path(part)))
        database.execute("CREATE INDEX entry_word ON entry (word)")
        words, entries = database.execute("SELECT count(DISTINCT word), count(*) FROM entry").fetchone()
    return Merged(words=words, entries=entries)


def _rows(part: Path) -> Iterator[tuple[str, str, str]]:
    try:
        text = part.read_bytes()
    except FileNotFoundError:
        # It would be missing in another attempt, too.
        raise Discard(f"there is no part {part}; index its files first") from None
    for word, found in msgspec.json.decode(text, type=Part).items():
        for path, numbers in found.items():
            yield word, path, " ".join(map(str, numbers))


def search(index: Path, word: str) -> Iterator[tuple[str, int]]:
    """Yield (path, line number) of each line that holds the word, case and all."""
    database = sqlite3.connect(f"{index.resolve().as_uri()}?mode=ro", uri=True)
    try:
        for path, numbers in database.execute("SELECT path, lines FROM entry WHERE word = ? ORDER BY path", (word,)):
            for number in numbers.split():
                yield path, int(number)
    finally:
        database.close()


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a fresh file to write; when all went well it takes the place of ``path`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        yield fresh
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
