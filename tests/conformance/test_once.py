"""Submit once: idempotency keys that share the job's partition, and keys that live in another one."""

from __future__ import annotations

import pytest

from penstock.core.errors import KeyReused
from penstock.core.ids import home_of_digest
from penstock.core.job import Idempotency, Submitted
from penstock.core.states import State
from penstock.store.redis.codec import pack
from penstock.store.redis.store import RedisStore
from tests.conformance.conftest import MakeSubject
from tests.conformance.subject import START_MS

KEEP_MS = 60_000
#: The digest of a key whose home is 1; a job of home 0 lives in another partition wherever there are two.
KEY = "001" + "0" * 29


def once(fingerprint: str = "aa", key: str = KEY, keep_ms: int = KEEP_MS) -> Idempotency:
    return Idempotency(key=key, fingerprint=fingerprint, keep_ms=keep_ms)


#: (partitions, home of the job): in one script, in one script of the second partition, and in two partitions.
PLACES = pytest.mark.parametrize(("partitions", "home"), [(1, 0), (2, 1), (2, 0), (8, 5)])


@pytest.mark.every_server
@PLACES
async def test_the_same_again_gets_the_first_answer(make_subject: MakeSubject, partitions: int, home: int) -> None:
    subject = await make_subject(partitions)
    job = subject.new(home=home, idempotency=once(), delay_ms=5_000, expires_in_ms=9_000)
    (first,) = await subject.store.submit([job])
    expected = Submitted(
        id=job.id,
        state=State.SCHEDULED,
        created=True,
        created_at_ms=START_MS,
        run_at_ms=START_MS + 5_000,
        expires_at_ms=START_MS + 9_000,
    )
    assert first == expected
    await subject.advance(1_000)
    await subject.store.cancel([job.id])
    again = subject.new(home=home, idempotency=once(), delay_ms=5_000, expires_in_ms=9_000)
    (answer,) = await subject.store.submit([again])
    assert isinstance(answer, Submitted)
    assert answer.replayed
    assert not answer.created
    assert (answer.id, answer.state, answer.created_at_ms) == (job.id, State.SCHEDULED, START_MS)
    assert (answer.run_at_ms, answer.expires_at_ms) == (START_MS + 5_000, START_MS + 9_000)
    assert await subject.store.get(again.id) is None
    assert await subject.count("submitted") == 1


@PLACES
async def test_a_job_that_is_gone_is_not_made_again(make_subject: MakeSubject, partitions: int, home: int) -> None:
    subject = await make_subject(partitions)
    job = subject.new(home=home, idempotency=once())
    await subject.store.submit([job])
    await subject.store.cancel([job.id])
    await subject.store.delete([job.id])
    (answer,) = await subject.store.submit([subject.new(home=home, idempotency=once())])
    assert isinstance(answer, Submitted)
    assert (answer.id, answer.state, answer.replayed) == (job.id, State.QUEUED, True)
    assert await subject.store.get(job.id) is None


@PLACES
async def test_another_body_is_refused(make_subject: MakeSubject, partitions: int, home: int) -> None:
    subject = await make_subject(partitions)
    job = subject.new(home=home, idempotency=once("aa"))
    other = subject.new(home=home, idempotency=once("bb"))
    plain = subject.new(home=home)
    answers = await subject.store.submit([job, other, plain])
    assert [isinstance(answer, Submitted) for answer in answers] == [True, False, True]
    assert isinstance(answers[1], KeyReused)
    assert answers[1].job_id == job.id
    assert await subject.store.get(other.id) is None


@PLACES
async def test_a_key_is_forgotten_after_its_time(make_subject: MakeSubject, partitions: int, home: int) -> None:
    subject = await make_subject(partitions)
    await subject.store.submit([subject.new(home=home, idempotency=once("aa"))])
    await subject.advance(KEEP_MS - 1)
    (refused,) = await subject.store.submit([subject.new(home=home, idempotency=once("bb"))])
    assert isinstance(refused, KeyReused)
    await subject.advance(1)
    job = subject.new(home=home, idempotency=once("bb"))
    (answer,) = await subject.store.submit([job])
    assert isinstance(answer, Submitted)
    assert (answer.id, answer.created, answer.replayed) == (job.id, True, False)


@PLACES
async def test_repeats_within_one_call_make_one_job(make_subject: MakeSubject, partitions: int, home: int) -> None:
    subject = await make_subject(partitions)
    jobs = [subject.new(home=home, idempotency=once()) for _ in range(5)]
    answers = await subject.store.submit(jobs)
    assert {answer.id for answer in answers if isinstance(answer, Submitted)} == {jobs[0].id}
    assert [answer.replayed for answer in answers if isinstance(answer, Submitted)] == [False, True, True, True, True]
    assert await subject.count("submitted") == 1


@PLACES
async def test_a_refused_job_leaves_its_key_free(make_subject: MakeSubject, partitions: int, home: int) -> None:
    subject = await make_subject(partitions)
    (refused,) = await subject.store.submit([subject.new(home=home, input=b"\xff", idempotency=once("aa"))])
    assert isinstance(refused, UnicodeDecodeError)
    job = subject.new(home=home, idempotency=once("bb"))
    (answer,) = await subject.store.submit([job])
    assert isinstance(answer, Submitted)
    assert answer.created


@pytest.mark.redis_only("in memory nothing can stop in between")
async def test_a_key_whose_submitter_died_submits_under_the_first_id(make_subject: MakeSubject) -> None:
    subject = await make_subject(2)
    assert isinstance(subject.store, RedisStore)
    dead = subject.new(home=0, idempotency=once())
    assert home_of_digest(KEY) == 1
    # All that a process leaves that dies between its two calls.
    await subject.store.connection.script("reserve", 1, pack([[KEY, "aa", KEEP_MS, dead.id]]))
    (refused,) = await subject.store.submit([subject.new(home=0, idempotency=once("bb"))])
    assert isinstance(refused, KeyReused)
    (healed,) = await subject.store.submit([subject.new(home=0, idempotency=once())])
    assert isinstance(healed, Submitted)
    assert (healed.id, healed.created, healed.replayed) == (dead.id, True, False)
    (again,) = await subject.store.submit([subject.new(home=0, idempotency=once())])
    assert isinstance(again, Submitted)
    assert (again.id, again.replayed) == (dead.id, True)
    assert await subject.count("submitted") == 1


@pytest.mark.redis_only("in memory nothing can stop in between")
async def test_an_answer_lost_before_it_was_remembered_is_found_by_the_id(make_subject: MakeSubject) -> None:
    subject = await make_subject(2)
    assert isinstance(subject.store, RedisStore)
    dead = subject.new(home=0)
    await subject.store.connection.script("reserve", 1, pack([[KEY, "aa", KEEP_MS, dead.id]]))
    await subject.store.submit([dead])
    (again,) = await subject.store.submit([subject.new(home=0, idempotency=once())])
    assert isinstance(again, Submitted)
    assert (again.id, again.created, again.replayed) == (dead.id, False, True)
    assert await subject.count("submitted") == 1


@pytest.mark.redis_only("in memory nothing can stop in between")
async def test_a_late_answer_takes_no_key_from_another(make_subject: MakeSubject) -> None:
    subject = await make_subject(2)
    assert isinstance(subject.store, RedisStore)
    late, job = subject.new(home=0), subject.new(home=0)
    script = subject.store.connection.script
    await script("reserve", 1, pack([[KEY, "aa", 1_000, late.id]]))
    await subject.advance(1_000)
    await script("reserve", 1, pack([[KEY, "aa", KEEP_MS, job.id]]))
    await script("confirm", 1, pack([[KEY, late.id, "", "", "", ""]]))
    (answer,) = await subject.store.submit([subject.new(home=0, idempotency=once())])
    assert isinstance(answer, Submitted)
    assert answer.id == job.id


async def test_keys_go_from_memory(make_subject: MakeSubject) -> None:
    subject = await make_subject(1)
    await subject.store.submit([subject.new(idempotency=once(keep_ms=1_000))])
    if isinstance(subject.store, RedisStore):
        keys = subject.store.connection.keys[0]
        assert 0 < await subject.store.connection.command("PTTL", keys.key("idem", KEY)) <= 1_000
    else:
        await subject.advance(1_000)
        await subject.store.prune(0)
        assert subject.store._parts[0].once == {}  # type: ignore[attr-defined]


@pytest.mark.redis_only("in memory nothing can stop in between")
async def test_a_refusal_forgets_no_key_that_another_came_with_meanwhile(make_subject: MakeSubject) -> None:
    subject = await make_subject(2)
    assert isinstance(subject.store, RedisStore)
    script = subject.store.connection.script
    first, second = subject.new(home=0), subject.new(home=0)
    await script("reserve", 1, pack([[KEY, "aa", KEEP_MS, first.id]]))
    assert await script("reserve", 1, pack([[KEY, "aa", KEEP_MS, second.id]])) == [[b"reserved", first.id.encode()]]
    # The first was refused; the second is told the same id, and finds room.
    await script("confirm", 1, pack([[KEY, first.id, "", 0, "", "", first.id, 0]]))
    await subject.store.submit([first])
    (third,) = await subject.store.submit([subject.new(home=0, idempotency=once())])
    assert isinstance(third, Submitted)
    assert (third.id, third.replayed) == (first.id, True)
    assert await subject.count("submitted") == 1
    await subject.store.cancel([first.id])
    await subject.store.delete([first.id])
    (fourth,) = await subject.store.submit([subject.new(home=0, idempotency=once())])
    assert isinstance(fourth, Submitted)
    assert (fourth.id, fourth.replayed) == (first.id, True)


@pytest.mark.redis_only("in memory nothing can stop in between")
async def test_a_key_reserved_twice_by_the_same_submit_is_free_after_its_refusal(make_subject: MakeSubject) -> None:
    subject = await make_subject(2)
    assert isinstance(subject.store, RedisStore)
    script = subject.store.connection.script
    refused = subject.new(home=0)
    for _ in range(2):
        await script("reserve", 1, pack([[KEY, "aa", KEEP_MS, refused.id]]))
    await script("confirm", 1, pack([[KEY, refused.id, "", 0, "", "", refused.id, 0]]))
    job = subject.new(home=0, idempotency=once("bb"))
    (answer,) = await subject.store.submit([job])
    assert isinstance(answer, Submitted)
    assert (answer.id, answer.created) == (job.id, True)


async def test_a_repeat_lists_no_other_queue(make_subject: MakeSubject) -> None:
    # The key belongs to another partition than the jobs, so that the second goes out under the id of the first.
    subject = await make_subject(2)
    jobs = [subject.new(home=0, queue=queue, idempotency=once()) for queue in ("a", "b")]
    answers = await subject.store.submit(jobs)
    assert [answer.id for answer in answers if isinstance(answer, Submitted)] == [jobs[0].id] * 2
    assert [queue.name for queue in await subject.store.queues()] == ["a"]
