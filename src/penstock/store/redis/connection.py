"""Reach the server: one place that opens connections, bounds each call in time and maps every error.

redis-py's own retries stay off: a repeated claim would hand out jobs twice. Retry lives in the verbs.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from penstock.core.errors import StoreError, StoreFull, StoreMismatch, StoreUnavailable
from penstock.store.keys import PartitionKeys, anchor_key
from penstock.store.options import StoreOptions
from penstock.store.redis.scripts import Script, load_scripts

#: Records of another format are refused; a change of layout raises this.
FORMAT = "1"
_META_FIELDS = ("format", "partitions", "index")
CALL_TIMEOUT_S = 5.0
BLOCK_LIMIT_S = 5.0
_CONNECTIONS = 32
#: Each caller that blocks takes one; they are opened as needed. Above it callers wait for each other.
_BLOCKING_CONNECTIONS = 512
#: Codes of error answers that mean "not now": a restart, a failover, a full disk, a migrating slot.
_PASSING = frozenset(
    {
        "ASK",
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "MOVED",
        "NOREPLICAS",
        "READONLY",
        "TRYAGAIN",
        "UNBLOCKED",
    }
)
_PASSING_ERRORS = (
    redis.exceptions.AskError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
)
_CREDENTIALS = frozenset({"NOAUTH", "NOPERM", "WRONGPASS"})
#: The client library cuts the codes that it knows off the text; in a pipeline it puts words of its own before the text.
_CODE = re.compile(r"(?:^|caused error: \(?['\"]?)([A-Z]{2,}) ")


def _code(error: Exception) -> str:
    known = getattr(error, "status_code", None)
    if known:
        return str(known)
    match = _CODE.search(str(error))
    return match[1] if match else ""


def map_error(error: Exception) -> StoreError:
    """Return our error for one of the client library's."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    code = _code(error)
    if code == "OOM" or isinstance(error, redis.exceptions.OutOfMemoryError):
        return StoreFull("the store is at its memory limit and takes no new jobs")
    if code in _CREDENTIALS or isinstance(
        error, redis.exceptions.AuthenticationError | redis.exceptions.NoPermissionError
    ):
        return StoreUnavailable(f"the store refused the credentials ({text})")
    if code in _PASSING or isinstance(error, _PASSING_ERRORS):
        return StoreUnavailable(f"the store says to come back later ({text})")
    if isinstance(error, redis.exceptions.ResponseError | redis.exceptions.DataError):
        return StoreError(f"the store refused the call ({text})")
    return StoreUnavailable(f"the store gave no answer ({text})")


def _client(url: str, *, timeout_s: float, connections: int) -> redis.asyncio.Redis:
    # A socket of the file system knows no keep-alive, and the client library refuses the option for it.
    keepalive = {} if url.startswith("unix:") else {"socket_keepalive": True}
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        protocol=2,
        max_connections=connections,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=CALL_TIMEOUT_S,
        **keepalive,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        client_name="penstock",
    )
    return redis.asyncio.Redis.from_pool(pool)


async def _execute(client: redis.asyncio.Redis, *arguments: str | bytes | int) -> Any:
    return await client.execute_command(*arguments)  # type: ignore[no-untyped-call]


class Connection:
    """Run scripts and commands on the server that holds a partition."""

    def __init__(self, options: StoreOptions, *, scripts: dict[str, Script] | None = None) -> None:
        self.options = options
        self.keys = [
            PartitionKeys(options.namespace, partition, options.partitions) for partition in range(options.partitions)
        ]
        self.scripts = scripts or load_scripts()
        self._calls = _client(options.redis_url, timeout_s=CALL_TIMEOUT_S, connections=_CONNECTIONS)
        # Blocking calls have connections of their own, so that none waits behind them.
        self._blocking = _client(
            options.redis_url, timeout_s=BLOCK_LIMIT_S + CALL_TIMEOUT_S, connections=_BLOCKING_CONNECTIONS
        )
        self._verified = False
        self._verifying: asyncio.Task[None] | None = None
        self._closed = False

    async def script(self, name: str, partition: int, *arguments: str | bytes | int) -> Any:
        """Run a script on a partition and return its answer.

        Raises:
            StoreError: one of its kinds.
        """
        script = self.scripts[name]
        if len(arguments) != script.arguments:
            raise TypeError(f"{name} takes {script.arguments} arguments, not {len(arguments)}")
        if not self._verified:
            await self.verify()
        call = (script.sha, 2, *self.keys[partition].declared, *arguments)
        with self._mapped():
            try:
                return await _execute(self._calls, "EVALSHA", *call)
            except redis.exceptions.NoScriptError:
                # Nothing ran, so sending it again is safe; EVAL also loads it for the next caller.
                return await _execute(self._calls, "EVAL", script.text, *call[1:])

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        """Raise our errors in place of the client library's, and nothing but them after ``close``."""
        if self._closed:
            raise StoreUnavailable("the store was closed")
        try:
            yield
        except (redis.exceptions.RedisError, redis.exceptions.RedisClusterException, OSError, TimeoutError) as error:
            raise map_error(error) from error
        except (AttributeError, RuntimeError) as error:
            # The client library writes in steps; one that meets a connection that `close` took away fails so.
            if not self._closed:
                raise
            raise StoreUnavailable("the store was closed") from error

    async def command(self, *arguments: str | bytes | int) -> Any:
        """Run one plain command."""
        with self._mapped():
            return await _execute(self._calls, *arguments)

    async def together(self, commands: Sequence[Sequence[str | bytes | int]], *, atomic: bool = False) -> list[Any]:
        """Run commands in one round trip; ``atomic`` ones see one moment and must share a partition."""
        if not commands:
            return []
        with self._mapped():
            async with self._calls.pipeline(transaction=atomic) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                return list(await pipeline.execute())

    async def block(self, *arguments: str | bytes | int) -> Any:
        """Run a command that blocks for at most ``BLOCK_LIMIT_S``."""
        with self._mapped():
            return await _execute(self._blocking, *arguments)

    async def verify(self) -> None:
        """Check, or write on first use, the format and the number of partitions beside the data.

        Callers at the same moment share one attempt, so that on a server that hangs each waits for one time-out only.

        Raises:
            StoreMismatch: the data was written with others.
        """
        if self._verified:
            return
        if self._verifying is None or self._verifying.done():
            self._verifying = asyncio.get_running_loop().create_task(self._verify())
        # A caller that goes away must not take the attempt from the others.
        await asyncio.shield(self._verifying)

    async def _verify(self) -> None:
        anchor = anchor_key(self.options.namespace)
        wanted = [
            [FORMAT.encode(), str(self.options.partitions).encode(), str(index).encode()]
            for index in range(self.options.partitions)
        ]
        reads: list[Sequence[str | bytes | int]] = [("GET", anchor)]
        reads += [("HMGET", keys.key("meta"), *_META_FIELDS) for keys in self.keys]
        # Read first: a server at its memory limit refuses writes, and workers must be able to start there and drain it.
        stood, *found = await self.together(reads)
        if stood is None:
            stood = (await self.together([("SET", anchor, self.options.partitions, "NX"), ("GET", anchor)]))[1]
        if not isinstance(stood, bytes):
            raise StoreError(f"the server does not answer as Redis does ({stood!r})")
        # Another number of partitions uses other tags, so that only a key outside them all can tell.
        if stood != str(self.options.partitions).encode():
            text = stood.decode(errors="backslashreplace")
            raise StoreMismatch(
                f"namespace {self.options.namespace!r} holds {text} partitions, the setting says "
                f"{self.options.partitions}: set PENSTOCK_PARTITIONS={text}"
            )
        if found != wanted:
            writes: list[Sequence[str | bytes | int]] = [
                ("HSETNX", keys.key("meta"), field, value)
                for keys, values in zip(self.keys, wanted, strict=True)
                for field, value in zip(_META_FIELDS, values, strict=True)
            ]
            await self.together(writes)
            _, *found = await self.together(reads)
        for index, (has, wants) in enumerate(zip(found, wanted, strict=True)):
            if has != wants:
                raise StoreMismatch(
                    f"partition {index} was written as {dict(zip(_META_FIELDS, has, strict=True))}, "
                    f"this release and its settings want {dict(zip(_META_FIELDS, wants, strict=True))}"
                )
        self._verified = True

    async def close(self) -> None:
        """Close all connections; calls that are away and later ones end with ``StoreUnavailable``."""
        self._closed = True
        if self._verifying is not None:
            self._verifying.cancel()
        for client in (self._calls, self._blocking):
            await client.aclose()
            await client.connection_pool.disconnect()
