"""Run tasks of one's own: beside the running instance, and in it."""

from __future__ import annotations

import textwrap

import pytest

from tests.e2e.stack import Folder

MODULE = """
    from penstock import Context, task

    @task
    def triple(number: int) -> int:
        return number * 3

    @task
    async def describe(name: str, ctx: Context, times: int = 1) -> dict[str, object]:
        return {"text": name * times, "attempt": ctx.attempt}

    @task(executor="process")
    def tell(words: list[str], ctx: Context) -> int:
        for number, word in enumerate(words):
            ctx.log.info("a word", number=number)
            ctx.stream(word)
        return len(words)
"""


@pytest.fixture
def with_module(folder: Folder) -> Folder:
    (folder.path / "mymodule.py").write_text(textwrap.dedent(MODULE))
    return folder


def test_a_worker_in_a_second_terminal_shares_the_queue(with_module: Folder) -> None:
    folder = with_module
    folder.up()
    folder.start("worker", "mymodule")
    folder.wait_for_task("triple")
    with folder.client() as client:
        jobs = list(client.submit_many(("triple", {"number": number}) for number in range(1_000)))
        finals = [client.wait(str(job.id), timeout=60) for job in jobs]
        echo = client.wait(client.submit("echo", 1).id, timeout=30)
    assert [job.result for job in finals] == [number * 3 for number in range(1_000)]
    assert {(job.status, job.counted, job.lost, job.no_handler) for job in finals} == {("completed", 0, 0, 0)}
    assert echo.result == 1


def test_up_runs_the_module(with_module: Folder) -> None:
    folder = with_module
    folder.up("mymodule")
    with folder.client() as client:
        assert client.wait(client.submit("triple", 7).id, timeout=30).result == 21
        job = client.wait(client.submit("describe", {"name": "ab", "times": 2}).id, timeout=30)
        assert job.result == {"text": "abab", "attempt": 1}
        wrong = client.wait(client.submit("triple", {"number": "seven"}).id, timeout=30)
    assert (wrong.status, wrong.reason) == ("failed", "invalid_input")
    assert wrong.error is not None
    assert "number" in wrong.error.field
    assert wrong.attempt == 1


def test_what_a_job_logs_and_streams_is_told(with_module: Folder) -> None:
    folder = with_module
    folder.up("mymodule")
    with folder.client() as client:
        job = client.submit("tell", {"words": ["one", "two"]})
        told = list(client.events(job.id))
    assert [event.chunk for event in told if event.kind == "stream"] == ["one", "two"]
    assert {event.attempt for event in told if event.kind != "state"} == {1}
    assert told[-1].data["status"] == "completed"
    logged = folder.run("log", job.id)
    assert (logged.returncode, logged.stderr) == (0, "")
    assert [line.partition(" info ")[2].strip() for line in logged.stdout.splitlines()] == [
        "a word number=0",
        "a word number=1",
    ]
    assert [line["fields"]["number"] for line in folder.json_lines("log", job.id, "--follow")] == [0, 1]
    watched = folder.run("watch", job.id)
    assert 'attempt 1 streamed "two"' in watched.stdout
    assert "completed" in watched.stdout


def test_a_job_waits_for_a_worker_that_knows_its_task(with_module: Folder) -> None:
    folder = with_module
    folder.up()
    with folder.client() as client:
        job = client.submit("triple", {"number": 2})
        folder.start("worker", "mymodule")
        final = client.wait(job.id, timeout=60)
    assert (final.result, final.counted) == (6, 0)


def test_the_decorated_function_submits(with_module: Folder) -> None:
    folder = with_module
    folder.up("mymodule")
    code = "import mymodule; from penstock import Client; j = mymodule.triple.submit(number=5); "
    code += "print(Client().wait(j.id, timeout=30).result, mymodule.triple(number=1))"
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder.path,
        env=folder.env | {"PENSTOCK_URL": folder.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("15 3\n", "")
