"""Offer tasks for trying things (``echo``, ``sleep``, ``fail``) and the type ``ai``."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx

from penstock.core.job import handler_name
from penstock.core.outcome import InvalidInput
from penstock.handlers.ai import AIResult, AISettings, run_ai
from penstock.handlers.ai.provider import RunInProcess
from penstock.handlers.binding import Binder, WholeInput
from penstock.handlers.context import Context
from penstock.handlers.registry import Registry, Task

MODULE = __name__


class DeliberateFailure(Exception):
    """Be the error of the ``fail`` task."""


async def echo(value: Any) -> Any:
    """Return the input."""
    return value


async def sleep(seconds: float) -> dict[str, float]:
    """Wait for a number of seconds and return it."""
    if not math.isfinite(seconds) or seconds < 0:
        raise InvalidInput("input.seconds", "expected zero or more")
    await asyncio.sleep(seconds)
    return {"seconds": seconds}


async def fail(ctx: Context, times: int = 1_000_000, message: str = "failed on purpose") -> dict[str, int]:
    """Fail the first ``times`` counted attempts, then return their number."""
    if ctx.counted < times:
        raise DeliberateFailure(message)
    return {"failed": ctx.counted}


class AIHandler:
    """Run jobs of type ``ai``; ``ctx.resources`` is the HTTP client of ``ai_lifespan``."""

    def __init__(self, settings: AISettings, run_in_process: RunInProcess) -> None:
        self._settings = settings
        self._run_in_process = run_in_process

    async def __call__(self, value: Any, ctx: Context) -> AIResult:
        """Hand the job to the provider that the settings name."""
        return await run_ai(
            ctx.task,
            value,
            self._settings,
            run_in_process=self._run_in_process,
            http=ctx.resources,
            stream=ctx.stream,
        )


@contextlib.asynccontextmanager
async def ai_lifespan() -> AsyncIterator[httpx.AsyncClient]:
    """Hold the HTTP client that AI jobs share."""
    async with httpx.AsyncClient() as http:
        yield http


def add_builtin(registry: Registry, *, ai: AISettings, run_in_process: RunInProcess) -> None:
    """Add the built-in tasks and the handler of the type ``ai``."""
    registry.add(Task(echo, binder=WholeInput("value")), module=MODULE)
    registry.add(Task(sleep), module=MODULE)
    registry.add(Task(fail, binder=Binder(fail, where="the built-in fail")), module=MODULE)
    registry.add(
        Task(
            AIHandler(ai, run_in_process),
            name=handler_name("ai", ""),
            executor="async",
            binder=WholeInput("value", context_name="ctx"),
        ),
        module=MODULE,
    )
