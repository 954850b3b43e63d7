"""What the docs say can be seen with a Redis tool can be seen."""

from __future__ import annotations

import json

import msgspec
import pytest
import redis

from penstock.embedded import find_instance
from tests.e2e.stack import Folder

PREFIX = "penstock:{1bz}:"


@pytest.fixture
def by_hand(running: Folder) -> redis.Redis:
    instance = find_instance(running.path / ".penstock")
    assert instance is not None
    return redis.Redis.from_url(instance.redis_url, decode_responses=True)


def job_at(folder: Folder, job_id: str) -> bytes:
    """Return what `redis-cli GET` would show, before it writes the bytes that are no text as escapes."""
    instance = find_instance(folder.path / ".penstock")
    assert instance is not None
    with redis.Redis.from_url(instance.redis_url) as raw:
        return bytes(raw.get(f"{PREFIX}job:{job_id}"))


def test_a_job_can_be_read_by_hand(running: Folder, by_hand: redis.Redis) -> None:
    with running.client() as client, by_hand:
        small = client.wait(client.submit("echo", {"hello": "world"}).id, timeout=30)
        large = client.wait(client.submit("echo", "x" * 1_000).id, timeout=30)
        fields = msgspec.msgpack.decode(job_at(running, small.id))
        assert (fields["status"], json.loads(fields["result"])) == ("completed", {"hello": "world"})
        for readable in (b"status\xa9completed", b'result\xb1{"hello":"world"}', b"task\xa4echo"):
            assert readable in job_at(running, small.id)
        assert msgspec.msgpack.decode(job_at(running, large.id))["status"] == "completed"
        assert json.loads(str(by_hand.get(f"{PREFIX}job:{large.id}:out"))) == "x" * 1_000
        assert by_hand.ttl(f"{PREFIX}job:{small.id}") == -1


def test_waiting_jobs_can_be_counted_by_hand(running: Folder, by_hand: redis.Redis) -> None:
    with running.client() as client, by_hand:
        for priority in ("high", "high", "normal"):
            client.submit("echo", 1, queue="unserved", priority=priority)
        depth = {queue.name: queue.depth for queue in client.queues()}["unserved"]
        for priority, count in {"critical": 0, "high": 2, "normal": 1, "low": 0}.items():
            assert by_hand.zcard(f"{PREFIX}queue:unserved:{priority}") == count == depth[priority]


def test_dead_letters_can_be_read_by_hand(running: Folder, by_hand: redis.Redis) -> None:
    with running.client() as client, by_hand:
        job = client.wait(client.submit("fail", {"times": 9}, max_attempts=1).id, timeout=30)
        assert by_hand.zscore(f"{PREFIX}dead:default", job.id) is not None
