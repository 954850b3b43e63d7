"""Count the free slots of each executor, and how many of them a queue may take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from penstock.handlers.registry import Executor

#: While several queues are served, one slot in so many is not for a single one of them.
KEPT_PART = 8
#: Below so many slots a claim of half of them costs more than what it gains.
HALVED_FROM = 50


class Slots:
    """Hold how many jobs may yet start on each executor, and at ``most`` on all together.

    Of several ``queues`` none takes all slots of an executor: an eighth, rounded down, is for the others, so that a
    thousand slow jobs of one leave a way for the next. ``queue_slots`` says otherwise for single queues.
    ``on_freed`` is called when what was full has room again. Where jobs are short, some more than there are slots may
    be taken ``ahead``; there is room for such once half of them are used up, so that they come together.
    """

    def __init__(
        self,
        sizes: Mapping[Executor, int],
        *,
        most: int | None = None,
        queues: Sequence[str] = (),
        queue_slots: Mapping[str, int] | None = None,
    ) -> None:
        self._most = most
        self._sizes = dict(sizes)
        self._free = dict(sizes)
        self._stuck = dict.fromkeys(sizes, 0)
        self._ahead = dict.fromkeys(sizes, 0)
        self._queues = tuple(queues)
        #: What each queue may yet take of each executor, where that can be less than what is free.
        self._room: dict[tuple[Executor, str], int] = {}
        for executor, size in sizes.items():
            shared = size - size // KEPT_PART if len(queues) > 1 and most is None else size
            for queue in queues:
                if (bound := (queue_slots or {}).get(queue, shared)) < size:
                    self._room[executor, queue] = bound
        self.on_freed: Callable[[], None] = lambda: None

    def free(self, executor: Executor) -> int:
        """Return how many jobs may start on an executor."""
        if self._most is not None and self.taken >= self._most:
            return 0
        ahead = self._ahead[executor]
        free = self._free[executor] + ahead
        return free if free > ahead // 2 else 0

    def part(self, executor: Executor) -> int:
        """Return how many jobs to claim at once: half of many slots, so that the store works while others run."""
        size = self._sizes[executor] + self._ahead[executor]
        return size if size < HALVED_FROM else size // 2

    def set_ahead(self, executor: Executor, jobs: int) -> None:
        """Let so many more jobs be taken than there are slots."""
        if self._ahead[executor] != jobs and self._most is None:
            was_full = self.free(executor) <= 0
            self._ahead[executor] = jobs
            if was_full and self.free(executor) > 0:
                self.on_freed()

    def room(self, executor: Executor, queue: str) -> int:
        """Return how many jobs of a queue may start on an executor."""
        free = self.free(executor)
        return max(0, min(free, self._room.get((executor, queue), free)))

    def rooms(self, executor: Executor, queues: Sequence[str]) -> tuple[int, ...] | None:
        """Return it for each queue, None where all may take what is free."""
        return tuple(self.room(executor, queue) for queue in queues) if self._room else None

    @property
    def size(self) -> int:
        """Return how many jobs may run at once in all."""
        return self._most or sum(self._sizes.values())

    @property
    def taken(self) -> int:
        """Return how many slots are taken, stuck threads among them."""
        return sum(self._sizes.values()) - sum(max(0, free) for free in self._free.values())

    @property
    def full(self) -> bool:
        """Tell whether no executor has room for any queue."""
        if not self._room:
            return not any(self.free(executor) for executor in self._sizes)
        return not any(self.room(executor, queue) for executor in self._sizes for queue in self._queues)

    @property
    def stuck(self) -> int:
        """Return how many slots are held by handlers whose attempts have ended."""
        return sum(self._stuck.values())

    @property
    def worn(self) -> bool:
        """Tell whether a quarter of an executor's slots is stuck."""
        return any(
            stuck and stuck * 4 >= min(self._sizes[executor], self._most or self._sizes[executor])
            for executor, stuck in self._stuck.items()
        )

    def mark_stuck(self, executor: Executor, change: int) -> None:
        """Count a slot that is stuck (1), or came back (-1)."""
        self._stuck[executor] += change

    def take(self, executor: Executor, queue: str) -> None:
        """Take a slot, also above what is free by now: a claim that was under way brings what was free before."""
        self._free[executor] -= 1
        if (executor, queue) in self._room:
            self._room[executor, queue] -= 1

    def give_back(self, executor: Executor, queue: str) -> None:
        """Give a slot back that was taken."""
        self._free[executor] += 1
        ahead = self._ahead[executor]
        has_room = self._free[executor] + ahead == ahead // 2 + 1
        if (executor, queue) in self._room:
            self._room[executor, queue] += 1
            has_room = has_room or self._room[executor, queue] == 1
        if has_room:
            self.on_freed()
