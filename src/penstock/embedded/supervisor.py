"""Start processes in order, start again those that die, and stop them in the opposite order, leaving nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.embedded import processes
from penstock.embedded.errors import ChildFailed, EmbeddedError
from penstock.embedded.files import open_private
from penstock.embedded.lifeline import Lifeline
from penstock.embedded.parent_watch import PARENT_FD_VARIABLE
from penstock.embedded.readiness import Readiness

logger = logging.getLogger("penstock.embedded")

EXIT_CODES_NO_RESTART = frozenset({2, 78})
"""Wrong usage and wrong configuration (EX_CONFIG): starting again changes nothing, so the stack stops."""

_RESTART_DELAYS_SECONDS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0)
_STABLE_SECONDS = 60.0
_POLL_FIRST_SECONDS, _POLL_LAST_SECONDS = 0.005, 0.05
# A terminal and a wrapper (make, a shell) may both deliver what the user sent once.
_SECOND_SIGNAL_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """Describe a child process. Each gets a session and process group of its own, so that Ctrl-C reaches only us."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    """The whole environment, to which PENSTOCK_PARENT_FD is added."""
    cwd: Path | None = None
    umask: int = -1
    """-1 keeps ours."""
    output: Path | None = None
    """A file to append stdout and stderr to; None passes both to our stderr."""
    prepare: Callable[[], Awaitable[Sequence[int]]] | None = None
    """Awaited before each start; returns descriptors that the child inherits and we then close."""
    ready: Callable[[], Awaitable[Readiness]] | None = None
    """Polled on the first start; None means ready as soon as it runs."""
    ready_timeout_seconds: float = 60.0
    """Counts from the start, or from the last BUSY."""
    stop_grace_seconds: float = 10.0
    """From SIGTERM to SIGKILL for the whole group."""
    hastens: bool = True
    """Whether a second signal cuts the grace short."""
    hastened_grace_seconds: float = 0.0
    """What a second signal leaves of it; the child gets a second SIGTERM."""
    orphan_signal: signal.Signals = signal.SIGKILL
    """What the group gets when we die."""
    explain_failure: Callable[[], str] | None = None
    """Returns the child's own words, where nobody reads its output."""
    holds_data: bool = False
    """Whether it stores what the others work on; then it is ended gently and last."""


@dataclass(eq=False)
class _Child:
    spec: ChildSpec
    process: subprocess.Popen[bytes] | None = None
    lifeline: Lifeline | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    keeper: asyncio.Task[None] | None = None


class Supervisor:
    """Own this process: its signals, its children and their orphans. Use it as an async context in the main thread.

    Leaving the context stops everything. `stopping` is set by the first SIGINT, SIGTERM or SIGHUP, or by `stop_soon`.
    """

    def __init__(self, record: Callable[[Sequence[tuple[str, int, bool]]], None] = lambda _: None) -> None:
        self._record = record
        self._children: list[_Child] = []
        self._adopts = False
        self._spawned = False
        self._signals: list[signal.Signals] = []
        self._hasten = asyncio.Event()
        self._first_signal_at: float | None = None
        self.stopping = asyncio.Event()
        self.failure: EmbeddedError | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._adopts = processes.adopt_orphans()
        loop.add_signal_handler(signal.SIGCHLD, self._collect)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # `nohup` ignores SIGHUP for us; that holds.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal, number)
                self._signals.append(number)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._stop()
        finally:
            loop.remove_signal_handler(signal.SIGCHLD)
            for number in self._signals:
                # Too late to matter; the default would turn a late Ctrl-C into a traceback.
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)

    async def start(self, *specs: ChildSpec) -> None:
        """Start children side by side, wait until all are ready, and from then on keep them running.

        They stop in the opposite order. Raises ChildFailed or what ``prepare`` raises; then none of these is left.
        """
        started: list[_Child] = []
        try:
            for spec in specs:
                child = _Child(spec)
                started.append(child)
                self._children.append(child)
                await self._spawn(child)
            for child in started:
                await self._until_ready(child)
            for child in started:
                if child.ended.is_set() and _exit_code(child) in EXIT_CODES_NO_RESTART:
                    raise self._failed(child, f"gave up ({_describe(child)})")
        except BaseException:
            # The caller may try again with another port; these must not stay.
            for child in reversed(started):
                await self._end(child)
                self._children.remove(child)
            raise
        for child in started:
            child.keeper = asyncio.create_task(self._keep(child), name=f"keep-{child.spec.name}")

    def stop_soon(self, failure: EmbeddedError | None = None) -> None:
        """Ask for an ordered stop; ``failure`` says why, where it is not what the user wants."""
        self.failure = self.failure or failure
        self.stopping.set()

    def _on_signal(self, number: signal.Signals) -> None:
        now = asyncio.get_running_loop().time()
        if self._first_signal_at is None:
            self._first_signal_at = now
            logger.info(
                "Stopping: running jobs finish first; a second signal hastens", extra={"event": "stack_stopping"}
            )
            self.stop_soon()
        elif now - self._first_signal_at >= _SECOND_SIGNAL_SECONDS and not self._hasten.is_set():
            logger.warning("Stopping at once on a second %s", number.name, extra={"event": "stack_stop_hastened"})
            self._hasten.set()

    async def _spawn(self, child: _Child) -> None:
        spec = child.spec
        inherited = list(await spec.prepare()) if spec.prepare is not None else []
        # From here to the record nothing awaits: no signal handler and no cancellation finds a child unknown to us.
        lifeline = Lifeline()
        output = 2
        try:
            if spec.output is not None:
                output = open_private(spec.output, os.O_WRONLY | os.O_APPEND)
            child.process = subprocess.Popen(  # noqa: ASYNC220 - takes milliseconds and must not be interrupted
                list(spec.argv),
                env={**spec.env, PARENT_FD_VARIABLE: str(lifeline.read_fd)},
                cwd=spec.cwd,
                umask=spec.umask,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=(lifeline.read_fd, *inherited),
            )
        except OSError as error:
            lifeline.close()
            raise ChildFailed(spec.name, f"could not be started: {error.strerror or error}") from error
        finally:
            if output != 2:
                os.close(output)
            for descriptor in inherited:
                os.close(descriptor)
        child.ended.clear()
        child.lifeline = lifeline
        self._spawned = True
        lifeline.arm(child.process.pid, spec.orphan_signal)
        self._write_record()

    async def _until_ready(self, child: _Child) -> None:
        spec = child.spec
        if spec.ready is None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + spec.ready_timeout_seconds
        pause = _POLL_FIRST_SECONDS
        announced = False
        while True:
            readiness = await spec.ready()
            if child.ended.is_set():
                raise self._failed(child, f"stopped before it was ready ({_describe(child)})")
            if readiness is Readiness.READY:
                return
            if readiness is Readiness.BUSY:
                deadline = loop.time() + spec.ready_timeout_seconds
                if not announced:
                    logger.info("%s is loading its data", spec.name, extra={"event": "child_loading"})
                    announced = True
            elif loop.time() >= deadline:
                raise self._failed(child, f"did not answer within {spec.ready_timeout_seconds:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.ended.wait(), pause)
            pause = min(pause * 2, _POLL_LAST_SECONDS)

    async def _keep(self, child: _Child) -> None:
        """Start the child again whenever it ends: at once, then ever slower while it keeps failing."""
        loop = asyncio.get_running_loop()
        failures = 0
        started_at = loop.time()
        while True:
            await child.ended.wait()
            if _exit_code(child) in EXIT_CODES_NO_RESTART:
                self.stop_soon(self._failed(child, f"gave up ({_describe(child)})"))
                return
            if loop.time() - started_at >= _STABLE_SECONDS:
                failures = 0
            delay = _RESTART_DELAYS_SECONDS[min(failures, len(_RESTART_DELAYS_SECONDS) - 1)]
            failures += 1
            logger.warning(
                "%s stopped (%s); starting it again in %g s",
                child.spec.name,
                _describe(child),
                delay,
                extra={"event": "child_restarted", "child": child.spec.name, "delay_s": delay},
            )
            await asyncio.sleep(delay)
            started_at = loop.time()
            try:
                await self._spawn(child)
            except (EmbeddedError, OSError) as error:
                logger.error("%s", error, extra={"event": "child_start_failed", "child": child.spec.name})  # noqa: TRY400 - a sentence, not a traceback

    async def _stop(self) -> None:
        self.stopping.set()
        try:
            for child in reversed(self._children):
                await self._end(child)
        finally:
            if self._adopts:
                await processes.end_adopted()
        self._write_record()

    async def _end(self, child: _Child) -> None:
        """Stop one child and its group: SIGTERM, the grace, SIGKILL. Until its turn comes it is kept running."""
        if child.keeper is not None:
            child.keeper.cancel()
            await asyncio.wait([child.keeper])
        process = child.process
        if process is None or child.ended.is_set():
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            process.send_signal(signal.SIGCONT)  # a stopped process would not see the SIGTERM
        if not await self._ended_in_time(child):
            logger.warning(
                "%s did not stop in time; it is killed",
                child.spec.name,
                extra={"event": "child_killed", "child": child.spec.name},
            )
            processes.signal_group(process.pid, signal.SIGKILL)
            await child.ended.wait()

    async def _ended_in_time(self, child: _Child) -> bool:
        spec = child.spec
        if await self._ends_within(child, spec.stop_grace_seconds, hastens=spec.hastens):
            return True
        if not self._hasten.is_set() or not spec.hastens or spec.hastened_grace_seconds <= 0:
            return False
        if child.process is not None:
            with contextlib.suppress(ProcessLookupError):
                child.process.terminate()
        return await self._ends_within(child, spec.hastened_grace_seconds, hastens=False)

    async def _ends_within(self, child: _Child, seconds: float, *, hastens: bool) -> bool:
        waits = [asyncio.create_task(child.ended.wait())]
        if hastens:
            waits.append(asyncio.create_task(self._hasten.wait()))
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        return child.ended.is_set()

    def _collect(self) -> None:
        """Collect the children that ended. What is left of a child's group goes before its pid is free again."""
        for child in self._children:
            process = child.process
            if process is None or child.ended.is_set() or not processes.has_ended(process):
                continue
            processes.signal_group(process.pid, signal.SIGKILL)
            process.wait()
            if child.lifeline is not None:
                child.lifeline.close()
                child.lifeline = None
            child.ended.set()
        if self._adopts:
            processes.collect_adopted([pid for _, pid, _ in self._alive()])

    def _alive(self) -> list[tuple[str, int, bool]]:
        return [
            (child.spec.name, child.process.pid, child.spec.holds_data)
            for child in self._children
            if child.process is not None and not child.ended.is_set()
        ]

    def _write_record(self) -> None:
        if not self._spawned:  # then the folder may be another instance's
            return
        try:
            self._record(self._alive())
        except OSError as error:
            logger.warning("Could not write down the children: %s", error, extra={"event": "record_failed"})

    def _failed(self, child: _Child, detail: str) -> ChildFailed:
        words = f": {child.spec.explain_failure()}" if child.spec.explain_failure is not None else ""
        return ChildFailed(child.spec.name, detail + words)


def _exit_code(child: _Child) -> int | None:
    return child.process.returncode if child.process is not None else None


def _describe(child: _Child) -> str:
    code = _exit_code(child)
    if code is None:
        return "still running"
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
