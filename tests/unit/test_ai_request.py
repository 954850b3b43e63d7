"""What an AI job may be given, what its settings may hold, and what `Retry-After` means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import msgspec
import pytest

from penstock.core.outcome import InvalidInput
from penstock.handlers.ai import PROVIDERS, AIResult, AISettings, Usage, choose_provider, parse_request, run_ai
from penstock.handlers.ai.retry_after import MAX_RETRY_AFTER_SECONDS, retry_after_seconds

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TEXT = "One thing happened. Then another followed. At last a third came."


def test_a_string_is_the_whole_input() -> None:
    request = parse_request("summarize", TEXT)
    assert (request.text, request.sentences, request.max_tokens, request.instructions) == (TEXT, 5, None, None)


def test_an_object_names_its_fields() -> None:
    request = parse_request("summarize", {"text": TEXT, "sentences": 2, "max_tokens": 50, "instructions": "be kind"})
    assert (request.sentences, request.max_tokens, request.instructions) == (2, 50, "be kind")


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (None, "input"),
        (7, "input"),
        ([TEXT], "input"),
        ("", "input"),
        (" \n", "input"),
        ({}, "input.text"),
        ({"text": ""}, "input.text"),
        ({"text": 7}, "input.text"),
        ({"text": TEXT, "sentences": 0}, "input.sentences"),
        ({"text": TEXT, "sentences": 51}, "input.sentences"),
        ({"text": TEXT, "sentences": "3"}, "input.sentences"),
        ({"text": TEXT, "sentences": True}, "input.sentences"),
        ({"text": TEXT, "sentences": None}, "input.sentences"),
        ({"text": TEXT, "max_tokens": -1}, "input.max_tokens"),
        ({"text": TEXT, "max_tokens": 1.5}, "input.max_tokens"),
        ({"text": TEXT, "instructions": 3}, "input.instructions"),
        ({"text": TEXT, "instructions": "x" * 10_001}, "input.instructions"),
        ({"text": TEXT, "sentence": 3}, "input.sentence"),
    ],
)
def test_a_wrong_input_names_the_field(value: object, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_request("summarize", value)
    assert caught.value.field == field
    assert caught.value.detail


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(InvalidInput, match="'translate' is no AI task; there is: summarize") as caught:
        parse_request("translate", TEXT)
    assert caught.value.field == "task"


def test_settings_choose_the_provider() -> None:
    assert choose_provider(AISettings()).name == "local"
    assert choose_provider(AISettings(api_key="k", model="m")).name == "local"
    assert choose_provider(AISettings(base_url="http://127.0.0.1:1/v1", model="m")).name == "openai"
    assert set(PROVIDERS) == {"local", "openai"}
    assert all(provider.name == name for name, provider in PROVIDERS.items())


def test_settings_treat_empty_as_unset_and_mask_the_key() -> None:
    assert AISettings(base_url="", api_key=" ", model="") == AISettings()
    shown = repr(AISettings(base_url="http://ai/v1", api_key="sk-secret", model="m"))
    assert "sk-secret" not in shown
    assert "***" in shown
    assert "None" in repr(AISettings())


@pytest.mark.parametrize(
    ("base_url", "model", "api_key", "named"),
    [
        ("http://ai/v1", None, None, "PENSTOCK_AI_MODEL"),
        ("ai/v1", "m", None, "PENSTOCK_AI_BASE_URL"),
        ("ftp://ai/v1", "m", None, "PENSTOCK_AI_BASE_URL"),
        ("http://", "m", None, "PENSTOCK_AI_BASE_URL"),
        ("http://ai:99999/v1", "m", None, "PENSTOCK_AI_BASE_URL"),
        ("http://[::1/v1", "m", None, "PENSTOCK_AI_BASE_URL"),
        ("http://user:pass@ai/v1", "m", None, "PENSTOCK_AI_BASE_URL"),
        ("http://ai/v1?x=1", "m", None, "PENSTOCK_AI_BASE_URL"),
        (None, None, "sk-two\nlines", "PENSTOCK_AI_API_KEY"),
        (None, None, "sk-ümlaut", "PENSTOCK_AI_API_KEY"),
    ],
)
def test_bad_settings_stop_the_start(base_url: str | None, model: str | None, api_key: str | None, named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        AISettings(base_url=base_url, model=model, api_key=api_key)
    assert "pass" not in str(caught.value).replace("password", "")
    assert "sk-" not in str(caught.value)


def test_the_timeout_must_be_positive() -> None:
    with pytest.raises(ValueError, match="PENSTOCK_AI_TIMEOUT"):
        AISettings(timeout_ms=0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("9" * 65, None),
        ("Thu, 99 Jan 2026 00:00:00 GMT", None),
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("99999999", MAX_RETRY_AFTER_SECONDS),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0),
        ("Friday, 02-Jan-26 03:05:05 GMT", 60.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, now=NOW) == seconds


async def in_this_process(function: object, *arguments: object) -> object:
    assert callable(function)
    return function(*arguments)


async def test_the_local_provider_gives_the_shape_of_all() -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        result = await run_ai("summarize", TEXT, AISettings(), run_in_process=in_this_process, http=http)
    usage = Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0)
    lines = "One thing happened.\nThen another followed.\nAt last a third came."
    assert result == AIResult(text=lines, provider="local", model=None, method="textrank", usage=usage)
    shown = msgspec.json.decode(msgspec.json.encode(result))
    assert set(shown) == {"text", "provider", "model", "method", "usage"}


async def test_the_local_provider_keeps_to_the_number_of_sentences() -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        value = {"text": TEXT, "sentences": 1, "max_tokens": 5}
        result = await run_ai("summarize", value, AISettings(), run_in_process=in_this_process, http=http)
    assert result.text in TEXT
    assert result.text.count(".") == 1


async def test_the_local_provider_refuses_instructions() -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        value = {"text": TEXT, "instructions": "as a poem"}
        with pytest.raises(InvalidInput, match="needs a language model"):
            await run_ai("summarize", value, AISettings(), run_in_process=in_this_process, http=http)


async def test_a_failing_pool_is_not_hidden() -> None:
    async def broken(*_: object) -> object:
        raise RuntimeError("the process died")

    async def foreign(*_: object) -> object:
        return "text"

    async with httpx.AsyncClient(trust_env=False) as http:
        with pytest.raises(RuntimeError, match="the process died"):
            await run_ai("summarize", TEXT, AISettings(), run_in_process=broken, http=http)
        with pytest.raises(TypeError, match="returned str"):
            await run_ai("summarize", TEXT, AISettings(), run_in_process=foreign, http=http)
