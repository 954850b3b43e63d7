"""Hold the options of the API."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress

from penstock.core.errors import ConfigError
from penstock.core.limits import Limits, TaskDefaults


@functools.lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Tell whether a host name or address always means this machine; no name is looked up."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApiOptions:
    """Hold what the API is told at its start.

    ``api_keys`` are accepted as ``Authorization: Bearer``; without any, the API answers this machine only.
    ``allowed_hosts`` are ``Host`` names to accept (with no keys: besides the loopback names). ``insecure`` lets the API
    listen on any address without keys. ``drain_ms`` is how long a stop waits for requests in flight. ``event_streams``
    bounds how many clients follow a job at once.

    Raises:
        ConfigError: an address that others can reach, without keys; a key that no header could carry.
    """

    host: str = "127.0.0.1"
    port: int = 5000
    api_keys: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    limits: Limits = dataclasses.field(default_factory=Limits)
    defaults: TaskDefaults = dataclasses.field(default_factory=TaskDefaults)
    access_log: bool = True
    body_timeout_ms: int = 30_000
    health_timeout_ms: int = 600
    drain_ms: int = 20_000
    event_streams: int = 1_000

    def __post_init__(self) -> None:
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError("PENSTOCK_API_KEYS", "a key must be printable ASCII without spaces, and not empty")
        if not 0 <= self.port <= 65_535:
            raise ConfigError("PENSTOCK_PORT", f"{self.port} is not a port: 0 to 65535")
        if not self.api_keys and not self.insecure and not is_loopback(self.host):
            raise ConfigError(
                "PENSTOCK_API_KEYS",
                f"{self.host or 'every address'} can be reached from other machines: set at least one key, "
                "listen on 127.0.0.1, or say --insecure",
            )

    @property
    def checks_loopback(self) -> bool:
        """Tell whether ``Host`` must be a loopback or allowed name and ``Origin`` our own: there are no keys."""
        return not self.api_keys

    def __repr__(self) -> str:
        shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
        return f"ApiOptions({', '.join(shown)}, api_keys=<{len(self.api_keys)} keys>)"
