"""Run jobs of type `ai`: parse the input, choose a provider, return one shape of result."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import httpx

from penstock.handlers.ai.local import LocalProvider
from penstock.handlers.ai.openai import OpenAIProvider
from penstock.handlers.ai.provider import AIResult, Provider, RunInProcess, Surroundings, Usage
from penstock.handlers.ai.request import TASKS, AIRequest, parse_request
from penstock.handlers.ai.settings import AISettings

__all__ = [
    "PROVIDERS",
    "TASKS",
    "AIRequest",
    "AIResult",
    "AISettings",
    "Provider",
    "Surroundings",
    "Usage",
    "choose_provider",
    "parse_request",
    "run_ai",
]

PROVIDERS: MappingProxyType[str, Provider] = MappingProxyType(
    {provider.name: provider for provider in (LocalProvider(), OpenAIProvider())}
)
"""Providers by name. A new one is a class with `name` and `complete`, added here."""


def choose_provider(settings: AISettings) -> Provider:
    """Return the provider that the settings ask for: `openai` when a base URL is set, else `local`."""
    return PROVIDERS["openai" if settings.base_url else "local"]


async def run_ai(
    task: str,
    value: object,
    settings: AISettings,
    *,
    run_in_process: RunInProcess,
    http: httpx.AsyncClient,
    stream: Callable[[str], None] = lambda _: None,
) -> AIResult:
    """Run one attempt of an AI job and return its result.

    `value` is the job's input. Raises `InvalidInput` (wrong shape or unknown task), `Retry` (another attempt may help;
    `after` in seconds is set when the server asked for a delay) or `Discard` (no attempt will help). `http` and
    the pool stay the caller's; `stream` gets pieces of the answer when the input asks for them.
    """
    request = parse_request(task, value)
    around = Surroundings(settings=settings, run_in_process=run_in_process, http=http, stream=stream)
    return await choose_provider(settings).complete(task, request, around)
