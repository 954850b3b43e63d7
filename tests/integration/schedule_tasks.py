"""Hold what the tests of schedules run, and schedules that code declares."""

from __future__ import annotations

from pathlib import Path

from penstock import Context, schedule, task


@task
def tell(ctx: Context, path: str) -> str:
    """Tell a FIFO which tick this is."""
    assert ctx.scheduled_for is not None
    text = f"{ctx.schedule} {round(ctx.scheduled_for.timestamp() * 1_000)}\n"
    with Path(path).open("a") as file:
        file.write(text)
    return text


@task(executor="process")
def tell_from_a_process(ctx: Context, path: str) -> str:
    return tell(ctx, path)


@task(queue="reports", schedule={"every": "1h", "overlap": "skip"})
async def hourly() -> None: ...


@task(schedule="*/5 * * * *")
def often() -> None: ...


schedule(
    "nightly report", task=hourly, input={}, cron="30 2 * * *", timezone="Europe/Berlin", missed="all", tags=["night"]
)
schedule("elsewhere", task="echo", input=[1], every=90, queue="own", start_at="2030-01-01T00:00:00Z", expires_in="1m")
