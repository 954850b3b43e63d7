"""Group concurrent callers into one call, without waiting when there is nothing to wait for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from penstock.core.errors import NotSent, StoreError, StoreUnavailable
from penstock.core.limits import SCRIPT_BYTES, SCRIPT_ITEMS

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Caller(Generic[Item, Answer]):
    """Hold one caller's items, how many of them were sent, and what was answered."""

    __slots__ = ("answers", "done", "items", "missing", "sent")

    def __init__(self, items: Sequence[Item], done: asyncio.Future[None]) -> None:
        self.items = items
        self.sent = 0
        self.answers: list[Any] = [None] * len(items)
        self.missing = len(items)
        self.done = done

    @property
    def unsent(self) -> int:
        return len(self.items) - self.sent

    def answer(self, first: int, answers: Sequence[Answer | Exception]) -> None:
        """Take the answers to the items from ``first`` on."""
        self.answers[first : first + len(answers)] = answers
        self.missing -= len(answers)
        if not self.missing and not self.done.done():
            self.done.set_result(None)


_Share = tuple[_Caller[Item, Answer], int, int]


class Group(Generic[Item, Answer]):
    """Send what callers bring in batches bounded by items and bytes; callers that come while one is away form the next.

    A batch takes from all waiting callers in turn, so that one of ten thousand items does not hold up one of a single.
    ``call`` answers a batch in order; ``weigh`` returns an item's bytes. Up to ``ahead`` calls are away at once, a
    further one only when it is full: so the server works while answers are read and calls are packed, and what comes
    one by one still shares calls. Calls begin in the order of the items.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        weigh: Callable[[Item], int],
        *,
        ahead: int = 1,
    ) -> None:
        self._call = call
        self._weigh = weigh
        self._ahead = ahead
        self._waiting: deque[_Caller[Item, Answer]] = deque()
        #: Items of those who wait, also of callers that have gone away meanwhile.
        self._unsent = 0
        #: Each has one call away at a time.
        self._senders: list[asyncio.Task[None]] = []
        # Asking for it costs a system call each time. A store belongs to one loop.
        self._loop: asyncio.AbstractEventLoop | None = None

    async def add(self, items: Sequence[Item]) -> list[Answer | Exception]:
        """Send the items with whoever else is calling; an exception stands in its item's place.

        Of a cancelled caller, and of one of whose calls one failed, what was not sent yet is dropped.
        """
        if not items:
            return []
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        caller: _Caller[Item, Answer] = _Caller(items, self._loop.create_future())
        self._waiting.append(caller)
        self._unsent += len(items)
        self._begin()
        await caller.done
        return caller.answers

    def _is_due(self, away: int) -> bool:
        """Tell whether one more call may leave while so many are away."""
        return self._unsent > 0 and (not away or (away < self._ahead and self._unsent >= SCRIPT_ITEMS))

    def _begin(self) -> None:
        """Begin another call where one is due; it leaves after this step, with all that came in it."""
        self._senders = [sender for sender in self._senders if not sender.done()]
        if self._is_due(len(self._senders)):
            assert self._loop is not None
            self._senders.append(self._loop.create_task(self._send()))

    def _next_batch(self) -> tuple[Sequence[Item], list[_Share[Item, Answer]]]:
        """Return the items of the next call, and whose they are: the caller, its first of them, how many."""
        batch: list[Item] = []
        shares: list[_Share[Item, Answer]] = []
        room = SCRIPT_BYTES
        while self._waiting and len(batch) < SCRIPT_ITEMS and room > 0:
            caller = self._waiting.popleft()
            if caller.done.done():
                self._drop(caller)
                continue
            first = caller.sent
            fair = max(1, (SCRIPT_ITEMS - len(batch)) // (len(self._waiting) + 1))
            part = caller.items[first : first + fair]
            taken, room = self._fitting(part, room, at_least=0 if batch else 1)
            batch += part[:taken]
            caller.sent += taken
            self._unsent -= taken
            if taken:
                shares.append((caller, first, taken))
            if caller.unsent:
                # One whose item did not fit is first in the next call.
                self._waiting.appendleft(caller) if room < 0 else self._waiting.append(caller)
        return batch, shares

    def _fitting(self, part: Sequence[Item], room: int, *, at_least: int) -> tuple[int, int]:
        """Return how many items of a part fit, and the room after them: below zero when the next one did not."""
        weights = [self._weigh(item) for item in part]
        left = room - sum(weights)
        if left >= 0:
            return len(part), left
        for count, weight in enumerate(weights):
            room -= weight
            if room < 0 and count >= at_least:
                return count, room
        return len(part), room

    async def _send(self) -> None:
        while self._is_due(sum(not sender.done() for sender in self._senders) - 1):
            batch, shares = self._next_batch()
            if not batch:
                continue
            self._begin()
            try:
                answers = await self._call(batch)
                if len(answers) != len(batch):
                    raise StoreError(f"{len(answers)} answers to {len(batch)} items")
            except asyncio.CancelledError:
                # The loop is shutting down; nobody else would ever answer those who wait.
                self._fail_all(shares)
                raise
            except Exception as error:  # noqa: BLE001 - it goes to each caller
                self._fail(shares, error)
                continue
            start = 0
            for caller, first, count in shares:
                caller.answer(first, answers[start : start + count])
                start += count

    def _fail(self, shares: Sequence[_Share[Item, Answer]], error: Exception) -> None:
        """Answer a call with an error, and what these callers have not sent yet: the next call would fail as well.

        A server that hangs would else be waited for by each of many calls in turn.
        """
        # Of a call that was away nobody knows whether it happened; of what has not left, that it did not.
        unsent = NotSent() if isinstance(error, StoreUnavailable) else error
        for caller, first, count in shares:
            caller.answer(first, [error] * count)
            caller.answer(caller.sent, [unsent] * caller.unsent)
            self._drop(caller)

    def _fail_all(self, shares: Sequence[_Share[Item, Answer]]) -> None:
        for caller in [caller for caller, _, _ in shares] + list(self._waiting):
            self._drop(caller)
            if not caller.done.done():
                caller.done.set_exception(StoreUnavailable("the call was cut off"))
        self._waiting.clear()

    def _drop(self, caller: _Caller[Item, Answer]) -> None:
        """Send no more of a caller's items."""
        self._unsent -= caller.unsent
        caller.sent = len(caller.items)
