"""Cut, delay, half-close and swallow what the server answers."""

from __future__ import annotations

import asyncio

from tests.chaos.scene import Bite, Fault, Scene


class WireFaults:
    """Hold the faults of connections."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.kinds: dict[str, Fault] = {
            "wire: answers cut": self.cut,
            "wire: delay": self.delay,
            "wire: half-closed": self.half_close,
            "wire: answers swallowed": self.swallow,
        }

    async def _for_a_while(self, name: str, value: object, counter: str, seconds: float) -> int:
        """Set a fault on all wires, until it has touched something and at least for ``seconds``."""
        wires = self._scene.stack.wires
        before = sum(getattr(wire, counter) for wire in wires)
        normal = getattr(wires[0], name)
        for wire in wires:
            setattr(wire, name, value)
        await asyncio.sleep(seconds)
        await self._scene.until(lambda: sum(getattr(wire, counter) for wire in wires) > before)
        for wire in wires:
            setattr(wire, name, normal)
        count: int = sum(getattr(wire, counter) for wire in wires) - before
        return count

    async def cut(self) -> Bite:
        opened = sum(wire.opened for wire in self._scene.stack.wires)
        count = await self._for_a_while("cutting", True, "cut", 0.5)
        await self._scene.until(lambda: sum(wire.opened for wire in self._scene.stack.wires) > opened)
        reconnects = sum(wire.opened for wire in self._scene.stack.wires) - opened
        return Bite(min(count, reconnects), f"{count} answers cut, {reconnects} reconnects")

    async def delay(self) -> Bite:
        seconds = self._scene.source.choice((0.2, 0.8))
        count = await self._for_a_while("delay_s", seconds, "delayed", 2.0)
        return Bite(count, f"{count} answers delayed by {seconds} s")

    async def half_close(self) -> Bite:
        count = await self._for_a_while("half_closing", True, "half_closed", 0.5)
        return Bite(count, f"{count} connections half-closed")

    async def swallow(self) -> Bite:
        # Past the time that a call may take, so that callers give up connections that look alive.
        count = await self._for_a_while("swallowing", True, "swallowed", 5.5)
        return Bite(count, f"{count} answers swallowed")
