"""Turn what a handler returned or raised into an outcome; used on the loop, on threads and in child processes."""

from __future__ import annotations

import traceback
from pathlib import Path

import msgspec

from penstock.core.durations import parse_duration_ms
from penstock.core.job import JobError
from penstock.core.limits import DAY_MS, RUN_AT_HORIZON_MS, Over
from penstock.core.outcome import Discard, FailedAttempt, InvalidInput, Outcome, Retry, Snooze, Snoozed, Succeeded
from penstock.core.states import AttemptOutcome, Reason

MESSAGE_CHARACTERS = 2_000
_OURS = (str(Path(__file__).parent), str(Path(__file__).parent.parent / "handlers" / "registry.py"))
_CUT = "\n… cut …\n"


def succeeded(value: object, *, limit: int) -> Outcome:
    """Encode a result; one that is not JSON, or over ``limit`` bytes, fails for good, since a rerun gives the same."""
    try:
        encoded = msgspec.json.encode(value)
    except Exception as error:  # noqa: BLE001 - a result's own methods may raise anything
        return _refused("ResultNotJson", f"the result is not JSON: {error}")
    if len(encoded) > limit:
        message = f"the result takes {len(encoded)} bytes as JSON; at most {limit} are kept"
        return _refused("ResultTooLarge", message, over=Over.RESULT)
    return Succeeded(result=encoded)


def raised(error: BaseException, *, limit: int) -> Outcome:
    """Read an exception that a handler raised; ``limit`` bounds the stored error in bytes."""
    if isinstance(error, InvalidInput):
        text, over = _fit("InvalidInput", str(error), field=error.field, limit=limit)
        return FailedAttempt(error=text, reason=Reason.INVALID_INPUT, over=over)
    text, over = _described(error, limit=limit)
    if isinstance(error, Discard):
        return FailedAttempt(error=text, reason=Reason.DISCARDED, over=over)
    if isinstance(error, Retry | Snooze) and error.after is not None:
        try:
            after_ms = parse_duration_ms(error.after)
            if after_ms > RUN_AT_HORIZON_MS:
                raise ValueError(f"at most {RUN_AT_HORIZON_MS // DAY_MS} days")
        except (ValueError, TypeError, AttributeError) as wrong:
            message = f"{type(error).__name__}(after={error.after!r}): {wrong}"
            return FailedAttempt(error=encode_error("ValueError", message, limit=limit))
        if isinstance(error, Snooze):
            return Snoozed(after_ms=after_ms)
        return FailedAttempt(error=text, after_ms=after_ms, over=over)
    return FailedAttempt(error=text, over=over)


def timed_out(timeout_ms: int, detail: str = "") -> FailedAttempt:
    """Describe an attempt that its timeout ended."""
    message = f"the attempt ran longer than its timeout of {timeout_ms / 1000:g} s{detail}"
    return FailedAttempt(error=encode_error("Timeout", message), outcome=AttemptOutcome.TIMED_OUT)


def child_died(exit_code: int | None) -> FailedAttempt:
    """Describe an attempt whose child process died under it."""
    how = f"by signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"with exit code {exit_code}"
    return FailedAttempt(
        error=encode_error("WorkerDied", f"the process that ran the job ended {how}"),
        outcome=AttemptOutcome.WORKER_LOST,
    )


def error_json(error: BaseException, *, limit: int) -> bytes:
    """Describe an exception as JSON text with the traceback of the handler's own frames."""
    return _described(error, limit=limit)[0]


def _described(error: BaseException, *, limit: int) -> tuple[bytes, Over | None]:
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - an exception's own __str__ may be broken
        message = "(the exception has no readable message)"
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OURS):
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames, chain=True))
    except Exception:  # noqa: BLE001 - formatting calls the exception's own code too
        text = ""
    return _fit(_type_name(type(error)), message, traceback_text=text, limit=limit)


def encode_error(kind: str, message: str, *, traceback_text: str = "", field: str = "", limit: int = 16_384) -> bytes:
    """Return a JobError as JSON text of at most ``limit`` bytes; a long traceback loses its middle."""
    return _fit(kind, message, traceback_text=traceback_text, field=field, limit=limit)[0]


def _fit(
    kind: str, message: str, *, traceback_text: str = "", field: str = "", limit: int = 16_384
) -> tuple[bytes, Over | None]:
    over = None
    message = _clean(message)
    if len(message) > MESSAGE_CHARACTERS:
        message = message[:MESSAGE_CHARACTERS] + "…"
    whole = _clean(traceback_text)
    room = len(whole)
    while True:
        text = whole if room >= len(whole) else whole[: room // 4] + _CUT + whole[len(whole) - room * 3 // 4 :]
        encoded = msgspec.json.encode(JobError(type=kind, message=message, traceback=text, field=_clean(field)))
        if len(encoded) <= limit:
            return encoded, over
        over = Over.ERROR
        if room == 0:
            # Only a tiny limit, or a message of long escapes, comes here.
            if not message:
                return msgspec.json.encode(JobError(type=kind[:64], message="")), over
            message, whole = message[: len(message) // 2], ""
        room = room // 2 if room > 64 else 0


def _refused(kind: str, message: str, *, over: Over | None = None) -> FailedAttempt:
    return FailedAttempt(error=encode_error(kind, message), reason=Reason.DISCARDED, over=over)


def _type_name(kind: type[BaseException]) -> str:
    module = kind.__module__
    return (
        kind.__qualname__ if module == "builtins" or module.startswith("penstock.") else f"{module}.{kind.__qualname__}"
    )


def _clean(text: str) -> str:
    # A lone surrogate has no UTF-8 form, so the whole error could not be stored.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
