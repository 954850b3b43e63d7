"""Define what can keep the stack from running.

::

    PenstockError
    └── EmbeddedError           each message is one line that names the way out
        ├── FolderInUse         another instance runs on the data folder
        ├── FolderUnusable      the data folder cannot be written, or a stray server holds it
        ├── PortInUse           the API's address is taken or not allowed
        ├── ValkeyMissing       this platform has no server binary
        └── ChildFailed         a child stopped, or never answered, before the stack was ready
"""

from __future__ import annotations

from pathlib import Path

from penstock.core.errors import PenstockError


class EmbeddedError(PenstockError):
    """Be the root of what can keep the stack from running; the message is one line for a person."""


class FolderInUse(EmbeddedError):
    """Say whose a data folder is; ``pid`` and ``url`` are None as long as the other one is just starting."""

    def __init__(self, data_dir: Path, *, pid: int | None, url: str | None) -> None:
        whose = f"Penstock (pid {pid})" if pid is not None else "another Penstock"
        where = f" at {url}" if url is not None else ", which is starting or stopping"
        super().__init__(
            f"{data_dir} is in use by {whose}{where}; stop that one, or choose another folder with PENSTOCK_DATA_DIR"
        )
        self.data_dir = data_dir
        self.pid = pid
        self.url = url


class FolderUnusable(EmbeddedError):
    """Say why a data folder cannot be used."""

    def __init__(self, data_dir: Path, detail: str) -> None:
        super().__init__(f"cannot use the data folder {data_dir}: {detail}")
        self.data_dir = data_dir


class PortInUse(EmbeddedError):
    """Say that the API cannot listen on an address."""

    def __init__(self, host: str, port: int, message: str) -> None:
        super().__init__(message)
        self.host = host
        self.port = port


class ValkeyMissing(EmbeddedError):
    """Say that no server binary can run here, and name the way around it."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"no Valkey to start here ({detail}); run one yourself and name it with --redis-url")


class ChildFailed(EmbeddedError):
    """Say that a child process did not come up, or says that starting it again is of no use."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name} {detail}")
        self.name = name
