"""Reach the server: one place that opens connections, bounds each call in time and maps every error.

redis-py's own retries stay off: a repeated claim would hand out jobs twice. Retry lives in the verbs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
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
CALL_TIMEOUT_S = 5.0
BLOCK_LIMIT_S = 5.0
_CONNECTIONS = 32
#: Starts of error answers that mean "not now": a restart, a failover, a full disk, a migrating slot.
_PASSING = (
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "READONLY",
    "TRYAGAIN",
    "UNBLOCKED",
    "You can't write",
    "max number of clients",
)


def map_error(error: Exception) -> StoreError:
    """Return our error for one of the client library's."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if str(error).startswith(("OOM", "command not allowed when used memory")):
        return StoreFull("the store is at its memory limit and takes no new jobs")
    if isinstance(error, redis.exceptions.ResponseError) and not str(error).startswith(_PASSING):
        return StoreError(f"the store refused the call ({text})")
    if isinstance(error, redis.exceptions.AuthenticationError | redis.exceptions.NoPermissionError):
        return StoreUnavailable(f"the store refused the credentials ({text})")
    return StoreUnavailable(f"the store gave no answer ({text})")


def _client(url: str, *, timeout_s: float, connections: int) -> redis.asyncio.Redis:
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        protocol=2,
        max_connections=connections,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=CALL_TIMEOUT_S,
        socket_keepalive=True,
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
        self._blocking = _client(options.redis_url, timeout_s=BLOCK_LIMIT_S + CALL_TIMEOUT_S, connections=_CONNECTIONS)
        self._verified = False
        self._verifying = asyncio.Lock()

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
        try:
            try:
                return await _execute(self._calls, "EVALSHA", *call)
            except redis.exceptions.NoScriptError:
                # Nothing ran, so sending it again is safe; EVAL also loads it for the next caller.
                return await _execute(self._calls, "EVAL", script.text, *call[1:])
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            raise map_error(error) from error

    async def command(self, *arguments: str | bytes | int) -> Any:
        """Run one plain command."""
        try:
            return await _execute(self._calls, *arguments)
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            raise map_error(error) from error

    async def together(self, commands: Sequence[Sequence[str | bytes | int]], *, atomic: bool = False) -> list[Any]:
        """Run commands in one round trip; ``atomic`` ones see one moment and must share a partition."""
        if not commands:
            return []
        try:
            async with self._calls.pipeline(transaction=atomic) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                return list(await pipeline.execute())
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            raise map_error(error) from error

    async def block(self, *arguments: str | bytes | int) -> Any:
        """Run a command that blocks for at most ``BLOCK_LIMIT_S``."""
        try:
            return await _execute(self._blocking, *arguments)
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            raise map_error(error) from error

    async def verify(self) -> None:
        """Check, or write on first use, the format and the number of partitions beside the data.

        Raises:
            StoreMismatch: the data was written with others.
        """
        async with self._verifying:
            if self._verified:
                return
            commands: list[Sequence[str | int]] = []
            for index, keys in enumerate(self.keys):
                wanted = (("format", FORMAT), ("partitions", self.options.partitions), ("index", index))
                commands += [("HSETNX", keys.key("meta"), field, value) for field, value in wanted]
                commands.append(("HMGET", keys.key("meta"), "format", "partitions", "index"))
            # Another number of partitions uses other tags, so that only a key outside them all can tell.
            anchor = anchor_key(self.options.namespace)
            commands += [("SET", anchor, self.options.partitions, "NX"), ("GET", anchor)]
            answers = await self.together(commands)
            stood = int(answers[-1])
            if stood != self.options.partitions:
                raise StoreMismatch(
                    f"namespace {self.options.namespace!r} holds {stood} partitions, the setting says "
                    f"{self.options.partitions}: set PENSTOCK_PARTITIONS={stood}"
                )
            for index, found in enumerate(answers[3:-2:4]):
                if [int(value) for value in found] != [int(FORMAT), self.options.partitions, index]:
                    raise StoreMismatch(f"partition {index} was written in format {found!r}, this is format {FORMAT}")
            self._verified = True

    async def close(self) -> None:
        """Close all connections."""
        for client in (self._calls, self._blocking):
            await client.aclose()
            await client.connection_pool.disconnect()
