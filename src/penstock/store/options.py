"""Say which store to use."""

from __future__ import annotations

import dataclasses
import re

from penstock.core.durability import Durability
from penstock.core.errors import ConfigError
from penstock.core.ids import HOMES
from penstock.core.limits import Limits
from penstock.store.address import Address, parse_address

_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Name the server and the data in it.

    ``redis_url`` is an address as ``penstock.store.address`` reads it. ``namespace`` starts every key.
    ``partitions`` is a power of two up to 4096, fixed for the life of the data. ``durability`` says what the answer to
    a submit means; ``durability_replicas`` for how many replicas of each server it waits (0: those connected at the
    start), and ``durability_timeout_ms`` for how long.

    Raises:
        ConfigError: the address, the namespace or the number of partitions is not usable.
    """

    redis_url: str = dataclasses.field(repr=False)
    namespace: str = "penstock"
    partitions: int = 1
    limits: Limits = dataclasses.field(default_factory=Limits)
    durability: Durability = Durability.MEMORY
    durability_replicas: int = 0
    durability_timeout_ms: int = 5_000
    address: Address = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if not _NAMESPACE.fullmatch(self.namespace):
            raise ConfigError("namespace", "use 1 to 64 of letters, digits, '.', '_' and '-'")
        if not (1 <= self.partitions <= HOMES and self.partitions & (self.partitions - 1) == 0):
            raise ConfigError("partitions", f"use a power of two from 1 to {HOMES}")
        try:
            address = parse_address(self.redis_url)
        except ValueError as error:
            raise ConfigError("redis_url", str(error)) from None
        object.__setattr__(self, "address", address)
