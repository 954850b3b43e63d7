"""A pause is kept by the server: it outlives a killed one."""

from __future__ import annotations

from pathlib import Path

from tests.integration.store_support import claim, server_in, store_at, submit


async def test_a_pause_outlives_the_server(tmp_path: Path) -> None:
    with server_in(tmp_path) as server:
        async with store_at(server.url) as store:
            job_id = await submit(store)
            await store.pause("default")
        server.kill()
        server.start()
        async with store_at(server.url) as store:
            assert [info.paused for info in await store.queues()] == [True]
            assert (await claim(store)).jobs == ()
            await store.resume("default")
            assert [job.token.job_id for job in (await claim(store)).jobs] == [job_id]
