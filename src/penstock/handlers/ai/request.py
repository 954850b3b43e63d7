"""Turn a job's input into a typed request, or say which field does not fit."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from penstock.core.outcome import InvalidInput

TASKS = frozenset({"summarize"})
DEFAULT_SENTENCES = 5

_NAMED_FIELD = re.compile(r"field `([^`]{1,128})`")
_PATH = re.compile(r" - at `\$\.([^`]{1,128})`")


class AIRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold the input of one AI job; all but `text` and `sentences` mean something to language models only."""

    text: str
    sentences: Annotated[int, msgspec.Meta(ge=1, le=50)] = DEFAULT_SENTENCES
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    instructions: Annotated[str, msgspec.Meta(max_length=10_000)] | None = None
    stream: bool = False


def parse_request(task: str, value: object) -> AIRequest:
    """Read a string or an object as the input of `task`; raises `InvalidInput` with the field's path."""
    if task not in TASKS:
        raise InvalidInput("task", f"{task!r} is no AI task; there is: {', '.join(sorted(TASKS))}")
    if isinstance(value, str):
        request, field = AIRequest(text=value), "input"
    elif isinstance(value, dict):
        request, field = _from_object(value), "input.text"
    else:
        raise InvalidInput("input", 'must be a string or an object such as {"text": "…", "sentences": 5}')
    if not request.text.strip():
        raise InvalidInput(field, "must not be empty")
    return request


def _from_object(value: dict[object, object]) -> AIRequest:
    try:
        return msgspec.convert(value, AIRequest, strict=True)
    except msgspec.ValidationError as error:
        message = str(error)
        found = _PATH.search(message) or _NAMED_FIELD.search(message)
        field = f"input.{found[1]}" if found else "input"
        raise InvalidInput(field, _PATH.sub("", message)) from error
