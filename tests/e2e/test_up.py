"""Run ``penstock up`` as a newcomer does: start, use, stop, start again, and all that goes wrong."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from penstock.embedded import find_instance
from penstock.embedded.ports import free_port
from tests.e2e.stack import IS_LINUX, Folder, one_line, wait_running
from tests.missing import skip_or_fail
from tests.waiting import until


def test_what_is_printed_can_be_pasted(folder: Folder) -> None:
    run = folder.start("up", "--port", "0")
    lines = [folder.line(run).rstrip() for _ in range(4)]
    ready, paste, submit, status = (line.strip() for line in lines)
    assert paste == "Paste these into another terminal:"
    assert all("127.0.0.1" in line and "localhost" not in line for line in (ready, submit, status))
    addresses = re.findall(r"http://[0-9.:]+(?:/\w+)?", ready)
    assert [httpx.get(address, follow_redirects=True).status_code for address in addresses] == [200, 200]
    if shutil.which("curl") is None:
        skip_or_fail("curl is not installed")
    answered = subprocess.run(submit, shell=True, capture_output=True, text=True, check=True)
    job_id = httpx.Response(200, text=answered.stdout).json()["id"]
    answered = subprocess.run(status.replace("ID", job_id), shell=True, capture_output=True, text=True, check=True)
    job = httpx.Response(200, text=answered.stdout).json()
    assert (job["status"], job["result"]) == ("completed", {"hello": "world"})


def test_a_restart_keeps_the_jobs(folder: Folder) -> None:
    run = folder.up()
    with folder.client() as client:
        done = client.wait(client.submit("echo", {"kept": [1, {}, []]}).id, timeout=30)
        later = client.submit("echo", "later", delay="1h")
        unknown = client.submit("nobody_knows", 1)
    assert folder.interrupt(run) == 0

    folder.up()
    with folder.client() as client:
        assert client.get(done.id).result == {"kept": [1, {}, []]}
        assert client.get(later.id).status == "scheduled"
        client.retry(later.id)
        assert client.wait(later.id, timeout=30).result == "later"
        assert client.get(unknown.id).status in {"queued", "retrying"}


def test_a_submit_may_wait_for_the_disk(folder: Folder) -> None:
    folder.up("--durability", "fsync")
    with folder.client() as client:
        assert client.wait(client.submit("echo", "kept").id, timeout=30).result == "kept"
    text = httpx.get(f"{folder.url}/metrics").text
    assert "penstock_durability_wait_seconds_count 1.0" in text
    assert "penstock_durability_unconfirmed_total 0.0" in text


@pytest.mark.skipif(not IS_LINUX, reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_leaves_no_process(folder: Folder, number: signal.Signals) -> None:
    run = folder.up()
    assert len(folder.processes()) >= 4
    os.killpg(run.pid, number)
    assert run.wait(60) == 0
    assert folder.processes() == []
    assert find_instance(folder.path / ".penstock") is None


def test_a_stop_hands_running_jobs_back_uncounted(folder: Folder) -> None:
    run = folder.up("--drain", "0")
    with folder.client() as client:
        job = client.submit("sleep", {"seconds": 2})
        wait_running(client, job.id)
    assert folder.interrupt(run) == 0

    folder.up()
    with folder.client() as client:
        final = client.wait(job.id, timeout=60)
    assert (final.status, final.counted, final.lost) == ("completed", 0, 0)


def test_a_second_signal_hands_running_jobs_back_at_once(folder: Folder) -> None:
    run = folder.up("--drain", "1h", env={"PENSTOCK_LOG_LEVEL": "info"})
    with folder.client() as client:
        job = client.submit("sleep", {"seconds": 3_000})
        wait_running(client, job.id)
    run.send_signal(signal.SIGINT)
    folder.log.until("worker.stopping")

    def ended() -> bool:
        # Again and again: what comes within a quarter of a second counts as the same key press.
        run.send_signal(signal.SIGINT)
        return run.poll() is not None

    until(ended, folder.stderr)
    assert run.returncode == 0
    assert "worker.hastened" in folder.stderr()

    folder.up("--drain", "0")
    with folder.client() as client:
        left = client.get(job.id)
    assert (left.counted, left.lost) == (0, 0)


@pytest.mark.skipif(not IS_LINUX, reason="looks for processes in /proc")
def test_a_cancel_outlives_a_restart_of_everything(folder: Folder) -> None:
    (folder.path / "deaf.py").write_text(
        "import pathlib, threading\n"
        "from penstock import task\n"
        "@task\n"
        "def deaf():\n"
        "    with pathlib.Path('starts').open('a') as file:\n"
        "        file.write('started\\n')\n"
        "    threading.Event().wait()\n"
    )
    # Each write is on the disk before it is answered, so that killing Valkey loses nothing.
    arguments = ("--durability", "fsync", "--lease", "2s", "deaf")
    run = folder.up(*arguments)
    folder.wait_for_task("deaf")
    with folder.client() as client:
        job = client.submit("deaf")
        until((folder.path / "starts").exists, "a start")
        asked = httpx.post(f"{folder.url}/jobs/{job.id}/cancel")
        assert asked.status_code == 202
        assert asked.json()["status"] == "running"
        # Everything: the API, the worker with the handler in it, and Valkey.
        run.kill()
        run.wait()
        folder.all_gone(30)

    folder.up(*arguments)
    with folder.client() as client:
        final = client.wait(job.id, timeout=60)
        done = httpx.post(f"{folder.url}/jobs/{job.id}/cancel")
    assert final.status == "cancelled"
    assert done.status_code == 409
    found = httpx.get(f"{folder.url}/jobs/{job.id}").json()
    assert found["cancel_requested_at"] == asked.json()["cancel_requested_at"]
    assert (folder.path / "starts").read_text() == "started\n"


@pytest.mark.skipif(not IS_LINUX, reason="looks for processes in /proc")
def test_a_killed_supervisor_takes_its_children_along(folder: Folder) -> None:
    run = folder.up()
    with folder.client() as client:
        job = client.wait(client.submit("echo", "yesterday").id, timeout=30)
    run.kill()
    run.wait()
    killed_at = time.monotonic()
    folder.all_gone()
    assert time.monotonic() - killed_at < 2

    folder.up()
    with folder.client() as client:
        assert client.get(job.id).result == "yesterday"


def test_a_folder_in_use_says_whose(folder: Folder) -> None:
    run = folder.up()
    done = folder.run("up", "--port", "0")
    assert (done.returncode, done.stdout) == (1, "")
    one_line(done, ["in use", f"pid {run.pid}", folder.url, "PENSTOCK_DATA_DIR"])
    assert httpx.get(f"{folder.url}/health").status_code == 200


def test_a_port_in_use_names_the_way_out(folder: Folder) -> None:
    folder.up()
    port = folder.url.rpartition(":")[2]
    done = folder.run("up", "--port", port, "--data-dir", "other")
    assert (done.returncode, done.stdout) == (1, "")
    one_line(done, [f"port {port}", "PENSTOCK_PORT=", "make run"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], ["PENSTOCK_API_KEYS", "--insecure"]),
        (["--port", "http"], ["--port"]),
        (["--partitions", "3"], ["--partitions"]),
    ],
)
def test_wrong_settings_stop_before_anything_starts(folder: Folder, arguments: list[str], words: list[str]) -> None:
    done = folder.run("up", *arguments)
    assert done.returncode == 2
    one_line(done, words)
    assert not (folder.path / ".penstock").exists()


def test_a_module_that_is_not_there_ends_the_start(folder: Folder) -> None:
    done = folder.run("up", "--port", "0", "no_such_module")
    assert done.returncode == 1
    assert "no module named 'no_such_module'" in done.stderr
    assert "Traceback" not in done.stderr
    assert folder.processes() == []


def test_keys_are_demanded_and_accepted(folder: Folder) -> None:
    key = "a-key-of-20-letters!"
    (folder.path / "keys").write_text(f"{key}\nanother-key-of-letters\n")
    folder.up(env={"PENSTOCK_API_KEYS_FILE": "keys"})
    done = folder.run("submit", "echo", "1")
    assert done.returncode == 6
    one_line(done, ["PENSTOCK_API_KEY"])
    job = folder.json("submit", "echo", "1", "--wait", "30", env={"PENSTOCK_API_KEY": key})
    assert job["result"] == 1
    assert folder.run("health").returncode == 0
    (folder.path / "key").write_text(f"{key}\n")
    assert folder.run("queues", env={"PENSTOCK_API_KEY_FILE": "key"}).returncode == 0
    assert key not in folder.stderr()


def test_waiting_outlasts_a_restart(folder: Folder) -> None:
    port = str(free_port())
    run = folder.up("--port", port)
    with folder.client() as client, ThreadPoolExecutor() as threads:
        job = client.submit("echo", "after all", delay="1h")
        waiting = threads.submit(client.wait, job.id, 60)
        assert folder.interrupt(run) == 0
        folder.up("--port", port)
        client.retry(job.id)
        assert waiting.result(60).result == "after all"


def test_a_killed_worker_comes_back(folder: Folder) -> None:
    folder.up("--lease", "2s")
    with folder.client() as client:
        job = client.submit("sleep", {"seconds": 1})
        wait_running(client, job.id)
        workers = httpx.get(f"{folder.url}/workers").json()["items"]
        os.kill(workers[0]["pid"], signal.SIGKILL)
        assert client.wait(job.id, timeout=60).status == "completed"
