"""Hold tasks that another worker than the first knows."""

from __future__ import annotations

from penstock import task


@task
async def other(number: int) -> int:
    return number + 1


@task(queue="pictures")
async def thumbnail() -> str:
    return "small"
