"""How large the parts of a request may be, and how long things may take: each limit with the error that it gives."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import grpc
import pytest
from chatkit.types import ThreadMetadata
from chatkit_grpc import free_json
from chatkit_grpc.environment import Environment, SettingsError
from chatkit_grpc.v1 import chat_service_pb2, thread_service_pb2, thread_service_pb2_grpc
from chatkit_grpc.v1.item_pb2 import UserMessageContent, UserMessageTextContent

from server.app import open_server
from server.limits.settings import LimitSettings
from tests.database import context_of
from tests.issuer import hs256
from tests.page import body_of, post, say
from tests.runs_fixtures import PATIENT, Reader, Side, failure, open_pair, open_side, until
from tests.scripted import ScriptedServer
from tests.system import ANY_PORT, BY_SECRET, IMPATIENT, PRODUCTION, System, open_system
from tests.unlimited import NO_LIMITS

SMALL = replace(
    NO_LIMITS,
    max_text_length=100,
    max_message_attachments=2,
    max_page_size=3,
    max_json_depth=5,
    max_metadata_bytes=20_000,
)

TRANSCRIBE = chat_service_pb2.TranscribeRequest(audio=b"x", mime_type="audio/ogg")


@pytest.fixture
async def small(database_url: str) -> AsyncIterator[System]:
    async with open_system(database_url, ScriptedServer, server=replace(IMPATIENT, limits=SMALL)) as system:
        yield system


def nested(depth: int) -> Any:
    value: Any = {}
    for number in range(depth - 1):
        value = [value] if number % 2 else {"[": value}
    return value


def with_attachments(count: int) -> Any:
    body = say("tokens 1")
    body["params"]["input"]["attachments"] = [f"atc_{number}" for number in range(count)]
    return body


def quoting(text: str) -> Any:
    body = say("tokens 1")
    body["params"]["input"]["quoted_text"] = text
    return body


TOO_LARGE = [
    (say("x" * 101), "$.params.input.content[0].text: expected at most 100 characters, got 101"),
    (quoting("é" * 101), "$.params.input.quoted_text: expected at most 100 characters, got 101"),
    (body_of("threads.update", thread_id="t", title="x" * 101), "$.params.title: expected at most 100"),
    (body_of("threads.get_by_id", thread_id="x" * 101), "$.params.thread_id: expected at most 100 characters"),
    (with_attachments(3), "$.params.input.attachments: expected at most 2, got 3"),
    (
        body_of("threads.custom_action", thread_id="t", action={"type": "a", "payload": nested(6)}),
        "$.params.action.payload: nested more than 5 levels deep",
    ),
    (
        body_of("threads.add_client_tool_output", thread_id="t", result=nested(6)),
        "$.params.result: nested more than 5 levels deep",
    ),
]


@pytest.mark.parametrize(("body", "error"), TOO_LARGE, ids=[error.partition(":")[0] for _, error in TOO_LARGE])
async def test_what_is_too_large_is_named_with_what_was_expected(small: System, body: Any, error: str) -> None:
    response = await post(small, body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "INVALID_REQUEST"
    assert response.json()["error"]["message"].startswith(error)


@pytest.mark.parametrize(
    "body",
    [
        say("tokens 1".ljust(100)),
        quoting("é" * 100),
        body_of("threads.custom_action", thread_id="t", action={"type": "a", "payload": nested(5)}),
        body_of("threads.add_client_tool_output", thread_id="t", result=nested(5)),
    ],
)
async def test_what_is_just_small_enough_is_taken(small: System, body: Any) -> None:
    response = await post(small, body)
    assert response.status_code in {200, 404}, response.text


async def test_a_service_is_told_the_same(database_url: str) -> None:
    async with open_side(database_url, replace(PATIENT, limits=SMALL)) as side:
        reader = side.create("x" * 101)
        assert await reader.end() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(reader.error).startswith("$.params.input.content[0].text: expected at most 100 characters")


@pytest.mark.parametrize(
    ("text", "levels", "is_deeper"),
    [
        ('{"a": [1, {"b": []}]}', 4, False),
        ('{"a": [1, {"b": []}]}', 3, True),
        ('["[[[[", "{\\"{{{", "\\\\", []]', 2, False),
        ('["\\\\", [[]]]', 2, True),
        ("[[], [], [], []]", 2, False),
        ("1", 1, False),
    ],
)
def test_the_depth_of_json_is_counted_outside_of_strings(text: str, levels: int, is_deeper: bool) -> None:
    json.loads(text)
    assert free_json.is_deeper(text, levels) is is_deeper


async def test_a_page_holds_no_more_than_it_may_and_says_that_there_is_more(small: System) -> None:
    context = context_of("dev-user")
    for number in range(5):
        thread = ThreadMetadata(id=f"thr_{number}", created_at=datetime.now())
        await small.server.store.save_thread(thread, context)
    page = (await post(small, body_of("threads.list", limit=9999))).json()
    assert (len(page["data"]), page["has_more"]) == (3, True)
    rest = (await post(small, body_of("threads.list", limit=9999, after=page["after"]))).json()
    assert (len(rest["data"]), rest["has_more"]) == (2, False)


async def test_metadata_has_a_limit(small: System) -> None:
    async def listing(size: int) -> Any:
        stub: Any = thread_service_pb2_grpc.ThreadServiceStub(small.channel)
        return await stub.ListThreads(thread_service_pb2.ListThreadsRequest(), metadata=[("x-large", "x" * size)])

    await listing(15_000)
    assert (await failure(listing(25_000))).code == "REQUEST_TOO_LARGE"
    # Over the bridge it is the same: a token that is larger than that gets to nobody.
    answer = await post(small, body_of("threads.list"), authorization=f"Bearer {'x' * 25_000}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "REQUEST_TOO_LARGE")


class Slow(ScriptedServer):
    """Takes its time to listen."""

    async def transcribe(self, audio_input: Any, context: Any) -> Any:
        await asyncio.sleep(30)


@asynccontextmanager
async def impatient(database_url: str, **changes: Any) -> AsyncIterator[Side]:
    limits = replace(NO_LIMITS, **changes)
    settings = replace(PATIENT, limits=limits, database_url=database_url, grpc_listen=ANY_PORT)
    made: list[ScriptedServer] = []

    def factory(store: Any) -> ScriptedServer:
        made.append(Slow(store))
        return made[-1]

    async with AsyncExitStack() as stack, open_server(settings, factory) as server:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        yield Side(server, made[0], await stack.enter_async_context(channel))
        made[0].may_go_on.set()


async def test_a_call_without_a_deadline_gets_one(database_url: str) -> None:
    async with impatient(database_url, call_deadline_seconds=0.3) as side:
        began = time.monotonic()
        error = await failure(side.chat.Transcribe(TRANSCRIBE))
        assert 0.25 < time.monotonic() - began < 2
        assert (error.code, error.message) == (
            "DEADLINE_EXCEEDED",
            "The call took longer than 0.3 s, which is the longest here.",
        )


async def test_a_deadline_of_ones_own_counts_where_it_is_earlier(database_url: str) -> None:
    async with impatient(database_url, call_deadline_seconds=3) as side:
        for own, expected in ((0.3, "took too long"), (1000.0, "took longer than 3 s")):
            began = time.monotonic()
            error = await failure(side.chat.Transcribe(TRANSCRIBE, timeout=own))
            assert (error.code, expected in error.message) == ("DEADLINE_EXCEEDED", True)
            assert min(own, 3) - 0.1 < time.monotonic() - began < min(own, 3) + 2


async def test_a_stream_whose_reader_sleeps_through_its_deadline_is_told_when_he_wakes(database_url: str) -> None:
    async with impatient(database_url, stream_deadline_seconds=1.0, max_connection_streams=1) as side:
        request = chat_service_pb2.CreateThreadRequest()
        request.input.content.add().input_text.text = "large 2000 10000"
        responses = side.chat.CreateThread(request).__aiter__()
        await anext(responses)
        await asyncio.sleep(2)  # far more has been said by now than the connection holds

        async def read_on() -> None:
            async for _ in responses:
                pass

        async with asyncio.timeout(20):
            assert (await failure(read_on())).code == "DEADLINE_EXCEEDED"
        # And its place is free again.
        assert await side.threads.ListThreads(thread_service_pb2.ListThreadsRequest(), timeout=5)


@pytest.mark.parametrize("method", ["ThreadService/ListThreads", "ChatService/CreateThread"])
async def test_a_call_whose_request_never_comes_is_ended(database_url: str, method: str) -> None:
    async with impatient(database_url, call_deadline_seconds=0.5, max_connection_streams=1) as side:
        call: Any = side.channel.stream_stream(f"/chatkit_grpc.v1.{method}")()
        async with asyncio.timeout(5):
            assert (await failure(call.read())).message == "The request did not arrive."
        # And its place is free again.
        assert await side.threads.ListThreads(thread_service_pb2.ListThreadsRequest(), timeout=5)


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (
            chat_service_pb2.AddUserMessageRequest(
                thread_id="thr_no",
                input=chat_service_pb2.UserMessageInput(
                    content=[UserMessageContent(input_text=UserMessageTextContent(text="x"))] * 300_000
                ),
            ),
            "$.params.input.content",
        ),
        (
            thread_service_pb2.AddFeedbackRequest(
                thread_id="thr_no", item_ids=["x"] * 1_000_000, kind=thread_service_pb2.FEEDBACK_KIND_POSITIVE
            ),
            "$.params.item_ids",
        ),
    ],
    ids=["content", "item_ids"],
)
async def test_a_list_without_end_doesnt_stop_everybody(database_url: str, request_: Any, path: str) -> None:
    async with impatient(database_url) as side:
        call = side.chat.AddUserMessage if "input" in path else side.threads.AddFeedback
        began = time.monotonic()
        answer = call(request_)
        error = await failure(answer.read() if "input" in path else answer)
        assert error.message.startswith(f"{path}: expected at most 1,000, got ")
        assert time.monotonic() - began < 2


async def test_a_stream_without_a_deadline_gets_one_and_the_run_goes_on_without_it(database_url: str) -> None:
    async with impatient(database_url, stream_deadline_seconds=1.0) as side:
        reader = side.create("wait")
        assert await reader.end() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert reader.text == "one two "
        again = side.resume(reader.run_id)
        side.assistant.may_go_on.set()
        assert (await again.end(), again.text) == (grpc.StatusCode.OK, "one two three")


async def test_who_watches_a_thread_does_so_as_long_as_his_token_counts(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.auth.tokens.LEEWAY_SECONDS", 0)
    settings = replace(PRODUCTION, auth=BY_SECRET)
    async with open_system(database_url, ScriptedServer, server=settings) as system:
        side = Side(system.server, None, system.channel)  # type: ignore[arg-type] # nobody looks at it
        token = [("authorization", f"Bearer {hs256()}")]
        request = chat_service_pb2.CreateThreadRequest()
        request.input.content.add().input_text.text = "tokens 1"
        responses = [response async for response in side.chat.CreateThread(request, metadata=token)]
        thread_id = responses[0].batch.events[0].thread_created.thread.id
        expires = int(time.time()) + 3
        token = [("authorization", f"Bearer {hs256(exp=expires)}")]
        watcher = Reader(
            side.threads.WatchThread(thread_service_pb2.WatchThreadRequest(thread_id=thread_id), metadata=token)
        )
        assert await watcher.end() is grpc.StatusCode.UNAUTHENTICATED
        assert watcher.error
        assert watcher.error.metadata == {"cause": "expired"}
        assert time.time() >= expires


async def test_a_connection_has_so_many_streams_and_the_next_one_waits(database_url: str) -> None:
    async with open_pair(database_url, PATIENT, limits=replace(NO_LIMITS, max_connection_streams=2)) as pair:
        readers = [pair.here.create("wait") for _ in range(2)]
        await until(lambda: all(reader.text == "one two " for reader in readers))
        request = thread_service_pb2.ListThreadsRequest()
        assert (await failure(pair.here.threads.ListThreads(request, timeout=0.5))).code == "DEADLINE_EXCEEDED"
        await readers[0].leave()
        assert await pair.here.threads.ListThreads(request, timeout=5)
        pair.here.assistant.may_go_on.set()


async def test_a_server_takes_so_many_connections(database_url: str) -> None:
    async with open_side(database_url, replace(PATIENT, limits=replace(NO_LIMITS, max_connections=3))) as side:
        opened = [await asyncio.open_connection("127.0.0.1", side.server.port) for _ in range(8)]
        await asyncio.sleep(0.3)
        closed = [reader for reader, _ in opened if reader.at_eof() or await _is_closed(reader)]
        assert len(closed) >= 5
        for _, writer in opened:
            writer.close()


async def _is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(0.2):
            while await reader.read(1000):
                pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def test_every_limit_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    default = LimitSettings()
    expected = {name: 5001 if name == "max_metadata_bytes" else 7 for name in default.__dataclass_fields__}
    for name, value in expected.items():
        monkeypatch.setenv(name.upper(), str(value))
    env = Environment()
    found = LimitSettings.read(env)
    env.check()
    assert {name: getattr(found, name) for name in expected} == expected
    for name in default.__dataclass_fields__:
        monkeypatch.setenv(name.upper(), "-1")
    env = Environment()
    LimitSettings.read(env)
    with pytest.raises(SettingsError) as caught:
        env.check()
    assert all(f"{name.upper()}: " in str(caught.value) for name in default.__dataclass_fields__)
