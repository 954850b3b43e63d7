"""Use every command, and the client, against a running server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import redis

from penstock.client import AsyncClient, JobFailed, JobNotFound, RequestRejected, StateConflict
from penstock.embedded import find_instance
from tests.e2e.stack import Folder, one_line
from tests.waiting import until

REPOSITORY = Path(__file__).parents[2]
NO_JOB = "01a20ab1-68ea-7033-afc6-5f4dab454df9"


def test_submit_and_status(running: Folder) -> None:
    job = running.json("submit", "echo", '{"hello": "wörld"}', "--priority", "high", "--tag", "t1")
    assert job["status"] == "queued"
    final = running.json("status", job["id"], "--wait", "30")
    assert (final["status"], final["result"], final["priority"]) == ("completed", {"hello": "wörld"}, "high")
    assert job["id"] in running.run("jobs", "--tag", "t1").stdout
    shown = running.run("status", job["id"]).stdout
    assert 'result       {"hello":"wörld"}' in shown


def test_many_in_order(running: Folder) -> None:
    lines = running.json_lines("submit", "echo", "7", "--count", "300", "--wait", "60")
    assert [line["result"] for line in lines] == [7] * 300
    given = "\n".join(str(number) for number in range(100))
    lines = running.json_lines("submit", "echo", "--ndjson", "-", "--wait", "60", input=given)
    assert [line["result"] for line in lines] == list(range(100))
    given = '{"task": "echo"}\n{"task": "echo", "priority": "urgent"}\n{"task": ""}\n'
    done = running.run("submit", "--ndjson", "-", "--json", input=given)
    assert done.returncode == 1
    assert [line.count('"error":null') for line in done.stdout.splitlines()] == [1, 0, 0]
    assert "job 2: priority" in done.stderr


def test_errors_are_one_line_with_their_code(running: Folder) -> None:
    done = running.run("status", NO_JOB)
    assert done.returncode == 4
    one_line(done, [NO_JOB])
    done = running.run("submit", "echo", "1", "--priority", "urgent")
    assert done.returncode == 2
    one_line(done, ["priority"])
    done = running.run("submit", "fail", '{"times": 9}', "--max-attempts", "1", "--wait", "30")
    assert done.returncode == 1
    assert "DeliberateFailure" in done.stdout
    done = running.run("submit", "echo", "1", "--delay", "1h", "--wait", "0.1")
    assert done.returncode == 7
    one_line(done, ["still scheduled"])


def test_cancel_and_retry(running: Folder) -> None:
    job = running.json("submit", "echo", "1", "--delay", "1h")
    assert running.run("cancel", job["id"]).stdout == f"{job['id']} cancelled\n"
    assert running.run("cancel", job["id"]).returncode == 5
    other = running.json("submit", "echo", "1", "--delay", "1h")
    assert running.json("retry", other["id"])["status"] == "queued"
    assert running.json("status", other["id"], "--wait", "30")["status"] == "completed"


def test_one_job_of_a_key(running: Folder) -> None:
    alone = ("submit", "echo", "1", "--delay", "1h", "--unique-key", "report:42")
    job = running.json(*alone)
    assert running.json("status", job["id"])["unique_key"] == "report:42"
    refused = running.json(*alone, code=5)["error"]
    assert (refused["code"], refused["errors"][0]["field"]) == ("unique_conflict", "unique_key")
    assert job["id"] in refused["detail"]
    found = running.run(*alone, "--on-conflict", "return_existing")
    assert (found.returncode, found.stdout) == (0, f"{job['id']} scheduled\n")
    one_line(found, ["unique key"])
    newer = running.json(*alone, "--on-conflict", "replace", "--unique-until", "started", "--unique-for", "10m")
    assert running.json("status", job["id"], code=1)["status"] == "cancelled"
    assert running.run("cancel", newer["id"]).returncode == 0
    for wrong in (["--unique-for", "10m"], ["--unique-key", "k", "--count", "2"]):
        done = running.run("submit", "echo", "1", *wrong)
        assert done.returncode == 2
        one_line(done, ["--unique-key"])


def test_watch_ends_with_the_job(running: Folder) -> None:
    job = running.json("submit", "fail", '{"times": 1}')
    done = running.run("watch", job["id"])
    assert done.returncode == 0
    assert "completed" in done.stdout


def test_dead_letters(running: Folder) -> None:
    queue = ["--queue", "default"]
    job = running.json("submit", "fail", "{}", "--max-attempts", "1", "--tag", "dead", "--wait", "30", code=1)
    listed = running.json_lines("dead-letter", "list", *queue)
    assert job["id"] in [line["id"] for line in listed]
    assert running.json("dead-letter", "redrive", "--tag", "dead") == {"redriven": 1, "skipped": 0}
    assert running.json("status", job["id"], "--wait", "30", code=1)["attempt"] == 2
    assert running.json("dead-letter", "delete", job["id"]) == {"deleted": 1, "skipped": 0}
    assert running.run("status", job["id"]).returncode == 4
    assert running.run("dead-letter", "delete", NO_JOB).returncode == 4


def test_demo_shows_each_step(running: Folder) -> None:
    done = running.run("demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("   curl ") == 9
    assert "completed after 3 attempts" in done.stdout
    assert "redriven 1" in done.stdout
    assert "localhost" not in done.stdout
    assert len(running.json_lines("demo")) == 18


def test_health(running: Folder) -> None:
    assert running.json("health")["ok"] is True
    # A worker announces itself before its first claim, and is well from then on.
    until(lambda: running.run("health", "--worker").returncode == 0, "a worker that is well")
    done = running.run("health", "--url", "http://127.0.0.1:1")
    assert done.returncode == 3


def test_queues_agree_with_the_jobs(running: Folder) -> None:
    before = running.json("queues")["items"]
    running.json_lines("submit", "echo", "1", "--count", "50", "--wait", "30")
    after = running.json("queues")["items"]
    counts = [
        next((queue["finished"]["completed"] for queue in queues if queue["name"] == "default"), 0)
        for queues in (before, after)
    ]
    assert counts[1] - counts[0] >= 50
    assert "default" in running.run("queues").stdout


def test_summarize_a_real_text(running: Folder) -> None:
    text = (REPOSITORY / "LICENSE").read_text()
    job = running.json("submit", "summarize", f"@{REPOSITORY / 'LICENSE'}", "--text", "--type", "ai", "--wait", "60")
    result = job["result"]
    assert (result["provider"], result["method"]) == ("local", "textrank")
    assert result["text"]
    flat = re.sub(r"\s+", " ", text)
    # Cutting at more places than sentences end does no harm: each piece must stand in the text as it is.
    for sentence in re.split(r"(?<=[.!?]) ", re.sub(r"\s+", " ", result["text"])):
        assert sentence in flat


def test_doctor_finds_what_is_damaged(folder: Folder) -> None:
    folder.up()
    job = folder.json("submit", "echo", "1", "--wait", "30")
    other = folder.json("submit", "echo", "1", "--delay", "1h")
    report = folder.json("doctor")
    assert (report["healthy"], report["jobs"], report["findings"]) == (True, 2, [])
    assert {check["status"] for check in report["checks"]} == {"ok"}
    instance = find_instance(folder.path / ".penstock")
    assert instance is not None
    with redis.Redis.from_url(instance.redis_url) as raw:
        for key in raw.scan_iter(match=f"*{other['id']}*"):
            raw.delete(key)
    report = folder.json("doctor", code=1)
    assert other["id"] in {finding["subject"] for finding in report["findings"]}
    assert job["id"] not in {finding["subject"] for finding in report["findings"]}
    done = folder.run("doctor")
    assert done.returncode == 1
    assert other["id"] in done.stdout


def test_doctor_without_a_server(folder: Folder) -> None:
    done = folder.run("doctor")
    assert done.returncode == 2
    one_line(done, ["penstock up", "--redis-url"])
    done = folder.run("doctor", "--redis-url", "redis://127.0.0.1:1")
    assert done.returncode == 3
    one_line(done, ["127.0.0.1:1"])


def test_the_client(running: Folder) -> None:
    with running.client() as client:
        assert client.wait(client.submit("echo", [1, None]).id, timeout=30).result_or_raise() == [1, None]
        items = [("echo", number) for number in range(3_000)]
        submitted = list(client.submit_many(items, tags=["many"]))
        assert [item.index for item in submitted] == list(range(3_000))
        assert all(item.error is None for item in submitted)
        last = client.wait(str(submitted[-1].id), timeout=60)
        assert (last.result, last.tags) == (2_999, ("many",))
        until(lambda: all(queue.waiting == queue.running == 0 for queue in client.queues()), "empty queues")

        mixed = list(client.submit_many([("echo", 1), {"task": "echo", "bogus": 1}, ("echo", 2)]))
        assert [item.error is None for item in mixed] == [True, False, True]
        assert isinstance(mixed[1].error, RequestRejected)
        assert mixed[1].error.errors[0].field == "bogus"

        with pytest.raises(JobNotFound):
            client.get(NO_JOB)
        with pytest.raises(RequestRejected, match="delay") as refused:
            client.submit("echo", 1, delay=-1)
        assert refused.value.errors[0].field == "delay"
        failed = client.wait(client.submit("fail", {}, max_attempts=1).id, timeout=30)
        with pytest.raises(JobFailed, match="DeliberateFailure"):
            failed.result_or_raise()
        with pytest.raises(StateConflict):
            client.cancel(failed.id)
        client.delete(failed.id)
        with pytest.raises(JobNotFound):
            client.get(failed.id)
        assert len(client.list_jobs(task="echo", limit=5).items) == 5


async def test_the_async_client(running: Folder) -> None:
    async with AsyncClient(running.url) as client:
        job = await client.submit("echo", {"a": 1})
        assert (await client.wait(job.id, timeout=30)).result_or_raise() == {"a": 1}
        submitted = [item async for item in client.submit_many(("echo", number) for number in range(1_500))]
        assert len({item.id for item in submitted}) == 1_500
        assert (await client.wait(str(submitted[-1].id), timeout=60)).result == 1_499
