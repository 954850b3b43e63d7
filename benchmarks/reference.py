"""Measure how fast this machine is now, without Penstock, so that figures of two runs compare as ratios."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import msgspec
import uvloop

from benchmarks.records import Figure

COMMANDS = "reference.commands"
TRIPS = "reference.trips"
LOOP = "reference.loop"
_PIPELINE = 200


class References:
    """Collect the loops' figures, a value each time that they are run."""

    def __init__(self, url: str, seconds: float) -> None:
        self._url = url
        self._seconds = seconds
        self._values: dict[str, list[float]] = {COMMANDS: [], TRIPS: [], LOOP: []}

    def run(self) -> None:
        self._values[COMMANDS].append(pipelined_commands(self._url, self._seconds))
        self._values[TRIPS].append(round_trips(self._url, self._seconds))
        self._values[LOOP].append(uvloop.run(loop_of_tasks(self._seconds)))

    def figures(self) -> list[Figure]:
        names = {
            COMMANDS: (
                "plain commands on the same Valkey, pipelined",
                "commands/s",
                f"HSET of three fields and ZADD in turn, {_PIPELINE} a round trip, append-only as for the jobs",
            ),
            TRIPS: ("PING, one at a time", "round trips/s", "a blocking socket"),
            LOOP: (
                "JSON and a task of the event loop, nothing else",
                "tasks/s",
                "decode an input, run an empty coroutine as a task, encode its result; uvloop, 100 at once",
            ),
        }
        return [
            Figure(
                key=key,
                section="reference",
                name=names[key][0],
                unit=names[key][1],
                settings=names[key][2],
                values=tuple(values),
            )
            for key, values in self._values.items()
        ]


def _command(*words: str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)


def _connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 6379))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if parts.password:
        connection.sendall(_command("AUTH", parts.password))
        assert connection.recv(64) == b"+OK\r\n"
    return connection


def pipelined_commands(url: str, seconds: float) -> float:
    """Return how many plain commands the server runs a second when they come together."""
    with _connect(url) as connection:
        pairs = [
            (
                _command("HSET", f"reference:{n}", "status", "queued", "task", "noop", "input", '{"n":12345}'),
                _command("ZADD", "reference:queue", str(n), f"reference:{n}"),
            )
            for n in range(_PIPELINE // 2)
        ]
        pipeline = b"".join(part for pair in pairs for part in pair)
        started = time.perf_counter()
        done = 0
        while (spent := time.perf_counter() - started) < seconds or not done:
            connection.sendall(pipeline)
            lines = 0
            while lines < _PIPELINE:
                lines += connection.recv(65_536).count(b"\n")
            done += _PIPELINE
        connection.sendall(_command("UNLINK", "reference:queue", *(f"reference:{n}" for n in range(_PIPELINE // 2))))
        connection.recv(64)
    return done / spent


def round_trips(url: str, seconds: float) -> float:
    """Return how many times a second one can ask the server something and have the answer."""
    with _connect(url) as connection:
        ping = _command("PING")
        started = time.perf_counter()
        done = 0
        while (spent := time.perf_counter() - started) < seconds or not done:
            connection.sendall(ping)
            connection.recv(64)
            done += 1
    return done / spent


class _Input(msgspec.Struct):
    n: int


async def loop_of_tasks(seconds: float) -> float:
    """Return how many jobs a second Python could run if nothing had to be stored."""
    loop = asyncio.get_running_loop()
    decoder = msgspec.json.Decoder(_Input)
    encoder = msgspec.json.Encoder()
    text = b'{"n":12345}'

    async def work(value: Any) -> bytes:
        return encoder.encode(value.n)

    started = time.perf_counter()
    done = 0
    while (spent := time.perf_counter() - started) < seconds or not done:
        await asyncio.gather(*(loop.create_task(work(decoder.decode(text))) for _ in range(100)))
        done += 100
    return done / spent
