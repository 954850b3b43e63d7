"""Real processes: start, ordered stop, kill -9, restart, and what is told to the user."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from penstock.embedded import find_instance
from tests.integration.embedded_support import IS_LINUX, Stack, stack_in
from tests.waiting import until, wait_gone

only_linux = pytest.mark.skipif(not IS_LINUX, reason="the kernel's part of the lifeline")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    yield from stack_in(tmp_path)


def stop(stack: Stack, run: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> None:
    run.send_signal(number)
    assert run.wait(timeout=20) == 0, stack.stderr()
    assert stack.marked() == []


def ended_by(run: subprocess.Popen[bytes], number: signal.Signals) -> bool:
    run.send_signal(number)
    return run.poll() is not None


def test_the_server_syncs_each_write_where_it_is_told(stack: Stack) -> None:
    run = stack.start_ready(syncs_each_write=True)
    with stack.client() as client:
        assert client.config_get("appendfsync") == {"appendfsync": "always"}
    stop(stack, run)


def test_the_server_keeps_everything_and_lets_in_only_its_owner(stack: Stack) -> None:
    run = stack.start_ready()
    with stack.client() as client:
        client.set("some", "data")
        settings = client.config_get("*")
        assert isinstance(settings, dict)
        expected = {
            "bind": "127.0.0.1",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "aof-load-truncated": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        assert {name: settings[name] for name in expected} == expected
    password = (stack.data_dir / "valkey.password").read_text().strip()
    assert len(password) == 64
    assert stat.S_IMODE(stack.data_dir.stat().st_mode) == 0o700
    open_to_others = {
        str(path): oct(path.stat().st_mode)
        for path in stack.data_dir.rglob("*")
        if path.name != ".gitignore" and path.stat().st_mode & 0o077
    }
    assert open_to_others == {}
    listed = subprocess.run(["ps", "-A", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert password not in listed
    assert password not in repr(stack.instance())
    assert password not in stack.stderr()
    stop(stack, run)
    assert password not in (stack.data_dir / "valkey.log").read_text()


def test_others_find_the_instance_only_while_it_runs(stack: Stack) -> None:
    assert find_instance(stack.data_dir) is None
    run = stack.start_ready()
    instance = stack.instance()
    assert (instance.pid, instance.api_url) == (run.pid, f"http://127.0.0.1:{stack.port}")
    stop(stack, run)
    assert (stack.data_dir / "instance.json").exists()
    assert find_instance(stack.data_dir) is None


def test_ctrl_c_drains_the_worker_while_the_rest_still_runs(stack: Stack, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    run = stack.start_ready(env={"TEST_DRAIN": str(gate)})
    valkey = stack.children()["valkey"]
    # As a terminal does it: everything in the foreground process group.
    os.killpg(run.pid, signal.SIGINT)
    stack.expect("worker stopping")
    with stack.client() as client:
        assert client.ping()
        client.set("written", "while draining")
    with socket.create_connection(("127.0.0.1", stack.port), timeout=5):
        pass
    with gate.open("wb"):
        pass
    assert stack.expect("worker drained") == ["1"]
    stack.expect("api stopping")
    assert run.wait(timeout=20) == 0
    assert [text for text in stack.told if text.startswith("SIGINT")] == []
    assert wait_gone(valkey, 0)
    assert stack.marked() == []
    log = (stack.data_dir / "valkey.log").read_text()
    assert "ready to exit, bye bye" in log
    run = stack.start_ready()
    with stack.client() as client:
        assert client.mget("written", "drained") == ["while draining", "1"]
    stop(stack, run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_stop_signal_leaves_no_process_and_no_grandchild(stack: Stack, number: signal.Signals) -> None:
    run = stack.start_ready()
    pids = stack.worker_pids
    if IS_LINUX:
        # The supervisor, three children, two grandchildren. A process has no environment to show for a moment after its
        # start: the kernel closes what its parent waits for before it has laid that out.
        until(lambda: len(stack.marked()) == 6, "six processes")
    stop(stack, run, number)
    assert all(wait_gone(pid, 0) for pid in pids)


def test_a_second_signal_hastens_but_the_data_is_safe(stack: Stack) -> None:
    run = stack.start_ready(env={"TEST_DRAIN": "never"})
    run.send_signal(signal.SIGINT)
    stack.expect("worker stopping")
    with stack.client() as client:
        client.set("last", "word")
    assert run.poll() is None
    # The first of these may come too soon to count as a decision of its own.
    until(lambda: ended_by(run, signal.SIGINT), stack.stderr)
    assert run.returncode == 0
    assert "at once" in stack.stderr()
    assert "bye bye" in (stack.data_dir / "valkey.log").read_text()
    assert stack.marked() == []
    run = stack.start_ready()
    with stack.client() as client:
        assert client.get("last") == "word"
    stop(stack, run)


def test_a_worker_that_does_not_drain_is_killed_after_its_grace(stack: Stack) -> None:
    run = stack.start_ready(env={"TEST_DRAIN": "never"}, drain_seconds=-4.5)  # and 5 s of margin
    stop(stack, run)
    assert "worker did not stop in time" in stack.stderr()


@pytest.mark.parametrize("watches", ["yes", pytest.param("no", marks=only_linux)])
def test_after_kill_9_all_children_end_within_2_s_and_the_data_is_there(stack: Stack, watches: str) -> None:
    run = stack.start_ready(env={"TEST_WATCH_PARENT": watches})
    # A grandchild in a session of its own is beyond reach once the supervisor is gone.
    pids = [*stack.children().values(), *stack.worker_pids[:2]]
    url, written = stack.instance().redis_url, 0
    with stack.client() as client:
        for _ in range(2_000):
            written = int(client.incr("written"))
        killed_at = time.monotonic()
        run.kill()
    for pid in pids:
        if IS_LINUX or pid != stack.children()["valkey"]:
            assert wait_gone(pid, max(0.0, killed_at + 2 - time.monotonic()))
    assert find_instance(stack.data_dir) is None
    run = stack.start_ready()
    assert stack.instance().redis_url == url
    with stack.client() as client:
        assert client.get("written") == str(written)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=20) == 0


@only_linux
def test_after_kill_9_a_worker_that_never_lets_go_of_the_interpreter_ends_too(stack: Stack) -> None:
    busy = """
import os, re
from penstock.embedded import exit_with_parent
exit_with_parent(int(os.environ["PENSTOCK_PARENT_FD"]))
os.write(2, b"busy")
re.match("(a+)+$", "a" * 60 + "b")
"""
    run = stack.start_ready(worker_argv=[sys.executable, "-c", busy])
    stack.log.until("busy")
    pids = stack.children().values()
    run.kill()
    assert all(wait_gone(pid, 2) for pid in pids)


def test_the_next_start_waits_for_what_a_killed_run_left_behind(stack: Stack) -> None:
    run = stack.start_ready()
    old = stack.children()
    with stack.client() as client:
        client.set("some", "data")
    # Stopped processes cannot react to the supervisor's death; SIGKILL still ends the other two.
    os.kill(old["valkey"], signal.SIGSTOP)
    run.kill()
    run.wait()
    assert not wait_gone(old["valkey"], 0)
    run = stack.start_ready()
    assert wait_gone(old["valkey"], 0)
    assert "Ended valkey" in stack.stderr()
    with stack.client() as client:
        assert client.get("some") == "data"
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=20) == 0


def test_five_kills_in_a_row_lose_nothing(stack: Stack) -> None:
    for count in range(1, 6):
        run = stack.start_ready()
        with stack.client() as client:
            assert client.incr("starts") == count
        run.kill()
        run.wait()


def test_a_folder_in_use_is_one_line_that_says_whose(stack: Stack) -> None:
    first = stack.start_ready()
    before = stack.stderr()
    children = stack.children()
    second = stack.start()
    assert second.wait(timeout=20) == 1
    (line,) = stack.stderr().removeprefix(before).splitlines()
    assert f"{stack.data_dir} is in use by Penstock (pid {first.pid}) at http://127.0.0.1:{stack.port}" in line
    assert stack.children() == children
    assert stack.instance().pid == first.pid
    stop(stack, first)


def test_looking_for_the_instance_does_not_keep_it_from_starting(stack: Stack) -> None:
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            find_instance(stack.data_dir)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        run = stack.start_ready()
    finally:
        done.set()
        for looker in lookers:
            looker.join()
    stop(stack, run)


def test_a_port_in_use_is_one_line_that_names_the_way_out(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", stack.port)):
        run = stack.start()
        assert run.wait(timeout=20) == 1
    (line,) = stack.stderr().splitlines()
    assert f"port {stack.port} on 127.0.0.1 is in use" in line
    assert f"PENSTOCK_PORT={stack.port + 1} make run" in line
    assert not (stack.data_dir / "valkey.log").exists()
    assert stack.marked() == []


@pytest.mark.parametrize("name", ["api", "worker", "valkey"])
def test_a_child_that_dies_is_started_again(stack: Stack, name: str) -> None:
    run = stack.start_ready()
    with stack.client() as client:
        client.set("some", "data")
        # While one fsync runs, the server holds the next write back for up to 2 s: what SIGKILL could take.
        assert client.execute_command("WAITAOF", 1, 0, 10_000)[0] == 1
    url, old = stack.instance().redis_url, stack.children()
    os.kill(old[name], signal.SIGKILL)
    if name != "valkey":
        stack.expect(f"{name} started")
    until(lambda: stack.children().get(name) not in {None, old[name]}, f"another {name} in children.json")
    assert {child: pid for child, pid in stack.children().items() if child != name} == {
        child: pid for child, pid in old.items() if child != name
    }
    assert stack.instance().redis_url == url

    def answers() -> bool:
        with stack.client() as client:
            try:
                return bool(client.get("some") == "data")
            except redis.ConnectionError:  # down, or loading
                return False

    until(answers, "an answer of the server")
    assert f"{name} stopped (SIGKILL); starting it again in 0 s" in stack.stderr()
    stop(stack, run)


def test_a_child_that_dies_again_and_again_is_started_ever_slower(stack: Stack) -> None:
    run = stack.start_ready(env={"TEST_WORKER_EXIT": "1"})
    for _ in range(2):
        stack.expect("worker started")
    stack.log.until("again in 1 s")
    assert "again in 0.5 s" in stack.stderr()
    stop(stack, run)


def test_wrong_usage_stops_the_stack_instead_of_repeating(stack: Stack) -> None:
    run = stack.start(env={"TEST_WORKER_EXIT": "2"})
    stack.is_ready(run)
    assert run.wait(timeout=20) == 1
    assert "penstock: worker gave up (exit code 2)" in stack.stderr()
    assert stack.marked() == []


def test_an_api_that_stops_before_it_is_ready_stops_the_stack(stack: Stack) -> None:
    run = stack.start(api_argv=["/bin/sh", "-c", "exit 3"])
    assert run.wait(timeout=20) == 1
    assert "penstock: api stopped before it was ready (exit code 3)" in stack.stderr()
    assert stack.marked() == []


def test_an_api_that_never_answers_stops_the_stack(stack: Stack) -> None:
    run = stack.start(env={"TEST_API_STATUS": "503"}, api_ready_timeout_seconds=1.0)
    assert run.wait(timeout=20) == 1
    assert "penstock: api did not answer within 1 s" in stack.stderr()
    assert stack.marked() == []


def test_a_program_that_is_missing_stops_the_stack(stack: Stack) -> None:
    run = stack.start(worker_argv=["/nowhere/worker"])
    assert run.wait(timeout=20) == 1
    assert "penstock: worker could not be started: No such file or directory" in stack.stderr()
    assert stack.marked() == []


def test_a_signal_before_the_stack_is_ready_is_an_ordered_stop(stack: Stack) -> None:
    run = stack.start(env={"TEST_API_STATUS": "503"})
    stack.expect("worker started")
    stop(stack, run)
    assert "bye bye" in (stack.data_dir / "valkey.log").read_text()


@pytest.mark.parametrize("step", ["lock", "valkey.password", "valkey.conf", "valkey.log", "children.json"])
def test_a_signal_at_any_step_of_the_start_leaves_nothing(stack: Stack, step: str) -> None:
    run = stack.start()
    until((stack.data_dir / step).exists, step)
    stop(stack, run)
    run = stack.start_ready()
    stop(stack, run)


@pytest.mark.parametrize("milliseconds", range(40, 400, 60))
def test_a_kill_at_any_time_leaves_nothing_that_the_next_start_stumbles_on(stack: Stack, milliseconds: int) -> None:
    run = stack.start()
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(timeout=milliseconds / 1000)
    run.kill()
    run.wait()
    run = stack.start_ready()
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=20) == 0


def test_a_redis_of_ones_own_is_handed_on_and_no_server_starts(stack: Stack) -> None:
    run = stack.start_ready(
        redis_url="redis://127.0.0.1:1/3",
        worker_argv=["/bin/sh", "-c", 'echo "url $PENSTOCK_REDIS_URL" >&2; exec sleep 1000'],
    )
    stack.log.until("url redis://127.0.0.1:1/3")
    assert sorted(stack.children()) == ["api", "worker"]
    assert stack.instance().redis_url == "redis://127.0.0.1:1/3"
    assert not (stack.data_dir / "valkey.log").exists()
    stop(stack, run)
