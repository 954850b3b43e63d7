"""Decide how to settle an attempt: pure, so that every case can be tested as a table."""

from __future__ import annotations

import msgspec

from penstock.core.ids import Token
from penstock.core.job import JobOptions, Settle, TaskInfo, Verb
from penstock.core.limits import TaskDefaults
from penstock.core.outcome import Cancelled, FailedAttempt, Outcome, Released, Snoozed, Succeeded
from penstock.core.retry import DEFAULT_BACKOFF, Backoff
from penstock.core.states import AttemptOutcome, Reason


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the options in force for one job; ``timeout_ms`` None means no limit."""

    max_attempts: int
    backoff: Backoff
    timeout_ms: int | None


def policy_of(options: JobOptions, task: TaskInfo, defaults: TaskDefaults) -> Policy:
    """Return what is in force: what the submit says, else the task, else the deployment."""
    return Policy(
        max_attempts=options.max_attempts or task.max_attempts or defaults.max_attempts,
        backoff=options.backoff or task.backoff or DEFAULT_BACKOFF,
        timeout_ms=options.timeout_ms or task.timeout_ms,
    )


def decide(token: Token, outcome: Outcome, policy: Policy, *, counted: int, draw: float) -> Settle:
    """Return the settle of an attempt before which ``counted`` attempts counted; ``draw`` in [0, 1) is the jitter."""
    match outcome:
        case Succeeded():
            return Settle(token=token, verb=Verb.COMPLETE, value=outcome.result)
        case Snoozed():
            return Settle(token=token, verb=Verb.SNOOZE, delay_ms=outcome.after_ms)
        case Released():
            return Settle(token=token, verb=Verb.RELEASE)
        case Cancelled():
            return Settle(token=token, verb=Verb.CANCEL)
        case FailedAttempt():
            return _fail(token, outcome, policy, counted=counted + 1, draw=draw)


def _fail(token: Token, outcome: FailedAttempt, policy: Policy, *, counted: int, draw: float) -> Settle:
    reason = outcome.reason
    if reason is None and counted >= policy.max_attempts:
        reason = Reason.TIMED_OUT if outcome.outcome is AttemptOutcome.TIMED_OUT else Reason.EXHAUSTED
    if reason is not None:
        return Settle(
            token=token,
            verb=Verb.FAIL,
            value=outcome.error,
            reason=reason,
            outcome=outcome.outcome,
            over=outcome.over,
        )
    return Settle(
        token=token,
        verb=Verb.RETRY,
        value=outcome.error,
        delay_ms=outcome.after_ms if outcome.after_ms is not None else policy.backoff.delay_ms(counted, draw=draw),
        outcome=outcome.outcome,
        over=outcome.over,
    )
