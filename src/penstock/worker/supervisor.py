"""Keep the processes that run jobs, renew leases for those that cannot, give back what the dead held.

No handler code runs here, so nothing that a handler does holds it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import structlog

from penstock.core import events
from penstock.core.errors import PenstockError
from penstock.core.ids import JobId, WorkerName
from penstock.core.job import Extension
from penstock.store import Store, StoreOptions, connect
from penstock.worker import lease_table
from penstock.worker.ahead import MOST_JOBS
from penstock.worker.backoff import Outage
from penstock.worker.control import BOOT, DRAIN, EXIT_CONFIG, EXIT_OK, EXIT_WORN, HASTEN, Orders, encode_orders
from penstock.worker.options import WorkerOptions

#: The first five come at once: a few deaths cost nothing. A process that cannot live at all must not take the machine.
_RESTART_DELAYS_S = (0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0)
_STABLE_S = 30.0
#: The number of the process for jobs that run alone.
_ALONE = -1
#: How long a process may take to end after its drain; the stack's supervisor kills all of us 5 s after the drain.
_END_S = 3.5
#: A claim that was on its way when its process died is in the store by then.
_LATE_S = 1.0
#: How long the end waits for a store that is away.
_GOODBYE_S = 1.0


@dataclasses.dataclass(eq=False)
class _Process:
    name: WorkerName
    process: subprocess.Popen[bytes]
    control: int
    leases: lease_table.LeaseReader
    started_s: float
    ended: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    #: It did not end after the drain and is killed: what it holds is handed back, not lost.
    handed_back: bool = False
    beat_s: float = 0.0
    silent_s: float = 0.0
    apart_s: float = 0.0
    renewed_s: float | None = None

    def tell(self, command: bytes) -> None:
        """Write to the process; one that is gone or no longer reads needs no words."""
        with contextlib.suppress(OSError):
            os.write(self.control, command)


class Supervisor:
    """Run ``options.processes`` processes until a signal, start those again that end, and drain.

    Use it in the main thread of a process of its own: it takes over signals, and its end is the end of its processes.
    """

    def __init__(self, options: WorkerOptions, store_options: StoreOptions) -> None:
        self._options = options
        self._store_options = store_options
        self._name = options.name or f"{socket.gethostname()}-{os.getpid()}"
        self._processes: dict[int, _Process] = {}
        self._stop = asyncio.Event()
        self._hasten = asyncio.Event()
        #: Jobs wait that must run alone.
        self._apart = asyncio.Event()
        self._exit_code = EXIT_OK
        self._giving_back: set[asyncio.Task[None]] = set()
        self._outage = Outage("supervisor")
        self._log: Any = structlog.get_logger("penstock.worker")
        self._store: Store

    async def run(self) -> int:
        """Run until the processes have drained; return the exit code."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._collect)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        self._store = await connect(self._store_options)
        watching = asyncio.create_task(self._watch(), name="penstock-watch")
        keeping = [
            asyncio.create_task(self._keep(number), name=f"penstock-keep-{number}")
            for number in (*range(self._options.processes), _ALONE)
        ]
        try:
            for kept in asyncio.as_completed(keeping):
                await kept
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await asyncio.gather(*self._giving_back)
        finally:
            for task in (watching, *keeping, *self._giving_back):
                task.cancel()
            await asyncio.gather(watching, *keeping, *self._giving_back, return_exceptions=True)
            await self._store.close()
        return self._exit_code

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._hasten.set()
        self._stop.set()

    def _collect(self) -> None:
        for child in self._processes.values():
            if not child.ended.is_set() and child.process.poll() is not None:
                child.ended.set()

    # Keeping processes.

    async def _keep(self, number: int) -> None:
        """Start a process again whenever it ends: at once, then ever slower while it keeps failing."""
        failures = 0
        alone = number == _ALONE
        while not self._stop.is_set():
            if alone and (not await _first(self._apart, self._stop) or self._stop.is_set()):
                return
            try:
                child = self._start(alone=alone)
            except OSError as error:
                self._log.error(events.PROCESS_ENDED, message=f"A process could not be started: {error}")
                await _first(self._stop, timeout_s=_RESTART_DELAYS_S[-1])
                continue
            self._processes[number] = child
            await self._until_ended(child)
            del self._processes[number]
            os.close(child.control)
            code = child.process.returncode
            lost = code not in (EXIT_OK, EXIT_CONFIG, EXIT_WORN) and not child.handed_back
            started = child.leases.started()
            child.leases.close()
            self._give_back(child, started=started if lost else None)
            if code == EXIT_CONFIG:
                # It has said why, and starting it again changes nothing.
                self._exit_code = EXIT_CONFIG
                self._stop.set()
            if self._stop.is_set():
                return
            if alone and code == EXIT_OK:
                # There are none left; the others tell when they see some again.
                self._apart.clear()
                continue
            if code == EXIT_WORN or time.monotonic() - child.started_s >= _STABLE_S or (alone and started):
                failures = 0
            delay_s = _RESTART_DELAYS_S[min(failures, len(_RESTART_DELAYS_S) - 1)]
            failures += 1
            self._log.warning(
                events.PROCESS_ENDED,
                message=f"A process ended ({_describe(code)}); starting another in {delay_s:g} s.",
                worker=child.name,
                exit_code=code,
                delay_s=delay_s,
            )
            await _first(self._stop, timeout_s=delay_s)

    def _start(self, *, alone: bool) -> _Process:
        options = self._options
        pool = options.pool_processes or os.cpu_count() or 1
        # Ended jobs whose end is not written yet have given their slots back, so there are more leases than slots.
        table = lease_table.create(options.concurrency + options.threads + pool + 3 * MOST_JOBS)
        # Never a name again: what is given back for a dead one must not be another's.
        name = WorkerName(f"{self._name}-{secrets.token_hex(3)}")
        theirs, ours = os.pipe()
        try:
            # From the main thread: the kernel ends a process with the thread that started it.
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", BOOT, str(theirs), str(table), json.dumps(sys.path)],
                pass_fds=(theirs, table),
                stdin=subprocess.DEVNULL,
            )
            leases = lease_table.LeaseReader(table)
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
            os.close(table)
        child = _Process(name=name, process=process, control=ours, leases=leases, started_s=time.monotonic())
        child.tell(
            encode_orders(
                Orders(options=dataclasses.replace(options, name=name), store_options=self._store_options, alone=alone)
            )
        )
        return child

    async def _until_ended(self, child: _Process) -> None:
        """Wait for the end of a process, which after a signal is its drain, bounded."""
        if not await _first(child.ended, self._stop):
            child.tell(DRAIN)
            if not await _first(child.ended, self._hasten, timeout_s=self._options.drain_ms / 1000 + _END_S):
                if self._hasten.is_set():
                    child.tell(HASTEN)
                    await _first(child.ended, timeout_s=_END_S)
                if not child.ended.is_set():
                    self._kill(child, "A process did not end after the drain; killing it and handing its jobs back.")
                    child.handed_back = True
        await child.ended.wait()

    def _kill(self, child: _Process, message: str) -> None:
        self._log.error(events.PROCESS_KILLED, message=message, worker=child.name, pid=child.process.pid)
        child.process.kill()

    def _give_back(self, child: _Process, *, started: list[JobId] | None) -> None:
        task = asyncio.create_task(self._give_back_all(child.name, started), name="penstock-give-back")
        self._giving_back.add(task)
        task.add_done_callback(self._giving_back.discard)

    async def _give_back_all(self, name: WorkerName, started: list[JobId] | None) -> None:
        """Give back what a process held; with ``started`` it died, and the jobs that had started are lost."""
        lost = started is not None
        given_back = await self._insist(name, started)
        if given_back:
            self._log.warning(
                events.JOB_LOST if lost else events.JOB_RELEASED,
                message=f"{given_back} jobs of a process that ended go back to their queues.",
                worker=name,
                jobs=given_back,
            )
        if lost and not self._stop.is_set():
            await asyncio.sleep(_LATE_S)
            # What a claim took that was under way never started.
            await self._insist(name, None)

    async def _insist(self, name: WorkerName, started: list[JobId] | None) -> int:
        outage = Outage("release")
        while True:
            try:
                given_back = await self._store.release_worker(name, lost=started is not None, started=started)
                await self._store.forget_worker(name)
            except PenstockError as error:
                await asyncio.sleep(outage.failed(error))
            else:
                outage.over()
                return given_back

    # Renewing leases.

    async def _watch(self) -> None:
        lease_s = self._options.lease_ms / 1000
        tick_s = min(1.0, lease_s / 10)
        while True:
            await asyncio.sleep(tick_s)
            children = list(self._processes.values())
            for child in children:
                self._look_for_life(child, tick_s)
                self._look_for_apart(child)
            await asyncio.gather(*(self._renew(child, lease_s) for child in children))

    def _look_for_apart(self, child: _Process) -> None:
        apart_s = child.leases.apart_s
        if apart_s != child.apart_s:
            child.apart_s = apart_s
            self._apart.set()

    def _look_for_life(self, child: _Process, tick_s: float) -> None:
        # Counted in our own steps, so that a pause of the whole machine, or of all of us, is nobody's silence.
        beat_s = child.leases.beat_s
        if beat_s != child.beat_s or beat_s == 0:
            child.beat_s, child.silent_s = beat_s, 0.0
            return
        child.silent_s += tick_s
        if child.silent_s * 1000 >= self._options.process_silence_ms and child.process.poll() is None:
            child.silent_s = 0.0
            self._kill(
                child,
                f"A process gave no sign of life for {self._options.process_silence_ms / 1000:g} s; killing it.",
            )

    async def _renew(self, child: _Process, lease_s: float) -> None:
        """Renew what a process should have renewed a while ago: its rounds come each third of a lease."""
        now = time.monotonic()
        if child.renewed_s is not None and now - child.renewed_s < lease_s / 3:
            return
        tokens = child.leases.unrenewed(now - lease_s / 2) if not child.ended.is_set() else []
        if not tokens:
            child.renewed_s = None
            return
        if child.renewed_s is None:
            self._log.warning(
                events.PROCESS_UNRESPONSIVE,
                message="A process does not renew its leases (a handler may hold the interpreter's lock, or the store"
                " be away); renewing them for it.",
                worker=child.name,
                jobs=len(tokens),
            )
        child.renewed_s = now
        try:
            await self._store.extend(
                child.name, [Extension(token=token) for token in tokens], lease_ms=self._options.lease_ms
            )
        except Exception as error:  # noqa: BLE001 - half-written tokens among them; without renewals jobs run twice
            child.renewed_s = now - lease_s / 3 + self._outage.failed(error)
        else:
            self._outage.over()


async def _first(event: asyncio.Event, *others: asyncio.Event, timeout_s: float | None = None) -> bool:
    """Wait for one of the events; tell whether the first is set."""
    waits = [asyncio.create_task(one.wait()) for one in (event, *others)]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return event.is_set()


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
