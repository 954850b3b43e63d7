"""Make the logger of a job: each line goes where the worker logs, and into the job's own log."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, MutableMapping
from typing import Any

import msgspec
import structlog

from penstock.core.limits import LINE_BYTES

_MESSAGE_CHARACTERS = 2_000
_LOGGER = "penstock.task"


class LogLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold one line of a job's log; ``cut`` says that it was longer than what is kept."""

    level: str
    message: str
    fields: dict[str, Any] = {}
    exception: str = ""
    cut: bool = False


def make_job_log(store_line: Callable[[bytes], None] | None, **bound: Any) -> Any:
    """Return a structlog logger; ``bound`` goes into each line that the worker logs, and is known of the job anyway."""
    if store_line is None:
        return structlog.get_logger(_LOGGER).bind(**bound)

    def store(_: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        store_line(encode_line(level, event, left_out=bound))
        return event

    # Before the processors that are set: they add to the line what the worker's log needs. What is below the level of
    # that log goes no further than here: the logger under ours drops it.
    processors = [store, *structlog.get_config()["processors"]]
    least = min(logging.INFO, logging.getLogger(_LOGGER).getEffectiveLevel() or logging.INFO)
    return structlog.wrap_logger(
        None,
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory_args=(_LOGGER,),
        **bound,
    )


def encode_line(level: str, event: MutableMapping[str, Any], *, left_out: MutableMapping[str, Any]) -> bytes:
    """Return a line as JSON text of at most ``LINE_BYTES``; never raises, because a log must not fail a job."""
    fields = {name: value for name, value in event.items() if name not in left_out}
    error = _exception(fields.pop("exc_info", None))
    code = fields.pop("event", "")
    message = fields.pop("message", None)
    if message is None:
        message = code
    elif code:
        fields["event"] = code
    line = LogLine(level=level, message=_clean(message), fields=fields, exception=error)
    try:
        encoded = msgspec.json.encode(line, enc_hook=repr)
    except Exception:  # noqa: BLE001 - a value's own methods may raise anything
        encoded = b""
    if not 0 < len(encoded) <= LINE_BYTES:
        encoded = _cut(line)
    return encoded


def _cut(line: LogLine) -> bytes:
    """Keep the start of the message, the end of the traceback, and no fields."""
    message, exception = line.message[:_MESSAGE_CHARACTERS], line.exception[-_MESSAGE_CHARACTERS:]
    while True:
        encoded = msgspec.json.encode(LogLine(level=line.level, message=message, exception=exception, cut=True))
        if len(encoded) <= LINE_BYTES:
            return encoded
        # Escapes can make six bytes of one.
        message, exception = message[: len(message) // 2], exception[len(exception) // 2 :]


def _exception(info: Any) -> str:
    if info is True:
        info = sys.exc_info()[1]
    elif isinstance(info, tuple):
        info = info[1]
    if not isinstance(info, BaseException):
        return ""
    try:
        return _clean("".join(traceback.format_exception(info)))
    except Exception:  # noqa: BLE001 - formatting calls the exception's own code
        return _clean(type(info).__qualname__)


def _clean(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception:  # noqa: BLE001 - an object's own __str__ may raise anything
        text = f"<{type(value).__qualname__}>"
    # A lone surrogate has no UTF-8 form, so the line could not be stored.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
