"""Count the free slots of each executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from penstock.handlers.registry import Executor


class Slots:
    """Hold how many jobs may yet start on each executor, and at ``most`` on all together.

    ``on_freed`` is called when a full one has room again.
    """

    def __init__(self, sizes: Mapping[Executor, int], *, most: int | None = None) -> None:
        self._most = most
        self._sizes = dict(sizes)
        self._free = dict(sizes)
        self._stuck = dict.fromkeys(sizes, 0)
        self.on_freed: Callable[[], None] = lambda: None

    def free(self, executor: Executor) -> int:
        """Return how many jobs may start on an executor."""
        return 0 if self.full else self._free[executor]

    @property
    def size(self) -> int:
        """Return how many jobs may run at once in all."""
        return self._most or sum(self._sizes.values())

    @property
    def taken(self) -> int:
        """Return how many slots are taken, stuck threads among them."""
        return sum(self._sizes.values()) - sum(self._free.values())

    @property
    def full(self) -> bool:
        """Tell whether no executor has room."""
        return not any(self._free.values()) or (self._most is not None and self.taken >= self._most)

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

    def take(self, executor: Executor) -> Callable[[], None]:
        """Take a slot and return the function that gives it back once, however often it is called."""
        if self.free(executor) <= 0:
            raise RuntimeError(f"no free slot for the executor {executor!r}")
        self._free[executor] -= 1
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if given_back:
                return
            given_back = True
            self._free[executor] += 1
            if self._free[executor] == 1:
                self.on_freed()

        return give_back
