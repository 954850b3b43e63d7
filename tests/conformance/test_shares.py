"""Weighted service: what share of the slots each queue and priority gets, and that the lowest still moves."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from penstock.core.job import PRIORITY_WEIGHTS, Claimed
from penstock.core.states import Priority
from tests.conformance.subject import OTHER_WORKER, WORKER, Subject

#: Spreads evenly over [0, 1), so that few claims show the shares that many random ones would.
STEP = 0.618_033_988_749_895
Shares = Counter[tuple[str, Priority]]


def draws(count: int) -> list[float]:
    return [number * STEP % 1 for number in range(count)]


def counted(claimed: Claimed) -> Shares:
    return Counter((job.queue, job.priority) for job in claimed.jobs)


async def endless(
    subject: Subject, limit: int, claims: int, *, load: dict[tuple[str, Priority], int], **fields: Any
) -> Shares:
    """Claim again and again while what was claimed is submitted anew; return what was claimed."""
    for (queue, priority), depth in load.items():
        await subject.submit_many(depth, queue=queue, priority=priority)
    taken: Shares = Counter()
    for draw in draws(claims):
        shares = counted(await subject.claim(limit, draw=draw, **fields))
        assert shares.total() == limit
        for (queue, priority), count in shares.items():
            await subject.submit_many(count, queue=queue, priority=priority)
        taken += shares
    return taken


@pytest.mark.parametrize(("limit", "claims"), [(1, 420), (10, 42)])
async def test_each_priority_gets_its_share_and_the_lowest_moves(subject: Subject, limit: int, claims: int) -> None:
    load = {("default", priority): 30 for priority in (Priority.HIGH, Priority.NORMAL, Priority.LOW)}
    taken = await endless(subject, limit, claims, load=load, priority_weights=PRIORITY_WEIGHTS)
    assert taken["default", Priority.HIGH] == pytest.approx(320, abs=4)
    assert taken["default", Priority.NORMAL] == pytest.approx(80, abs=4)
    assert taken["default", Priority.LOW] == pytest.approx(20, abs=4)


async def test_the_lowest_moves_when_only_high_ones_come(subject: Subject) -> None:
    load = {("default", Priority.HIGH): 1_000, ("default", Priority.LOW): 1}
    for (queue, priority), depth in load.items():
        await subject.submit_many(depth, queue=queue, priority=priority)
    waited = 0
    for draw in draws(100):
        waited += 1
        if counted(await subject.claim(1, priority_weights=PRIORITY_WEIGHTS, draw=draw))["default", Priority.LOW]:
            break
    # One in 17 claims falls on it.
    assert waited <= 34


async def test_strict_service_starves_the_lowest(subject: Subject) -> None:
    load = {("default", Priority.HIGH): 10, ("default", Priority.LOW): 10}
    assert await endless(subject, 2, 50, load=load) == {("default", Priority.HIGH): 100}


async def test_a_high_job_overtakes_a_thousand_within_a_few_claims(subject: Subject) -> None:
    await subject.submit_many(1_000)
    await subject.submit(priority=Priority.HIGH)
    for claims, draw in enumerate(reversed(draws(100)), start=1):  # noqa: B007 - told below
        if counted(await subject.claim(1, priority_weights=PRIORITY_WEIGHTS, draw=draw))["default", Priority.HIGH]:
            break
    # Four in five claims fall on it.
    assert claims <= 5


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
async def test_critical_jobs_go_first(subject: Subject, draw: float) -> None:
    for priority in Priority:
        await subject.submit_many(5, priority=priority)
    shares = counted(await subject.claim(5, priority_weights=PRIORITY_WEIGHTS, draw=draw))
    assert shares == {("default", Priority.CRITICAL): 5}


async def test_queues_share_by_weight_and_priority(subject: Subject) -> None:
    load = {(queue, priority): 30 for queue in ("a", "b") for priority in (Priority.NORMAL, Priority.LOW)}
    fields: dict[str, Any] = {"queues": ("a", "b"), "priority_weights": PRIORITY_WEIGHTS, "queue_weights": (3, 1)}
    taken = await endless(subject, 5, 80, load=load, **fields)
    assert taken["a", Priority.NORMAL] == pytest.approx(240, abs=4)
    assert taken["b", Priority.NORMAL] == pytest.approx(80, abs=4)
    assert taken["a", Priority.LOW] == pytest.approx(60, abs=4)
    assert taken["b", Priority.LOW] == pytest.approx(20, abs=4)


async def test_weights_of_queues_alone_leave_priorities_strict(subject: Subject) -> None:
    load = {(queue, priority): 30 for queue in ("a", "b") for priority in (Priority.HIGH, Priority.NORMAL)}
    taken = await endless(subject, 4, 25, load=load, queues=("a", "b"), queue_weights=(3, 1))
    assert taken == {("a", Priority.HIGH): 75, ("b", Priority.HIGH): 25}


@pytest.mark.parametrize("draw", [0.0, 0.3, 0.6, 0.999])
async def test_no_slot_stays_empty_while_jobs_wait(subject: Subject, draw: float) -> None:
    await subject.submit(priority=Priority.HIGH)
    await subject.submit_many(50)
    await subject.submit_many(50, priority=Priority.LOW)
    shares = counted(await subject.claim(10, priority_weights=PRIORITY_WEIGHTS, draw=draw))
    assert shares["default", Priority.HIGH] == 1
    # Nine are left over: 7.2 and 1.8.
    assert shares["default", Priority.NORMAL] in (7, 8)
    assert shares["default", Priority.LOW] in (1, 2)
    assert shares.total() == 10


async def test_what_others_must_run_leaves_its_share_to_the_rest(subject: Subject) -> None:
    await subject.announce("other")
    await subject.submit_many(10, task="other", priority=Priority.HIGH)
    await subject.submit_many(3)
    fields: dict[str, Any] = {"tasks": ("echo",), "priority_weights": PRIORITY_WEIGHTS}
    claimed = await subject.claim(2, draw=0.0, **fields)
    assert (len(claimed.jobs), claimed.skipped) == (2, 10)
    assert counted(await subject.claim(1, draw=0.0, **fields)) == {("default", Priority.NORMAL): 1}


async def test_a_paused_queue_gets_no_share(subject: Subject) -> None:
    await subject.submit_many(10, queue="a")
    await subject.submit_many(10, queue="b")
    await subject.store.pause("a")
    claimed = await subject.claim(4, worker=WORKER, queues=("a", "b"), priority_weights=PRIORITY_WEIGHTS)
    assert counted(claimed) == {("b", Priority.NORMAL): 4}


@pytest.mark.parametrize("weights", [None, PRIORITY_WEIGHTS])
async def test_a_queue_gives_no_more_than_its_limit(subject: Subject, weights: tuple[int, ...] | None) -> None:
    for priority in (Priority.CRITICAL, Priority.HIGH, Priority.LOW):
        await subject.submit_many(10, queue="slow", priority=priority)
    await subject.submit_many(3, queue="fast", priority=Priority.LOW)
    fields: dict[str, Any] = {"queues": ("slow", "fast"), "priority_weights": weights}
    claimed = await subject.claim(20, queue_limits=(12, 20), draw=0.5, **fields)
    queues = Counter(job.queue for job in claimed.jobs)
    assert queues == {"slow": 12, "fast": 3}
    assert counted(claimed)["slow", Priority.CRITICAL] == 10
    # There is more in a queue that this claimer has no room for.
    assert not claimed.remaining
    assert not (await subject.claim(20, queue_limits=(0, 20), **fields)).jobs
    again = await subject.claim(20, queue_limits=(1, 20), **fields)
    assert (len(again.jobs), again.remaining) == (1, False)
    assert (await subject.claim(1, **fields)).remaining


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
async def test_what_a_limit_holds_back_goes_to_other_queues_by_weight(subject: Subject, draw: float) -> None:
    for queue in ("slow", "a", "b"):
        await subject.submit_many(30, queue=queue)
    claimed = await subject.claim(
        14, queues=("slow", "a", "b"), queue_weights=(10, 3, 1), queue_limits=(2, 30, 30), draw=draw
    )
    assert Counter(job.queue for job in claimed.jobs) == {"slow": 2, "a": 9, "b": 3}


async def test_a_queue_at_its_limit_still_wakes_others(subject: Subject) -> None:
    await subject.submit_many(2, queue="slow")
    await subject.store.wait_work(WORKER, ("slow",), timeout_ms=1)
    assert len((await subject.claim(5, queues=("slow",), queue_limits=(1,))).jobs) == 1
    assert await subject.store.wait_work(OTHER_WORKER, ("slow",), timeout_ms=30_000) == {"queue:slow"}
