"""A sweep of so many queues that a call looks at a share of them only (Redis only)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from penstock.core.ids import JobId
from penstock.core.job import Pruned, Verb
from penstock.core.limits import DAY_MS, Limits
from tests.conformance.subject import Subject, redis_subject
from tests.conformance.test_damaged import Damage

QUEUES = 5_000


@pytest.fixture
async def subject(valkey_url: str, namespace: str) -> AsyncIterator[Subject]:
    """Return a store that knows thousands of queues."""
    async with redis_subject(valkey_url, namespace, 1, Limits(finished_jobs=4, dead_letters=4)) as one:
        damage = Damage(one)
        names = [f"queue-{number}" for number in range(QUEUES)]
        await damage.connection.command("SADD", damage.keys.key("queues"), *names)
        yield one


async def end(subject: Subject, verb: Verb) -> list[JobId]:
    """End fifteen jobs, of which four may stay."""
    tokens = [await subject.running(queue="busy") for _ in range(15)]
    for token in tokens:
        await subject.settle(token, verb, value=b"1" if verb is Verb.COMPLETE else b"")
    return [token.job_id for token in tokens]


async def hints(subject: Subject, count: int, at_ms: int) -> None:
    """Name jobs of other queues to be removed at a time."""
    damage = Damage(subject)
    entries = [text for _ in range(count) for text in (str(at_ms), subject.new().id)]
    await damage.connection.command("ZADD", damage.keys.key("expire"), *entries)


@pytest.mark.parametrize("verb", [Verb.COMPLETE, Verb.FAIL])
async def test_the_one_that_holds_the_jobs_keeps_to_its_cap_redis(subject: Subject, verb: Verb) -> None:
    ids = await end(subject, verb)
    assert await subject.store.prune(0) == Pruned(capped=11)
    assert [await subject.store.get(job_id) is not None for job_id in ids] == [False] * 11 + [True] * 4
    assert await subject.audit() == []


async def test_it_does_where_most_jobs_of_others_are_kept_for_longer_redis(subject: Subject) -> None:
    await end(subject, Verb.COMPLETE)
    await hints(subject, 5_000, subject.now_ms + 100 * DAY_MS)
    assert await subject.store.prune(0) == Pruned(capped=11)


async def test_it_does_where_jobs_of_others_go_first_redis(subject: Subject) -> None:
    await end(subject, Verb.FAIL)
    await hints(subject, 10, subject.now_ms + 1)
    assert await subject.store.prune(0) == Pruned(capped=11)


async def test_a_damaged_job_or_key_stops_no_sweep_redis(subject: Subject) -> None:
    ids = await end(subject, Verb.COMPLETE)
    damage = Damage(subject)
    await damage.connection.command("SET", damage.keys.key("job", ids[-1]), "1")
    assert await subject.store.prune(0) == Pruned(capped=11)
    await damage.connection.command("SET", damage.keys.key("expire"), "not a sorted set")
    assert await subject.store.prune(0) == Pruned()
