"""Send requests over many connections at once and time each: a process of its own, so that it shares no interpreter.

It reads its order as JSON from its argument and prints what it saw as JSON. Each connection sends its next request as
soon as the last one is answered.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import msgspec
import uvloop

from benchmarks.records import percentile


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Say what to send.

    ``items`` 0 sends a job a request, else batches of so many as ``media_type``. Numbers of jobs start at ``first``,
    and stop before ``last``. Of single jobs, what is sent in the first ``warm_seconds`` is not timed.
    """

    port: int
    connections: int
    seconds: float
    first: int
    last: int
    path: str = "/submit"
    task: str = "noop"
    items: int = 0
    media_type: str = "application/json"
    warm_seconds: float = 0.1


class Load:
    """Count and time all requests of an order."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.next = order.first
        self.begin = time.perf_counter() + order.warm_seconds
        self.end = self.begin + order.seconds
        self.times: list[float] = []
        self.answers: list[float] = []
        self.refused = 0
        self.refusal = b""
        self._make = self._one if not order.items else self._batch
        self._status = b"HTTP/1.1 202" if not order.items else b"HTTP/1.1 200"

    def _head(self, body: bytes) -> bytes:
        order = self.order
        return (
            f"POST {order.path} HTTP/1.1\r\nhost: 127.0.0.1:{order.port}\r\ncontent-type: {order.media_type}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode() + body

    def _one(self, number: int) -> bytes:
        return self._head(b'{"task":"%b","input":{"n":%d}}' % (self.order.task.encode(), number))

    def _batch(self, number: int) -> bytes:
        task = self.order.task.encode()
        jobs = [b'{"task":"%b","input":{"n":%d}}' % (task, number + step) for step in range(self.order.items)]
        if self.order.media_type == "application/json":
            return self._head(b"[" + b",".join(jobs) + b"]")
        return self._head(b"\n".join(jobs))

    def request(self) -> bytes | None:
        """Return the next request, None when the time or the numbers are over."""
        step = self.order.items or 1
        number = self.next
        if time.perf_counter() >= self.end or number + step > self.order.last:
            return None
        self.next += step
        return self._make(number)

    def answered(self, answer: bytes, sent: float) -> None:
        now = time.perf_counter()
        if not answer.startswith(self._status) or (self.order.items and b'"error":{' in answer):
            self.refused += 1
            self.refusal = answer[:500]
            return
        if self.order.items or self.begin <= now <= self.end:
            self.answers.append(now)
        if sent >= self.begin:
            self.times.append(now - sent)

    def summary(self) -> dict[str, Any]:
        answered, between = 0, 0.0
        if self.order.items and self.answers:
            # Few and long: from the first request to the last answer, with the beginning and the end.
            answered, between = len(self.answers) * self.order.items, self.answers[-1] - self.begin
        elif len(self.answers) > 1:
            # From the first answer to the last, so that what was half done at either end cancels out.
            answered, between = len(self.answers) - 1, self.answers[-1] - self.answers[0]
        return {
            "sent": self.next - self.order.first,
            "refused": self.refused,
            "refusal": self.refusal.decode(errors="replace"),
            "rate": answered / between if between else 0.0,
            "p50_ms": percentile(self.times, 0.5) * 1000,
            "p99_ms": percentile(self.times, 0.99) * 1000,
        }


class Caller(asyncio.Protocol):
    """Be one connection."""

    def __init__(self, load: Load, done: Callable[[], None]) -> None:
        self._load = load
        self._done = done
        self._answer = b""
        self._needed = 0
        self._sent = 0.0
        self._over = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's does not inherit from it.
        self._transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        request = self._load.request()
        if request is None:
            self._over = True
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer = self._answer + data if self._answer else data
        if not self._needed:
            end = self._answer.find(b"\r\n\r\n")
            if end < 0:
                return
            self._needed = end + 4 + content_length(self._answer[:end])
        if len(self._answer) >= self._needed:
            self._load.answered(self._answer, self._sent)
            self._answer, self._needed = b"", 0
            self.send()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self._over:
            self._load.refused += 1
            self._load.refusal = b"the connection was closed"
        self._done()


def content_length(head: bytes) -> int:
    """Return the length of the body that an answer's head names."""
    place = head.lower().find(b"\r\ncontent-length:")
    if place < 0:
        return 0
    return int(head[place + 17 :].split(b"\r\n", 1)[0])


async def run(order: Order) -> dict[str, Any]:
    """Carry an order out."""
    loop = asyncio.get_running_loop()
    load = Load(order)
    left = order.connections
    over = loop.create_future()

    def done() -> None:
        nonlocal left
        left -= 1
        if left == 0 and not over.done():
            over.set_result(None)

    callers = []
    for _ in range(order.connections):
        _, caller = await loop.create_connection(lambda: Caller(load, done), "127.0.0.1", order.port)
        callers.append(caller)
    load.begin = time.perf_counter() + (0.0 if order.items else order.warm_seconds)
    load.end = load.begin + order.seconds
    for caller in callers:
        caller.send()
    await over
    return load.summary()


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(msgspec.json.decode(sys.argv[1], type=Order)))))
