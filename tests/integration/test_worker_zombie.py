"""Freeze real processes past their lease, wake them, and show that nothing they then try is taken."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock.core.ids import WorkerName
from penstock.core.job import ClaimRequest, Extension, Settle, SettleCode, Verb
from penstock.core.output import OutputKind
from penstock.core.states import AttemptOutcome, State
from penstock.store import StoreOptions, connect
from penstock.store.protocol import Store
from tests.integration.worker_support import finished, new_job, submit
from tests.waiting import Fifo, Gate, Log, until_async

#: Of the one that is frozen.
LEASE_MS = 3_000

#: Claims a job, says so, and when it is told goes on to try all that a holder may.
ZOMBIE = """
import asyncio, json, sys
from penstock.core.ids import WorkerName
from penstock.core.job import ClaimRequest, Extension, Settle, Verb
from penstock.core.output import NewEntry, Output, OutputKind
from penstock.core.states import Reason
from penstock.store import StoreOptions, connect

async def main(url, namespace, lease_ms):
    store = await connect(StoreOptions(redis_url=url, namespace=namespace))
    request = ClaimRequest(worker=WorkerName("zombie"), nonce="zombie", queues=("default",), lease_ms=lease_ms)
    (job,) = (await store.claim(0, request)).jobs
    token = job.token
    print(json.dumps({"attempt": token.attempt}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    answers = {}
    for verb in Verb:
        reason = Reason.DISCARDED if verb is Verb.FAIL else None
        (answer,) = await store.settle([Settle(token=token, verb=verb, value=b'"of a zombie"', reason=reason)])
        answers[verb.value] = getattr(getattr(answer, "code", answer), "value", repr(answer))
    (plain, told) = await store.extend(
        WorkerName("zombie"),
        [Extension(token=token), Extension(token=token, progress=b'"of a zombie"')],
        lease_ms=lease_ms,
        complete=True,
    )
    answers["extend"] = plain.deadline_ms
    answers["progress"] = told.deadline_ms
    for kind in OutputKind:
        entry = NewEntry(kind=kind, value=b'"of a zombie"')
        (answer,) = await store.output([Output(token=token, made=0, entries=(entry,))])
        answers[kind.value] = getattr(answer, "value", repr(answer))
    answers["release_worker"] = await store.release_worker(WorkerName("zombie"), lost=True)
    print(json.dumps(answers), flush=True)
    await store.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@pytest.fixture
def options(valkey_url: str, namespace: str) -> StoreOptions:
    return StoreOptions(redis_url=valkey_url, namespace=namespace)


@pytest.fixture
async def store(options: StoreOptions) -> AsyncIterator[Store]:
    opened = await connect(options)
    yield opened
    await opened.close()


async def lapse(store: Any) -> None:
    """Reap until a lease has lapsed, without the rest that the reaper keeps after a first look."""

    async def lapsed() -> bool:
        await reap_at_once(store)
        return bool((await store.reap(0)).requeued)

    await until_async(lapsed, "a lapsed lease")


async def reap_at_once(store: Any) -> None:
    keys = store.connection.keys[0]
    await store.connection.together([("HSET", keys.key("meta"), "reap_from", 0)])


async def line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        return json.loads(await asyncio.to_thread(process.stdout.readline))


@pytest.mark.parametrize("ends_first", [False, True], ids=["while the holder runs", "after the holder finished"])
async def test_nothing_that_a_zombie_tries_is_taken(store: Store, options: StoreOptions, ends_first: bool) -> None:
    (job_id,) = await submit(store, new_job("anything"))
    with subprocess.Popen(  # noqa: ASYNC220 - takes a few ms
        [sys.executable, "-c", ZOMBIE, options.redis_url, options.namespace, str(LEASE_MS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as zombie:
        try:
            assert await line(zombie) == {"attempt": 1}
            zombie.send_signal(signal.SIGSTOP)
            await lapse(store)
            holder = WorkerName("holder")
            claimed = await store.claim(0, ClaimRequest(worker=holder, nonce="holder", queues=("default",)))
            token = claimed.jobs[0].token
            assert (token.job_id, token.attempt) == (job_id, 2)
            completes = Settle(token=token, verb=Verb.COMPLETE, value=b'"of the holder"')
            if ends_first:
                (settled,) = await store.settle([completes])
                assert not isinstance(settled, Exception)
                assert settled.code is SettleCode.DONE
            before = await store.get(job_id)

            zombie.send_signal(signal.SIGCONT)
            assert zombie.stdin is not None
            zombie.stdin.write("\n")
            zombie.stdin.flush()
            answers = await line(zombie)
            assert answers == {verb.value: "stale" for verb in Verb} | {
                "extend": None,
                "progress": None,
                "log": "stale",
                "stream": "stale",
                "release_worker": 0,
            }
            assert await store.get(job_id) == before
            output = await store.follow(job_id)
            assert output is not None
            assert output.entries == ()
        finally:
            zombie.kill()

    if not ends_first:
        (extended,) = await store.extend(holder, [Extension(token=token)], lease_ms=60_000)
        assert extended.deadline_ms is not None
        (settled,) = await store.settle([completes])
        assert not isinstance(settled, Exception)
        assert settled.code is SettleCode.DONE
    record = await store.get(job_id)
    assert record is not None
    assert (record.state, record.result, record.progress) == (State.COMPLETED, b'"of the holder"', None)
    outcomes = [(attempt.worker, attempt.outcome) for attempt in record.attempts]
    assert outcomes == [("zombie", AttemptOutcome.WORKER_LOST), ("holder", AttemptOutcome.COMPLETED)]
    assert (await store.counters())["completed", "default"] == 1


#: Tells of its start, and reports progress, logs and streams; the first run waits to be frozen before.
TASKS = """
import fcntl, os
from pathlib import Path
from penstock import Context, task

@task
def held(folder: str, ctx: Context) -> str:
    with Path(folder, "started").open("a") as started:
        started.write(os.environ["ZOMBIE_NAME"] + "\\n")
    if ctx.attempt == 1:
        with Path(folder, "gate").open() as gate:
            fcntl.flock(gate, fcntl.LOCK_SH)
        ctx.progress("of a zombie")
        ctx.log.info("of a zombie")
        ctx.stream("of a zombie")
    else:
        ctx.log.info("of the holder")
        ctx.stream("of the holder")
    return os.environ["ZOMBIE_NAME"]
"""


def start_worker(folder: Path, options: StoreOptions, log: Log, name: str, lease_ms: int) -> subprocess.Popen[bytes]:
    """Start ``penstock worker`` as a group of its own: a supervisor and a process under it."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PENSTOCK_", "REDIS_"))} | {
        "PENSTOCK_REDIS_URL": options.redis_url,
        "PENSTOCK_NAMESPACE": options.namespace,
        "PENSTOCK_LEASE": f"{lease_ms}ms",
        "PENSTOCK_PROCESSES": "1",
        "PENSTOCK_POOL_PROCESSES": "1",
        "PENSTOCK_LOG_FORMAT": "json",
        "ZOMBIE_NAME": name,
    }
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "penstock", "worker", "zombie_tasks"],
        cwd=folder,
        env=env,
        stdout=log.writer,
        stderr=log.writer,
        start_new_session=True,
    )


async def test_a_frozen_worker_wakes_and_its_result_is_refused(
    store: Store, options: StoreOptions, tmp_path: Path
) -> None:
    (tmp_path / "zombie_tasks.py").write_text(TASKS)
    gate, started = Gate(tmp_path / "gate"), Fifo(tmp_path / "started")
    log, log_of_holder = Log(), Log()
    workers = [start_worker(tmp_path, options, log, "zombie", LEASE_MS)]
    try:
        (job_id,) = await submit(store, new_job("held", {"folder": str(tmp_path)}))
        assert await started.count(1) == ["zombie"]
        os.killpg(workers[0].pid, signal.SIGSTOP)
        workers.append(start_worker(tmp_path, options, log_of_holder, "holder", 60_000))
        await asyncio.to_thread(log_of_holder.until, "worker.started")

        async def taken() -> bool:
            # The lease lapses for whoever reaps first, the holder's process or we.
            await reap_at_once(store)
            await store.reap(0)
            return len(started.lines()) > 1

        await until_async(taken, "a start on the holder", seconds=90)
        assert started.lines() == ["zombie", "holder"]
        record = await finished(store, job_id)
        assert (record.state, record.result, record.attempt) == (State.COMPLETED, b'"holder"', 2)

        gate.open()
        os.killpg(workers[0].pid, signal.SIGCONT)
        await asyncio.to_thread(log.until, "job.stale")
        again = await store.get(job_id)
        assert again == record
        assert record.progress is None
        output = await store.follow(job_id)
        assert output is not None
        assert [(entry.kind, entry.attempt) for entry in output.entries] == [
            (OutputKind.LOG, 2),
            (OutputKind.STREAM, 2),
        ]
        assert all(b"of the holder" in entry.value for entry in output.entries)
        outcomes = [attempt.outcome for attempt in record.attempts]
        assert outcomes == [AttemptOutcome.WORKER_LOST, AttemptOutcome.COMPLETED]
        assert (await store.counters())["completed", "default"] == 1
    finally:
        for worker in workers:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        for opened in (log, log_of_holder, started):
            opened.close()
        gate.open()
