"""Give the event loop what its threads have made."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ToLoop(Generic[Item]):
    """Take items from any thread; one call of ``take`` in the loop gets all that have come, not one each."""

    def __init__(self, take: Callable[[Iterator[Item]], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._items: deque[Item] = deque()
        self._called = False

    def put(self, item: Item) -> None:
        """Hand an item over, from a thread."""
        self._items.append(item)
        if not self._called:
            self._called = True
            # Without its loop the worker is gone; its lease has gone back or will lapse.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._take_all)

    def _take_all(self) -> None:
        # First: what a thread adds while this runs is either taken below, or calls again.
        self._called = False
        self._take(self._each())

    def _each(self) -> Iterator[Item]:
        while self._items:
            yield self._items.popleft()
