"""Know which server holds which slot: one server, the primary that sentinels name, or the primaries of a cluster.

Nothing here repeats a call. An error that may mean a change casts doubt; the next call looks anew, or finds it done.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import redis.exceptions

from penstock.core.errors import StoreUnavailable
from penstock.store.address import Address, Kind
from penstock.store.keys import SLOTS
from penstock.store.redis.errors import CLIENT_ERRORS, casts_doubt
from penstock.store.redis.primary import Primary, ask

#: How long one sentinel or node may take to say who serves.
ASK_TIMEOUT_S = 2.0
#: How long what was found stands before an error makes us look anew.
_FRESH_S = 0.25
#: How often a server that hangs is asked whether it still does.
_PROBE_S = 0.5
#: How long the sentinels' word is taken. One that was replaced while it lives takes writes, which will be lost, until
#: the sentinels tell it, about ten seconds later.
_TRUST_S = 1.0
#: How many nodes of a cluster are asked at once.
_ASKED = 4


class Topology(Protocol):
    """Find the server of a slot."""

    #: Whether keys are spread over servers by their slots.
    has_slots: bool

    async def prepare(self) -> None:
        """Make sure that servers are known.

        Raises:
            StoreUnavailable: none is found.
        """

    def of_slot(self, slot: int) -> Primary:
        """Return the primary of a slot. Raises StoreUnavailable."""

    def primaries(self) -> list[Primary]:
        """Return all primaries, that of the first slot first."""

    def doubt(self, server: Primary, error: Exception) -> None:
        """Take note of an error of a server."""

    def moved(self, server: Primary, error: redis.exceptions.MovedError) -> None:
        """Take note that a slot has moved to where the answer of ``server`` says."""

    async def close(self) -> None:
        """Close all connections."""


class _Shared:
    """Run one look-up at a time; callers of the same moment share it, and none of them can take it from the others."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._work = work
        self._task: asyncio.Task[None] | None = None
        self._ended_s = float("-inf")

    @property
    def is_fresh(self) -> bool:
        return self.age_s < _FRESH_S

    @property
    def age_s(self) -> float:
        return asyncio.get_running_loop().time() - self._ended_s

    def begin(self) -> asyncio.Task[None]:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work(), name="penstock-look-for-servers")
            self._task.add_done_callback(self._end)
        return self._task

    def _end(self, task: asyncio.Task[None]) -> None:
        self._ended_s = task.get_loop().time()
        # Nobody may wait for one that was begun by an error.
        if not task.cancelled():
            task.exception()

    async def run(self) -> None:
        if self._task is not None and self._task.done() and self.is_fresh and not self._task.cancelled():
            # It has just failed, else nobody would ask.
            error = self._task.exception()
            if error is not None:
                raise error
        task = self.begin()
        await asyncio.wait({task})
        if task.cancelled():
            raise StoreUnavailable("the store was closed")
        task.result()

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class OneServer:
    """Be the topology of a single server."""

    has_slots = False

    def __init__(self, address: Address) -> None:
        if address.path:
            self._server = Primary(address.socket_url, address.path, 0)
        else:
            (host, port), *_ = address.hosts
            self._server = Primary(address.server_url(host, port), host, port)

    async def prepare(self) -> None:
        """There is nothing to find."""

    def of_slot(self, slot: int) -> Primary:  # noqa: ARG002 - all are here
        """See ``Topology.of_slot``."""
        return self._server

    def primaries(self) -> list[Primary]:
        """See ``Topology.primaries``."""
        return [self._server]

    def doubt(self, server: Primary, error: Exception) -> None:
        """There is no other."""

    def moved(self, server: Primary, error: redis.exceptions.MovedError) -> None:
        """See ``Topology.moved``: a node of a cluster that was taken for a single server stays unavailable."""

    async def close(self) -> None:
        """See ``Topology.close``."""
        await self._server.close()


class _Changing:
    """Keep servers that come and go."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def _server(self, host: str, port: int) -> Primary:
        return Primary(self._address.server_url(host, port), host, port)

    def _retire(self, server: Primary) -> None:
        """Close a server that serves no more; calls that wait for it fail now rather than at their time limit."""
        task = asyncio.get_running_loop().create_task(server.close(), name="penstock-close-server")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _first_good(questions: list[Coroutine[Any, Any, Any]]) -> tuple[Any, list[Exception]]:
    """Return the first answer that is no error, and the errors that came before; None when all failed."""
    tasks = {asyncio.ensure_future(question) for question in questions}
    errors: list[Exception] = []
    pending = set(tasks)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None:
                    return task.result(), errors
                if not isinstance(error, Exception):
                    raise error
                errors.append(error)
        return None, errors
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class SentinelTopology(_Changing):
    """Follow the primary that sentinels name, and believe it only when it calls itself one."""

    has_slots = False

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._primary: Primary | None = None
        self._is_sure = False
        self._search = _Shared(self._look)

    async def prepare(self) -> None:
        """See ``Topology.prepare``."""
        if not self._is_sure:
            await self._search.run()
        elif self._search.age_s > _TRUST_S:
            self._search.begin()  # nobody waits for it

    def of_slot(self, slot: int) -> Primary:  # noqa: ARG002 - all are with the one primary
        """See ``Topology.of_slot``."""
        if self._primary is None or self._closed:
            raise StoreUnavailable("no primary is known")
        return self._primary

    def primaries(self) -> list[Primary]:
        """See ``Topology.primaries``."""
        return [self.of_slot(0)]

    def doubt(self, server: Primary, error: Exception) -> None:
        """See ``Topology.doubt``."""
        if server is self._primary and casts_doubt(error):
            self._is_sure = False

    def moved(self, server: Primary, error: redis.exceptions.MovedError) -> None:
        """There are no slots here."""

    async def _look(self) -> None:
        hosts = list(self._address.hosts)
        random.shuffle(hosts)
        found, errors = await _first_good([self._primary_by(*host) for host in hosts])
        if found is None:
            detail = "; ".join(dict.fromkeys(str(error) for error in errors))
            raise StoreUnavailable(f"no sentinel leads to a primary of {self._address.service!r}: {detail}")
        current = self._primary
        if current is None or (current.host, current.port) != found:
            self._primary = self._server(*found)
            if current is not None:
                self._retire(current)
        self._is_sure = True

    async def _primary_by(self, host: str, port: int) -> tuple[str, int]:
        name = self._address.service

        sentinel_url = self._address.sentinel_url(host, port)
        try:
            answer = await ask(sentinel_url, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name, timeout_s=ASK_TIMEOUT_S)
        except CLIENT_ERRORS as error:
            raise StoreUnavailable(f"sentinel {host}:{port}: {type(error).__name__}: {error}") from error
        if not answer:
            raise StoreUnavailable(f"sentinel {host}:{port} does not watch {name!r}")
        primary = (_text(answer[0]) or host, int(answer[1]))
        try:
            (kind, *_) = await ask(self._address.server_url(*primary), "ROLE", timeout_s=ASK_TIMEOUT_S)
        except CLIENT_ERRORS as error:
            raise StoreUnavailable(f"{primary[0]}:{primary[1]}: {type(error).__name__}: {error}") from error
        if _text(kind) != "master":
            raise StoreUnavailable(f"{primary[0]}:{primary[1]} is no primary yet but a {_text(kind)}")
        return primary

    async def close(self) -> None:
        """See ``Topology.close``."""
        self._closed = True
        self._search.cancel()
        if self._primary is not None:
            await self._primary.close()
        await asyncio.gather(*self._closing, return_exceptions=True)


class ClusterTopology(_Changing):
    """Follow the primaries of a cluster: the map of slots is read from its nodes, and corrected by ``MOVED``."""

    has_slots = True

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._owners: list[Primary | None] = [None] * SLOTS
        self._servers: dict[tuple[str, int], Primary] = {}
        self._nodes: set[tuple[str, int]] = set(address.hosts)
        self._is_known = False
        #: Servers that let a call run into its time limit.
        self._hung: set[Primary | None] = set()
        self._prober: asyncio.Task[None] | None = None
        self._search = _Shared(self._look)

    async def prepare(self) -> None:
        """See ``Topology.prepare``."""
        if not self._is_known:
            await self._search.run()

    def of_slot(self, slot: int) -> Primary:
        """See ``Topology.of_slot``."""
        server = self._owners[slot]
        if server in self._hung:
            raise StoreUnavailable(f"{server} did not answer in time, and is asked again every {_PROBE_S:g} s")
        if server is None or self._closed:
            if not self._closed and not self._search.is_fresh:
                self._search.begin()
            raise StoreUnavailable(f"no primary of the cluster serves slot {slot}")
        return server

    def primaries(self) -> list[Primary]:
        """See ``Topology.primaries``."""
        return list(dict.fromkeys(server for server in self._owners if server is not None))

    def doubt(self, server: Primary, error: Exception) -> None:
        """See ``Topology.doubt``."""
        if self._closed or not casts_doubt(error):
            return
        if isinstance(error, TimeoutError | redis.exceptions.TimeoutError) and server in self._servers.values():
            # Else each call would wait for its time limit, and hold up what the others could do.
            self._hung.add(server)
            if self._prober is None or self._prober.done():
                self._prober = asyncio.get_running_loop().create_task(self._probe(), name="penstock-probe")
        if not self._search.is_fresh:
            self._search.begin()

    async def _probe(self) -> None:
        """Ask the servers that hang until they answer, or serve no more."""
        while self._hung:
            for server in list(self._hung):
                assert server is not None
                with contextlib.suppress(*CLIENT_ERRORS):
                    await ask(server.url, "PING", timeout_s=ASK_TIMEOUT_S)
                    self._hung.discard(server)
            if self._hung:
                self._search.begin()
                await asyncio.sleep(_PROBE_S)

    def moved(self, server: Primary, error: redis.exceptions.MovedError) -> None:
        """See ``Topology.moved``."""
        where = (error.host or server.host, error.port)
        if where not in self._servers:
            self._servers[where] = self._server(*where)
            self._nodes.add(where)
        self._owners[error.slot_id] = self._servers[where]
        self._search.begin()

    async def _look(self) -> None:
        known = list(self._nodes - set(self._address.hosts))
        seeds = list(self._address.hosts)
        random.shuffle(known)
        random.shuffle(seeds)
        errors: list[Exception] = []
        nodes = known + seeds
        for start in range(0, len(nodes), _ASKED):
            found, failed = await _first_good([self._map_by(*node) for node in nodes[start : start + _ASKED]])
            errors += failed
            if found is not None:
                self._take(*found)
                return
        detail = "; ".join(dict.fromkeys(str(error) for error in errors))
        raise StoreUnavailable(f"no node of the cluster tells who serves what: {detail}")

    async def _map_by(
        self, host: str, port: int
    ) -> tuple[list[tuple[int, int, tuple[str, int]]], set[tuple[str, int]]]:
        try:
            answer = await ask(self._address.server_url(host, port), "CLUSTER", "SLOTS", timeout_s=ASK_TIMEOUT_S)
        except redis.exceptions.ResponseError as error:
            raise StoreUnavailable(f"{host}:{port} is no node of a cluster: {error}") from error
        except CLIENT_ERRORS as error:
            raise StoreUnavailable(f"{host}:{port}: {type(error).__name__}: {error}") from error
        ranges, nodes = _read_slots(answer, host)
        if not ranges:
            raise StoreUnavailable(f"{host}:{port} knows of no slot that is served")
        return ranges, nodes

    def _take(self, ranges: list[tuple[int, int, tuple[str, int]]], nodes: set[tuple[str, int]]) -> None:
        owners: list[Primary | None] = [None] * SLOTS
        used: dict[tuple[str, int], Primary] = {}
        for first, last, where in ranges:
            if where not in used:
                used[where] = self._servers.get(where) or self._server(*where)
            owners[first : last + 1] = [used[where]] * (last + 1 - first)
        for where, server in self._servers.items():
            if where not in used:
                self._hung.discard(server)
                self._retire(server)
        self._owners, self._servers, self._nodes, self._is_known = owners, used, nodes, True

    async def close(self) -> None:
        """See ``Topology.close``."""
        self._closed = True
        self._search.cancel()
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.wait({self._prober})
        await asyncio.gather(*(server.close() for server in self._servers.values()))
        await asyncio.gather(*self._closing, return_exceptions=True)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _read_slots(answer: Any, reached: str) -> tuple[list[tuple[int, int, tuple[str, int]]], set[tuple[str, int]]]:
    """Return the ranges of slots with their primaries, and all nodes; a node without a host is where we reached it."""

    def where(node: Any) -> tuple[str, int]:
        host = _text(node[0]) if node[0] else ""
        return (reached if host in ("", "?") else host, int(node[1]))

    ranges: list[tuple[int, int, tuple[str, int]]] = []
    nodes: set[tuple[str, int]] = set()
    for first, last, *members in answer:
        ranges.append((int(first), int(last), where(members[0])))
        nodes.update(where(member) for member in members)
    return ranges, nodes


def make_topology(address: Address) -> Topology:
    """Return what knows the servers behind an address."""
    if address.kind is Kind.CLUSTER:
        return ClusterTopology(address)
    if address.kind is Kind.SENTINEL:
        return SentinelTopology(address)
    return OneServer(address)
