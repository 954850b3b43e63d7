"""Keep jobs in Redis or Valkey; the only part that talks to them."""

from __future__ import annotations

from penstock.store.options import StoreOptions
from penstock.store.protocol import Store

__all__ = ["Store", "StoreOptions", "connect"]


async def connect(options: StoreOptions) -> Store:
    """Return a store for the server; it connects on first use, so a server that is away raises no error here."""
    # Imported late, so that commands that only speak HTTP start without the Redis client.
    from penstock.store.redis.store import RedisStore

    return RedisStore(options)
