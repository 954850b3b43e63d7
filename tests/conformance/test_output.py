"""What running attempts log and stream: fenced by the token, bounded, kept as long as the job, and followed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from penstock.core.errors import StoreUnavailable
from penstock.core.ids import JobId, Token
from penstock.core.job import Extension, Verb
from penstock.core.limits import Limits
from penstock.core.output import Followed, NewEntry, Output, OutputCode, OutputKind
from penstock.core.states import State
from penstock.store.memory import MemoryStore
from penstock.store.redis.store import RedisStore
from tests.conformance.conftest import MakeSubject
from tests.conformance.subject import START_MS, WORKER, Subject

LONG_MS = 60_000


def line(text: str) -> NewEntry:
    return NewEntry(kind=OutputKind.LOG, value=f'"{text}"'.encode())


def chunk(text: str) -> NewEntry:
    return NewEntry(kind=OutputKind.STREAM, value=f'"{text}"'.encode())


async def write(subject: Subject, token: Token, *entries: NewEntry, made: int = 0, **fields: int) -> OutputCode:
    """Store the output of one attempt."""
    (answer,) = await subject.store.output([Output(token=token, made=made, entries=entries, **fields)])
    assert isinstance(answer, OutputCode)
    return answer


async def look(subject: Subject, job_id: JobId, **fields: object) -> Followed:
    """Return a job's output without waiting."""
    found = await subject.store.follow(job_id, **fields)  # type: ignore[arg-type]
    assert found is not None
    return found


def texts(found: Followed, kind: OutputKind | None = None) -> list[str]:
    return [entry.value.decode().strip('"') for entry in found.entries if kind in (None, entry.kind)]


async def test_lines_and_chunks_are_kept_in_order(subject: Subject) -> None:
    token = await subject.running()
    assert await write(subject, token, line("a"), chunk("b"), line("c")) is OutputCode.DONE
    await subject.advance(50)
    assert await write(subject, token, chunk("d"), made=3) is OutputCode.DONE
    found = await look(subject, token.job_id)
    assert texts(found) == ["a", "b", "c", "d"]
    assert [(entry.kind.value, entry.position, entry.order) for entry in found.entries] == [
        ("log", 1, 1),
        ("stream", 1, 2),
        ("log", 2, 3),
        ("stream", 2, 4),
    ]
    assert [entry.at_ms for entry in found.entries] == [START_MS, START_MS, START_MS, START_MS + 50]
    assert {entry.attempt for entry in found.entries} == {1}
    assert (found.log_dropped, found.stream_dropped, found.more) == (0, 0, False)


@pytest.mark.parametrize("change", [{"nonce": "wrong"}, {"attempt": 0}, {"attempt": 2}])
@pytest.mark.parametrize("entry", [line("x"), chunk("x")], ids=["log", "stream"])
async def test_a_stale_token_writes_nothing(subject: Subject, entry: NewEntry, change: dict[str, object]) -> None:
    token = await subject.running()
    before = await look(subject, token.job_id)
    wrong = msgspec.structs.replace(token, **change)
    assert await write(subject, wrong, entry) is OutputCode.STALE
    assert await look(subject, token.job_id) == before
    assert await write(subject, token, entry) is OutputCode.DONE


@pytest.mark.parametrize("verb", [Verb.COMPLETE, Verb.RETRY, Verb.FAIL, Verb.RELEASE, Verb.SNOOZE])
async def test_a_settled_attempt_writes_nothing(subject: Subject, verb: Verb) -> None:
    token = await subject.running()
    await write(subject, token, line("before"))
    await subject.settle(token, verb, value=b"1" if verb is Verb.COMPLETE else b"")
    assert await write(subject, token, line("after"), chunk("after"), made=1) is OutputCode.STALE
    assert texts(await look(subject, token.job_id)) == ["before"]


async def test_a_worker_that_lost_its_lease_writes_nothing(subject: Subject) -> None:
    await subject.steady_reaps(20_000)
    token = await subject.running()
    await subject.steady_reaps(14_000)
    await subject.advance(1_001)
    assert (await subject.store.reap(0)).requeued == (token.job_id,)
    holder = (await subject.claim_one()).token
    assert await write(subject, token, line("zombie"), chunk("zombie")) is OutputCode.STALE
    assert await write(subject, holder, line("holder"), chunk("holder")) is OutputCode.DONE
    assert texts(await look(subject, token.job_id)) == ["holder", "holder"]


async def test_a_job_that_is_not_there(subject: Subject) -> None:
    gone = Token(subject.new().id, 1, "n")
    assert await write(subject, gone, line("x")) is OutputCode.STALE
    assert await subject.store.follow(gone.job_id) is None
    assert await subject.store.follow(gone.job_id, timeout_ms=LONG_MS) is None


async def test_items_stand_for_themselves(subject: Subject) -> None:
    first, second = await subject.running(), await subject.running()
    items = [
        Output(token=first, made=0, entries=(line("1"),)),
        Output(token=msgspec.structs.replace(first, nonce="wrong"), made=1, entries=(line("2"),)),
        Output(token=second, made=0, entries=(NewEntry(kind=OutputKind.LOG, value=b"\xff"),)),
        Output(token=second, made=0, entries=(line("3"),)),
    ]
    answers = await subject.store.output(items)
    assert answers[:2] == [OutputCode.DONE, OutputCode.STALE]
    assert isinstance(answers[2], UnicodeError)
    assert answers[3] is OutputCode.DONE
    assert texts(await look(subject, first.job_id)) == ["1"]
    assert texts(await look(subject, second.job_id)) == ["3"]


async def test_a_repeat_stores_nothing_twice(subject: Subject) -> None:
    token = await subject.running()
    await write(subject, token, line("a"), chunk("b"))
    await write(subject, token, line("a"), chunk("b"))
    # Its answer was lost, and more has come meanwhile.
    await write(subject, token, chunk("b"), line("c"), made=1)
    found = await look(subject, token.job_id)
    assert texts(found) == ["a", "b", "c"]
    assert [entry.position for entry in found.entries] == [1, 1, 2]


async def test_what_the_worker_dropped_is_counted_once(subject: Subject) -> None:
    token = await subject.running()
    await write(subject, token, line("a"))
    for _ in range(2):
        await write(subject, token, line("e"), made=6, dropped_lines=3, dropped_chunks=2)
    found = await look(subject, token.job_id)
    assert texts(found) == ["a", "e"]
    assert (found.log_dropped, found.stream_dropped) == (3, 2)
    assert (await subject.count("log_dropped"), await subject.count("stream_dropped")) == (3, 2)


async def test_each_attempt_numbers_its_own(subject: Subject) -> None:
    token = await subject.running()
    await write(subject, token, chunk("first"), line("one"))
    await subject.settle(token, Verb.RETRY, value=b"")
    await subject.store.promote(0)
    again = (await subject.claim_one()).token
    await write(subject, again, chunk("second"))
    found = await look(subject, token.job_id)
    assert [(entry.attempt, entry.value) for entry in found.entries if entry.kind is OutputKind.STREAM] == [
        (1, b'"first"'),
        (2, b'"second"'),
    ]
    assert (found.attempt, found.state) == (2, State.RUNNING)


async def test_a_redrive_keeps_what_was_written(subject: Subject) -> None:
    token = await subject.running()
    await write(subject, token, line("a"))
    await subject.settle(token, Verb.FAIL, value=b"")
    await subject.store.redrive([token.job_id])
    again = (await subject.claim_one()).token
    await write(subject, again, line("b"))
    await subject.settle(again, Verb.COMPLETE, value=b"1")
    assert [(entry.attempt, entry.value) for entry in (await look(subject, token.job_id)).entries] == [
        (1, b'"a"'),
        (2, b'"b"'),
    ]


class TestCaps:
    async def test_the_newest_lines_stay(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(log_lines=3, stream_chunks=2))
        token = await subject.running()
        await write(subject, token, *(line(str(number)) for number in range(5)), chunk("x"))
        await write(subject, token, chunk("y"), chunk("z"), made=6)
        found = await look(subject, token.job_id)
        assert texts(found, OutputKind.LOG) == ["2", "3", "4"]
        assert texts(found, OutputKind.STREAM) == ["y", "z"]
        assert [entry.position for entry in found.entries if entry.kind is OutputKind.LOG] == [3, 4, 5]
        assert (found.log_dropped, found.stream_dropped) == (2, 1)
        assert (await subject.count("log_dropped"), await subject.count("stream_dropped")) == (2, 1)

    @pytest.mark.parametrize("kind", OutputKind)
    async def test_bytes_are_bounded_to_the_byte(self, make_subject: MakeSubject, kind: OutputKind) -> None:
        # One entry: "1|1800000000000|1|" and the value.
        entry = NewEntry(kind=kind, value=b'"' + b"v" * 20 + b'"')
        size = len("1|1800000000000|1|") + 22
        for bound, kept in ((3 * size, 3), (3 * size - 1, 2)):
            subject = await make_subject(1, Limits(log_bytes=bound, stream_bytes=bound))
            token = await subject.running()
            for made in range(5):
                await write(subject, token, entry, made=made)
            found = await look(subject, token.job_id)
            assert [one.position for one in found.entries] == list(range(6 - kept, 6))
            assert found.log_dropped + found.stream_dropped == 5 - kept

    async def test_an_entry_above_the_cap_is_counted(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(log_bytes=40))
        token = await subject.running()
        await write(subject, token, line("a"), line("b" * 100))
        found = await look(subject, token.job_id)
        assert (texts(found), found.log_dropped) == ([], 2)
        await write(subject, token, line("c"), made=2)
        assert texts(await look(subject, token.job_id)) == ["c"]

    async def test_a_thousand_lines_by_default(self, subject: Subject) -> None:
        token = await subject.running()
        for made in range(0, 1_200, 400):
            await write(subject, token, *(line(str(made + number)) for number in range(400)), made=made)
        found = await look(subject, token.job_id, limit=2_000)
        assert texts(found) == [str(number) for number in range(200, 1_200)]
        assert found.log_dropped == 200

    def test_too_much_at_once(self) -> None:
        with pytest.raises(ValueError, match="at most 500"):
            Output(token=Token(JobId("x"), 1, "n"), made=0, entries=(line("x"),) * 501)


class TestPages:
    async def test_positions_and_limits(self, subject: Subject) -> None:
        token = await subject.running()
        entries = [line(f"l{number}") if number % 3 else chunk(f"s{number}") for number in range(10)]
        await write(subject, token, *entries)
        seen: list[str] = []
        log = stream = 0
        more = True
        while more:
            found = await look(subject, token.job_id, log_after=log, stream_after=stream, limit=3)
            assert len(found.entries) <= 3
            seen += texts(found)
            for entry in found.entries:
                if entry.kind is OutputKind.LOG:
                    log = entry.position
                else:
                    stream = entry.position
            more = found.more
        assert seen == [entry.value.decode().strip('"') for entry in entries]

    async def test_one_kind_alone(self, subject: Subject) -> None:
        token = await subject.running()
        await write(subject, token, line("a"), chunk("b"))
        assert texts(await look(subject, token.job_id, stream_after=None)) == ["a"]
        assert texts(await look(subject, token.job_id, log_after=None)) == ["b"]
        assert texts(await look(subject, token.job_id, log_after=1)) == ["b"]

    async def test_a_position_beyond_the_end_hides_nothing(self, subject: Subject) -> None:
        token = await subject.running()
        await write(subject, token, line("a"), chunk("b"))
        assert texts(await look(subject, token.job_id, log_after=1, stream_after=1)) == []
        assert texts(await look(subject, token.job_id, log_after=2, stream_after=9)) == ["a", "b"]

    async def test_a_position_before_what_is_kept(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(log_lines=2))
        token = await subject.running()
        await write(subject, token, *(line(str(number)) for number in range(5)))
        found = await look(subject, token.job_id, log_after=1)
        assert [(entry.position, entry.value) for entry in found.entries] == [(4, b'"3"'), (5, b'"4"')]


class TestRemoval:
    """What was written goes with its job, in one step; the audit at the end finds no orphan."""

    async def keys(self, subject: Subject) -> Sequence[str]:
        if isinstance(subject.store, MemoryStore):
            return [job_id for part in subject.store._parts for job_id in part.jobs]
        assert isinstance(subject.store, RedisStore)
        prefix = subject.store.connection.keys[0].prefix
        return [name.decode() for name in await subject.store.connection.command("KEYS", f"{prefix}job:*")]

    async def test_delete(self, subject: Subject) -> None:
        token = await subject.running()
        await write(subject, token, line("a"), chunk("b"))
        await subject.settle(token, Verb.COMPLETE, value=b"1")
        assert texts(await look(subject, token.job_id)) == ["a", "b"]
        await subject.store.delete([token.job_id])
        assert await self.keys(subject) == []

    async def test_prune(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(retention_ms=1_000))
        token = await subject.running()
        await write(subject, token, line("a"), chunk("b"))
        await subject.settle(token, Verb.COMPLETE, value=b"1")
        await subject.advance(999)
        await subject.store.prune(0)
        assert texts(await look(subject, token.job_id)) == ["a", "b"]
        await subject.advance(1)
        await subject.store.prune(0)
        assert await self.keys(subject) == []

    async def test_caps(self, make_subject: MakeSubject) -> None:
        subject = await make_subject(1, Limits(dead_letters=1))
        for _ in range(2):
            token = await subject.running()
            await write(subject, token, line("a"), chunk("b"))
            await subject.settle(token, Verb.FAIL, value=b"")
            await subject.advance(1)
        await subject.store.prune(0)
        kept = await self.keys(subject)
        assert {name.partition("job:")[2][:36] or name for name in kept} == {token.job_id}


class TestFollow:
    async def follow(self, subject: Subject, job_id: JobId, **fields: object) -> asyncio.Task[Followed | None]:
        """Follow from how the job stands now, and return once the call is under way."""
        now = await look(subject, job_id)
        at = {kind: max((e.position for e in now.entries if e.kind is kind), default=0) for kind in OutputKind}
        task = asyncio.create_task(
            subject.store.follow(
                job_id,
                log_after=at[OutputKind.LOG],
                stream_after=at[OutputKind.STREAM],
                rev=now.rev,
                timeout_ms=LONG_MS,
            )
        )
        await subject.store.ping()
        await subject.store.ping()
        return task

    async def told(self, task: asyncio.Task[Followed | None]) -> Followed:
        """Return what a follower was told, well before its own time is over: then it would look by itself."""
        async with asyncio.timeout(LONG_MS / 2_000):
            found = await task
        assert found is not None
        return found

    async def test_what_is_there_comes_at_once(self, subject: Subject) -> None:
        token = await subject.running()
        await write(subject, token, line("a"))
        now = await look(subject, token.job_id)
        found = await subject.store.follow(token.job_id, rev=now.rev, timeout_ms=LONG_MS)
        assert found == now

    async def test_another_revision_comes_at_once(self, subject: Subject) -> None:
        job_id = await subject.submit()
        assert await subject.store.follow(job_id, rev="other", timeout_ms=LONG_MS) == await look(subject, job_id)

    async def test_a_final_job_comes_at_once(self, subject: Subject) -> None:
        token = await subject.running()
        await subject.settle(token, Verb.COMPLETE, value=b"1")
        now = await look(subject, token.job_id)
        found = await subject.store.follow(token.job_id, rev=now.rev, timeout_ms=LONG_MS)
        assert found is not None
        assert found.state is State.COMPLETED

    async def test_output_is_told(self, subject: Subject) -> None:
        token = await subject.running()
        task = await self.follow(subject, token.job_id)
        await write(subject, token, chunk("a"))
        assert texts(await self.told(task)) == ["a"]

    async def test_all_followers_are_told_each_time(self, subject: Subject) -> None:
        token = await subject.running()
        for made, text in enumerate(("a", "b", "c")):
            tasks = [await self.follow(subject, token.job_id) for _ in range(3)]
            await write(subject, token, line(text), made=made)
            for task in tasks:
                assert texts(await self.told(task)) == [text]

    async def test_progress_is_told(self, subject: Subject) -> None:
        token = await subject.running()
        task = await self.follow(subject, token.job_id)
        await subject.store.extend(WORKER, [Extension(token=token, progress=b"7")], lease_ms=15_000)
        assert (await self.told(task)).progress == b"7"

    @pytest.mark.parametrize("verb", [Verb.COMPLETE, Verb.RETRY, Verb.FAIL, Verb.RELEASE, Verb.SNOOZE])
    async def test_the_end_of_an_attempt_is_told(self, subject: Subject, verb: Verb) -> None:
        token = await subject.running()
        task = await self.follow(subject, token.job_id)
        settled = await subject.settle(token, verb, value=b"1" if verb is Verb.COMPLETE else b"", delay_ms=60_000)
        assert (await self.told(task)).state is settled.state

    async def test_a_claim_is_told(self, subject: Subject) -> None:
        job_id = await subject.submit()
        task = await self.follow(subject, job_id)
        await subject.claim_one()
        found = await self.told(task)
        assert (found.state, found.attempt) == (State.RUNNING, 1)

    async def test_a_due_time_is_told(self, subject: Subject) -> None:
        job_id = await subject.submit(delay_ms=100)
        task = await self.follow(subject, job_id)
        await subject.advance(100)
        await subject.store.promote(0)
        assert (await self.told(task)).state is State.QUEUED

    async def test_a_request_to_cancel_is_told(self, subject: Subject) -> None:
        token = await subject.running()
        before = await look(subject, token.job_id)
        task = await self.follow(subject, token.job_id)
        await subject.store.cancel([token.job_id])
        found = await self.told(task)
        assert (found.state, found.mark != before.mark) == (State.RUNNING, True)

    async def test_a_lost_worker_is_told(self, subject: Subject) -> None:
        token = await subject.running()
        task = await self.follow(subject, token.job_id)
        await subject.store.release_worker(WORKER)
        assert (await self.told(task)).state is State.QUEUED

    async def test_who_waits_for_the_end_is_not_told_of_output(self, subject: Subject) -> None:
        token = await subject.running()
        end = asyncio.create_task(subject.store.wait_final(token.job_id, timeout_ms=LONG_MS))
        task = await self.follow(subject, token.job_id)
        await write(subject, token, line("a"))
        await self.told(task)
        assert not end.done()
        await subject.settle(token, Verb.COMPLETE, value=b"1")
        async with asyncio.timeout(LONG_MS / 2_000):
            assert await end is State.COMPLETED

    async def test_the_time_runs_out(self, subject: Subject) -> None:
        token = await subject.running()
        now = await look(subject, token.job_id)
        assert await subject.store.follow(token.job_id, rev=now.rev, timeout_ms=30) == now

    async def test_a_closed_store_ends_it(self, subject: Subject) -> None:
        token = await subject.running()
        task = await self.follow(subject, token.job_id)
        await subject.store.close()
        with pytest.raises(StoreUnavailable):
            await task
