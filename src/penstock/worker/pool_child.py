"""Be the child's side of the process pool: take a call, answer it, again."""

from __future__ import annotations

import contextvars
import ctypes
import os
import pickle
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

#: What a child runs first: nothing of ours is importable before it has its parent's import path.
BOOT = """
import sys
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
sys.path[:] = pipe.recv()
from penstock.worker.pool_child import serve
serve(pipe, int(sys.argv[2]))
"""
_PR_SET_PDEATHSIG = 1
READY = "ready"
VALUE = "value"
ERROR = "error"
TOLD = "told"

Initializer = Callable[..., None]
#: What the parent writes into the lifeline: the number of the call that is asked to end.
NUMBER = struct.Struct("!Q")


def _tell_nobody(_what: str, _value: bytes) -> None:
    return None


#: Tells the parent something of the call under way: what it is, and bytes.
TELL: contextvars.ContextVar[Callable[[str, bytes], None]] = contextvars.ContextVar(
    "penstock_tell", default=_tell_nobody
)


class Stop:
    """Tell a call under way that it should end; asked from another thread."""

    def __init__(self) -> None:
        self.asked = False
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def on_ask(self, callback: Callable[[], None]) -> None:
        """Call back once the parent asks; at once where it has."""
        with self._lock:
            if not self.asked:
                self._callbacks.append(callback)
                return
        callback()

    def ask(self) -> None:
        """Ask."""
        with self._lock:
            self.asked = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


#: Tells a call under way to end; None outside of one.
STOP: contextvars.ContextVar[Stop | None] = contextvars.ContextVar("penstock_stop", default=None)


class _Calls:
    """Number the calls, so that one is not told to end in the name of the one before."""

    def __init__(self) -> None:
        self._number = 0
        self._stop: Stop | None = None
        self._lock = threading.Lock()

    def begin(self) -> Stop:
        with self._lock:
            self._number += 1
            self._stop = Stop()
            return self._stop

    def ask(self, number: int) -> None:
        with self._lock:
            stop = self._stop if number == self._number else None
        if stop is not None:
            stop.ask()


def serve(pipe: Connection[Any, Any], lifeline: int) -> None:
    """Answer calls until the parent closes the pipe; end at once when the parent ends."""
    # A signal to the whole process group is for the worker to answer; it ends its children itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ask_kernel_to_end_with_parent()
    calls = _Calls()
    threading.Thread(target=_listen, args=(lifeline, calls), name="penstock-parent-watch", daemon=True).start()
    initializer, arguments = pipe.recv()
    if initializer is not None:
        initializer(*arguments)
    pipe.send((READY, None))
    while True:
        try:
            work = pipe.recv_bytes()
        except EOFError:
            return
        teller = _Teller(pipe)
        reset, reset_stop = TELL.set(teller.tell), STOP.set(calls.begin())
        try:
            function, values = pickle.loads(work)  # noqa: S301 - written by our own parent process
            encoded = pickle.dumps((VALUE, function(*values)))
        except BaseException as error:  # noqa: BLE001 - sent to the caller, also a SystemExit
            encoded = pickle.dumps((ERROR, _describe(error)))
        TELL.reset(reset)
        STOP.reset(reset_stop)
        teller.end(encoded)


class _Teller:
    """Send what a call tells on its way, from any of its threads, and nothing after its answer."""

    def __init__(self, pipe: Connection[Any, Any]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._ended = False

    def tell(self, what: str, value: bytes) -> None:
        """Send one message; waits while the pipe is full."""
        with self._lock:
            if not self._ended:
                self._pipe.send((TOLD, (what, value)))

    def end(self, answer: bytes) -> None:
        """Send the pickled answer."""
        with self._lock:
            self._ended = True
            self._pipe.send_bytes(answer)


def revive(pickled: bytes, text: str) -> BaseException:
    """Return the exception that a child sent, with its traceback as a note."""
    error: BaseException = pickle.loads(pickled) if pickled else RuntimeError(text)  # noqa: S301 - see above
    error.add_note(f"In the child process:\n{text}")
    return error


def ask_kernel_to_end_with_parent() -> None:
    """Make the kernel kill this process when the one that started it ends, where it can (Linux)."""
    # A handler that holds the interpreter's lock holds back the watching thread as well; Linux needs no thread. The
    # signal comes when the thread that started us ends, which waits for us in the pool and ends after us.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _listen(lifeline: int, calls: _Calls) -> None:
    # The read ends when the parent, the only one that could write, is gone.
    while text := os.read(lifeline, NUMBER.size):
        calls.ask(NUMBER.unpack(text)[0])
    os._exit(1)


def _describe(error: BaseException) -> tuple[bytes, str]:
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)  # noqa: S301 - our own; some exceptions can be written and not read
    except Exception:  # noqa: BLE001 - pickling calls the exception's own code
        pickled = b""
    return pickled, "".join(traceback.format_exception(error))
