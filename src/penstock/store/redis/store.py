"""Put the parts of the Redis store together."""

from __future__ import annotations

from penstock.store.options import StoreOptions
from penstock.store.redis.connection import Connection
from penstock.store.redis.durability import WaitObserver
from penstock.store.redis.jobs import RedisJobs
from penstock.store.redis.reader import RedisReader
from penstock.store.redis.schedules import RedisSchedules
from penstock.store.redis.scripts import Script
from penstock.store.redis.waiter import RedisWaiter


class RedisStore(RedisJobs, RedisReader, RedisSchedules, RedisWaiter):
    """Implement ``Store`` on one Redis or Valkey server."""

    def __init__(self, options: StoreOptions, *, scripts: dict[str, Script] | None = None) -> None:
        self.connection = Connection(options, scripts=scripts)
        RedisJobs.__init__(self, self.connection)
        RedisReader.__init__(self, self.connection)
        RedisSchedules.__init__(self, self.connection)
        RedisWaiter.__init__(self, self.connection)

    async def check(self) -> None:
        """See ``Store.check``."""
        await self.connection.check()

    def observe_waits(self, observer: WaitObserver) -> None:
        """See ``Store.observe_waits``."""
        self.connection.barrier.observer = observer

    async def close(self) -> None:
        """Close connections; waiting calls end with ``StoreUnavailable``."""
        await self.stop()
        await self.connection.close()
