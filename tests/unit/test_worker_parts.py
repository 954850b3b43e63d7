"""Test the worker's pure parts."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from penstock.core.errors import StoreUnavailable, TaskError
from penstock.core.events import EVENTS
from penstock.core.ids import JobId, Token, WorkerName
from penstock.core.job import ClaimedJob, JobError, JobOptions, Settle, TaskInfo, Verb, WorkerInfo
from penstock.core.limits import Over, TaskDefaults
from penstock.core.outcome import (
    Cancelled,
    Discard,
    FailedAttempt,
    InvalidInput,
    Outcome,
    Released,
    Retry,
    Snooze,
    Snoozed,
    Succeeded,
)
from penstock.core.retry import DEFAULT_BACKOFF, Backoff
from penstock.core.states import AttemptOutcome, Priority, Reason
from penstock.handlers.binding import WholeInput
from penstock.handlers.registry import Executor, Task
from penstock.worker import backoff, outcomes
from penstock.worker.active import ActiveJob, Place
from penstock.worker.decide import Policy, decide, policy_of
from penstock.worker.fetcher import Ignored
from penstock.worker.health import WorkerHealth
from penstock.worker.loader import import_module
from penstock.worker.slots import Slots

TOKEN = Token(JobId("job"), 4, "nonce")
POLICY = Policy(max_attempts=3, backoff=Backoff(base_ms=100, jitter=True), timeout_ms=None)
FAILED, TIMED_OUT, LOST = AttemptOutcome.FAILED, AttemptOutcome.TIMED_OUT, AttemptOutcome.WORKER_LOST


@pytest.mark.parametrize(
    ("outcome", "counted", "settle"),
    [
        (Succeeded(result=b"1"), 2, Settle(token=TOKEN, verb=Verb.COMPLETE, value=b"1")),
        (Released(), 2, Settle(token=TOKEN, verb=Verb.RELEASE)),
        (Cancelled(), 2, Settle(token=TOKEN, verb=Verb.CANCEL)),
        (Snoozed(after_ms=7), 2, Settle(token=TOKEN, verb=Verb.SNOOZE, delay_ms=7)),
        (FailedAttempt(error=b"e"), 0, Settle(token=TOKEN, verb=Verb.RETRY, value=b"e", delay_ms=50)),
        (FailedAttempt(error=b"e"), 1, Settle(token=TOKEN, verb=Verb.RETRY, value=b"e", delay_ms=100)),
        (FailedAttempt(error=b"e"), 2, Settle(token=TOKEN, verb=Verb.FAIL, value=b"e", reason=Reason.EXHAUSTED)),
        (FailedAttempt(error=b"e", after_ms=9), 1, Settle(token=TOKEN, verb=Verb.RETRY, value=b"e", delay_ms=9)),
        (FailedAttempt(error=b"e", after_ms=0), 1, Settle(token=TOKEN, verb=Verb.RETRY, value=b"e")),
        (
            FailedAttempt(error=b"e", after_ms=9),
            2,
            Settle(token=TOKEN, verb=Verb.FAIL, value=b"e", reason=Reason.EXHAUSTED),
        ),
        (
            FailedAttempt(error=b"e", reason=Reason.DISCARDED),
            0,
            Settle(token=TOKEN, verb=Verb.FAIL, value=b"e", reason=Reason.DISCARDED),
        ),
        (
            FailedAttempt(error=b"e", outcome=TIMED_OUT),
            2,
            Settle(token=TOKEN, verb=Verb.FAIL, value=b"e", reason=Reason.TIMED_OUT, outcome=TIMED_OUT),
        ),
        (
            FailedAttempt(error=b"e", outcome=LOST),
            2,
            Settle(token=TOKEN, verb=Verb.FAIL, value=b"e", reason=Reason.EXHAUSTED, outcome=LOST),
        ),
        (
            FailedAttempt(error=b"e", outcome=TIMED_OUT),
            0,
            Settle(token=TOKEN, verb=Verb.RETRY, value=b"e", delay_ms=50, outcome=TIMED_OUT),
        ),
    ],
)
def test_each_outcome_settles_as_the_table_says(outcome: Outcome, counted: int, settle: Settle) -> None:
    assert decide(TOKEN, outcome, POLICY, counted=counted, draw=0.5) == settle


def test_the_submit_goes_before_the_task_and_the_task_before_the_defaults() -> None:
    task = TaskInfo(name="t", max_attempts=5, timeout_ms=10)
    assert policy_of(JobOptions(max_attempts=2), task, TaskDefaults()) == Policy(
        max_attempts=2, backoff=DEFAULT_BACKOFF, timeout_ms=10
    )
    assert policy_of(JobOptions(), task, TaskDefaults()).max_attempts == 5
    assert policy_of(JobOptions(), TaskInfo(name="t"), TaskDefaults()).max_attempts == 3
    assert policy_of(JobOptions(timeout_ms=3, backoff=Backoff(base_ms=1)), task, TaskDefaults()) == Policy(
        max_attempts=5, backoff=Backoff(base_ms=1), timeout_ms=3
    )


def read(outcome: Outcome) -> JobError:
    assert isinstance(outcome, FailedAttempt)
    return msgspec.json.decode(outcome.error, type=JobError)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def caught(error: BaseException) -> Outcome:
    try:
        raise error
    except BaseException as raised:  # noqa: BLE001 - also SystemExit is under test
        return outcomes.raised(raised, limit=16_384)


def test_exceptions_become_outcomes() -> None:
    assert caught(InvalidInput("input.a", "is missing")) == FailedAttempt(
        error=b'{"type":"InvalidInput","message":"input.a: is missing","field":"input.a"}', reason=Reason.INVALID_INPUT
    )
    discarded = caught(Discard("no"))
    assert isinstance(discarded, FailedAttempt)
    assert discarded.reason is Reason.DISCARDED
    retried = caught(Retry(after="2s"))
    assert isinstance(retried, FailedAttempt)
    assert (retried.after_ms, retried.reason) == (2_000, None)
    assert caught(Snooze("1m")) == Snoozed(after_ms=60_000)
    for wrong in (Retry(after="soon"), Snooze("soon"), Snooze(-1), Snooze("999999w"), Retry(after=1e300)):
        assert read(caught(wrong)).type == "ValueError"
    left = caught(SystemExit("bye"))
    assert (read(left).type, read(left).message) == ("SystemExit", "bye")
    assert read(caught(Unspeakable())).message == "(the exception has no readable message)"
    assert read(caught(ValueError("\ud800"))).message == "\\ud800"
    assert read(caught(msgspec.ValidationError("x"))).type == "msgspec.ValidationError"


def deep(levels: int) -> None:
    if levels:
        deep(levels - 1)
    raise ValueError("é" * 100_000)


def test_errors_are_capped_and_keep_both_ends() -> None:
    try:
        deep(300)
    except ValueError as error:
        error.add_note("\x00" * 50_000)
        error.__cause__ = RuntimeError("y" * 50_000)
        outcome = outcomes.raised(error, limit=16_384)
    assert isinstance(outcome, FailedAttempt)
    assert len(outcome.error) <= 16_384
    assert read(outcome).message.startswith("éé")
    assert "cut" in read(outcome).traceback
    assert outcome.over is Over.ERROR
    assert decide(TOKEN, outcome, POLICY, counted=0, draw=0.5).over is Over.ERROR
    for limit in (0, 50, 100, 1_000):
        text = outcomes.encode_error("Kind", "\x01" * 5_000, traceback_text="\x01" * 5_000, limit=limit)
        assert msgspec.json.decode(text, type=JobError).type == "Kind"
        assert len(text) <= max(limit, 64)


def test_results_are_json_within_the_limit() -> None:
    assert outcomes.succeeded({"a": b"xyz"}, limit=100) == Succeeded(result=b'{"a":"eHl6"}')
    assert read(outcomes.succeeded(object(), limit=100)).type == "ResultNotJson"
    large = outcomes.succeeded("x" * 99, limit=100)
    assert read(large).type == "ResultTooLarge"
    assert isinstance(large, FailedAttempt)
    assert large.over is Over.RESULT
    assert outcomes.succeeded("x" * 98, limit=100) == Succeeded(result=b'"' + b"x" * 98 + b'"')
    endless: list[object] = []
    endless.append(endless)
    assert read(outcomes.succeeded(endless, limit=100)).type == "ResultNotJson"


def take(slots: Slots, executor: Executor, queue: str) -> ActiveJob:
    slots.take(executor, queue)
    claimed = ClaimedJob(
        token=TOKEN,
        task="t",
        type="task",
        queue="default",
        priority=Priority.NORMAL,
        counted=0,
        lost=0,
        created_at_ms=0,
        deadline_ms=0,
        options=JobOptions(),
        input=b"",
    )
    place = Place(lambda: slots.give_back(executor, queue))
    return ActiveJob(claimed, Task(print, name="t", binder=WholeInput("x")), POLICY, place)


def test_slots_come_back_once_and_tell_when_a_full_executor_has_room() -> None:
    freed: list[str] = []
    slots = Slots({"async": 2, "thread": 0, "process": 0})
    slots.on_freed = lambda: freed.append("freed")
    first, second = take(slots, "async", "q"), take(slots, "async", "q")
    assert (slots.full, slots.taken, slots.free("async")) == (True, 2, 0)
    first.release_slot()
    first.release_slot()
    assert (slots.full, slots.taken, freed) == (False, 1, ["freed"])
    give_back = second.keep_slot()
    second.release_slot()
    assert slots.taken == 1
    give_back()
    assert (slots.taken, freed) == (0, ["freed"])


@pytest.mark.parametrize(("size", "most"), [(100, 88), (8, 7), (7, 7), (2, 2)])
def test_one_of_several_queues_leaves_an_eighth_of_the_slots_to_the_others(size: int, most: int) -> None:
    slots = Slots({"async": size, "thread": 0}, queues=("slow", "fast"))
    for _ in range(slots.room("async", "slow")):
        slots.take("async", "slow")
    assert (slots.taken, slots.room("async", "slow")) == (most, 0)
    assert slots.room("async", "fast") == size - most
    assert slots.full == (size == most)
    assert slots.rooms("async", ("fast", "slow")) == ((size - most, 0) if size > most else None)
    alone = Slots({"async": size}, queues=("slow",))
    assert (alone.room("async", "slow"), alone.rooms("async", ("slow",))) == (size, None)


@pytest.mark.parametrize(("size", "most"), [(1, 1), (49, 49), (50, 25), (100, 50), (401, 200)])
def test_of_many_slots_half_are_claimed_for_at_once(size: int, most: int) -> None:
    slots = Slots({"async": size})
    assert slots.part("async") == most
    slots.set_ahead("async", 100)
    assert slots.part("async") == (size + 100) // 2


def test_a_queue_takes_as_many_slots_as_are_set() -> None:
    freed: list[str] = []
    slots = Slots({"async": 100, "thread": 8}, queues=("a", "b"), queue_slots={"a": 100, "b": 2})
    slots.on_freed = lambda: freed.append("freed")
    assert slots.rooms("async", ("a", "b")) == (100, 2)
    assert slots.rooms("thread", ("a", "b")) == (8, 2)
    first, second = take(slots, "async", "b"), take(slots, "async", "b")
    assert (slots.room("async", "b"), slots.room("thread", "b"), slots.room("async", "a")) == (0, 2, 98)
    first.release_slot()
    # The queue has room again, though the executor was not full.
    assert (slots.room("async", "b"), freed) == (1, ["freed"])
    second.release_slot()
    second.release_slot()
    assert (slots.room("async", "b"), freed) == (2, ["freed"])


def test_a_worker_whose_only_queue_is_at_its_bound_is_full() -> None:
    slots = Slots({"async": 100}, queues=("a",), queue_slots={"a": 1})
    assert not slots.full
    slots.take("async", "a")
    assert slots.full


def test_a_foreign_queue_rests_longer_each_time_up_to_a_second() -> None:
    ignored = Ignored()
    now = 100.0
    rests = []
    for _ in range(7):
        ignored.ignore("async", "q", now=now)
        end = ignored.next_end(now=now)
        assert end is not None
        rests.append(round(end - now, 3))
        assert ignored.holds("async", "q", now=now)
        assert not ignored.holds("thread", "q", now=now)
        now = end
        assert not ignored.holds("async", "q", now=now)
    assert rests == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    ignored.heed("async", "q")
    ignored.ignore("async", "q", now=now)
    assert ignored.next_end(now=now) == now + 0.05


def test_waits_in_an_outage_double_with_jitter_and_start_anew() -> None:
    outage = backoff.Outage("test")
    waits = [outage.failed(StoreUnavailable("away")) for _ in range(2_000)]
    assert 0.05 <= waits[0] <= 0.1
    assert all(2.5 <= wait <= 5 for wait in waits[10:])
    outage.over()
    assert outage.failed(StoreUnavailable("away")) <= 0.1


def info(*, claim_ms: int | None, running: int = 0) -> WorkerInfo:
    return WorkerInfo(
        name=WorkerName("w"),
        hostname="host",
        pid=1,
        version="1",
        queues=("q",),
        tasks=("t",),
        concurrency=10,
        running=running,
        started_at_ms=0,
        seen_at_ms=100_000,
        last_claim_at_ms=claim_ms,
    )


def test_health_looks_at_the_last_contact() -> None:
    assert WorkerHealth.judge(info(claim_ms=99_000)).ok
    assert WorkerHealth.judge(info(claim_ms=70_000)).ok
    assert not WorkerHealth.judge(info(claim_ms=69_999)).ok
    assert not WorkerHealth.judge(info(claim_ms=None)).ok
    assert not WorkerHealth.judge(None).ok
    assert WorkerHealth.judge_host([info(claim_ms=99_000)], "host").ok
    assert not WorkerHealth.judge_host([info(claim_ms=99_000), info(claim_ms=1)], "host").ok
    assert not WorkerHealth.judge_host([info(claim_ms=99_000)], "elsewhere").ok


def test_modules_come_from_the_current_folder_and_faults_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fine_tasks_here.py").write_text("x = 1\n")
    (tmp_path / "broken_tasks_here.py").write_text("def half(of): return 1 / of\nhalf(0)\n")
    (tmp_path / "unread_tasks_here.py").write_text("def f(:\n")
    (tmp_path / "needy_tasks_here.py").write_text("import surely_not_installed_here\n")
    (tmp_path / "leaving_tasks_here.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert import_module("fine_tasks_here").x == 1
    for name, message in (
        ("not_there_at_all", "no module named 'not_there_at_all'"),
        ("not_there.at_all", "no module named 'not_there.at_all'"),
        ("fine_tasks_here.py", "name the module, not the file"),
        ("broken_tasks_here", r"ZeroDivisionError: division by zero \(broken_tasks_here\.py, line 2\)"),
        ("unread_tasks_here", r"SyntaxError: .* \(unread_tasks_here\.py, line 1\)$"),
        ("needy_tasks_here", "needs 'surely_not_installed_here'"),
        ("leaving_tasks_here", "SystemExit"),
    ):
        with pytest.raises(TaskError, match=message) as caught_error:
            import_module(name)
        assert "\n" not in str(caught_error.value)


def test_event_codes_are_all_listed() -> None:
    from penstock.core import events

    constants = {value for name, value in vars(events).items() if name.isupper() and isinstance(value, str)}
    assert constants == EVENTS
