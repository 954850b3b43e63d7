"""Run functions in child processes that can be killed one by one.

Each child has a pipe and a thread of its own, and shares no lock with the others: killing one, in whatever it does,
touches nothing else. Children start when first needed, as fresh interpreters that do not run the main script again.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import multiprocessing
import os
import pickle
import queue
import select
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


class Call(abc.ABC):
    """Be one piece of work. ``ask`` tells it to end and ``kill`` ends it, from any thread, started or not."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout_s: float | None) -> None:
        self.function = function
        self.arguments = arguments
        self.timeout_s = timeout_s
        self.killed = False
        #: Its timeout has passed.
        self.late = False
        #: When a child took it up, 0 before.
        self.begun_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = self._number = 0
        self._lock = threading.Lock()

    def ask(self) -> None:
        """Tell the work to end; what has not started never does."""
        with self._lock:
            if self._process is not None:
                with contextlib.suppress(OSError):
                    os.write(self._lifeline, NUMBER.pack(self._number))
            elif not self.begun_s:
                self.killed = True

    def kill(self) -> None:
        """Stop the work by killing the child that does it."""
        with self._lock:
            self.killed = True
            if self._process is not None:
                self._process.kill()

    def withdraw(self) -> bool:
        """Take back work that no child has taken up; tell whether it was so, and then none will."""
        with self._lock:
            if self.begun_s:
                return False
            self.killed = True
            return True

    def enter(self, process: subprocess.Popen[bytes], lifeline: int, number: int) -> bool:
        """Note the child that begins the work, and by which number it is asked to end; False when it was stopped."""
        with self._lock:
            if self.killed:
                return False
            self.begins()
            self.begun_s = time.monotonic()
            self._process, self._lifeline, self._number = process, lifeline, number
            return True

    def leave(self) -> None:
        """Note that the child is done, so that a late ``kill`` does not reach the next work."""
        with self._lock:
            self._process = None

    def begins(self) -> None:  # noqa: B027 - not all need to know
        """Learn, on a thread of the pool, that a child takes the work up now; a ``withdraw`` waits for it."""

    def told(self, what: str, value: bytes) -> None:  # noqa: B027 - not all are told anything
        """Take, on a thread of the pool, what the function tells through ``pool_child.TELL``; must not raise."""

    @abc.abstractmethod
    def answer(self, value: Any, error: BaseException | None) -> None:
        """Take, on a thread of the pool, what came of it."""


class AwaitedCall(Call):
    """Be work whose answer comes as a future's."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout_s: float | None) -> None:
        super().__init__(function, arguments, timeout_s)
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def answer(self, value: Any, error: BaseException | None) -> None:
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

    def put(self, call: Call) -> None:
        """Queue a call; its timeout counts from when a child takes the work up.

        At the timeout the work is asked to end, and its child killed where it goes on for ``STOP_GRACE_S``; both are
        ``ChildTimedOut``. Its answer can also be ``ChildDied``, ``ChildStopped`` or what the function raised.
        """
        if self._closed:
            raise RuntimeError("the pool is closed")
        with self._lock:
            self._unfinished += 1
            if len(self._slots) < min(self._unfinished, self.size):
                slot = _Slot(self)
                self._slots.append(slot)
                slot.start()
        self._work.put(call)

    def begin(self, function: Callable[..., Any], *arguments: Any, timeout_s: float | None = None) -> AwaitedCall:
        """Queue a call and return it, with a future."""
        call = AwaitedCall(function, arguments, timeout_s)
        self.put(call)
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
        self._poll = select.poll()
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
        if not call.enter(process, self._child[2], self._calls + 1):
            raise ChildStopped
        self._calls += 1
        try:
            pipe.send_bytes(work)
            kind, value = self._await_answer(call, process, pipe)
        except (EOFError, OSError) as error:
            # The lifeline closes: nothing more can be asked.
            call.leave()
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
            wait_s = LOOK_S if deadline is None else max(0.0, min(LOOK_S, deadline - time.monotonic()))
            # Not the pipe's own poll(), which sets up a selector each time.
            if self._poll.poll(wait_s * 1000):
                kind, value = pipe.recv()
                if kind != TOLD:
                    return kind, value
                call.told(*value)
            elif process.poll() is not None:
                raise EOFError
            # Also for one that tells without end.
            if deadline is not None and time.monotonic() >= deadline:
                if call.late:
                    call.leave()
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
        self._poll.register(pipe, select.POLLIN)
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
        with contextlib.suppress(KeyError):
            self._poll.unregister(pipe)
        pipe.close()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
        exit_code = process.wait()
        os.close(lifeline)
        return exit_code
