"""Tell the time by the servers' clocks."""

from __future__ import annotations

from penstock.store.keys import PartitionKeys
from penstock.store.redis.connection import Connection


class ServerClock:
    """Be the part of a store that reads the clock; tests replace it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def now_ms(self) -> int:
        """Return the clock of the first partition's server, Unix ms."""
        return await self._clock(self._connection.keys[0])

    async def _clock(self, keys: PartitionKeys) -> int:
        seconds, microseconds = await self._connection.time_of(keys)
        return int(seconds) * 1000 + int(microseconds) // 1000
