"""Index a folder of text files by jobs, then look words up in the index.

Beside a running ``penstock up examples.text_index``, in the repository's folder:

    .venv/bin/python -m examples.index_folder /usr/lib/python3 --index /tmp/text.index --word yield --check

``--check`` reads the folder again with grep and says whether both found the same lines.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from examples.text_index import search
from penstock import Client


def find_files(folder: Path, pattern: str) -> list[str]:
    """Return the paths below ``folder``, relative to it; what a link points to is left out."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob(pattern)
        if path.is_file() and not path.is_symlink()
    )


def build(client: Client, folder: Path, paths: Sequence[str], index: Path, *, files_per_job: int) -> dict[str, int]:
    """Submit one job for each chunk of files, then one that merges the parts; return the counts of all."""
    chunks = [list(paths[start : start + files_per_job]) for start in range(0, len(paths), files_per_job)]
    parts_folder = index.resolve().with_name(f"{index.name}.parts")
    parts = [str(parts_folder / f"{number:06}.json") for number in range(len(chunks))]
    items = [
        ("index_files", {"folder": str(folder.resolve()), "paths": chunk, "part": part})
        for chunk, part in zip(chunks, parts, strict=True)
    ]
    jobs = []
    for submission in client.submit_many(items, tags=["examples"]):
        if submission.error is not None:
            raise submission.error
        jobs.append(str(submission.id))
    totals = {"jobs": len(jobs), "files": 0, "lines": 0, "characters": 0, "unreadable": 0}
    for job_id in track(jobs, "indexing", disable=not sys.stdout.isatty()):
        result = client.wait(job_id).result_or_raise()
        totals["unreadable"] += len(result["unreadable"])
        for name in ("files", "lines", "characters"):
            totals[name] += result[name]
    merge = client.submit("merge_index", {"parts": parts, "index": str(index.resolve())}, tags=["examples"])
    merged: dict[str, int] = client.wait(merge.id).result_or_raise()
    shutil.rmtree(parts_folder)
    return totals | merged


def grep(folder: Path, pattern: str, word: str) -> set[tuple[str, int]]:
    """Return (path, line number) of the lines that GNU grep finds to hold the word."""
    # In the C locale grep would take no letter beyond ASCII for part of a word.
    command = ["env", "LC_ALL=C.UTF-8", "grep", "-rnawF", "--null", f"--include={pattern}", "-e", word, "."]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=False)
    lines = (line.partition(b"\0") for line in done.stdout.split(b"\n") if b"\0" in line)
    return {(os.fsdecode(path).removeprefix("./"), int(rest.partition(b":")[0])) for path, _, rest in lines}


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the index and print what each word is found in; exit 1 when grep finds something else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pattern", default="*.py", help="names of the files [default: *.py]")
    parser.add_argument("--index", type=Path, required=True, help="file to write")
    parser.add_argument("--files-per-job", type=int, default=20)
    parser.add_argument("--word", action="append", default=[], help="look this word up; may be given often")
    parser.add_argument("--check", action="store_true", help="compare with grep")
    options = parser.parse_args(arguments)

    started = time.monotonic()
    paths = find_files(options.folder, options.pattern)
    if not paths:
        parser.error(f"no {options.pattern} in {options.folder}")
    with Client() as client:
        totals = build(client, options.folder, paths, options.index, files_per_job=options.files_per_job)
    print(", ".join(f"{count:,} {name}" for name, count in totals.items()), f"in {time.monotonic() - started:.1f} s")

    differing = 0
    for word in options.word:
        found = list(search(options.index, word))
        verdict = ""
        if options.check:
            same = set(found) == grep(options.folder, options.pattern, word)
            differing += not same
            verdict = ": grep finds the same" if same else ": GREP FINDS OTHERS"
        print(f"{word}: {len(found):,} lines in {len({path for path, _ in found}):,} files{verdict}")
        for path, number in found[:3]:
            print(f"  {path}:{number}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
