"""Run jobs submitted over HTTP, stored in Redis or Valkey."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.client import AsyncClient, Client
    from penstock.core.outcome import Discard, InvalidInput, Retry, Snooze
    from penstock.core.retry import Backoff
    from penstock.handlers.context import Context
    from penstock.handlers.registry import Task, task
    from penstock.handlers.schedules import schedule

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Backoff",
    "Client",
    "Context",
    "Discard",
    "InvalidInput",
    "Retry",
    "Snooze",
    "Task",
    "__version__",
    "schedule",
    "submit_task",
    "task",
]

#: Where each name lives; loaded when first asked for, so that the client does not load the server's parts.
_HOMES = {
    "AsyncClient": "penstock.client",
    "Backoff": "penstock.core.retry",
    "Client": "penstock.client",
    "Context": "penstock.handlers.context",
    "Discard": "penstock.core.outcome",
    "InvalidInput": "penstock.core.outcome",
    "Retry": "penstock.core.outcome",
    "Snooze": "penstock.core.outcome",
    "Task": "penstock.handlers.registry",
    "schedule": "penstock.handlers.schedules",
    "task": "penstock.handlers.registry",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def submit_task(task: str, input: Any = None, **options: Any) -> Any:  # noqa: A002 - the name that users read
    """Submit one job over HTTP through a client of its own, set up from the environment (``PENSTOCK_URL``, …)."""
    with importlib.import_module("penstock.client").Client() as client:
        return client.submit(task, input, **options)
