"""Tests wait for signals: one file may look again after a pause, and what it says when nothing comes is clear."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.waiting import Fifo, Gate, Log, begun, in_time, insist, pass_gate, until, until_async

TESTS = Path(__file__).parents[1]
#: What takes time because that is its part: handlers, and faults and load of a given length.
TAKE_TIME = {"integration/worker_tasks.py", "integration/worker_fault_tasks.py"}
CHAOS = {"ledger.py", "process_faults.py", "run.py", "scene.py", "server_faults.py", "wire.py", "wire_faults.py"}


def pauses(text: str) -> list[int]:
    """Return the lines that pause: a sleep, or a wait for an event or descriptors with a length in the code.

    ``asyncio.sleep(0)`` lets one step of the loop pass, which some tests are about.
    """
    found = []
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        given = ast.unparse(node)
        if (node.func.attr == "sleep" and given != "asyncio.sleep(0)") or given.startswith("select.select([], [], []"):
            found.append(node.lineno)
    return found


def test_no_test_pauses() -> None:
    found = {
        f"{path.relative_to(TESTS)}:{line}"
        for path in TESTS.rglob("*.py")
        for line in pauses(path.read_text())
        if path.name != "waiting.py"
    }
    allowed = TAKE_TIME | {f"chaos/{name}" for name in CHAOS | {"handlers.py"}}
    assert {place for place in found if place.rpartition(":")[0] not in allowed} == set()


def test_pauses_are_found() -> None:
    text = "import asyncio\nasyncio.sleep(0)\nasyncio.sleep(0.1)\ntime.sleep(1)\nselect.select([], [], [], 1)\n"
    assert pauses(text) == [3, 4, 5]


def test_a_look_returns_what_it_found_and_says_what_did_not_come() -> None:
    answers = iter([0, "", OSError("away"), 7])

    def tell() -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert until(tell, "seven", trouble=(OSError,)) == 7
    with pytest.raises(AssertionError, match=r"^not within 0 s: the end$"):
        until(lambda: False, lambda: "the end", seconds=0)

    def fail() -> bool:
        raise OSError("away")

    with pytest.raises(AssertionError, match=r"^not within 0 s: an answer \(OSError\('away'\)\)$"):
        until(fail, "an answer", seconds=0, trouble=(OSError,))
    with pytest.raises(OSError, match="away"):
        until(fail, "an answer")


async def test_the_same_beside_other_tasks() -> None:
    answers = iter([0, 7])
    assert await until_async(lambda: next(answers), "seven") == 7

    async def hang() -> None:
        await asyncio.Event().wait()

    with pytest.raises(AssertionError, match=r"^not within 0\.01 s: an answer$"):
        await until_async(hang, "an answer", seconds=0.01)

    async def late() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await until_async(late, "an answer")
    assert await in_time(lambda: False, 0.01) is False
    assert await in_time(lambda: True, 0.01) is True


async def test_insisting_takes_any_answer() -> None:
    answers = iter([OSError("away"), None])

    async def call() -> object:
        if error := next(answers):
            raise error
        return error

    assert await insist(call, "an answer", trouble=(OSError,)) is None


async def test_a_fifo_tells_whole_lines_as_they_come(tmp_path: Path) -> None:
    fifo = Fifo(tmp_path / "fifo")
    try:
        with fifo.path.open("a", buffering=1) as writer:
            writer.write("one\ntw")
            writer.flush()
            assert fifo.lines() == ["one"]
            waiting = await begun(fifo.count(2))
            writer.write("o\n")
            assert await waiting == ["one", "two"]
        assert fifo.lines() == ["one", "two"]
        with pytest.raises(AssertionError, match=r"not within 0\.01 s: a third; lines: \['one', 'two'\]"):
            await fifo.until(lambda lines: len(lines) > 2, "a third", seconds=0.01)
    finally:
        fifo.close()


def test_a_log_tells_what_processes_wrote() -> None:
    log = Log()
    try:
        for words in ("one", "two"):
            subprocess.run([sys.executable, "-c", f"print('{words}', end='')"], check=True, stdout=log.writer)
            assert log.text().endswith(words)
        log.until("one")
        with subprocess.Popen([sys.executable, "-c", "print('x' * 200_000 + 'late')"], stdout=log.writer):
            log.until("late")
        with pytest.raises(AssertionError, match=r"^not within 0 s: 2 times 'one' in\nonetwox"):
            log.until("one", times=2, seconds=0)
    finally:
        log.close()


def test_a_gate_holds_up_all_until_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "gate"
    gate = Gate(path)
    passed: list[int] = []

    def walk() -> None:
        pass_gate(str(path))
        passed.append(1)

    threads = [threading.Thread(target=walk) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert passed == []
    gate.open()
    for thread in threads:
        thread.join(10)
    pass_gate(str(path))
    gate.open()
    assert passed == [1, 1]
