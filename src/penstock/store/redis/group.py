"""Group concurrent callers into one call, without waiting when there is nothing to wait for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from penstock.core.errors import StoreError, StoreUnavailable
from penstock.core.limits import SCRIPT_BYTES, SCRIPT_ITEMS

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Caller(Generic[Item, Answer]):
    """Hold one caller's items, how many of them were sent, and what was answered."""

    __slots__ = ("answers", "done", "items", "sent")

    def __init__(self, items: Sequence[Item], done: asyncio.Future[None]) -> None:
        self.items = items
        self.sent = 0
        self.answers: list[Answer | Exception] = []
        self.done = done

    def answer(self, answers: Sequence[Answer | Exception]) -> None:
        # One call is away at a time, so that answers come in the order of the items.
        self.answers += answers
        if len(self.answers) == len(self.items) and not self.done.done():
            self.done.set_result(None)


class Group(Generic[Item, Answer]):
    """Send what callers bring in batches bounded by items and bytes; callers that come while one is away form the next.

    A batch takes from all waiting callers in turn, so that one of ten thousand items does not hold up one of a single.
    ``call`` answers a batch in order; ``weigh`` returns an item's bytes.
    """

    def __init__(
        self, call: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]], weigh: Callable[[Item], int]
    ) -> None:
        self._call = call
        self._weigh = weigh
        self._waiting: deque[_Caller[Item, Answer]] = deque()
        self._sender: asyncio.Task[None] | None = None
        # Asking for it costs a system call each time. A store belongs to one loop.
        self._loop: asyncio.AbstractEventLoop | None = None

    async def add(self, items: Sequence[Item]) -> list[Answer | Exception]:
        """Send the items with whoever else is calling; an exception stands in its item's place.

        Of a cancelled caller, what was not sent yet is dropped.
        """
        if not items:
            return []
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        caller: _Caller[Item, Answer] = _Caller(items, loop.create_future())
        self._waiting.append(caller)
        if self._sender is None or self._sender.done():
            self._sender = loop.create_task(self._send())
        await caller.done
        return caller.answers

    def _next_batch(self) -> tuple[list[Item], list[tuple[_Caller[Item, Answer], int]]]:
        """Return the items of the next call, and from which callers how many of them come, in order."""
        batch: list[Item] = []
        shares: list[tuple[_Caller[Item, Answer], int]] = []
        room = SCRIPT_BYTES
        while self._waiting and len(batch) < SCRIPT_ITEMS and room > 0:
            caller = self._waiting.popleft()
            if caller.done.done():
                continue
            fair = max(1, (SCRIPT_ITEMS - len(batch)) // (len(self._waiting) + 1))
            first = caller.sent
            for item in caller.items[first : first + fair]:
                room -= self._weigh(item)
                if room < 0 and batch:
                    break
                batch.append(item)
                caller.sent += 1
            if caller.sent > first:
                shares.append((caller, caller.sent - first))
            if caller.sent < len(caller.items):
                # One whose item did not fit is first in the next call.
                self._waiting.appendleft(caller) if room < 0 else self._waiting.append(caller)
        return batch, shares

    async def _send(self) -> None:
        while self._waiting:
            batch, shares = self._next_batch()
            if not batch:
                continue
            answers: Sequence[Answer | Exception]
            try:
                answers = await self._call(batch)
            except asyncio.CancelledError:
                # The loop is shutting down; nobody else would ever answer those who wait.
                self._fail_all(shares)
                raise
            except Exception as error:  # noqa: BLE001 - it goes to each caller
                answers = [error] * len(batch)
            if len(answers) != len(batch):
                answers = [StoreError(f"{len(answers)} answers to {len(batch)} items")] * len(batch)
            start = 0
            for caller, share in shares:
                caller.answer(answers[start : start + share])
                start += share

    def _fail_all(self, shares: Sequence[tuple[_Caller[Item, Answer], int]]) -> None:
        for caller in [caller for caller, _ in shares] + list(self._waiting):
            if not caller.done.done():
                caller.done.set_exception(StoreUnavailable("the call was cut off"))
        self._waiting.clear()
