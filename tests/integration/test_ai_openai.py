"""The OpenAI-style provider against an independent server, and against sockets that misbehave; calls are counted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from penstock.core.outcome import Discard, InvalidInput, Retry
from penstock.handlers.ai import AIResult, AISettings, Usage, run_ai
from penstock.handlers.ai.openai import MAX_ANSWER_BYTES
from tests.aimock import fixture as aimock_fixture
from tests.aimock.fixture import AIMock, answer, error

aimock_server = aimock_fixture.aimock_server
aimock = aimock_fixture.aimock

TEXT = "The dam holds back the reservoir. The reservoir feeds two mills. The mills grind corn."
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


async def no_process(*_: object) -> object:
    raise AssertionError("a language model needs no process pool")


async def attempt(
    http: httpx.AsyncClient, settings: AISettings, value: object = TEXT
) -> AIResult | Retry | Discard | InvalidInput:
    """Run one attempt, as a worker does, and return how it ended."""
    try:
        return await run_ai("summarize", value, settings, run_in_process=no_process, http=http)
    except (Retry, Discard, InvalidInput) as ending:
        return ending


async def run_job(
    http: httpx.AsyncClient, settings: AISettings, max_attempts: int = 3
) -> list[AIResult | Retry | Discard | InvalidInput]:
    """Run attempts until one ends the job, without the delays between them."""
    endings: list[AIResult | Retry | Discard | InvalidInput] = []
    while len(endings) < max_attempts:
        endings.append(await attempt(http, settings))
        if not isinstance(endings[-1], Retry):
            break
    return endings


def settings_for(server: AIMock, **changes: str) -> AISettings:
    return AISettings(
        base_url=changes.get("base_url", server.base_url),
        api_key=changes.get("api_key", server.api_key),
        model=changes.get("model", "small-model"),
        timeout_ms=10_000,
    )


async def test_an_answer_comes_back_with_its_usage(aimock: AIMock, http: httpx.AsyncClient) -> None:
    aimock.script(answer("A dam.", usage={"prompt_tokens": 70, "completion_tokens": 3, "total_tokens": 73}))
    assert await attempt(http, settings_for(aimock)) == AIResult(
        text="A dam.",
        provider="openai",
        model="small-model",
        method="chat_completions",
        usage=Usage(prompt_tokens=70, completion_tokens=3, total_tokens=73),
    )
    [call] = aimock.calls()
    assert call["path"] == "/v1/chat/completions"
    assert call["body"]["model"] == "small-model"
    assert call["body"]["messages"][-1] == {"role": "user", "content": TEXT}
    assert "at most 5 sentences" in call["body"]["messages"][0]["content"]
    assert "max_tokens" not in call["body"]


async def test_options_of_the_job_reach_the_server(aimock: AIMock, http: httpx.AsyncClient) -> None:
    aimock.script(answer("Ein Damm."))
    value = {"text": TEXT, "sentences": 2, "max_tokens": 40, "instructions": "Answer in German."}
    result = await attempt(http, settings_for(aimock, base_url=aimock.base_url + "/"), value)
    assert isinstance(result, AIResult)
    [call] = aimock.calls()
    assert call["body"]["max_tokens"] == 40
    system = call["body"]["messages"][0]["content"]
    assert "at most 2 sentences" in system
    assert system.endswith("Answer in German.")


async def test_a_long_text_in_any_script_arrives_whole(aimock: AIMock, http: httpx.AsyncClient) -> None:
    aimock.script(answer("猫。"))
    text = "吾輩は猫である。\x00😀" * 30_000
    result = await attempt(http, settings_for(aimock), text)
    assert isinstance(result, AIResult)
    assert result.text == "猫。"
    [call] = aimock.calls()
    sent = call["body"]
    assert sent.get("__aimock_truncated") or sent["messages"][-1]["content"] == text


async def test_429_then_200_is_two_calls(aimock: AIMock, http: httpx.AsyncClient) -> None:
    aimock.script(error(429, retry_after=7, message="slow down"), answer("A dam."))
    first, second = await run_job(http, settings_for(aimock))
    assert isinstance(first, Retry)
    assert first.after == 7.0
    assert "429: slow down" in str(first)
    assert isinstance(second, AIResult)
    assert [call["response"]["status"] for call in aimock.calls()] == [429, 200]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_server_errors_are_tried_again(status: int, aimock: AIMock, http: httpx.AsyncClient) -> None:
    aimock.script(error(status), answer("A dam."))
    first, second = await run_job(http, settings_for(aimock))
    assert isinstance(first, Retry)
    assert first.after is None
    assert isinstance(second, AIResult)
    assert len(aimock.calls()) == 2


async def test_attempts_end_when_the_server_never_recovers(aimock: AIMock, http: httpx.AsyncClient) -> None:
    aimock.script(error(503))
    endings = await run_job(http, settings_for(aimock))
    assert [type(ending) for ending in endings] == [Retry, Retry, Retry]
    assert len(aimock.calls()) == 3


@pytest.mark.parametrize("status", [400, 403, 404, 408, 409, 413, 422])
async def test_other_refusals_are_one_call(status: int, aimock: AIMock, http: httpx.AsyncClient) -> None:
    aimock.script(error(status, message="no such thing"), answer("never asked for"))
    [ending] = await run_job(http, settings_for(aimock))
    assert isinstance(ending, Discard)
    assert f"{status}: no such thing" in str(ending)
    assert [call["response"]["status"] for call in aimock.calls()] == [status]


async def test_a_wrong_key_is_final_and_stays_secret(aimock: AIMock, http: httpx.AsyncClient) -> None:
    aimock.script(answer("never given"))
    [ending] = await run_job(http, settings_for(aimock, api_key="sk-wrong-key"))
    assert isinstance(ending, Discard)
    assert "401" in str(ending)
    assert "sk-wrong-key" not in str(ending)


async def test_a_key_that_the_server_echoes_is_masked(aimock: AIMock, http: httpx.AsyncClient) -> None:
    aimock.script(error(400, message=f"bad key {aimock.api_key} here"))
    [ending] = await run_job(http, settings_for(aimock))
    assert "bad key *** here" in str(ending)


async def test_a_dropped_connection_is_tried_again(aimock: AIMock, http: httpx.AsyncClient) -> None:
    aimock.script(answer("A dam."))
    aimock.disturb(disconnectRate=1)
    assert isinstance(await attempt(http, settings_for(aimock)), Retry)
    aimock.disturb()
    assert isinstance(await attempt(http, settings_for(aimock)), AIResult)
    assert len(aimock.calls()) == 2


async def test_a_garbled_answer_is_tried_again(aimock: AIMock, http: httpx.AsyncClient) -> None:
    aimock.script(answer("A dam."))
    aimock.disturb(malformedRate=1)
    ending = await attempt(http, settings_for(aimock))
    assert isinstance(ending, Retry)
    assert "no chat completion" in str(ending)
    assert len(aimock.calls()) == 1


async def test_wrong_input_never_reaches_the_server(aimock: AIMock, http: httpx.AsyncClient) -> None:
    assert isinstance(await attempt(http, settings_for(aimock), {"text": 7}), InvalidInput)
    assert aimock.calls() == []


class Upstream:
    """Count the requests of a socket that answers as the test says."""

    def __init__(self, respond: Answer) -> None:
        self.requests: list[bytes] = []
        self.port = 0
        self._respond = respond

    def settings(self, timeout_ms: int = 10_000) -> AISettings:
        return AISettings(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="sk-secret", model="m", timeout_ms=timeout_ms
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            self.requests.append(head + await reader.readexactly(length))
            await self._respond(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def upstream(respond: Answer) -> AsyncIterator[Upstream]:
    served = Upstream(respond)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    async with server:
        yield served


def raw(content: bytes) -> Answer:
    """Send these bytes and close."""

    async def respond(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()

    return respond


def whole(body: bytes, status: str = "200 OK", *headers: str) -> Answer:
    """Send a complete response."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return raw("\r\n".join(head).encode() + b"\r\n\r\n" + body)


async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Say nothing until the client goes."""
    await reader.read()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a byte again and again, so that no single read ever times out."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    gone = asyncio.ensure_future(reader.read())
    while not gone.done():
        writer.write(b" ")
        await writer.drain()
        await asyncio.wait([gone], timeout=0.02)


async def test_a_refused_connection_is_tried_again(http: httpx.AsyncClient) -> None:
    with socket.socket() as taken:
        # Bound but not listening: the port refuses connections and nobody else can get it.
        taken.bind(("127.0.0.1", 0))
        settings = AISettings(base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1", model="m")
        ending = await attempt(http, settings)
    assert isinstance(ending, Retry)
    assert "connection" in str(ending)
    assert ending.after is None


@pytest.mark.parametrize(
    "respond",
    [
        raw(b""),
        raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
        raw(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choices": [{"mess'),
        raw(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n{"choices": ['),
        raw(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"choices": [{"mess'),
        raw(b"HTTP/1.1 500 Oh\r\nContent-Length: 500\r\n\r\nhalf a wo"),
        raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    ],
    ids=["nothing", "head", "length", "chunked", "until close", "error", "another protocol"],
)
async def test_a_cut_body_is_tried_again(respond: Answer, http: httpx.AsyncClient) -> None:
    async with upstream(respond) as server:
        assert isinstance(await attempt(http, server.settings()), Retry)
    assert len(server.requests) == 1


@pytest.mark.parametrize("respond", [silence, drip])
async def test_silence_is_tried_again(respond: Answer, http: httpx.AsyncClient) -> None:
    async with upstream(respond) as server:
        ending = await attempt(http, server.settings(timeout_ms=300))
    assert isinstance(ending, Retry)
    assert "within 300 ms" in str(ending)
    assert len(server.requests) == 1


async def test_a_cancelled_job_ends_its_call(http: httpx.AsyncClient) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def respond(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        left.set()

    async with upstream(respond) as server:
        job = asyncio.ensure_future(attempt(http, server.settings()))
        await asked.wait()
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        await asyncio.wait_for(left.wait(), 5)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b'{"choices": [{"message": {"content": "  "}, "finish_reason": "stop"}]}',
        b"<html>Welcome to the gateway</html>",
        b'{"choices": [{"message": {"content": "\xff"}}]}',
    ],
)
async def test_a_wrong_shape_is_tried_again(body: bytes, http: httpx.AsyncClient) -> None:
    async with upstream(whole(body)) as server:
        assert isinstance(await attempt(http, server.settings()), Retry)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"choices": [{"message": {"content": null, "refusal": "I will not"}}]}', "I will not"),
        (b'{"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}', "content filter"),
        (b'{"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}', "max_tokens"),
    ],
)
async def test_an_answer_that_would_repeat_itself_is_final(body: bytes, words: str, http: httpx.AsyncClient) -> None:
    async with upstream(whole(body)) as server:
        ending = await attempt(http, server.settings())
    assert isinstance(ending, Discard)
    assert words in str(ending)


@pytest.mark.parametrize("usage", [b"null", b"7", b'{"prompt_tokens": "many", "total_tokens": true}'])
async def test_usage_that_makes_no_sense_is_left_open(usage: bytes, http: httpx.AsyncClient) -> None:
    body = b'{"choices": [{"message": {"content": "A dam."}}], "usage": ' + usage + b"}"
    async with upstream(whole(body)) as server:
        result = await attempt(http, server.settings())
    assert isinstance(result, AIResult)
    assert result.usage == Usage()
    assert result.model == "m"


@pytest.mark.parametrize("status", ["429 Too Many Requests", "500 Oh", "503 Service Unavailable", "529 Overloaded"])
async def test_each_retryable_status_carries_its_delay(status: str, http: httpx.AsyncClient) -> None:
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    for header, least, most in (("2", 2, 2), (then, 60, 100)):
        async with upstream(whole(b"busy", status, f"Retry-After: {header}")) as server:
            ending = await attempt(http, server.settings())
        assert isinstance(ending, Retry)
        assert isinstance(ending.after, float)
        assert least <= ending.after <= most
        assert f"{status[:3]}: busy" in str(ending)


async def test_a_redirect_is_not_followed_and_the_key_stays(http: httpx.AsyncClient) -> None:
    async with (
        upstream(whole(b"{}")) as elsewhere,
        upstream(whole(b"", "307 Moved", f"Location: http://127.0.0.1:{elsewhere.port}/")) as server,
    ):
        ending = await attempt(http, server.settings())
    assert isinstance(ending, Discard)
    assert "307" in str(ending)
    assert elsewhere.requests == []
    assert b"Bearer sk-secret" in server.requests[0]


async def test_an_endless_answer_is_cut_off(http: httpx.AsyncClient) -> None:
    async with upstream(whole(b" " * (MAX_ANSWER_BYTES + 1))) as server:
        ending = await attempt(http, server.settings())
    assert isinstance(ending, Discard)
    assert "longer than" in str(ending)


async def streamed(
    http: httpx.AsyncClient, settings: AISettings
) -> tuple[AIResult | Retry | Discard | InvalidInput, list[str]]:
    """Run one attempt that streams; return how it ended, and what it streamed."""
    pieces: list[str] = []
    value = {"text": TEXT, "stream": True}
    try:
        ending: AIResult | Retry | Discard | InvalidInput = await run_ai(
            "summarize", value, settings, run_in_process=no_process, http=http, stream=pieces.append
        )
    except (Retry, Discard, InvalidInput) as error:
        ending = error
    return ending, pieces


async def test_an_answer_is_streamed_in_pieces(aimock: AIMock, http: httpx.AsyncClient) -> None:
    text = "A dam holds back a reservoir, which feeds two mills that grind corn: Korn, grain, 穀物. " * 20
    aimock.script(answer(text, usage={"prompt_tokens": 70, "completion_tokens": 3, "total_tokens": 73}))
    ending, pieces = await streamed(http, settings_for(aimock))
    assert isinstance(ending, AIResult)
    assert ending.text == text.strip()
    assert (len(pieces) > 1, "".join(pieces)) == (True, text)
    [call] = aimock.calls()
    assert call["body"]["stream"] is True
    # The same result as without streaming, usage too where the server tells it.
    assert ending.method == "chat_completions"


async def test_a_refusal_to_stream_is_a_refusal(aimock: AIMock, http: httpx.AsyncClient) -> None:
    aimock.script(error(400), error(429, retry_after=3))
    ending, pieces = await streamed(http, settings_for(aimock))
    assert (type(ending), pieces) == (Discard, [])
    ending, pieces = await streamed(http, settings_for(aimock))
    assert isinstance(ending, Retry)
    assert ending.after == 3


def events_of(*data: str) -> bytes:
    return "".join(f"data: {piece}\r\n\r\n" for piece in data).encode()


HELLO = '{"choices": [{"delta": {"content": "Hel"}}]}', '{"choices": [{"delta": {"content": "lo"}}]}'
STOP = '{"choices": [{"delta": {}, "finish_reason": "stop"}], "model": "m-1"}'
USAGE = '{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}'


async def test_a_stream_becomes_a_result(http: httpx.AsyncClient) -> None:
    body = b": hi\n\n" + events_of(*HELLO, STOP, USAGE, "[DONE]")
    async with upstream(whole(body, "200 OK", "Content-Type: text/event-stream")) as server:
        ending, pieces = await streamed(http, server.settings())
    assert pieces == ["Hel", "lo"]
    assert isinstance(ending, AIResult)
    assert (ending.text, ending.model, ending.usage.total_tokens) == ("Hello", "m-1", 3)


async def test_a_server_that_does_not_stream_answers_as_ever(http: httpx.AsyncClient) -> None:
    body = b'{"choices": [{"message": {"content": "Hello"}}]}'
    async with upstream(whole(body, "200 OK", "Content-Type: application/json")) as server:
        ending, pieces = await streamed(http, server.settings())
    assert isinstance(ending, AIResult)
    assert (ending.text, pieces) == ("Hello", [])


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (events_of(*HELLO), Retry),
        (events_of(*HELLO, '{"error": {"message": "overloaded"}}'), Retry),
        (events_of(HELLO[0], "{nonsense"), Retry),
        (events_of("[DONE]"), Retry),
        (events_of('{"choices": [{"delta": {"refusal": "No."}, "finish_reason": "stop"}]}'), Discard),
        (events_of('{"choices": [{"delta": {}, "finish_reason": "content_filter"}]}'), Discard),
    ],
    ids=["broken off", "error", "nonsense", "nothing", "refusal", "filter"],
)
async def test_a_stream_that_ends_badly(body: bytes, kind: type[Exception], http: httpx.AsyncClient) -> None:
    async with upstream(whole(body, "200 OK", "Content-Type: text/event-stream")) as server:
        ending, _ = await streamed(http, server.settings())
    assert type(ending) is kind
