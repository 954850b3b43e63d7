"""Say what a provider of AI work is: the request that it gets, the one result shape, what it may use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import httpx
import msgspec

from penstock.handlers.ai.request import AIRequest
from penstock.handlers.ai.settings import AISettings

RunInProcess = Callable[..., Awaitable[object]]
"""`await run_in_process(function, *arguments)`: run a picklable function in another process and return its value."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Count the tokens of one answer; None where the server did not say, 0 where no model was asked."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class AIResult(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the result of an AI job, the same shape from every provider; encodes to JSON as it stands."""

    text: str
    provider: str
    model: str | None
    method: str
    usage: Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """Hold what a provider may use; the caller owns the HTTP client and the pool and closes them.

    `stream` takes pieces of the answer as they come, where the request asks for that.
    """

    settings: AISettings
    run_in_process: RunInProcess
    http: httpx.AsyncClient
    stream: Callable[[str], None]


class Provider(Protocol):
    """Answer requests in one way; `name` is what results and metrics show.

    `complete` raises `Retry` for what another attempt may cure, `Discard` for what none will, and `InvalidInput` for a
    request that this provider cannot honour. It keeps nothing between calls.
    """

    @property
    def name(self) -> str: ...

    async def complete(self, task: str, request: AIRequest, around: Surroundings) -> AIResult: ...
