"""Group concurrent callers into one call, without waiting when there is nothing to wait for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from penstock.core.limits import SCRIPT_BYTES, SCRIPT_ITEMS

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Group(Generic[Item, Answer]):
    """Send what callers bring in batches bounded by items and bytes; callers that come while one is away form the next.

    ``call`` answers a batch in order; ``weigh`` returns an item's bytes.
    """

    def __init__(
        self, call: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]], weigh: Callable[[Item], int]
    ) -> None:
        self._call = call
        self._weigh = weigh
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def add(self, items: Sequence[Item]) -> list[Answer | BaseException]:
        """Send the items with whoever else is calling; an exception stands in its item's place."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = [loop.create_future() for _ in items]
        self._waiting.extend(zip(items, futures, strict=True))
        if self._sender is None or self._sender.done():
            self._sender = loop.create_task(self._send())
        answers: list[Answer | BaseException] = await asyncio.gather(*futures, return_exceptions=True)
        return answers

    def _next_batch(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        batch = [self._waiting.popleft()]
        room = SCRIPT_BYTES - self._weigh(batch[0][0])
        while self._waiting and len(batch) < SCRIPT_ITEMS:
            room -= self._weigh(self._waiting[0][0])
            if room < 0:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _send(self) -> None:
        while self._waiting:
            batch = self._next_batch()
            try:
                answers = await self._call([item for item, _ in batch])
            except BaseException as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
