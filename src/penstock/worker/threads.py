"""Run plain functions on threads that do not keep the process from ending."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Threads:
    """Start a thread when none is idle; they are daemons, because one that hangs cannot be stopped.

    The pool of ``concurrent.futures`` waits for its threads when the interpreter ends, which would hang a drain.
    """

    def __init__(self, size: int) -> None:
        """Start at most ``size`` threads."""
        self._size = size
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        #: Work that found no idle thread.
        self._waiting = 0
        self._started = 0

    def begin(self, work: Callable[[], None]) -> bool:
        """Run ``work`` on a thread; it must not raise. Tell whether one is free for it; else it waits for the next."""
        with self._lock:
            is_free = True
            if self._idle > 0:
                self._idle -= 1
            elif self._started < self._size:
                self._started += 1
                threading.Thread(target=self._run, name=f"penstock-thread-{self._started}", daemon=True).start()
            else:
                self._waiting += 1
                is_free = False
        self._work.put(work)
        return is_free

    def close(self) -> None:
        """Let idle threads end; busy ones end after their work."""
        with self._lock:
            for _ in range(self._started):
                self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work
            with self._lock:
                if self._waiting:
                    # It takes up what waits, and is not idle.
                    self._waiting -= 1
                else:
                    self._idle += 1
