"""Check what each command sends, prints and ends with, against a server that answers as told."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.cli.exits import Exit
from penstock.cli.output import print_table
from tests.unit.cli_support import FAILED, JOB_ID, SCHEDULE, Command, FakeServer, command, job, server

__all__ = ["command", "server"]


def test_submit_builds_the_request_from_its_flags(server: FakeServer, command: Command) -> None:
    server.answer("POST", "/submit", job("queued"), 202)
    flags = ["--type", "ai", "--queue", "q", "--priority", "high", "--delay", "5s", "--max-attempts", "2"]
    flags += [
        "--timeout",
        "9s",
        "--tag",
        "a",
        "--tag",
        "b",
        "--expires-in",
        "1h",
        "--backoff",
        "5",
        "--retention",
        "7d",
    ]
    assert command("submit", "summarize", '{"text": "x"}', *flags) == (0, f"{JOB_ID} queued\n", "")
    body: dict[str, Any] = {"task": "summarize", "input": {"text": "x"}, "type": "ai", "queue": "q", "priority": "high"}
    body |= {"delay": "5s", "max_attempts": 2, "timeout": "9s", "tags": ["a", "b"], "expires_in": "1h"}
    body |= {"backoff": "5", "retention": "7d"}
    assert server.seen == [("POST", "/submit", body)]


def test_submit_as_json_shows_what_the_server_said(server: FakeServer, command: Command) -> None:
    answer = job("scheduled", created_at="2030-01-31T12:00:00.500Z", run_at="2030-01-31T13:00:00.500Z", expires_at=None)
    server.answer("POST", "/submit", answer, 202)
    code, out, _ = command("submit", "echo", "1", "--delay", "1h", "--json")
    del answer["task"]
    assert (code, json.loads(out)) == (0, answer | {"replayed": False, "existing": False})


@pytest.mark.parametrize("words", [("submit", "echo"), ("schedules", "put", "x", "echo")])
def test_input_comes_from_files_stdin_or_text(
    server: FakeServer, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    server.answer("POST", "/submit", job("queued"), 202)
    server.answer("PUT", "/schedules/x", SCHEDULE)
    (tmp_path / "in.json").write_text('{"a": [1]}')
    with (tmp_path / "in.json").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert command(*words, "-")[0] == 0
    command(*words, "@in.json")
    command(*words, "@in.json", "--text")
    command(*words, "plain words", "--text")
    command(*words)
    inputs = [body.get("job", body)["input"] for _, _, body in server.seen]
    assert inputs == [{"a": [1]}, {"a": [1]}, '{"a": [1]}', "plain words", None]


def test_status_shows_a_job_and_ends_with_its_fate(server: FakeServer, command: Command) -> None:
    server.answer("GET", f"/jobs/{JOB_ID}", FAILED)
    server.answer("GET", f"/jobs/{JOB_ID}", job("completed", result={"a": []}, attempt=1, max_attempts=3))
    code, out, _ = command("status", JOB_ID)
    assert code == Exit.FAILED
    assert "reason       exhausted" in out
    assert "\x1b" not in out
    assert "OSError: no\\x1b[31m disk" in out
    code, out, _ = command("status", JOB_ID)
    assert code == Exit.OK
    assert 'result       {"a":[]}' in out
    assert "attempt      1 (at most 3)" in out


def test_status_shows_what_a_waiting_job_is_bound_to(server: FakeServer, command: Command) -> None:
    bounds = {"expires_at": "2030-01-31T13:00:00.500Z", "schedule": "nightly", "unique_key": "report:42"}
    server.answer("GET", f"/jobs/{JOB_ID}", job("queued", **bounds))
    server.answer("GET", f"/jobs/{JOB_ID}", job("running", started_at="2030-01-31T12:00:00Z", **bounds))
    out = command("status", JOB_ID)[1]
    for line in ("expires      2030-01-31T13:00:00.500Z", "schedule     nightly", "unique key   report:42"):
        assert line in out.splitlines()
    assert "expires" not in command("status", JOB_ID)[1]


def test_waiting_ends_in_time(server: FakeServer, command: Command) -> None:
    server.answer("GET", f"/jobs/{JOB_ID}", job("running"))
    code, out, err = command("status", JOB_ID, "--wait", "0")
    assert (code, out) == (Exit.TIMEOUT, "")
    assert "is still running" in err


def test_submit_and_wait_shows_the_end(server: FakeServer, command: Command) -> None:
    server.answer("POST", "/submit", job("queued"), 202)
    server.answer("GET", f"/jobs/{JOB_ID}", job("completed", result=1))
    code, out, _ = command("submit", "echo", "1", "--wait", "5", "--json")
    assert (code, json.loads(out)["result"]) == (0, 1)


def test_many_are_submitted_and_refusals_named(server: FakeServer, command: Command, tmp_path: Path) -> None:
    (tmp_path / "in.ndjson").write_text('1\n\n"bad"\n3\n')
    code, out, err = command("submit", "echo", "--ndjson", "in.ndjson", "--json")
    assert code == Exit.FAILED
    assert [(line["index"], line["error"] is None) for line in map(json.loads, out.splitlines())] == [
        (0, True),
        (1, False),
        (2, True),
    ]
    assert err == "penstock: job 2: input: is bad\n"
    code, out, _ = command("submit", "echo", "1", "--count", "2500")
    assert (code, out) == (0, "submitted 2,500 jobs\n")
    assert [len(body) for _, path, body in server.seen if path == "/jobs/batch"] == [3, 1_000, 1_000, 500]

    (tmp_path / "in.ndjson").write_text('{"task": "echo", "input": 1, "priority": "low"}\n')
    assert command("submit", "--ndjson", "in.ndjson")[0] == 0
    assert server.seen[-1][2] == [{"task": "echo", "input": 1, "priority": "low"}]
    for text, words in (("{", "line 1: not JSON"), ("3", "line 1: not a job")):
        (tmp_path / "in.ndjson").write_text(text)
        code, _, err = command("submit", "--ndjson", "in.ndjson")
        assert code == Exit.USAGE
        assert words in err


def test_of_those_that_may_have_been_taken_the_id_is_named(server: FakeServer, command: Command) -> None:
    away = {"code": "store_unavailable", "status": 503, "detail": "GET /jobs/{id} tells"}
    items = [
        {"index": 0, "id": JOB_ID, "status": "queued"},
        {"index": 1, "error": {**away, "job_id": JOB_ID}},
        {"index": 2, "error": away},
    ]
    server.answer("POST", "/jobs/batch", {"items": items})
    code, out, _ = command("submit", "echo", "1", "--count", "3")
    assert (code, out) == (Exit.FAILED, "submitted 1 jobs, 1 were refused, 1 may have been taken\n")
    _, out, _ = command("submit", "echo", "1", "--count", "3", "--json")
    errors = [json.loads(line)["error"] for line in out.splitlines()]
    assert [error and error.get("job_id") for error in errors] == [None, JOB_ID, None]


def test_many_are_waited_for(server: FakeServer, command: Command) -> None:
    for status in ("completed", "completed", "failed"):
        server.answer("GET", f"/jobs/{JOB_ID}", job(status))
    code, out, _ = command("submit", "echo", "1", "--count", "4", "--wait", "10")
    assert (code, out) == (Exit.FAILED, "submitted 4 jobs\n2 completed, 2 failed\n")
    server.answers[("GET", f"/jobs/{JOB_ID}")] = [(200, job("completed"))]
    code, out, _ = command("submit", "echo", "1", "--count", "20", "--wait", "10", "--json")
    assert code == 0
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["completed"] * 20
    server.answers[("GET", f"/jobs/{JOB_ID}")] = [(200, job("queued"))]
    code, _, err = command("submit", "echo", "1", "--count", "2", "--wait", "0")
    assert code == Exit.TIMEOUT
    assert "not all jobs were final" in err


def events(*told: tuple[str, dict[str, Any]]) -> str:
    """Return events as the server sends them."""
    return "".join(
        f"id: 0000000{number}-1-0.0\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
        for number, (kind, data) in enumerate(told)
    )


LINE = {
    "number": 1,
    "attempt": 1,
    "time": "2030-01-31T12:00:00.000Z",
    "level": "info",
    "message": "halfway\x1b[0m",
    "fields": {"rows": 7, "name": "x"},
    "exception": "Traceback\nKeyError",
    "cut": True,
}


def test_watch_shows_each_change(server: FakeServer, command: Command) -> None:
    told = events(
        ("state", job("queued")),
        ("state", job("running", attempt=1)),
        ("progress", {"attempt": 1, "progress": 0.5}),
        ("log", LINE),
        ("stream", {"number": 1, "attempt": 1, "time": "", "chunk": "so\nfar"}),
        ("state", job("completed", attempt=1)),
    )
    server.answer("GET", f"/jobs/{JOB_ID}/events", ": keep-alive\n\n" + told)
    server.answer("GET", f"/jobs/{JOB_ID}", job("completed", attempt=1, result=1))
    code, out, _ = command("watch", JOB_ID)
    assert code == 0
    lines = out.splitlines()
    assert lines[:3] == ["queued", "running, attempt 1", "running, attempt 1, 0.5"]
    assert lines[3].startswith("2030-01-31T12:00:00.000Z attempt 1 info     halfway\\x1b[0m rows=7 name=x")
    assert lines[6] == 'attempt 1 streamed "so\\nfar"'
    assert "result       1" in lines
    code, out, _ = command("watch", JOB_ID, "--json")
    documents = [json.loads(line) for line in out.splitlines()]
    assert [document.get("event") or document["status"] for document in documents] == [
        "queued",
        "running",
        "progress",
        "log",
        "stream",
        "completed",
    ]
    assert documents[-1]["result"] == 1


def test_a_broken_stream_goes_on_where_it_was(server: FakeServer, command: Command) -> None:
    path = f"/jobs/{JOB_ID}/events"
    server.answer("GET", path, events(("state", job("running", attempt=1))) + "id: 1-1-1.1\nevent: sta")
    server.answer("GET", path, {"status": 503, "code": "store_unavailable"}, 503)
    server.answer("GET", path, events(("state", job("failed", attempt=1))))
    server.answer("GET", f"/jobs/{JOB_ID}", job("failed", attempt=1))
    code, out, _ = command("watch", JOB_ID)
    assert code == Exit.FAILED
    assert out.splitlines()[0] == "running, attempt 1"
    assert [seen[1] for seen in server.seen].count(path) == 3


def test_log_pages_and_follows(server: FakeServer, command: Command) -> None:
    path = f"/jobs/{JOB_ID}/log"
    server.answer("GET", path, {"items": [LINE], "next": "1", "dropped": 3})
    server.answer("GET", path, {"items": [LINE | {"number": 2, "exception": None, "cut": False}], "next": None})
    code, out, err = command("log", JOB_ID)
    assert code == 0
    assert err == "penstock: 3 lines are not kept\n"
    assert out.count("halfway") == 2
    assert "    KeyError" in out.splitlines()
    assert [seen[1] for seen in server.seen] == [f"{path}?limit=1000", f"{path}?limit=1000&cursor=1"]
    told = events(("log", LINE), ("stream", {"chunk": 1}), ("state", job("completed")))
    server.answer("GET", f"/jobs/{JOB_ID}/events", told)
    code, out, _ = command("log", JOB_ID, "--follow", "--json")
    assert [json.loads(line)["message"] for line in out.splitlines()] == ["halfway\x1b[0m"]
    assert command("log", JOB_ID.replace("9", "8"))[0] == Exit.NOT_FOUND


def test_a_table_goes_into_a_pipe_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, encoding="utf-8"))
    print_table(["queue", "running"], [["default", "7"]])
    assert pipe.getvalue() == b"queue    running\ndefault        7\n"


def test_queues_are_a_table_or_a_document(server: FakeServer, command: Command) -> None:
    queue = {"name": "default", "depth": {"high": 1_234}, "waiting": 1_234, "running": 0, "delayed": 0}
    server.answer("GET", "/queues", {"items": []})
    server.answer("GET", "/queues", {"items": [queue | {"finished": {"completed": 7}}]})
    assert "no queues yet" in command("queues")[1]
    lines = command("queues")[1].splitlines()
    assert lines[0].split()[:3] == ["queue", "critical", "high"]
    assert lines[1].split() == ["default", "0", "1,234", "0", "0", "0", "0", "7", "0", "0", "0"]
    assert json.loads(command("queues", "--json")[1])["items"][0]["depth"] == {"high": 1_234}
    server.answers[("GET", "/queues")] = [(200, {"items": [queue | {"waiting": 0}]})]
    assert command("watch", "--until-idle")[0] == 0
    assert json.loads(command("watch", "--until-idle", "--json")[1])["items"]


def test_a_queue_is_paused_resumed_and_purged(server: FakeServer, command: Command) -> None:
    queue = {"name": "mail", "paused": True, "waiting": 1_234, "running": 2}
    server.answer("POST", "/queues/mail/pause", queue)
    server.answer("POST", "/queues/mail/resume", queue | {"paused": False})
    server.answer("POST", "/queues/mail/purge", {"queue": "mail", "purged": 1_000, "more": True})
    server.answer("POST", "/queues/mail/purge", {"queue": "mail", "purged": 234, "more": False})
    assert command("queue", "pause", "mail")[:2] == (0, "mail paused, 1,234 waiting, 2 running\n")
    assert json.loads(command("queue", "resume", "mail", "--json")[1])["paused"] is False
    assert command("queue", "purge", "mail")[:2] == (0, "mail purged, 1,234 cancelled\n")
    server.answer("GET", "/queues", {"items": [queue]})
    assert command("queues")[1].splitlines()[1].startswith("mail (paused) ")


def test_schedules_are_written_shown_and_changed(server: FakeServer, command: Command) -> None:
    found = SCHEDULE
    paused = found | {"paused": True, "paused_at": "2030-01-30T06:00:00.000Z", "next": []}
    server.answer("PUT", "/schedules/a%20b", found)
    server.answer("GET", "/schedules/a%20b", paused)
    server.answer("GET", "/schedules", {"items": [found, paused | {"cron": None, "every": 90.0}], "next": None})
    server.answer("POST", "/schedules/a%20b/pause", paused)
    server.answer("POST", "/schedules/a%20b/resume", found)
    server.answer("POST", "/schedules/a%20b/run", {"id": JOB_ID, "status": "queued"})
    server.answer("DELETE", "/schedules/a%20b", {})
    code, out, _ = command(
        *("schedules", "put", "a b", "echo", '{"a":1}', "--cron", "0 6 * * *", "--timezone", "Europe/Berlin"),
        *("--queue", "default", "--tag", "x", "--max-attempts", "2"),
    )
    assert code == 0
    assert "1,234 fired, 2 skipped, 3 missed" in out
    assert "2030-02-01T05:00:00.000Z" in out
    code, out, _ = command("schedules", "show", "a b")
    assert (code, "since 2030-01-30T06:00:00.000Z" in out) == (0, True)
    assert json.loads(command("schedules", "show", "a b", "--json")[1])["paused"] is True
    rows = command("schedules", "list")[1].splitlines()
    assert "0 6 * * * Europe/Berlin" in rows[1]
    assert "every 90 s" in rows[2]
    assert "paused" in rows[2]
    assert [json.loads(line)["name"] for line in command("schedules", "list", "--json")[1].splitlines()] == ["a b"] * 2
    assert command("schedules", "pause", "a b")[:2] == (0, "a b paused\n")
    assert command("schedules", "resume", "a b")[:2] == (0, "a b resumed, next 2030-01-31T05:00:00.000Z\n")
    assert command("schedules", "run", "a b")[:2] == (0, f"{JOB_ID} queued\n")
    assert command("schedules", "delete", "a b")[:2] == (0, "a b deleted\n")
    for verb in ("pause", "resume", "run", "delete"):
        assert json.loads(command("schedules", verb, "a b", "--json")[1])
    server.answers[("GET", "/schedules")] = [(200, {"items": [], "next": None})]
    assert "no schedules" in command("schedules", "list")[1]


def test_jobs_and_dead_letters_are_listed(server: FakeServer, command: Command) -> None:
    server.answer("GET", "/jobs", {"items": [job("running"), FAILED], "next": None})
    server.answer("GET", "/dead-letter", {"items": [FAILED] * 3, "next": None})
    code, out, _ = command("jobs", "--status", "running", "--status", "failed", "--tag", "a")
    assert code == 0
    assert "\x1b" not in out
    assert "status=running&status=failed&tag=a" in server.seen[-1][1]
    assert len(out.splitlines()) == 3
    code, out, _ = command("dead-letter", "list", "--queue", "q", "--limit", "2", "--json")
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["failed", "failed"]
    server.answers.clear()
    server.answer("GET", "/jobs", {"items": [], "next": None})
    assert command("jobs")[1] == "no such jobs\n"


def test_dead_letters_are_redriven_and_deleted(server: FakeServer, command: Command) -> None:
    server.answer("POST", "/dead-letter/redrive", {"redriven": 2, "skipped": 0, "more": True})
    server.answer("POST", "/dead-letter/redrive", {"redriven": 1, "skipped": 1, "more": False})
    server.answer("DELETE", "/dead-letter", {"deleted": 0, "skipped": 1, "more": False})
    code, out, _ = command("dead-letter", "redrive", "--queue", "q", "--task", "t")
    assert (code, out) == (0, "redriven 3, skipped 1 that are not failed jobs or cannot be changed\n")
    assert server.seen[0][2] == {"queue": "q", "task": "t"}
    code, out, _ = command("dead-letter", "delete", JOB_ID, "--json")
    assert (code, json.loads(out)) == (Exit.NOT_FOUND, {"deleted": 0, "skipped": 1})
    assert server.seen[-1][2] == {"ids": [JOB_ID]}
    command("dead-letter", "redrive", "--all")
    assert server.seen[-1][2] == {"all": True}


def test_one_job_that_cannot_be_changed_does_not_stop_the_rest(server: FakeServer, command: Command) -> None:
    problem = {"status": 409, "code": "state_conflict", "detail": "it is completed"}
    server.answer("POST", "/jobs/a/cancel", problem, 409)
    server.answer("POST", "/jobs/b/cancel", {"id": "b", "status": "cancelled"})
    server.answer(
        "POST", "/jobs/c/cancel", {"id": "c", "status": "running", "cancel_requested_at": "2030-01-31T12:00:00Z"}, 202
    )
    code, out, err = command("cancel", "a", "b", "c")
    assert (code, out) == (Exit.CONFLICT, "b cancelled\nc running, its handler is being told\n")
    assert err == "penstock: a: it is completed\n"
    code, out, _ = command("cancel", "a", "b", "--json")
    assert [(line["error"] or {}).get("code") for line in map(json.loads, out.splitlines())] == ["state_conflict", None]
    server.answer("POST", "/jobs/b/retry", {"id": "b", "status": "queued"})
    assert command("retry", "b") == (0, "b queued\n", "")
    assert command("retry", "none")[0] == Exit.NOT_FOUND


def test_health_of_the_api(server: FakeServer, command: Command) -> None:
    server.answer("GET", "/health", {"status": "ok", "version": "0.1.0"})
    assert command("health")[0] == 0
    server.answers[("GET", "/health")] = [
        (503, {"status": 503, "code": "store_unavailable", "detail": "Redis is away"})
    ]
    code, out, _ = command("health", "--json")
    assert (code, json.loads(out)) == (Exit.FAILED, {"ok": False, "detail": "Redis is away"})
    assert command("health", "--url", "http://127.0.0.1:1")[0] == Exit.UNREACHABLE
