"""Wait until the disk or the replicas hold what a script wrote, on connections that nothing else uses."""

from __future__ import annotations

import dataclasses
import functools
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import redis.exceptions
import structlog

from penstock.core import events
from penstock.core.durability import Durability
from penstock.core.errors import NotDurable, StoreUnavailable, StoreUnfit
from penstock.store.options import StoreOptions
from penstock.store.redis.primary import CALL_TIMEOUT_S, Primary, execute
from penstock.store.redis.scripts import Script
from penstock.store.redis.server import Command, online_replicas, product, read_info, read_setting, setting_in

Argument = str | bytes | int
#: Is told how many seconds a group took from sending to its answer, and whether it was confirmed.
WaitObserver = Callable[[float, bool], None]

_TRIAL_MS = 1
#: One group of submits of a partition is away at a time, and now and then a redrive.
_CONNECTIONS = 64


def _ignore(seconds: float, confirmed: bool) -> None:
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Wait:
    """Hold the command that waits, and how many it must count at least; ``looks`` at ``appendfsync`` too."""

    command: tuple[Argument, ...]
    wanted: int
    looks: bool = False


class Barrier:
    """Run scripts so that their answer means what ``StoreOptions.durability`` says."""

    def __init__(self, options: StoreOptions, command_at: Callable[..., Awaitable[Any]]) -> None:
        self._options = options
        self._command_at = command_at
        #: How to wait at the servers that were looked at.
        self._waits: weakref.WeakKeyDictionary[Primary, _Wait] = weakref.WeakKeyDictionary()
        self.observer: WaitObserver = _ignore
        #: What the last check found that makes the durability weak, or empty.
        self.advice = ""

    @property
    def is_on(self) -> bool:
        """Tell whether an answer means more than that the server has it in memory."""
        return self._options.durability is not Durability.MEMORY

    async def run(self, server: Primary, script: Script, call: tuple[Argument, ...], meta: str) -> Any:
        """Run a script at a server and wait; ``call`` is what follows EVALSHA, ``meta`` a key of its partition.

        Raises:
            StoreUnfit: the server cannot do it; nothing was sent.
            NotDurable: what was written is not confirmed; it may stand all the same.
        """
        if server not in self._waits:
            await self.check(server)
        wait = self._waits[server]
        started = time.perf_counter()
        answer, *confirmed = await self._send(server, ("EVALSHA", *call), meta, wait)
        if isinstance(answer, redis.exceptions.NoScriptError):
            # Nothing ran, so sending it again is safe.
            answer, *confirmed = await self._send(server, ("EVAL", script.text, *call[1:]), meta, wait)
        if isinstance(answer, Exception):
            raise answer
        doubt = self._doubt(server, wait, confirmed)
        self.observer(time.perf_counter() - started, doubt is None)
        if doubt is not None:
            raise NotDurable(doubt)
        return answer

    async def _send(self, server: Primary, call: tuple[Argument, ...], meta: str, wait: _Wait) -> list[Any]:
        # The server waits for what this connection wrote. A script that finds its job standing writes nothing, while
        # what another connection wrote may not be safe yet: so something is written in any case.
        commands = [call, ("HINCRBY", meta, "waits", 1), wait.command]
        if wait.looks:
            # Runs when the wait is over. With any other value the server may confirm what it has not synced.
            commands.append(("CONFIG", "GET", "appendfsync"))
        async with self._client(server).pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return list(await pipeline.execute(raise_on_error=False))

    def _doubt(self, server: Primary, wait: _Wait, replies: list[Any]) -> str | None:
        """Return why what was written may not be where it should be; None when it is."""
        for reply in replies:
            if isinstance(reply, Exception):
                # Its settings have changed: look at them anew before the next call.
                self._waits.pop(server, None)
                return f"{self._holder} could not be asked ({reply})"
        _, confirmed, *looked = replies
        if looked and (fsync := setting_in(looked[0])) != "always":
            return f"{self._holder} is not waited for: appendfsync is {fsync!r}, not 'always'"
        reached = confirmed[0] if isinstance(confirmed, list) else confirmed
        if reached >= wait.wanted:
            return None
        seconds = self._options.durability_timeout_ms / 1_000
        found = "" if self._options.durability is Durability.FSYNC else f" ({reached} of {wait.wanted})"
        return f"{self._holder} did not confirm it within {seconds:g} s{found}"

    @property
    def _holder(self) -> str:
        return "the disk" if self._options.durability is Durability.FSYNC else "enough replicas"

    async def check(self, server: Primary) -> None:
        """Find out how to wait, and log what of the server's settings makes it weak.

        Raises:
            StoreUnfit: the server cannot give this durability; the text names what it lacks.
            StoreUnavailable: the server is away, or not the primary.
        """
        checks: dict[Durability, Callable[[Primary, Command], Awaitable[_Wait]]] = {
            Durability.FSYNC: self._check_fsync,
            Durability.REPLICA: self._check_replica,
        }
        if self.is_on:
            command = functools.partial(self._command_at, server)
            self._waits[server] = await checks[self._options.durability](server, command)

    def _client(self, server: Primary) -> Any:
        """Return connections of their own: nothing may wait behind another's disk."""
        timeout_s = self._options.durability_timeout_ms / 1_000 + CALL_TIMEOUT_S
        return server.client_for("durable", timeout_s=timeout_s, connections=_CONNECTIONS)

    async def _check_fsync(self, server: Primary, command: Command) -> _Wait:
        await self._try(server, command, "WAITAOF", 1, 0, _TRIAL_MS)
        fsync = await read_setting(command, "appendfsync")
        if fsync is None:
            self._advise("the server forbids CONFIG: see to it that appendfsync is always")
        elif fsync != "always":
            # Not only slow: WAITAOF of Valkey up to 9.1 and Redis up to 7.4 confirms under everysec what is not synced.
            raise self._unfit(f"appendfsync is {fsync!r}: set it to always")
        waiting = ("WAITAOF", 1, 0, self._options.durability_timeout_ms)
        return _Wait(command=waiting, wanted=1, looks=fsync is not None)

    async def _check_replica(self, server: Primary, command: Command) -> _Wait:
        await self._try(server, command, "WAIT", 0, _TRIAL_MS)
        info = await read_info(command, "replication")
        if info.get("role", "master") != "master":
            raise StoreUnavailable("the server is a replica")
        online, wanted = online_replicas(info), self._options.durability_replicas
        if not info and not wanted:
            raise self._unfit("INFO is forbidden, so that PENSTOCK_DURABILITY_REPLICAS must say how many replicas")
        if info and online < max(1, wanted):
            raise self._unfit(f"{online} replicas are connected, {max(1, wanted)} are wanted")
        wanted = wanted or online
        least = int(await read_setting(command, "min-replicas-to-write") or -1)
        if info and least > online:
            raise self._unfit(f"min-replicas-to-write is {least}, and {online} replicas are connected")
        if least == 0:
            self._advise(
                "min-replicas-to-write is 0, so that a primary that was cut off goes on running jobs that the new one "
                f"runs too: set it to {wanted}, and min-replicas-max-lag to 10"
            )
        return _Wait(command=("WAIT", wanted, self._options.durability_timeout_ms), wanted=wanted)

    async def _try(self, server: Primary, command: Command, name: str, *arguments: int) -> None:
        """Run the command that waits, with nothing to wait for."""
        try:
            await execute(self._client(server), name, *arguments)
        except redis.exceptions.ResponseError as error:
            text = str(error).lower()
            if "unknown command" in text:
                known = product(await read_info(command, "server"))
                this = f"; this is {' '.join(known)}" if known else ""
                raise self._unfit(f"it lacks {name}, which Redis and Valkey have from 7.2 on{this}") from error
            if "appendonly" in text:
                raise self._unfit("its append-only file is off: set appendonly yes, appendfsync always") from error
            if isinstance(error, redis.exceptions.NoPermissionError):
                raise self._unfit(f"its user may not run {name}") from error
            raise

    def _unfit(self, lack: str) -> StoreUnfit:
        return StoreUnfit(f"durability {self._options.durability.value!r} is more than the server can give: {lack}")

    def _advise(self, text: str) -> None:
        self.advice = text
        durability = self._options.durability.value
        structlog.get_logger().warning(
            events.STORE_ADVICE, message=f"With durability '{durability}': {text}.", durability=durability
        )
