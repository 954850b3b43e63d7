"""Hold the connections to one server, with a time limit for each class of call.

redis-py's own retries stay off: a repeated claim would hand out jobs twice. Retry lives in the verbs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from penstock.core.errors import StoreUnavailable
from penstock.store.address import name_of
from penstock.store.redis.line import Line
from penstock.store.redis.names import resolve

CALL_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 3.0
BLOCK_LIMIT_S = 5.0
CONNECTIONS = 32
#: Each caller that blocks takes one; they are opened as needed. Above it callers wait for each other.
BLOCKING_CONNECTIONS = 512


#: By what they were made from.
_tls_contexts: dict[tuple[Any, ...], Any] = {}


class _ByName:
    """Resolve the host within a limit, then connect to its addresses in turn."""

    host: str
    _address: str = ""

    async def _connect(self) -> None:
        addresses = await resolve(self.host)
        for address in addresses:
            self._address = address
            try:
                return await super()._connect()  # type: ignore[misc, no-any-return]
            except (OSError, TimeoutError):
                if address == addresses[-1]:
                    raise
        raise OSError(f"the name {self.host} has no address")

    def _connection_arguments(self) -> Mapping[str, Any]:
        arguments = dict(super()._connection_arguments())  # type: ignore[misc]
        arguments["host"] = self._address
        if "ssl" in arguments:
            # The certificate is that of the name.
            arguments["server_hostname"] = self.host
        return arguments


class TcpConnection(_ByName, redis.asyncio.Connection):
    """Connect by TCP."""


class TlsConnection(_ByName, redis.asyncio.SSLConnection):
    """Connect by TLS. Reading the certificates of a system takes tens of ms, so that connections share them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        own = self.ssl_context
        files = [path for path in (own.ca_certs, own.certfile, own.keyfile) if path]
        # A certificate that was renewed is read again.
        stamps = tuple(Path(path).stat().st_mtime_ns if Path(path).exists() else 0 for path in files)
        key = (*files, *stamps, *(str(options.get(name)) for name in sorted(options) if name.startswith("ssl_")))
        self.ssl_context = _tls_contexts.setdefault(key, own)


def open_client(url: str, *, timeout_s: float, connections: int) -> redis.asyncio.Redis:
    """Return a client of one server, which connects on first use."""
    options: dict[str, Any] = {}
    # A socket of the file system knows no keep-alive, and the client library refuses the option for it.
    if not url.startswith("unix:"):
        options["socket_keepalive"] = True
    parsed = redis.asyncio.connection.parse_url(url)
    tls = issubclass(parsed.get("connection_class", object), redis.asyncio.SSLConnection)
    if "path" not in parsed:
        parsed["connection_class"] = TlsConnection if tls else TcpConnection
    options |= parsed
    pool = redis.asyncio.BlockingConnectionPool(
        **{
            **options,
            "protocol": 2,
            "max_connections": connections,
            "timeout": timeout_s,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": min(CONNECT_TIMEOUT_S, CALL_TIMEOUT_S),
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
            "client_name": "penstock",
        }
    )
    return redis.asyncio.Redis.from_pool(pool)


async def ask(url: str, *command: str | int, timeout_s: float) -> Any:
    """Run one command on a connection of its own, which is closed whatever happens."""
    client = open_client(url, timeout_s=timeout_s, connections=1)
    connection: Any = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    try:
        async with asyncio.timeout(timeout_s):
            await connection.connect()
            await connection.send_command(*command)
            return await connection.read_response()
    finally:
        await connection.disconnect(nowait=True)


async def execute(client: redis.asyncio.Redis, *arguments: str | bytes | int) -> Any:
    """Run one command."""
    return await client.execute_command(*arguments)  # type: ignore[no-untyped-call]


class Primary:
    """Be one server that holds data: its name and its clients, one for each class of call."""

    def __init__(self, url: str, host: str, port: int) -> None:
        self.url = url
        self.host = host
        self.port = port
        self.closed = False
        self._others: dict[str, redis.asyncio.Redis] = {}
        self.calls = open_client(url, timeout_s=CALL_TIMEOUT_S, connections=CONNECTIONS)
        # Scripts share a connection, over which they follow each other without waiting.
        self.scripts = Line(self.calls, CALL_TIMEOUT_S)
        # Blocking calls have connections of their own, so that none waits behind them.
        self.blocking = open_client(url, timeout_s=BLOCK_LIMIT_S + CALL_TIMEOUT_S, connections=BLOCKING_CONNECTIONS)

    def __repr__(self) -> str:
        """Show where it is."""
        return self.name

    def make_connection(self) -> Any:
        """Return a connection that belongs to no pool; its caller closes it."""
        return self.calls.connection_pool.make_connection()  # type: ignore[no-untyped-call]

    def client_for(self, purpose: str, *, timeout_s: float, connections: int) -> redis.asyncio.Redis:
        """Return a client of its own for one more class of call, made on first use."""
        if self.closed:
            raise StoreUnavailable(f"{self.name} no longer serves")
        if purpose not in self._others:
            self._others[purpose] = open_client(self.url, timeout_s=timeout_s, connections=connections)
        return self._others[purpose]

    @property
    def name(self) -> str:
        """Return where the server is, as people write it."""
        return name_of(self.host, self.port) if self.port else self.host

    async def close(self) -> None:
        """Close all connections, those in use too: calls under way fail."""
        self.closed = True
        await self.scripts.close()
        for client in (self.calls, self.blocking, *self._others.values()):
            try:
                await client.aclose()
                await client.connection_pool.disconnect()
            except (OSError, TimeoutError, redis.exceptions.RedisError):
                # One that hangs is as good as closed.
                pass
