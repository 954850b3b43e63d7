"""No error of the client library leaves the store; each becomes one of ours, and of the right kind."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis.exceptions

from penstock.core.errors import StoreError, StoreFull, StoreMismatch, StoreUnavailable
from penstock.core.job import Settle, Settled, Submitted, Verb
from penstock.core.limits import SCRIPT_BYTES, SCRIPT_ITEMS
from penstock.core.states import State
from penstock.store.redis.codec import ItemError
from penstock.store.redis.connection import FORMAT
from penstock.store.redis.errors import map_error
from penstock.store.redis.group import Group
from tests.integration.store_support import claim, new_job, server_in, store_at, submit
from tests.waiting import begun

CLASSES = [
    value
    for _, value in inspect.getmembers(redis.exceptions, inspect.isclass)
    if issubclass(value, Exception) and value.__module__ == "redis.exceptions"
]
#: What each answer of a server means to us.
ANSWERS = {
    "OOM command not allowed when used memory > 'maxmemory'.": StoreFull,
    "OOM allow-oom flag is not set on the script, can not run it when used memory > 'maxmemory'": StoreFull,
    "LOADING Redis is loading the dataset in memory": StoreUnavailable,
    "READONLY You can't write against a read only replica.": StoreUnavailable,
    "READONLY Can not run script with write flag on readonly replica.": StoreUnavailable,
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": StoreUnavailable,
    "MISCONF Errors writing to the AOF file: No space left on device": StoreUnavailable,
    "NOREPLICAS Not enough good replicas to write.": StoreUnavailable,
    "TRYAGAIN Multiple keys request during rehashing of slot": StoreUnavailable,
    "CLUSTERDOWN The cluster is down": StoreUnavailable,
    "CLUSTERDOWN Hash slot not served": StoreUnavailable,
    "MOVED 3999 127.0.0.1:6381": StoreUnavailable,
    "ASK 3999 127.0.0.1:6381": StoreUnavailable,
    "BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": StoreUnavailable,
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)": StoreUnavailable,
    "ERR max number of clients reached": StoreUnavailable,
    "NOAUTH Authentication required.": StoreUnavailable,
    "WRONGPASS invalid username-password pair or user is disabled.": StoreUnavailable,
    "NOPERM User x has no permissions to run the 'evalsha' command": StoreUnavailable,
    "WRONGTYPE Operation against a key holding the wrong kind of value": StoreError,
    "ERR unknown command 'BLMPOP'": StoreError,
    "CROSSSLOT Keys in request don't hash to the same slot": StoreError,
}


def _make(kind: type[Exception]) -> Exception:
    for arguments in (("1 127.0.0.1:1",), ("text",), ("text", "text"), ()):
        with contextlib.suppress(TypeError, ValueError):
            return kind(*arguments)
    raise AssertionError(f"cannot make {kind}")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_each_class_of_the_library_is_mapped(kind: type[Exception]) -> None:
    error = map_error(_make(kind))
    assert isinstance(error, StoreError)
    assert type(error).__module__ == "penstock.core.errors"


def test_every_class_is_caught() -> None:
    """What the store catches must cover the library's tree; two classes of it are raised by nothing that we call."""
    caught = (redis.exceptions.RedisError, redis.exceptions.RedisClusterException, OSError, TimeoutError)
    left = {kind.__name__ for kind in CLASSES if not issubclass(kind, caught)}
    assert left == {"ChildDeadlockedError", "IncorrectPolicyType"}


@pytest.fixture
async def answering() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Run a server that gives the one answer in the list to whatever it is asked, after a proper greeting."""
    answer: list[bytes] = [b""]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            for command in range(data.count(b"*")):
                writer.write(b"+OK\r\n" if b"CLIENT" in data or b"SELECT" in data else answer[0])
                del command
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", answer
    server.close()


@pytest.mark.parametrize("text", ANSWERS, ids=lambda text: text[:28])
async def test_each_answer_of_a_server_is_mapped(answering: tuple[str, list[bytes]], text: str) -> None:
    url, answer = answering
    answer[0] = f"-{text}\r\n".encode()
    async with store_at(url) as store:
        store.connection._verified = True
        for call in (
            claim(store),
            store.ping(),
            store.connection.together([("GET", "a")]),
            store.connection.block("X"),
        ):
            with pytest.raises(StoreError) as caught:
                await call
            assert type(caught.value) is ANSWERS[text], caught.value


@pytest.mark.parametrize("junk", [b"junk\r\n", b"+OK\r\n", b":1\r\n", b"$-1\r\n", b"*0\r\n"])
async def test_what_is_no_redis_is_an_error_of_ours(answering: tuple[str, list[bytes]], junk: bytes) -> None:
    url, answer = answering
    answer[0] = junk
    async with store_at(url) as store:
        with pytest.raises(StoreError):
            await claim(store)


async def test_nobody_listens(tmp_path: Path) -> None:
    with server_in(tmp_path) as server:
        pass
    async with store_at(server.url) as store:
        with pytest.raises(StoreUnavailable):
            await store.ping()
        with pytest.raises(StoreUnavailable):
            await submit(store)
    async with store_at("unix:///nowhere/valkey.sock") as store:
        with pytest.raises(StoreUnavailable):
            await store.ping()


class TestRefusals:
    @pytest.mark.not_on("cluster", "sentinel", "redis7-tls", reason="makes a replica of one server without TLS")
    async def test_a_replica_says_later(self, tmp_path: Path, valkey_url: str, namespace: str) -> None:
        port = urlsplit(valkey_url).port
        with server_in(tmp_path, "--replicaof", f"127.0.0.1 {port}") as server:
            async with store_at(server.url, namespace) as store:
                store.connection._verified = True
                for call in (claim(store), store.submit([new_job()]), store.reap(0)):
                    with pytest.raises(StoreUnavailable):
                        await call

    async def test_a_socket_of_the_file_system_works(self, tmp_path: Path) -> None:
        with server_in(tmp_path, "--unixsocket", str(tmp_path / "valkey.sock")):
            async with store_at(f"unix://{tmp_path}/valkey.sock") as store:
                job_id = await submit(store)
                assert [job.token.job_id for job in (await claim(store)).jobs] == [job_id]

    async def test_a_password_is_missing_or_wrong(self, tmp_path: Path) -> None:
        with server_in(tmp_path, "--requirepass", "secret") as server:
            for url in (server.url, server.url.replace("redis://", "redis://:wrong@")):
                async with store_at(url) as store:
                    with pytest.raises(StoreUnavailable, match="credentials"):
                        await submit(store)
            async with store_at(server.url.replace("redis://", "redis://:secret@")) as store:
                await submit(store)


class TestMismatch:
    async def test_another_number_of_partitions(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace, partitions=4) as store:
            await submit(store)
        async with store_at(valkey_url, namespace) as other:
            with pytest.raises(StoreMismatch, match="PENSTOCK_PARTITIONS=4"):
                await submit(other)
            # The refused one has written nothing.
            assert await other.connection.command("HGET", other.connection.keys[0].key("meta"), "partitions") == b"4"
        async with store_at(valkey_url, namespace, partitions=8) as other:
            with pytest.raises(StoreMismatch):
                await submit(other)
            assert await other.connection.command("EXISTS", other.connection.keys[1].key("meta")) == 0

    async def test_another_format(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            await submit(store)
            await store.connection.command("HSET", store.connection.keys[0].key("meta"), "format", "99")
        async with store_at(valkey_url, namespace) as other:
            with pytest.raises(StoreMismatch, match=f"data of format 99, this release works with format {FORMAT}"):
                await submit(other)

    async def test_two_that_start_at_once_with_different_partitions(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as one, store_at(valkey_url, namespace, partitions=2) as two:
            answers = await asyncio.gather(submit(one), submit(two), return_exceptions=True)
            assert sum(isinstance(answer, StoreMismatch) for answer in answers) == 1


class TestItems:
    async def test_a_bad_item_of_one_caller_fails_no_other(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            good = [new_job() for _ in range(3)]
            bad = [new_job(input=b"\xff"), new_job(task="\ud800"), new_job(delay_ms=1 << 70)]
            answers = await asyncio.gather(
                *(store.submit([job]) for pair in zip(good, bad, strict=True) for job in pair)
            )
            assert all(isinstance(answer, Submitted) for (answer,) in answers[::2])
            assert all(isinstance(answer, Exception) for (answer,) in answers[1::2])
            jobs = (await claim(store, limit=5)).jobs
            assert [job.token.job_id for job in jobs] == [job.id for job in good]
            settles = [Settle(token=jobs[0].token, verb=Verb.COMPLETE, value=b"\xff")]
            settles += [Settle(token=job.token, verb=Verb.COMPLETE, value=b"1") for job in jobs]
            codes = await asyncio.gather(*(store.settle([item]) for item in settles))
            assert isinstance(codes[0][0], UnicodeError)
            assert all(isinstance(code, Settled) and code.state is State.COMPLETED for (code,) in codes[1:])

    async def test_all_bad(self, valkey_url: str, namespace: str) -> None:
        async with store_at(valkey_url, namespace) as store:
            answers = await store.submit([new_job(input=b"\xff")])
            assert isinstance(answers[0], UnicodeError)
            assert await store.submit([]) == []
            assert await store.settle([]) == []

    async def test_an_item_error_is_an_error_of_the_store(self) -> None:
        assert issubclass(ItemError, StoreError)


async def until_quiet() -> None:
    """Let all that can go on do so: here nothing waits for anything but the loop's next steps."""
    for _ in range(20):
        await asyncio.sleep(0)


class TestGroup:
    """Callers share calls: fairly, in order, within bounds, and no one's trouble is another's."""

    def group(self, *, weight: int = 1, ahead: int = 1) -> tuple[Group[Any, Any], list[list[Any]], asyncio.Event]:
        calls: list[list[Any]] = []
        gate = asyncio.Event()

        async def call(items: Sequence[Any]) -> list[Any]:
            calls.append(list(items))
            await gate.wait()
            await asyncio.sleep(0)
            if "bad" in items:
                raise StoreUnavailable("down")
            return [f"answer {item}" for item in items]

        return Group(call, lambda item: weight, ahead=ahead), calls, gate

    async def test_each_caller_gets_its_own_answers_in_order(self) -> None:
        group, calls, gate = self.group()
        gate.set()
        callers = [[f"{caller}.{number}" for number in range(caller * 37)] for caller in range(12)]
        answers = await asyncio.gather(*(group.add(items) for items in callers))
        assert answers == [[f"answer {item}" for item in items] for items in callers]
        assert max(len(call) for call in calls) == SCRIPT_ITEMS
        assert sum(len(call) for call in calls) == sum(len(items) for items in callers)

    async def test_one_item_does_not_wait_for_ten_thousand(self) -> None:
        group, calls, gate = self.group()
        big = await begun(group.add([*range(10_000)]))
        small = asyncio.create_task(group.add(["small"]))
        gate.set()
        assert await small == ["answer small"]
        assert not big.done()
        assert "small" in calls[1]
        assert len(await big) == 10_000

    async def test_bytes_are_bounded_and_a_giant_goes_alone(self) -> None:
        group, calls, gate = self.group(weight=SCRIPT_BYTES // 3)
        gate.set()
        assert len(await group.add([*range(10)])) == 10
        assert [len(call) for call in calls] == [3, 3, 3, 1]
        giants, giant_calls, gate = self.group(weight=SCRIPT_BYTES * 2)
        gate.set()
        await giants.add([1, 2])
        assert giant_calls == [[1], [2]]

    async def test_an_error_reaches_those_of_the_call_only(self) -> None:
        group, _, gate = self.group()
        bad = await begun(group.add(["bad"]))
        good = await begun(group.add(["good"]))
        gate.set()
        assert isinstance((await bad)[0], StoreUnavailable)
        assert await good == ["answer good"]

    async def test_a_cancelled_caller_harms_no_other_and_sends_no_more(self) -> None:
        group, calls, gate = self.group()
        big = await begun(group.add([*range(1_000)]))
        small = await begun(group.add(["small"]))
        big.cancel()
        await asyncio.wait({big})
        gate.set()
        assert await small == ["answer small"]
        assert sum(len(call) for call in calls) == SCRIPT_ITEMS + 1
        assert not group._waiting

    async def test_a_call_that_is_cut_off_leaves_nobody_waiting(self) -> None:
        group, _, gate = self.group()
        first = await begun(group.add([*range(500)]))
        second = await begun(group.add(["second"]))
        (sender,) = group._senders
        sender.cancel()
        for answer in await asyncio.gather(first, second, return_exceptions=True):
            assert isinstance(answer, StoreUnavailable)
        gate.set()
        assert await group.add(["third"]) == ["answer third"]

    async def test_full_calls_leave_while_others_are_away_and_in_order(self) -> None:
        group, calls, gate = self.group(ahead=3)
        items = [*range(SCRIPT_ITEMS * 5 + 1)]
        big = asyncio.create_task(group.add(items))
        await until_quiet()
        assert [len(call) for call in calls] == [SCRIPT_ITEMS] * 3
        gate.set()
        assert await big == [f"answer {item}" for item in items]
        assert [item for call in calls for item in call] == items
        assert [len(call) for call in calls] == [SCRIPT_ITEMS] * 5 + [1]

    async def test_what_fills_no_call_waits_for_the_one_away(self) -> None:
        group, calls, gate = self.group(ahead=3)
        callers = [asyncio.create_task(group.add(["first"]))]
        await until_quiet()
        callers += [await begun(group.add([number])) for number in range(SCRIPT_ITEMS - 1)]
        await until_quiet()
        assert calls == [["first"]]
        callers.append(asyncio.create_task(group.add(["last"])))
        await until_quiet()
        assert [len(call) for call in calls] == [1, SCRIPT_ITEMS]
        gate.set()
        await asyncio.gather(*callers)
        assert not group._unsent

    async def test_answers_that_come_in_another_order_find_their_items(self) -> None:
        gates = [asyncio.Event() for _ in range(3)]
        begun: list[int] = []

        async def call(items: Sequence[int]) -> list[int]:
            begun.append(items[0])
            await gates[len(begun) - 1].wait()
            return [-item for item in items]

        group: Group[int, int] = Group(call, lambda item: 1, ahead=3)
        items = [*range(SCRIPT_ITEMS * 3)]
        answers = asyncio.create_task(group.add(items))
        await until_quiet()
        for gate in reversed(gates):
            gate.set()
            await until_quiet()
        assert await answers == [-item for item in items]

    @pytest.mark.parametrize("ahead", [1, 3])
    async def test_a_caller_whose_call_failed_sends_no_more(self, ahead: int) -> None:
        group, calls, gate = self.group(ahead=ahead)
        big = asyncio.create_task(group.add(["bad", *range(SCRIPT_ITEMS * 10 - 1)]))
        await until_quiet()
        small = asyncio.create_task(group.add(["small"]))
        await until_quiet()
        gate.set()
        answers = await big
        assert await small == ["answer small"]
        assert sum(len(call) for call in calls) == SCRIPT_ITEMS * ahead + 1
        kept = (ahead - 1) * SCRIPT_ITEMS
        assert sum(isinstance(answer, StoreUnavailable) for answer in answers) == SCRIPT_ITEMS * 10 - kept
        assert not group._unsent
        assert not group._waiting
        assert await group.add(["again"]) == ["answer again"]

    @pytest.mark.parametrize("ahead", [1, 3])
    async def test_of_a_cancelled_caller_whose_call_fails_nothing_is_counted_twice(self, ahead: int) -> None:
        group, _, gate = self.group(ahead=ahead)
        big = asyncio.create_task(group.add(["bad", *range(SCRIPT_ITEMS * 10 - 1)]))
        await until_quiet()
        big.cancel()
        callers = [asyncio.create_task(group.add([number])) for number in range(SCRIPT_ITEMS)]
        await until_quiet()
        gate.set()
        assert all(not isinstance(answer, Exception) for (answer,) in await asyncio.gather(*callers))
        assert not group._unsent
        assert await group.add(["again"]) == ["answer again"]

    async def test_too_few_answers_are_an_error_and_no_hang(self) -> None:
        async def call(items: Sequence[int]) -> list[int]:
            return list(items[1:])

        group: Group[int, int] = Group(call, lambda item: 1)
        assert all(isinstance(answer, StoreError) for answer in await group.add([1, 2, 3]))
