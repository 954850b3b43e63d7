"""Read a chat completion that comes bit by bit, as OpenAI-style servers stream it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from penstock.core.outcome import Retry

EVENT_STREAM = "text/event-stream"


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    model: str | None = None
    usage: object = None
    error: object = None


class CompletionReader:
    """Put the pieces of one answer together; ``on_text`` gets each as it comes. Bytes may break anywhere."""

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self._on_text = on_text
        self._rest = b""
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._finish_reason: str | None = None
        self._model: str | None = None
        self._usage: object = None
        self._done = False

    def feed(self, data: bytes) -> None:
        """Take what came.

        Raises:
            Retry: a piece is none of a chat completion, or the server says that it failed.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            name, _, value = line.strip().partition(b":")
            if name == b"data":
                self._take(value.strip())

    def whole(self) -> bytes:
        """Return the answer as JSON text, as it comes when it is not streamed.

        Raises:
            Retry: it broke off.
        """
        if not self._done and self._finish_reason is None:
            raise Retry("the AI server's answer broke off")
        refusal = "".join(self._refusal) or None
        message: dict[str, Any] = {"content": "".join(self._text), "refusal": refusal}
        choice = {"message": message, "finish_reason": self._finish_reason}
        return msgspec.json.encode({"choices": [choice], "model": self._model, "usage": self._usage})

    def _take(self, value: bytes) -> None:
        if value == b"[DONE]":
            self._done = True
            return
        try:
            chunk = msgspec.json.decode(value, type=_Chunk)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Retry(f"a piece of the AI server's answer is no part of a chat completion: {error}") from error
        if chunk.error is not None:
            raise Retry("the AI server failed in the middle of its answer")
        self._model = chunk.model or self._model
        self._usage = chunk.usage or self._usage
        # The last piece may hold the usage alone.
        for choice in chunk.choices[:1]:
            self._finish_reason = choice.finish_reason or self._finish_reason
            if choice.delta.refusal:
                self._refusal.append(choice.delta.refusal)
            if choice.delta.content:
                self._text.append(choice.delta.content)
                self._on_text(choice.delta.content)
