"""Give each test the same store twice: in memory and on a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from penstock.core.limits import Limits
from tests.conformance.subject import Subject, memory_subject, redis_subject

MakeSubject = Callable[..., Awaitable[Subject]]


@pytest.fixture(params=["memory", "redis"])
async def make_subject(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[MakeSubject]:
    """Return a function that makes a subject with partitions and limits of the test's choice; audits it at the end."""
    subjects: list[Subject] = []
    async with AsyncExitStack() as stack:

        async def make(partitions: int = 1, limits: Limits | None = None) -> Subject:
            if request.param == "memory":
                subject = await stack.enter_async_context(memory_subject(partitions, limits))
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
    """Return a store of one partition with default limits."""
    return await make_subject()
