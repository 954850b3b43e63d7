"""Keep files that only their owner may read."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from penstock.embedded.errors import FolderUnusable

LOCK_NAME = "lock"


def prepare_folder(data_dir: Path) -> Path:
    """Make the data folder private to its owner (0700) and return its absolute path.

    A folder that was there before and holds other things keeps its mode: the files we put into it are 0600 anyway.
    Raises FolderUnusable.
    """
    data_dir = data_dir.absolute()
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours = (data_dir / LOCK_NAME).exists() or not any(data_dir.iterdir())
        if ours and data_dir.stat().st_mode & 0o077:
            data_dir.chmod(0o700)
        if ours:
            # It holds a password and the data: keep a user's own project from committing them.
            (data_dir / ".gitignore").write_text("*\n", encoding="ascii")
    except OSError as error:
        raise FolderUnusable(data_dir, error.strerror or str(error)) from error
    return data_dir


def write_private(path: Path, content: bytes) -> None:
    """Replace a file in one step; it is 0600 from its first byte on."""
    # mkstemp creates with 0600; a reader sees the old file or the new one, never half of it.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def open_private(path: Path, flags: int) -> int:
    """Open a file that is created with 0600; return the descriptor, which no child inherits."""
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
