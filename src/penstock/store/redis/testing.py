"""For tests: drive the scripts' clock by hand (the server's TIME is replaced by a key), and damage a stored job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from penstock.core.ids import JobId, partition_of
from penstock.core.limits import Limits
from penstock.store.keys import PartitionKeys
from penstock.store.options import StoreOptions
from penstock.store.redis.connection import Connection
from penstock.store.redis.scripts import load_scripts
from penstock.store.redis.store import RedisStore

_CLOCK_LIBRARY = "local now = tonumber(redis.call('HGET', K.meta, 'test_clock'))"


class _ClockedStore(RedisStore):
    async def _clock(self, keys: PartitionKeys) -> int:
        return int(await self.connection.command("HGET", keys.key("meta"), "test_clock"))


async def connect_with_clock(
    url: str, namespace: str, partitions: int = 1, limits: Limits | None = None
) -> tuple[RedisStore, Callable[[int], Awaitable[None]]]:
    """Return a store and a function that sets its clock (Unix ms); set it before the first verb."""
    options = StoreOptions(redis_url=url, namespace=namespace, partitions=partitions, limits=limits or Limits())
    store = _ClockedStore(options, scripts=load_scripts(replaced_libraries={"time": _CLOCK_LIBRARY}))

    async def set_clock(unix_ms: int) -> None:
        await store.connection.together(
            [("HSET", keys.key("meta"), "test_clock", unix_ms) for keys in store.connection.keys]
        )

    return store, set_clock


async def change_job(connection: Connection, job_id: str, **changes: Any) -> None:
    """Change fields of a stored job, behind the scripts' back; ``None`` takes a field away."""
    key = connection.keys[partition_of(JobId(job_id), len(connection.keys))].key("job", job_id)
    fields = msgspec.msgpack.decode(await connection.command("GET", key)) | changes
    kept = {name: value for name, value in fields.items() if value is not None}
    await connection.command("SET", key, msgspec.msgpack.encode(kept))
