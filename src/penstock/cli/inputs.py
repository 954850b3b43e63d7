"""Read the input of a job as the commands take it: JSON, ``@FILE``, ``-`` for stdin, or text."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import typer

from penstock.cli.exits import CommandFailed, Exit

Input = Annotated[
    str | None,
    typer.Argument(metavar="INPUT", help="JSON; '@FILE' reads it from a file, '-' from stdin. [default: null]"),
]
AsText = Annotated[bool, typer.Option("--text", help="Take INPUT as text instead of JSON.")]


def read_input(given: str | None, *, as_text: bool) -> Any:
    """Return the input's value. Raises CommandFailed."""
    if given is None:
        return None
    content: bytes | str = given
    if given == "-" or given.startswith("@"):
        with open_file(given.removeprefix("@"), "INPUT") as stream:
            content = stream.read()
    try:
        if as_text:
            return content.decode() if isinstance(content, bytes) else content
        return msgspec.json.decode(content)
    except UnicodeDecodeError as error:
        raise CommandFailed(f"INPUT: {given} is not UTF-8 text", Exit.USAGE, field="input") from error
    except msgspec.DecodeError as error:
        raise CommandFailed(
            f"INPUT: not JSON ({error}); add --text to send it as text", Exit.USAGE, field="input"
        ) from error


@contextlib.contextmanager
def open_file(name: str, what: str) -> Iterator[IO[bytes]]:
    """Open a file to read, ``-`` for stdin. Raises CommandFailed."""
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = Path(name).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise CommandFailed(f"{what}: cannot read {name}: {error.strerror}", Exit.USAGE, field=what) from error
    with stream:
        yield stream
