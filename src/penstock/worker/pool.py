"""Run functions in child processes that can be killed one by one.

Each child has a pipe and a thread of its own, and shares no lock with the others: killing one, in whatever it does,
touches nothing else. Children start when first needed, as fresh interpreters that do not run the main script again.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from penstock.worker.pool_child import BOOT, ERROR, NUMBER, TOLD, Initializer, revive

#: Starting and importing; a child that needs longer is taken for dead.
STARTUP_S = 120.0
#: A child's grandchildren can keep its pipe open after its death, so a busy child is looked at this often.
LOOK_S = 0.5
#: How long work that was told to end may still take before its child is killed.
STOP_GRACE_S = 2.0


class ChildDied(Exception):
    """Say that a child process ended under its work; ``exit_code`` is negative for a signal."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f"the child process ended with code {exit_code}")
        self.exit_code = exit_code


class ChildTimedOut(Exception):
    """Say that a child process was killed because its work took too long."""


class ChildStopped(Exception):
    """Say that the work was stopped by ``Call.kill``."""


class Call:
    """Be one piece of work. ``ask`` tells it to end and ``kill`` ends it, from any thread, started or not."""

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        timeout_s: float | None,
        on_told: Callable[[str, bytes], None] | None = None,
    ) -> None:
        self.function = function
        self.on_told = on_told
        self.arguments = arguments
        self.timeout_s = timeout_s
        self.killed = False
        #: Its timeout has passed.
        self.late = False
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()
        self._process: subprocess.Popen[bytes] | None = None
        self._ask: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def ask(self) -> None:
        """Tell the work to end; what has not started never does."""
        with self._lock:
            if self._ask is not None:
                self._ask()
            elif self._process is None:
                self.killed = True

    def kill(self) -> None:
        """Stop the work by killing the child that does it."""
        with self._lock:
            self.killed = True
            if self._process is not None:
                self._process.kill()

    def enter(self, process: subprocess.Popen[bytes], ask: Callable[[], None]) -> bool:
        """Note the child that begins the work, and how to ask it to end; False when it was stopped before."""
        with self._lock:
            if self.killed:
                return False
            self._process, self._ask = process, ask
            return True

    def leave(self) -> None:
        """Note that the child is done, so that a late ``kill`` does not reach the next work."""
        with self._lock:
            self._process = self._ask = None

    def answer(self, value: Any = None, error: BaseException | None = None) -> None:
        """Hand the answer to the loop; nobody listens when the loop is gone."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._set, value, error)

    def _set(self, value: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(value)


class ProcessPool:
    """Run at most ``size`` calls at once, each in a child of its own; the others wait their turn.

    Functions and arguments travel pickled, between processes of one user only.
    """

    def __init__(self, size: int = 0) -> None:
        self.size = size or os.cpu_count() or 1
        self._start: tuple[Initializer | None, tuple[Any, ...]] = (None, ())
        self._work: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._slots: list[_Slot] = []
        self._unfinished = 0
        self._lock = threading.Lock()
        self._closed = False

    def initialize_with(self, initializer: Initializer, *arguments: Any) -> None:
        """Run ``initializer(*arguments)`` once in each child that starts from now on."""
        self._start = (initializer, arguments)

    def begin(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        timeout_s: float | None = None,
        on_told: Callable[[str, bytes], None] | None = None,
    ) -> Call:
        """Queue a call and return it; the timeout counts from when a child takes the work up.

        At the timeout the work is asked to end, and its child killed where it goes on for ``STOP_GRACE_S``; both are
        ``ChildTimedOut``.

        ``on_told`` gets, on a thread of the pool, what the function tells through ``pool_child.TELL``; must not raise.
        Its future raises ``ChildDied``, ``ChildTimedOut``, ``ChildStopped`` or what the function raised.
        """
        if self._closed:
            raise RuntimeError("the pool is closed")
        call = Call(function, arguments, timeout_s, on_told)
        with self._lock:
            self._unfinished += 1
            if len(self._slots) < min(self._unfinished, self.size):
                slot = _Slot(self)
                self._slots.append(slot)
                slot.start()
        self._work.put(call)
        return call

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a picklable function in a child and return its value; cancelling kills the child."""
        call = self.begin(function, *arguments)
        try:
            return await call.future
        except asyncio.CancelledError:
            call.kill()
            raise

    def close(self) -> None:
        """Kill all children and wait until they are gone."""
        self._closed = True
        for slot in self._slots:
            slot.closing = True
            self._work.put(None)
        for slot in self._slots:
            slot.kill()
        for slot in self._slots:
            slot.join()

    def take(self) -> Call | None:
        """Return the next call, None when the pool closes; blocks."""
        return self._work.get()

    def finish(self) -> None:
        """Note that a call has ended."""
        with self._lock:
            self._unfinished -= 1

    def start_child(self) -> tuple[subprocess.Popen[bytes], Connection[Any, Any], int]:
        """Start a child; return it with its pipe and the end of its lifeline that we keep open."""
        ours, theirs = multiprocessing.Pipe()
        their_lifeline, our_lifeline = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", BOOT, str(theirs.fileno()), str(their_lifeline)],
                pass_fds=(theirs.fileno(), their_lifeline),
                stdin=subprocess.DEVNULL,
            )
        except BaseException:
            ours.close()
            os.close(our_lifeline)
            raise
        finally:
            theirs.close()
            os.close(their_lifeline)
        ours.send(sys.path)
        ours.send(self._start)
        return process, ours, our_lifeline


class _Slot(threading.Thread):
    """Drive one child: start it when there is work, hand over, wait for the answer or its death."""

    def __init__(self, pool: ProcessPool) -> None:
        super().__init__(name="penstock-pool", daemon=True)
        self._pool = pool
        self._child: tuple[subprocess.Popen[bytes], Connection[Any, Any], int] | None = None
        #: How many calls the child has taken up.
        self._calls = 0
        self.closing = False

    def run(self) -> None:
        while not self.closing and (call := self._pool.take()) is not None:
            value, failure = None, None
            try:
                value = self._serve(call)
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller, and the thread must live on
                failure = error
            call.leave()
            # Before the answer, so that a caller's next call finds this child free.
            self._pool.finish()
            call.answer(value, failure)
            del call, value, failure
        self._end()

    def kill(self) -> None:
        child = self._child
        if child is not None:
            child[0].kill()

    def _serve(self, call: Call) -> Any:
        if self._unwanted(call):
            raise ChildStopped
        # Pickled here and not by the pipe, so that what cannot be pickled leaves the child untouched.
        work = pickle.dumps((call.function, call.arguments))
        process, pipe = self._ready_child()
        assert self._child is not None
        lifeline, number = self._child[2], NUMBER.pack(self._calls + 1)

        def ask() -> None:
            with contextlib.suppress(OSError):
                os.write(lifeline, number)

        if not call.enter(process, ask):
            raise ChildStopped
        self._calls += 1
        try:
            pipe.send_bytes(work)
            kind, value = self._await_answer(call, process, pipe)
        except (EOFError, OSError) as error:
            exit_code = self._end(grace_s=1.0)
            if self._unwanted(call):
                raise ChildStopped from error
            raise (ChildTimedOut() if call.late else ChildDied(exit_code)) from error
        if call.late:
            raise ChildTimedOut
        if kind == ERROR:
            raise revive(*value)
        return value

    def _await_answer(
        self, call: Call, process: subprocess.Popen[bytes], pipe: Connection[Any, Any]
    ) -> tuple[str, Any]:
        deadline = None if call.timeout_s is None else time.monotonic() + call.timeout_s
        while True:
            is_ready = pipe.poll(LOOK_S if deadline is None else max(0.0, min(LOOK_S, deadline - time.monotonic())))
            if is_ready:
                kind, value = pipe.recv()
                if kind != TOLD:
                    return kind, value
                if call.on_told is not None:
                    call.on_told(*value)
            elif process.poll() is not None:
                raise EOFError
            # Also for one that tells without end.
            if deadline is not None and time.monotonic() >= deadline:
                if call.late:
                    self._end()
                    raise ChildTimedOut
                call.late = True
                call.ask()
                deadline += STOP_GRACE_S

    def _unwanted(self, call: Call) -> bool:
        return call.killed or self.closing

    def _ready_child(self) -> tuple[subprocess.Popen[bytes], Connection[Any, Any]]:
        if self._child is not None and self._child[0].poll() is None:
            return self._child[:2]
        self._end()
        self._calls = 0
        self._child = self._pool.start_child()
        process, pipe, _lifeline = self._child
        if self.closing:
            process.kill()
        try:
            if not pipe.poll(STARTUP_S):
                raise EOFError
            pipe.recv()
        except (EOFError, OSError) as error:
            raise ChildDied(self._end(grace_s=1.0)) from error
        return process, pipe

    def _end(self, *, grace_s: float = 0.0) -> int | None:
        """Kill the child if there is one, and return its exit code.

        A dying child's pipe closes a moment before its end; within ``grace_s`` its own exit code still comes, which
        says more than that of our signal.
        """
        child, self._child = self._child, None
        if child is None:
            return None
        process, pipe, lifeline = child
        pipe.close()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
        exit_code = process.wait()
        os.close(lifeline)
        return exit_code
