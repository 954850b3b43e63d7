"""Give each test the same store twice: in memory and on real servers, of whatever kind is under test.

With ``PENSTOCK_TEST_SERVER`` it runs on servers alone. A cluster has 16 partitions, and what a test calls partition 0
is another of them in each test, so that all primaries are met; a test that gives a number or limits gets what it says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from penstock.core.limits import Limits
from tests import fleets
from tests.conformance.subject import Subject, memory_subject, redis_subject

MakeSubject = Callable[..., Awaitable[Subject]]


@pytest.fixture(params=["memory", "redis"] if fleets.kind_under_test() == "valkey" else ["redis"])
async def make_subject(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[MakeSubject]:
    """Return a function that makes a subject with partitions and limits of the test's choice; audits it at the end."""
    subjects: list[Subject] = []
    async with AsyncExitStack() as stack:

        async def make(partitions: int | None = None, limits: Limits | None = None) -> Subject:
            if request.param == "memory":
                subject = await stack.enter_async_context(memory_subject(partitions or 1, limits))
            else:
                url = request.getfixturevalue("valkey_url")
                subject = await stack.enter_async_context(
                    redis_subject(url, f"{namespace}-{len(subjects)}", partitions, limits)
                )
            subjects.append(subject)
            return subject

        yield make
        for subject in subjects:
            assert await subject.audit() == []


@pytest.fixture
async def subject(make_subject: MakeSubject) -> Subject:
    """Return a store of which partition 0 is used, with default limits."""
    return await make_subject()
