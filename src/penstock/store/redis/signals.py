"""Wait for elements of lists that are spread over a cluster, with one connection to each primary.

A cluster refuses a blocking pop over several slots. So the scripts publish the name of each list that they push a
signal to (``scripts.SIGNAL``), and who waits subscribes to these names. A message only says where to look: the list
holds the truth, and one pop of it wakes one waiter, as a blocking pop does. Whoever subscribes anew looks at everything
first.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.core.errors import StoreError, StoreUnavailable
from penstock.store.keys import slot_of
from penstock.store.redis.connection import Connection
from penstock.store.redis.errors import CLIENT_ERRORS, map_error
from penstock.store.redis.primary import BLOCK_LIMIT_S, CALL_TIMEOUT_S, Primary

#: How often the subscriptions are compared with who serves what, in this process alone; and the pause after an error.
_COMPARE_S = 1.0
_RETRY_S = 0.5


class _Waiter:
    """Hold one wait: the partitions that may hold something."""

    def __init__(self, partitions: set[int]) -> None:
        self.partitions = partitions
        self.pending = set(partitions)
        self.event = asyncio.Event()

    def look_at(self, partition: int) -> None:
        self.pending.add(partition)
        self.event.set()


class _Link:
    """Be the subscriptions at one primary."""

    def __init__(self, primary: Primary, signals: Signals) -> None:
        self.primary = primary
        self.confirmed: set[str] = set()
        self.ended = False
        self._signals = signals
        self._connection: Any = primary.make_connection()
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._opening = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe, and return when the server has confirmed it. Raises StoreUnavailable."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                async with self._opening:
                    if self._reader is None:
                        await self._connection.connect()
                        self._reader = asyncio.create_task(self._read(), name="penstock-signals")
                loop = asyncio.get_running_loop()
                slots: dict[int, list[str]] = {}
                for channel in channels:
                    if channel not in self.confirmed and channel not in self._asked:
                        slots.setdefault(slot_of(channel), []).append(channel)
                for names in slots.values():
                    # Channels of one command must share a slot; those of a connection need not.
                    self._asked.update((name, loop.create_future()) for name in names)
                    await self._connection.send_command("SSUBSCRIBE", *names, check_health=False)
                for channel in channels:
                    if channel in self._asked:
                        await asyncio.shield(self._asked[channel])
        except (*CLIENT_ERRORS, AttributeError) as error:
            await self.end()
            if isinstance(error, AttributeError):
                raise StoreUnavailable("the connection was closed during the call") from error
            raise map_error(error) from error

    async def _read(self) -> None:
        pinged = False
        try:
            while True:
                answer = await self._connection.read_response(timeout=BLOCK_LIMIT_S, disconnect_on_error=False)
                if answer is None:
                    if pinged:
                        # A half-open connection, or a server that hangs.
                        return
                    pinged = True
                    await self._connection.send_command("PING", check_health=False)
                    continue
                pinged = False
                self._take(answer)
        except (*CLIENT_ERRORS, AttributeError):
            pass
        finally:
            self._over()

    def _take(self, answer: Sequence[Any]) -> None:
        kind, name = answer[0], answer[1].decode()
        if kind == b"smessage":
            self._signals.heard(name)
        elif kind == b"ssubscribe":
            self.confirmed.add(name)
            asked = self._asked.pop(name, None)
            if asked is not None and not asked.done():
                asked.set_result(None)
        elif kind == b"sunsubscribe":
            # The slot has moved.
            self.confirmed.discard(name)
            self._signals.lost()

    def _over(self) -> None:
        self.ended = True
        self.confirmed.clear()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(StoreUnavailable("the subscription broke off"))
                asked.exception()
        self._asked.clear()
        self._signals.lost()

    async def end(self) -> None:
        """Close the connection."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait({self._reader})
        if not self.ended:
            self._over()
        with contextlib.suppress(*CLIENT_ERRORS):
            await self._connection.disconnect(nowait=True)


class Signals:
    """Pop from lists of several partitions, and wait until one holds something."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._links: dict[Primary, _Link] = {}
        self._partition_of: dict[str, int] = {}
        self._waiters: dict[str, set[_Waiter]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._closed = False

    async def pop(
        self, keys: Mapping[int, Sequence[str]], *, timeout_s: float, count: int = 1
    ) -> tuple[str, list[bytes]] | None:
        """Return the name of a list and up to ``count`` of its first elements; None when the time is over.

        ``keys`` are the lists by partition, of each the most urgent first.

        Raises:
            StoreUnavailable: no primary answers.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        waiter = _Waiter(set(keys))
        channels = {key: partition for partition, names in keys.items() for key in names}
        self._partition_of.update(channels)
        for key in channels:
            self._waiters.setdefault(key, set()).add(waiter)
        try:
            await self._subscribe(channels)
            if self._keeper is None or self._keeper.done():
                self._keeper = loop.create_task(self._keep(), name="penstock-signals-keep")
            while not self._closed:
                found = await self._look(waiter, keys, count)
                if found is not None:
                    return found
                left_s = end - loop.time()
                if left_s <= 0:
                    return None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        await waiter.event.wait()
            raise StoreUnavailable("the store was closed")
        finally:
            for key in channels:
                waiters = self._waiters[key]
                waiters.discard(waiter)
                if not waiters:
                    del self._waiters[key]

    async def _look(
        self, waiter: _Waiter, keys: Mapping[int, Sequence[str]], count: int
    ) -> tuple[str, list[bytes]] | None:
        """Pop from one of the lists that may hold something."""
        waiter.event.clear()
        pending, waiter.pending = waiter.pending, set()
        if len(pending) > 1:
            counts = await self._connection.each({partition: ("EXISTS", *keys[partition]) for partition in pending})
            self._connection.tolerate(list(counts.values()))
            # What does not answer now is looked at when its subscription stands again.
            pending = {partition for partition, found in counts.items() if not isinstance(found, StoreError) and found}
        for partition in random.sample(sorted(pending), len(pending)):
            names = keys[partition]
            answer = await self._connection.command("LMPOP", len(names), *names, "LEFT", "COUNT", count)
            if answer is not None:
                return answer[0].decode(), list(answer[1])
        return None

    async def _subscribe(self, channels: Mapping[str, int]) -> None:
        """Subscribe to what is not yet, where it belongs now; tolerate primaries that are away while one is there."""
        await self._connection.primaries()
        places: dict[Primary, list[str]] = {}
        errors: list[StoreError] = []
        for channel, partition in channels.items():
            try:
                places.setdefault(await self._connection.server_of(partition), []).append(channel)
            except StoreError as error:
                errors.append(error)
        calls = []
        for primary, names in places.items():
            link = self._links.get(primary)
            if link is None or link.ended:
                link = self._links[primary] = _Link(primary, self)
            if not link.confirmed.issuperset(names):
                calls.append(link.subscribe(names))
        failed = [answer for answer in await asyncio.gather(*calls, return_exceptions=True) if answer is not None]
        for failure in failed:
            if not isinstance(failure, StoreError):
                raise failure
            errors.append(failure)
        if errors:
            self._lost.set()
            if len(failed) == len(places):
                raise errors[0]

    def heard(self, channel: str) -> None:
        """Take note of a message."""
        for waiter in self._waiters.get(channel, ()):
            waiter.look_at(self._partition_of[channel])

    def lost(self) -> None:
        """Take note that a subscription ended."""
        self._lost.set()

    def _misplaced(self) -> dict[str, int]:
        """Return what is waited for and not subscribed to where it belongs now."""
        found = {}
        for channel in self._waiters:
            partition = self._partition_of[channel]
            try:
                primary = self._connection.topology.of_slot(self._connection.keys[partition].slot)
            except StoreError:
                primary = None
            link = self._links.get(primary) if primary is not None else None
            if link is None or link.ended or channel not in link.confirmed:
                found[channel] = partition
        return found

    async def _keep(self) -> None:
        """Subscribe again to what was lost, or has moved, for as long as the store is open."""
        while not self._closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_COMPARE_S):
                    await self._lost.wait()
            self._lost.clear()
            for primary, link in list(self._links.items()):
                if link.ended or primary.closed:
                    del self._links[primary]
                    await link.end()
            misplaced = self._misplaced()
            if not misplaced:
                continue
            try:
                await self._subscribe(misplaced)
            except StoreError:
                await asyncio.sleep(_RETRY_S)
                continue
            # What was published meanwhile is known to nobody.
            for channel, partition in misplaced.items():
                for waiter in self._waiters.get(channel, ()):
                    waiter.look_at(partition)
            if self._lost.is_set():
                await asyncio.sleep(_RETRY_S)

    async def close(self) -> None:
        """End all waits and close the connections."""
        self._closed = True
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.event.set()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        for link in list(self._links.values()):
            await link.end()
        self._links.clear()
