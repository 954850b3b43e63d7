"""Write the ends of attempts in groups, through outages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from penstock.core.errors import StoreUnavailable
from penstock.core.ids import JobId, Token
from penstock.core.job import Settle, SettleCode, Settled, Verb
from penstock.core.limits import SCRIPT_ITEMS
from penstock.core.states import State
from penstock.worker import backoff
from penstock.worker.settler import Settler
from tests.waiting import begun

DONE = Settled(code=SettleCode.DONE, state=State.COMPLETED)


class Script:
    """Answer settles as told; each call waits for ``gate``."""

    def __init__(self, *faults: BaseException | list[Any] | None) -> None:
        self.faults = list(faults)
        self.calls: list[list[JobId]] = []
        self.called = asyncio.Semaphore(0)
        self.gate = asyncio.Event()
        self.gate.set()

    async def settle(self, items: Sequence[Settle]) -> list[Settled | Exception]:
        self.calls.append([item.token.job_id for item in items])
        self.called.release()
        await self.gate.wait()
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, BaseException):
            raise fault
        return fault if fault is not None else [DONE] * len(items)


def settle(name: str, size: int = 1) -> Settle:
    return Settle(token=Token(JobId(name), 1, "n"), verb=Verb.COMPLETE, value=b"x" * size)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.001)


async def test_what_ends_during_a_call_shares_the_next() -> None:
    store = Script()
    settler = Settler(store)  # type: ignore[arg-type]
    store.gate.clear()
    first = asyncio.create_task(settler.settle(settle("a")))
    await store.called.acquire()
    others = [await begun(settler.settle(settle(name))) for name in "bcd"]
    assert settler.unsettled == 4
    store.gate.set()
    assert await asyncio.gather(first, *others) == [DONE] * 4
    assert store.calls == [["a"], ["b", "c", "d"]]
    assert settler.unsettled == 0


async def test_calls_are_bounded_in_items_and_bytes() -> None:
    store = Script()
    settler = Settler(store)  # type: ignore[arg-type]
    await asyncio.gather(*[settler.settle(settle(str(number))) for number in range(2 * SCRIPT_ITEMS + 50)])
    assert [len(call) for call in store.calls] == [SCRIPT_ITEMS, SCRIPT_ITEMS, 50]
    store.calls.clear()
    await asyncio.gather(*[settler.settle(settle(str(number), 400_000)) for number in range(5)])
    assert [len(call) for call in store.calls] == [2, 2, 1]


async def test_an_outage_only_delays() -> None:
    away = StoreUnavailable("away")
    store = Script(away, away, [DONE, StoreUnavailable("moving")], None)
    settler = Settler(store)  # type: ignore[arg-type]
    answers = await asyncio.gather(settler.settle(settle("a")), settler.settle(settle("b")))
    assert list(answers) == [DONE, DONE]
    assert store.calls == [["a", "b"], ["a", "b"], ["a", "b"], ["b"]]


async def test_a_refused_item_is_given_up_alone() -> None:
    store = Script([ValueError("broken record"), DONE])
    settler = Settler(store)  # type: ignore[arg-type]
    answers = await asyncio.gather(settler.settle(settle("a")), settler.settle(settle("b")))
    assert list(answers) == [None, DONE]
    assert await Settler(Script(RuntimeError("bug"))).settle(settle("c")) is None  # type: ignore[arg-type]


async def test_closing_gives_up_what_waits() -> None:
    store = Script(*[StoreUnavailable("away")] * 1_000)
    settler = Settler(store)  # type: ignore[arg-type]
    waiting = asyncio.create_task(settler.settle(settle("a")))
    await store.called.acquire()
    await store.called.acquire()
    await settler.close()
    assert await waiting is None


async def test_an_outage_keeps_so_many_bytes_and_hands_the_rest_back() -> None:
    verbs: list[tuple[str, Verb]] = []

    class Recording(Script):
        async def settle(self, items: Sequence[Settle]) -> list[Settled | Exception]:
            answers = await super().settle(items)
            verbs.extend((item.token.job_id, item.verb) for item in items)
            return answers

    store = Recording(StoreUnavailable("away"))
    settler = Settler(store, most_bytes=100)  # type: ignore[arg-type]
    # While the store answers, slots alone bound what waits.
    waiting = [asyncio.create_task(settler.settle(settle("first", 90)))]
    await store.called.acquire()
    store.gate.clear()
    # The second try is under way when these end.
    await store.called.acquire()
    for name, size in (("fits", 10), ("over", 1), ("empty", 0)):
        waiting.append(await begun(settler.settle(settle(name, size))))
    store.gate.set()
    assert await asyncio.gather(*waiting) == [DONE] * 4
    assert dict(verbs) == {
        "first": Verb.COMPLETE,
        "fits": Verb.COMPLETE,
        "over": Verb.RELEASE,
        "empty": Verb.COMPLETE,
    }
    # And the room is free again.
    store.faults.append(StoreUnavailable("away"))
    assert await settler.settle(settle("later", 100)) == DONE
    assert verbs[-1] == ("later", Verb.COMPLETE)
