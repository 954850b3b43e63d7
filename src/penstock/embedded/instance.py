"""Hold a data folder for one instance, and let other commands in the same folder find it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from penstock.embedded.errors import FolderInUse, FolderUnusable
from penstock.embedded.files import LOCK_NAME, open_private, write_private
from penstock.embedded.processes import end_stale, process_identity

_INSTANCE_NAME = "instance.json"
_CHILDREN_NAME = "children.json"
# Someone who only looks (`find_instance`) holds the lock for microseconds; who holds it longer is an instance.
_LOOKERS_SECONDS = 0.3
_STALE_STORE_SECONDS = 10.0


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a running instance; ``redis_url`` holds the password, which repr leaves out."""

    pid: int
    api_host: str
    api_port: int
    redis_url: str
    started_at: dt.datetime
    version: str

    @property
    def api_url(self) -> str:
        """Return where a client on this machine reaches the API; listening on all addresses includes loopback."""
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "localhost": "127.0.0.1", "::": "::1"}.get(  # noqa: S104 - compared, not bound
            self.api_host, self.api_host
        )
        return f"http://[{host}]:{self.api_port}" if ":" in host else f"http://{host}:{self.api_port}"

    def __repr__(self) -> str:
        return f"Instance(pid={self.pid}, api_url={self.api_url!r}, version={self.version!r})"


class ChildRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Name a child for the next start, in case this one cannot end it."""

    name: str
    pid: int
    identity: str
    holds_data: bool


def find_instance(data_dir: Path) -> Instance | None:
    """Return the instance that runs on a data folder, or None.

    Its file alone proves nothing: the folder's lock must be held by the process that the file names. Found from the
    moment when its Redis answers; the API may need a moment more.
    """
    holder = _lock_holder(data_dir)
    instance = _read_instance(data_dir)
    return instance if holder is not None and instance is not None and instance.pid == holder else None


def _read_instance(data_dir: Path) -> Instance | None:
    """Return what the last instance wrote about itself, running or not."""
    try:
        return msgspec.json.decode((data_dir / _INSTANCE_NAME).read_bytes(), type=Instance)
    except (OSError, msgspec.MsgspecError):
        return None


def _lock_holder(data_dir: Path) -> int | None:
    """Return the pid that holds the folder's lock: None when nobody does, 0 when it has not yet said who it is."""
    try:
        descriptor = os.open(data_dir / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0)
        return int(text) if text.strip().isdigit() else 0
    except OSError:
        return None
    else:
        return None
    finally:
        os.close(descriptor)


class FolderLock:
    """Hold a data folder's lock; it goes with the process, however that ends, and no child inherits it."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._descriptor = -1

    async def __aenter__(self) -> Self:
        """Take the lock and write our pid into it. Raises FolderInUse, FolderUnusable."""
        try:
            self._descriptor = open_private(self._data_dir / LOCK_NAME, os.O_RDWR)
            if not await lock_within(self._descriptor, _LOOKERS_SECONDS):
                raise self._in_use()
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        except BaseException as error:
            self._close()
            if isinstance(error, OSError):
                raise FolderUnusable(self._data_dir, error.strerror or str(error)) from error
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file stays: removing a lock file lets two processes lock two files of one name.
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _in_use(self) -> FolderInUse:
        instance = find_instance(self._data_dir)
        holder = _lock_holder(self._data_dir) or None
        return FolderInUse(self._data_dir, pid=holder, url=instance.api_url if instance is not None else None)


async def lock_within(descriptor: int, seconds: float) -> bool:
    """Take an exclusive lock, trying every 10 ms; return whether it was had in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(0.01)
        else:
            return True


def write_instance(data_dir: Path, instance: Instance) -> None:
    """Let others find the instance; it stays when we stop, for the lock tells whether it still runs."""
    write_private(data_dir / _INSTANCE_NAME, msgspec.json.format(msgspec.json.encode(instance)) + b"\n")


def record_children(data_dir: Path, children: Sequence[tuple[str, int, bool]]) -> None:
    """Write down (name, pid, holds_data) of each child for the next start."""
    records = [
        ChildRecord(name=name, pid=pid, identity=identity, holds_data=holds_data)
        for name, pid, holds_data in children
        if (identity := process_identity(pid)) is not None
    ]
    write_private(data_dir / _CHILDREN_NAME, msgspec.json.encode(records))


async def end_stale_children(data_dir: Path) -> list[str]:
    """End what an earlier run that was killed left behind, the server that holds the data last; return the names.

    Call it with the folder's lock held. A process is only touched if it is the recorded one, not one of the same pid.
    Raises FolderUnusable when one cannot be ended.
    """
    try:
        records = msgspec.json.decode((data_dir / _CHILDREN_NAME).read_bytes(), type=list[ChildRecord])
    except (OSError, msgspec.MsgspecError):
        return []
    ended = []
    for record in sorted(records, key=lambda record: record.holds_data):
        if process_identity(record.pid) != record.identity:
            continue
        gently_seconds = _STALE_STORE_SECONDS if record.holds_data else 0
        if not await end_stale(record.pid, record.identity, gently_seconds=gently_seconds):
            raise FolderUnusable(data_dir, f"{record.name} of an earlier run (pid {record.pid}) cannot be ended")
        ended.append(record.name)
    with contextlib.suppress(OSError):
        (data_dir / _CHILDREN_NAME).unlink()
    return ended
