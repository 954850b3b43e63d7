"""An answer's head and body leave in one write, in order, and nothing is held back for long."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from penstock.api.one_write import _HELD_BYTES, _Gathering


class Transport:
    def __init__(self) -> None:
        self.done: list[Any] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.done


def gathering() -> tuple[Transport, _Gathering]:
    transport = Transport()
    return transport, _Gathering(cast("asyncio.Transport", transport), asyncio.get_running_loop())


async def test_what_is_written_in_one_step_is_sent_at_its_end() -> None:
    transport, held = gathering()
    held.write(b"head ")
    held.write(b"body")
    assert transport.done == []
    await asyncio.sleep(0)
    assert transport.done == [b"head body"]
    held.write(b"next")
    await asyncio.sleep(0)
    assert transport.done == [b"head body", b"next"]


async def test_much_is_sent_at_once() -> None:
    transport, held = gathering()
    held.write(b"head")
    held.write(b"x" * _HELD_BYTES)
    assert transport.done == [b"head" + b"x" * _HELD_BYTES]
    await asyncio.sleep(0)
    assert len(transport.done) == 1


async def test_a_close_sends_first() -> None:
    transport, held = gathering()
    held.write(b"last")
    held.close()
    assert transport.done == [b"last", "closed"]
    assert held.is_closing()
