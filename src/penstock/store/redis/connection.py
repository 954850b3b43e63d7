"""Reach the servers: each call goes to the primary of its slot, is bounded in time, and fails with an error of ours.

No call is repeated but one that a server has answered with ``MOVED`` or ``NOSCRIPT``: then nothing ran.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import redis.exceptions

from penstock.core.errors import StoreError, StoreFull, StoreMismatch, StoreUnavailable, StoreUnfit
from penstock.store.keys import PartitionKeys, anchor_key, slot_of
from penstock.store.options import StoreOptions
from penstock.store.redis.durability import Barrier
from penstock.store.redis.errors import CLIENT_ERRORS, map_error
from penstock.store.redis.primary import BLOCK_LIMIT_S, Primary, execute
from penstock.store.redis.scripts import Script, load_scripts
from penstock.store.redis.server import read_info, text_of, version_problem
from penstock.store.redis.topology import Topology, make_topology

__all__ = ["BLOCK_LIMIT_S", "FORMAT", "Connection"]

#: Records of another format are refused; a change of layout raises this.
FORMAT = "3"
_META_FIELDS = ("format", "partitions", "index")
#: How often a call follows ``MOVED`` before it gives up.
_MOVES = 3
#: Most script calls in one round trip, so that other callers get their turn.
_PIPELINED = 64
#: Commands that name no key; any server can answer them.
_KEYLESS = frozenset(
    {"ACL", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DEBUG", "INFO", "KEYS", "PING", "ROLE", "SCAN", "SCRIPT", "TIME"}
)

Command = Sequence[str | bytes | int]
Answer = TypeVar("Answer")


def _slot_of_command(command: Command) -> int | None:
    """Return the slot of a command's key, the argument after its name; None when it names none."""
    name = str(command[0]).upper()
    if name in _KEYLESS or len(command) < 2:
        return None
    if name in ("BLMPOP", "LMPOP"):
        index = 3 if name == "BLMPOP" else 2
    elif name in ("EVAL", "EVALSHA"):
        index = 3
    else:
        index = 1
    key = command[index]
    return slot_of(key if isinstance(key, bytes) else str(key))


class Connection:
    """Run scripts and commands on the servers that hold the partitions."""

    def __init__(self, options: StoreOptions, *, scripts: dict[str, Script] | None = None) -> None:
        self.options = options
        self.keys = [
            PartitionKeys(options.namespace, partition, options.partitions) for partition in range(options.partitions)
        ]
        self.scripts = scripts or load_scripts()
        self.topology: Topology = make_topology(options.address)
        self.barrier = Barrier(options, self.command_at)
        self._verified = False
        self._verifying: asyncio.Task[None] | None = None
        self._closed = False

    async def script(self, name: str, partition: int, *arguments: str | bytes | int, durable: bool = False) -> Any:
        """Run a script on a partition and return its answer.

        A ``durable`` one is answered when what it wrote is where ``StoreOptions.durability`` wants it.

        Raises:
            StoreError: one of its kinds.
        """
        script = await self._ready_script(name, arguments)
        keys = self.keys[partition]
        call = (script.sha, 2, *keys.declared, *arguments)

        async def run(server: Primary) -> Any:
            if durable and self.barrier.is_on:
                return await self.barrier.run(server, script, call, keys.key("meta"))
            try:
                return await server.scripts.call("EVALSHA", *call)
            except redis.exceptions.NoScriptError:
                # Nothing ran, so sending it again is safe; EVAL also loads it for the next caller.
                return await server.scripts.call("EVAL", script.text, *call[1:])

        return await self._at_slot(keys.slot, run)

    async def _ready_script(self, name: str, arguments: Sequence[str | bytes | int]) -> Script:
        script = self.scripts[name]
        if len(arguments) != script.arguments:
            raise TypeError(f"{name} takes {script.arguments} arguments, not {len(arguments)}")
        if not self._verified:
            await self.verify()
        return script

    async def script_each(
        self, name: str, partitions: Sequence[int], *arguments: str | bytes | int
    ) -> list[Any | StoreError]:
        """Run a script on many partitions, in few round trips to each server; errors stand in their places."""
        script = await self._ready_script(name, arguments)
        commands: dict[int, Command] = {
            partition: ("EVALSHA", script.sha, 2, *self.keys[partition].declared, *arguments)
            for partition in partitions
        }

        async def again(partition: int) -> Any:
            return await self.script(name, partition, *arguments)

        answers = await self._each(commands, again)
        return [answers[partition] for partition in partitions]

    async def each(self, commands: Mapping[int, Command]) -> dict[int, Any | StoreError]:
        """Run one command on each partition, in few round trips to each server; errors stand in their places."""

        async def again(partition: int) -> Any:
            return await self.command(*commands[partition])

        return await self._each(commands, again)

    async def _each(
        self, commands: Mapping[int, Command], again: Callable[[int], Awaitable[Any]]
    ) -> dict[int, Any | StoreError]:
        """Run one command on each partition; ``again`` does it where the answer says that nothing ran."""
        answers: dict[int, Any] = {}
        places: dict[Primary, list[int]] = {}
        for partition in commands:
            try:
                places.setdefault(await self.server_of(partition), []).append(partition)
            except StoreError as error:
                answers[partition] = error

        async def part(server: Primary, mine: Sequence[int]) -> None:
            calls = (server.scripts.call(*commands[partition]) for partition in mine)
            found = await asyncio.gather(*calls, return_exceptions=True)
            for partition, answer in zip(mine, found, strict=True):
                answers[partition] = answer
                try:
                    if isinstance(answer, redis.exceptions.NoScriptError | redis.exceptions.MovedError):
                        answers[partition] = await again(partition)
                    elif isinstance(answer, Exception):
                        with self.mapped(server):
                            raise answer
                except StoreError as error:
                    answers[partition] = error

        async def all_of(server: Primary, mine: list[int]) -> None:
            for start in range(0, len(mine), _PIPELINED):
                await part(server, mine[start : start + _PIPELINED])

        await asyncio.gather(*(all_of(server, mine) for server, mine in places.items()))
        return answers

    @property
    def is_cluster(self) -> bool:
        """Tell whether keys are spread over servers by their slots."""
        return self.topology.has_slots

    def _slot_of(self, command: Command) -> int | None:
        return _slot_of_command(command) if self.topology.has_slots else None

    async def server_of(self, partition: int) -> Primary:
        """Return the server that holds a partition now, for calls on connections of their own.

        Report their errors by ``mapped``, so that a failover is noticed.
        """
        return await self._find(self.keys[partition].slot)

    async def _find(self, slot: int | None) -> Primary:
        self._refuse_closed()
        await self.topology.prepare()
        # What names no key goes where the first partition is.
        return self.topology.of_slot(self.keys[0].slot if slot is None else slot)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store was closed")

    @contextlib.contextmanager
    def mapped(self, server: Primary) -> Iterator[None]:
        """Raise our errors in place of the client library's, and nothing but them once the server's are closed."""
        try:
            yield
        except CLIENT_ERRORS as error:
            if not self._closed:
                self.topology.doubt(server, error)
            raise map_error(error) from error
        except (AttributeError, RuntimeError) as error:
            # What the client library trips over when its connection is closed under a call.
            if not (self._closed or server.closed):
                raise
            raise StoreUnavailable("the connection was closed during the call") from error

    async def _at_slot(self, slot: int | None, run: Callable[[Primary], Awaitable[Answer]]) -> Answer:
        """Run something on the server of a slot; where that has moved, on the one that it has moved to."""
        server = await self._find(slot)
        for _ in range(_MOVES):
            with self.mapped(server):
                try:
                    return await run(server)
                except redis.exceptions.MovedError as error:
                    self.topology.moved(server, error)
                    moved = error
            server = await self._find(slot)
        raise map_error(moved) from moved

    async def command(self, *arguments: str | bytes | int) -> Any:
        """Run one plain command on the server of its key; one without a key on that of the first partition."""
        return await self._at_slot(self._slot_of(arguments), lambda server: execute(server.calls, *arguments))

    async def time_of(self, keys: PartitionKeys) -> Any:
        """Return the answer to ``TIME`` of the server that holds a partition."""
        return await self._at_slot(keys.slot, lambda server: execute(server.calls, "TIME"))

    async def primaries(self) -> list[Primary]:
        """Return all servers that hold keys."""
        self._refuse_closed()
        await self.topology.prepare()
        return self.topology.primaries()

    async def command_at(self, server: Primary, *arguments: str | bytes | int) -> Any:
        """Run one plain command on a given server."""
        self._refuse_closed()
        with self.mapped(server):
            return await execute(server.calls, *arguments)

    async def everywhere(self, *arguments: str | bytes | int) -> list[Any | StoreError]:
        """Run one plain command on every primary; the error of one stands in its place.

        Raises:
            StoreError: all failed.
        """
        servers = await self.primaries()
        answers = await asyncio.gather(
            *(self.command_at(server, *arguments) for server in servers), return_exceptions=True
        )
        return self.tolerate(answers)

    def tolerate(self, answers: Sequence[Any]) -> list[Any | StoreError]:
        """Return answers of several servers, errors of ours among them, unless there is nothing else."""
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, StoreError):
                raise answer
        if answers and all(isinstance(answer, StoreError) for answer in answers):
            raise answers[0]
        return list(answers)

    async def together(self, commands: Sequence[Command], *, atomic: bool = False) -> list[Any]:
        """Run commands in one round trip to each server.

        ``atomic`` ones are reads of one partition, and see one moment unless the server is at its memory limit.
        """
        if not commands:
            return []
        slots = [self._slot_of(command) for command in commands]
        if atomic:
            try:
                return await self._at_slot(slots[0], lambda server: _pipeline(server, commands, atomic=True))
            except StoreFull:
                # At its memory limit a server queues no commands, reads neither: then they follow each other.
                atomic = False
        if len(set(slots)) == 1:
            return await self._at_slot(slots[0], lambda server: _pipeline(server, commands))
        places: dict[Primary, list[int]] = {}
        for index, slot in enumerate(slots):
            places.setdefault(await self._find(slot), []).append(index)
        answers: list[Any] = [None] * len(commands)

        async def part(server: Primary, indexes: list[int]) -> None:
            with self.mapped(server):
                found = await _pipeline(server, [commands[index] for index in indexes], tolerant=True)
            for index, answer in zip(indexes, found, strict=True):
                if isinstance(answer, redis.exceptions.MovedError):
                    self.topology.moved(server, answer)
                    answers[index] = await self.command(*commands[index])
                elif isinstance(answer, Exception):
                    with self.mapped(server):
                        raise answer
                else:
                    answers[index] = answer

        parts = await asyncio.gather(
            *(part(server, indexes) for server, indexes in places.items()), return_exceptions=True
        )
        for error in parts:
            if error is not None:
                raise error
        return answers

    async def block(self, *arguments: str | bytes | int) -> Any:
        """Run a command that blocks for at most ``BLOCK_LIMIT_S``."""
        return await self._at_slot(self._slot_of(arguments), lambda server: execute(server.blocking, *arguments))

    async def check(self) -> None:
        """Check that the server holds our data and can give the durability that is asked for.

        Raises:
            StoreMismatch: it does not; StoreUnfit where it lacks something.
        """
        await self.verify()
        for server in await self.primaries():
            with self.mapped(server):
                await self.barrier.check(server)

    async def verify(self) -> None:
        """Check, or write on first use, the format and the number of partitions beside the data.

        Callers at the same moment share one attempt, so that on a server that hangs each waits for one time-out only.

        Raises:
            StoreUnfit: the server is older than this release needs.
            StoreMismatch: the data was written with others.
        """
        if self._verified:
            return
        if self._verifying is None or self._verifying.done():
            self._verifying = asyncio.get_running_loop().create_task(self._verify())
        # A caller that goes away must not take the attempt from the others.
        await asyncio.shield(self._verifying)

    async def _verify(self) -> None:
        anchor = anchor_key(self.options.namespace)
        wanted = [
            [FORMAT.encode(), str(self.options.partitions).encode(), str(index).encode()]
            for index in range(self.options.partitions)
        ]
        reads: list[Sequence[str | bytes | int]] = [("GET", anchor)]
        reads += [("HMGET", keys.key("meta"), *_META_FIELDS) for keys in self.keys]
        # Read first: a server at its memory limit refuses writes, and workers must be able to start there and drain it.
        stood, *found = await self.together(reads)
        self._refuse_stranger(stood)
        for server in await self.primaries():
            if problem := version_problem(await read_info(functools.partial(self.command_at, server), "server")):
                raise StoreUnfit(f"the server {server} is {problem}")
        if stood is None:
            stood = (await self.together([("SET", anchor, self.options.partitions, "NX"), ("GET", anchor)]))[1]
            self._refuse_stranger(stood or "")
        # Another number of partitions uses other tags, so that only a key outside them all can tell.
        if stood != str(self.options.partitions).encode():
            text = stood.decode(errors="backslashreplace")
            raise StoreMismatch(
                f"namespace {self.options.namespace!r} holds {text} partitions, the setting says "
                f"{self.options.partitions}: set PENSTOCK_PARTITIONS={text}"
            )
        if found != wanted:
            writes: list[Sequence[str | bytes | int]] = [
                ("HSETNX", keys.key("meta"), field, value)
                for keys, values in zip(self.keys, wanted, strict=True)
                for field, value in zip(_META_FIELDS, values, strict=True)
            ]
            await self.together(writes)
            _, *found = await self.together(reads)
        for index, (has, wants) in enumerate(zip(found, wanted, strict=True)):
            if has[0] != wants[0]:
                raise StoreMismatch(
                    f"namespace {self.options.namespace!r} holds data of format {text_of(has[0])}, this release works "
                    f"with format {FORMAT}: use the release that wrote it, or another namespace"
                )
            if has != wants:
                raise StoreMismatch(
                    f"partition {index} was written as {dict(zip(_META_FIELDS, has, strict=True))}, "
                    f"this release and its settings want {dict(zip(_META_FIELDS, wants, strict=True))}"
                )
        self._verified = True

    @staticmethod
    def _refuse_stranger(stood: Any) -> None:
        if not isinstance(stood, bytes | None):
            raise StoreError(f"the server does not answer as Redis does ({stood!r})")

    async def close(self) -> None:
        """Close all connections; calls that are away and later ones end with ``StoreUnavailable``."""
        self._closed = True
        if self._verifying is not None:
            self._verifying.cancel()
        await self.topology.close()


async def _pipeline(
    server: Primary, commands: Sequence[Command], *, atomic: bool = False, tolerant: bool = False
) -> list[Any]:
    """Run commands in one round trip; ``tolerant``: errors of single ones stand in their places."""
    async with server.calls.pipeline(transaction=atomic) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute(raise_on_error=not tolerant))
