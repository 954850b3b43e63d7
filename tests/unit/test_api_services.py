"""Check how old what the API knows of tasks may be."""

from __future__ import annotations

from typing import Any, cast

from penstock.api.services import TaskCache
from penstock.core.job import TaskInfo


class Known:
    """Stand for a store that knows tasks, and count how often it is asked."""

    def __init__(self) -> None:
        self.known: dict[str, TaskInfo] = {}
        self.asked = 0

    async def tasks(self) -> dict[str, TaskInfo]:
        self.asked += 1
        return dict(self.known)


async def test_a_new_task_is_known_after_a_second_to_who_names_it() -> None:
    store, now_ms = Known(), 0
    cache = TaskCache(cast("Any", store), lambda: now_ms)
    assert await cache.get() == {}
    store.known = {"new": TaskInfo(name="new", max_attempts=2)}
    now_ms = 999
    assert await cache.get(["new"]) == {}
    assert store.asked == 1
    now_ms = 1_000
    assert (await cache.get(["new"]))["new"].max_attempts == 2
    assert store.asked == 2
    # A name that nobody knows costs a question a second.
    for later_ms in (1_500, 1_999, 2_000, 2_500):
        now_ms = later_ms
        assert "other" not in await cache.get(["other"])
    assert store.asked == 3


async def test_without_a_new_name_nobody_waits_for_the_store_within_five_seconds() -> None:
    store, now_ms = Known(), 0
    store.known = {"old": TaskInfo(name="old")}
    cache = TaskCache(cast("Any", store), lambda: now_ms)
    assert set(await cache.get(["old"])) == {"old"}
    store.known = {}
    now_ms = 4_999
    assert set(await cache.get(["old"])) == {"old"}
    await cache.close()
