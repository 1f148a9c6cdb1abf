"""Leaving a stream stops its run and keeps what was said, whichever way one leaves."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from chatkit_grpc.errors import from_rpc_error
from chatkit_grpc.v1 import chat_service_pb2, chat_service_pb2_grpc
from chatkit_grpc.v1.run_pb2 import EventBatch

from tests.scripted import ScriptedServer
from tests.system import System, open_system


@dataclass
class Scene:
    system: System
    assistant: ScriptedServer

    @property
    def chat(self) -> Any:
        return chat_service_pb2_grpc.ChatServiceStub(self.system.channel)

    async def runs_ended(self, seconds: float = 20) -> None:
        """Wait until neither server nor bridge has anything to do."""
        await until(lambda: not len(self.system.server.runs) and not len(self.system.app.state.streams), seconds)

    async def items(self) -> list[dict[str, Any]]:
        """Everything on the only thread there is, hidden items included."""
        rows = await self.system.server.database.fetch("select item from chat_messages order by position")
        return [json.loads(row["item"]) for row in rows]

    async def said(self) -> str:
        return "".join(
            part["text"]
            for item in await self.items()
            if item["type"] == "assistant_message"
            for part in item["content"]
        )


@pytest.fixture
async def scene(database_url: str) -> AsyncIterator[Scene]:
    made: list[ScriptedServer] = []

    def factory(store: Any) -> ScriptedServer:
        made.append(ScriptedServer(store))
        return made[-1]

    async with open_system(database_url, factory) as system:
        yield Scene(system, made[0])


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def create(text: str) -> chat_service_pb2.CreateThreadRequest:
    request = chat_service_pb2.CreateThreadRequest()
    request.input.content.add().input_text.text = text
    return request


def http_request(text: str, port: int) -> bytes:
    content = {"content": [{"type": "input_text", "text": text}]}
    body = json.dumps({"type": "threads.create", "params": {"input": content}}).encode()
    return (
        f"POST /api/chatkit HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def events_of(scene: Scene, text: str) -> list[Any]:
    """All that a page is sent."""
    content = {"content": [{"type": "input_text", "text": text}]}
    body = {"type": "threads.create", "params": {"input": content}}
    response = await scene.system.http.post("/api/chatkit", json=body, headers={"accept": "text/event-stream"})
    lines = response.text.split("\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


async def kept_after_a_cancel(scene: Scene, expected: str) -> None:
    await scene.runs_ended()
    assert await scene.said() == expected
    assert [item["type"] for item in await scene.items()][-1] == "sdk_hidden_context"


async def test_a_cancelled_call_keeps_what_was_said(scene: Scene) -> None:
    call = scene.chat.CreateThread(create("wait"))
    async for response in call:
        if response.batch.first_sequence + len(response.batch.events) > 5:
            break
    call.cancel()
    await kept_after_a_cancel(scene, "one two ")


async def test_a_deadline_keeps_what_was_said(scene: Scene) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in scene.chat.CreateThread(create("wait"), timeout=3):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await kept_after_a_cancel(scene, "one two ")


async def test_a_call_that_was_never_read_keeps_what_was_said(scene: Scene) -> None:
    call = scene.chat.CreateThread(create("wait"))
    await scene.assistant.is_silent.wait()
    call.cancel()
    await kept_after_a_cancel(scene, "one two ")


def close(client: socket.socket) -> None:
    client.close()


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def half_close(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("leave", [close, reset, half_close])
@pytest.mark.parametrize("script", ["wait", "silence"])
async def test_a_client_that_leaves_during_the_stream_keeps_what_was_said(
    scene: Scene, leave: Callable[[socket.socket], None], script: str
) -> None:
    port = int(scene.system.url.rpartition(":")[2])
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(http_request(script, port))
    await scene.assistant.is_silent.wait()
    await asyncio.sleep(0.1)
    leave(client)
    await kept_after_a_cancel(scene, "one two " if script == "wait" else "")
    client.close()


async def test_a_client_that_is_gone_before_the_answer_begins_leaves_nothing_running(scene: Scene) -> None:
    port = int(scene.system.url.rpartition(":")[2])
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(http_request("wait", port))
    # The bridge has taken them all when it has answered one that came after them.
    assert (await events_of(scene, "tokens 1"))[-1]["type"] == "thread.item.done"
    await scene.runs_ended()


async def test_a_client_that_sends_half_a_request_and_leaves_is_forgotten(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    port = int(scene.system.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(http_request("wait", port)[:-20])
    assert (await events_of(scene, "tokens 1"))[-1]["type"] == "thread.item.done"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_client_that_leaves_after_the_stream_changes_nothing(scene: Scene) -> None:
    async for _ in scene.chat.CreateThread(create("tokens 3")):
        pass
    await scene.runs_ended()
    assert await scene.said() == "t0 t1 t2 "
    assert [item["type"] for item in await scene.items()] == ["user_message", "assistant_message"]


@pytest.mark.parametrize("count", [1, 5, 63, 64, 65, 200])
async def test_a_cancel_at_any_token_keeps_every_token_that_was_seen(scene: Scene, count: int) -> None:
    call = scene.chat.CreateThread(create("tokens 100000"))
    seen: list[str] = []
    async for response in call:
        seen += deltas_of(response.batch)
        if len(seen) >= count:
            break
    call.cancel()
    await scene.runs_ended()
    said = await scene.said()
    assert said.startswith("".join(seen))
    assert said == "".join(f"t{number} " for number in range(len(said.split())))
    assert [item["type"] for item in await scene.items()][-1] == "sdk_hidden_context"


async def test_every_token_is_numbered_and_none_is_lost_under_load(scene: Scene) -> None:
    async def listen() -> list[str]:
        seen: list[str] = []
        expected = 1
        async for response in scene.chat.CreateThread(create("tokens 2000")):
            assert response.batch.first_sequence == expected
            expected += len(response.batch.events)
            seen += deltas_of(response.batch)
        return seen

    for seen in await asyncio.gather(*(listen() for _ in range(20))):
        assert seen == [f"t{number} " for number in range(2000)]


async def test_a_token_is_not_held_back_when_there_is_little_to_do(scene: Scene) -> None:
    batches = [
        response.batch async for response in scene.chat.CreateThread(create("tokens 20 0.01")) if response.batch.events
    ]
    tokens = [len(deltas_of(batch)) for batch in batches if deltas_of(batch)]
    assert len(tokens) >= 10  # nearly each in a batch of its own; a busy machine may join some


async def test_nothing_is_left_behind_by_runs(scene: Scene) -> None:
    for text in ("tokens 5", "fail", "refuse", "everything"):
        async for _ in scene.chat.CreateThread(create(text)):
            pass
    await scene.runs_ended()
    before = len(asyncio.all_tasks())
    for _ in range(10):
        call = scene.chat.CreateThread(create("wait"))
        await call.read()
        call.cancel()
    await scene.runs_ended()
    gc.collect()
    await until(lambda: len(asyncio.all_tasks()) <= before)


async def test_half_a_character_ends_no_answer_and_is_never_sent_as_null(scene: Scene) -> None:
    events = await events_of(scene, "half")
    assert None not in events
    assert events[-1]["type"] == "thread.item.done"
    assert events[-1]["item"]["content"][0]["text"] == "Hi 😀 more"


async def test_stopping_the_server_keeps_what_was_said(database_url: str) -> None:
    made: list[ScriptedServer] = []

    def factory(store: Any) -> ScriptedServer:
        made.append(ScriptedServer(store))
        return made[-1]

    async with open_system(database_url, factory) as system:
        call = chat_service_pb2_grpc.ChatServiceStub(system.channel).CreateThread(create("wait"))
        reading = asyncio.create_task(_read_all(call))
        await made[0].is_silent.wait()
    assert (await reading) in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
    async with open_system(database_url, ScriptedServer) as system:
        assert await Scene(system, made[0]).said() == "one two "


async def _read_all(call: Any) -> grpc.StatusCode:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    except asyncio.CancelledError:
        return grpc.StatusCode.CANCELLED
    return grpc.StatusCode.OK


async def test_a_failure_before_the_first_event_is_a_real_status(scene: Scene) -> None:
    request = chat_service_pb2.AddUserMessageRequest(thread_id="thr_0", input=create("hi").input)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await scene.chat.AddUserMessage(request).read()
    error = from_rpc_error(caught.value)
    assert (caught.value.code(), error.code) == (grpc.StatusCode.NOT_FOUND, "THREAD_NOT_FOUND")


def deltas_of(batch: EventBatch) -> list[str]:
    return [
        event.thread_item_updated.update.assistant_message_content_part_text_delta.delta
        for event in batch.events
        if event.thread_item_updated.update.HasField("assistant_message_content_part_text_delta")
    ]
