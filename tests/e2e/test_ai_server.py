"""Send AI jobs through the whole system to an independent OpenAI-style server, and count what reaches it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aimock import fixture as aimock_fixture
from tests.aimock.fixture import AIMock, answer, error
from tests.e2e.stack import Folder

LICENSE = Path(__file__).parents[2] / "LICENSE"
aimock_server = aimock_fixture.aimock_server
aimock = aimock_fixture.aimock


@pytest.fixture(scope="module")
def with_model(aimock_server: AIMock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """Run the stack with the mock as its AI server; its address comes from the environment, as for a user."""
    folder = Folder(tmp_path_factory.mktemp("with-model"))
    try:
        settings = {
            "PENSTOCK_AI_BASE_URL": aimock_server.base_url,
            "PENSTOCK_AI_API_KEY": aimock_server.api_key,
            "PENSTOCK_AI_MODEL": "test-model",
        }
        folder.up(env=settings)
        yield folder
    finally:
        folder.close()


def test_a_rate_limit_is_waited_out_and_retried_once(aimock: AIMock, with_model: Folder) -> None:
    aimock.script(error(429, retry_after=1), answer("Short.", usage={"prompt_tokens": 9, "completion_tokens": 2}))
    with with_model.client() as client:
        job = client.wait(client.submit("summarize", LICENSE.read_text()[:4000], type="ai").id, timeout=60)
    assert job.status == "completed", job
    assert job.result["text"] == "Short."
    assert (job.result["provider"], job.result["usage"]["prompt_tokens"]) == ("openai", 9)
    assert (job.attempt, len(aimock.calls())) == (2, 2)


def test_a_refused_request_goes_to_the_dead_letter_after_one_call(aimock: AIMock, with_model: Folder) -> None:
    aimock.script(error(400, message="no such model"))
    with with_model.client() as client:
        job = client.wait(client.submit("summarize", "One sentence. Another one.", type="ai").id, timeout=60)
    assert (job.status, job.reason, job.attempt) == ("failed", "discarded", 1)
    assert len(aimock.calls()) == 1
