"""How the bridge begins runs, resumes them where a server breaks off, and says that a page has its answer."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import httpx
import pytest
from chatkit_grpc.environment import Address, SettingsError
from chatkit_grpc.errors import DatabaseError, NotFoundError, UnavailableError
from chatkit_grpc.process import bound_socket
from chatkit_grpc.services import AUTO_REQUEST_ID
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.chat_service_pb2 import CreateThreadRequest
from chatkit_grpc.v1.chat_service_pb2_grpc import ChatServiceStub
from chatkit_grpc.v1.chatkit_request_pb2 import ChatKitRequest
from chatkit_grpc.v1.run_pb2 import (
    RUN_STATE_CANCELLED,
    RUN_STATE_COMPLETED,
    RUN_STATE_FAILED,
    RUN_STATE_INTERRUPTED,
    EventBatch,
)
from chatkit_grpc.v1.run_service_pb2 import CancelRunResponse
from starlette.applications import Starlette
from starlette.datastructures import Headers

from bridge import lasting_call
from bridge.http_server import notice_who_vanishes
from bridge.request_ids import identify
from bridge.settings import Settings
from server.settings import Settings as ServerSettings
from tests.fake_grpc_server import RUN, FakeServer, batch
from tests.scripted import ScriptedServer
from tests.system import open_bridge, open_system
from tests.unlimited import NO_LIMITS

SSE = {"accept": "text/event-stream"}
FRAME = {"chatkit-frame-instance-id": "frame-1"}
QUICK = Settings(shutdown_grace_seconds=0, heartbeat_seconds=0.1)
GONE = grpc.StatusCode.UNAVAILABLE
SAY_HI = {"type": "threads.create", "params": {"input": {"content": [{"type": "input_text", "text": "hi"}]}}}
STREAMING = [
    ("threads.create", "CreateThread", SAY_HI["params"]),
    ("threads.add_user_message", "AddUserMessage", {"thread_id": "t", **SAY_HI["params"]}),  # type: ignore[dict-item]
    ("threads.add_client_tool_output", "AddClientToolOutput", {"thread_id": "t", "result": 1}),
    ("threads.add_structured_input", "AddStructuredInput", {"thread_id": "t", "item_id": "i", "input": {}}),
    ("threads.retry_after_item", "RetryAfterItem", {"thread_id": "t", "item_id": "i"}),
    ("threads.custom_action", "RunAction", {"thread_id": "t", "action": {"type": "x"}}),
]


@dataclass
class Scene:
    """A bridge before a scripted server."""

    server: FakeServer
    app: Starlette
    http: httpx.AsyncClient

    async def post(self, body: object = SAY_HI, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **{name.replace("_", "-"): v for name, v in headers.items()}}
        return await self.http.post("/api/chatkit", content=content, headers=headers)

    async def request_id(self, body: object = SAY_HI, **headers: str) -> str:
        """What the server got as the id of a request."""
        response = await self.post(body, **headers)
        assert response.status_code == 200, response.text
        request_id = next(c.request.request_id for c in reversed(self.server.calls) if c.rpc != "AcknowledgeRun")
        await self.acknowledged()
        return str(request_id)

    async def acknowledged(self) -> None:
        await until(lambda: not len(self.app.state.acknowledgements))

    @property
    def is_idle(self) -> bool:
        return not self.server.open_calls and not len(self.app.state.streams)


@asynccontextmanager
async def open_scene(settings: Settings = QUICK) -> AsyncIterator[Scene]:
    async with FakeServer() as server, bridge_before(server.target, settings) as (app, http):
        yield Scene(server, app, http)


@asynccontextmanager
async def bridge_before(target: str, settings: Settings = QUICK) -> AsyncIterator[tuple[Starlette, httpx.AsyncClient]]:
    async with open_bridge(target, settings) as (url, app), httpx.AsyncClient(base_url=url, timeout=30) as http:
        yield app, http


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene() as scene:
        yield scene


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def frames_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The id and the event of each frame, comments left out."""
    frames = []
    for frame in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in frame.split("\n") if line and not line.startswith(":"))
        if fields:
            frames.append((fields.get("id", ""), json.loads(fields["data"])))
    return frames


def said(text: str) -> list[tuple[str, str]]:
    """The id and the words of each frame; an error's are its message."""
    return [(id_, event.get("text") or event["message"]) for id_, event in frames_of(text)]


@dataclass
class Page:
    """A page on a socket of its own, that can leave at any moment."""

    client: socket.socket

    @classmethod
    def send(cls, scene: Scene, **headers: str) -> Page:
        body = json.dumps(SAY_HI).encode()
        head = {"Host": "x", "Content-Type": "application/json", "Content-Length": str(len(body)), **SSE, **headers}
        client = socket.create_connection(("127.0.0.1", scene.http.base_url.port or 0))
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in head.items()]
        client.sendall(f"POST /api/chatkit HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + body)
        client.setblocking(False)
        return cls(client)

    async def sees(self, text: str) -> None:
        async with asyncio.timeout(10):
            seen = b""
            while text.encode() not in seen:
                seen += await asyncio.get_running_loop().sock_recv(self.client, 65536)

    def leave(self) -> None:
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()


# The id of a request


async def test_a_page_that_repeats_its_post_gives_the_same_id(scene: Scene) -> None:
    scene.server.script("CreateThread", batch(1, "a"))
    first = await scene.request_id(**FRAME, authorization="Bearer x")
    assert await scene.request_id(**FRAME, authorization="Bearer x") == first
    assert first.startswith(AUTO_REQUEST_ID)
    assert len(first) == len(AUTO_REQUEST_ID) + 64
    others = [
        await scene.request_id(**FRAME),
        await scene.request_id(**FRAME, authorization="Bearer y"),
        await scene.request_id(**FRAME, authorization="Bearer x", x_user_id="bob"),
        await scene.request_id(chatkit_frame_instance_id="frame-2", authorization="Bearer x"),
        await scene.request_id(json.dumps(SAY_HI).encode() + b" ", **FRAME, authorization="Bearer x"),
    ]
    assert len({first, *others}) == 6


@pytest.mark.parametrize(("operation", "rpc", "params"), STREAMING)
async def test_every_call_that_starts_a_run_has_an_id(
    scene: Scene, operation: str, rpc: str, params: dict[str, Any]
) -> None:
    scene.server.script(rpc, batch(1, "a"))
    body = {"type": operation, "params": params}
    assert await scene.request_id(body, idempotency_key="mine") == "mine"
    derived = await scene.request_id(body, **FRAME)
    assert await scene.request_id(body, **FRAME) == derived
    assert derived.startswith(AUTO_REQUEST_ID)


async def test_who_is_no_page_and_gives_no_key_gets_another_id_each_time(scene: Scene) -> None:
    scene.server.script("CreateThread", batch(1, "a"))
    first, second = await scene.request_id(), await scene.request_id()
    assert first != second
    empty = {**SAY_HI, "params": {**SAY_HI["params"], "request_id": ""}}  # type: ignore[dict-item]
    assert len(await scene.request_id(empty)) == len(first)
    assert first.startswith(AUTO_REQUEST_ID)
    assert not scene.server.requests("AcknowledgeRun")


async def test_a_key_of_the_caller_is_the_id_with_quotes_or_without(scene: Scene) -> None:
    scene.server.script("CreateThread", batch(1, "a"))
    with_id = {**SAY_HI, "params": {**SAY_HI["params"], "request_id": "from-the-body"}}  # type: ignore[dict-item]
    assert await scene.request_id(**FRAME, idempotency_key="key-1") == "key-1"
    assert await scene.request_id(idempotency_key='"key-1"') == "key-1"
    assert await scene.request_id(idempotency_key="k" * 128) == "k" * 128
    assert await scene.request_id(with_id, **FRAME) == "from-the-body"
    assert await scene.request_id(with_id, idempotency_key="from-the-head") == "from-the-head"
    binary = ChatKitRequest()
    binary.create_thread.input.content.add().input_text.text = "hi"
    as_protobuf = {"content-type": "application/x-protobuf", "idempotency_key": "binary"}
    assert await scene.request_id(binary.SerializeToString(), **as_protobuf) == "binary"
    assert not scene.server.requests("AcknowledgeRun")


@pytest.mark.parametrize("key", ["", '""', "k" * 129, "two words", "tab\there", "ü", "auto-1", '"auto-1"'])
async def test_a_bad_key_is_refused_by_its_name(scene: Scene, key: str) -> None:
    head = {"content-type": "application/json", "idempotency-key": key.encode()}
    response = await scene.http.post("/api/chatkit", content=json.dumps(SAY_HI), headers=head)  # type: ignore[arg-type]
    error = response.json()["error"]
    assert (response.status_code, error["details"]["path"]) == (400, "Idempotency-Key")
    assert not scene.server.requests("CreateThread")


async def test_an_id_in_the_body_that_looks_like_one_of_ours_is_refused(scene: Scene) -> None:
    body = {**SAY_HI, "params": {**SAY_HI["params"], "request_id": "auto-1"}}  # type: ignore[dict-item]
    error = (await scene.post(body)).json()["error"]
    assert (error["code"], error["details"]["path"]) == ("INVALID_REQUEST", "$.params.request_id")


async def test_a_key_is_nothing_to_a_call_that_starts_no_run(scene: Scene) -> None:
    assert (await scene.post({"type": "threads.list", "params": {}}, idempotency_key="k" * 500)).status_code == 200


# That a page has its answer


async def test_the_answer_is_acknowledged_once_its_head_is_out_and_not_before(scene: Scene) -> None:
    may_begin, may_end = asyncio.Event(), asyncio.Event()
    scene.server.script("CreateThread", may_begin, batch(1, "a"), may_end, batch(2, "b"))
    page = asyncio.create_task(scene.post(**FRAME, **SSE, authorization="Bearer x", x_user_id="bob"))
    await until(lambda: bool(scene.server.requests("CreateThread")))
    await asyncio.sleep(0.1)
    assert not scene.server.requests("AcknowledgeRun")
    may_begin.set()
    await until(lambda: bool(scene.server.requests("AcknowledgeRun")))
    acknowledged = scene.server.calls[-1]
    assert acknowledged.request.run_id == RUN
    assert (acknowledged.metadata["authorization"], acknowledged.metadata["x-user-id"]) == ("Bearer x", "bob")
    may_end.set()
    assert said((await page).text) == [(f"{RUN}:1", "a"), (f"{RUN}:2", "b")]
    assert len(scene.server.requests("AcknowledgeRun")) == 1


async def test_a_page_that_left_before_the_answer_began_is_not_acknowledged(scene: Scene) -> None:
    may_begin = asyncio.Event()
    scene.server.script("CreateThread", may_begin, batch(1, "a"), asyncio.Event())
    page = Page.send(scene, **FRAME)
    await until(lambda: bool(scene.server.requests("CreateThread")))
    page.leave()
    await until(lambda: not scene.server.open_calls)
    may_begin.set()
    await until(lambda: scene.is_idle)
    assert not scene.server.requests("AcknowledgeRun")


async def test_a_slow_acknowledgement_delays_nothing(scene: Scene) -> None:
    scene.server.script("CreateThread", batch(1, "a"), batch(2, "b"))
    scene.server.script("AcknowledgeRun", asyncio.Event())
    assert len(said((await scene.post(**FRAME, **SSE)).text)) == 2
    # Leaving the scene closes the bridge, which does not wait for it either.
    assert len(scene.app.state.acknowledgements) == 1


async def test_a_failed_acknowledgement_is_only_logged(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.server.script("CreateThread", batch(1, "a"))
    scene.server.script("AcknowledgeRun", grpc.StatusCode.INTERNAL)
    assert len(said((await scene.post(**FRAME, **SSE)).text)) == 1
    await scene.acknowledged()
    assert f"{RUN} was not acknowledged: INTERNAL" in caplog.text


# Going on after an event, and stopping


async def test_the_last_event_id_goes_along_if_it_is_one(scene: Scene) -> None:
    scene.server.script("CreateThread", batch(1, "a"))
    await scene.post(last_event_id="run_7:42")
    assert scene.server.calls[-1].metadata["last-event-id"] == "run_7:42"
    for other in ("42", "run_7", "run_7:", "run_7:x", "run_7:-1", "run_ 7:1", f"run_7:{2**70}", "ü"):
        head = {"content-type": "application/json", "last-event-id": other.encode()}
        await scene.http.post("/api/chatkit", content=json.dumps(SAY_HI), headers=head)  # type: ignore[arg-type]
        assert "last-event-id" not in scene.server.calls[-1].metadata, other


async def test_a_run_is_resumed_where_params_or_the_last_event_id_say(scene: Scene) -> None:
    scene.server.script("ResumeRun", batch(5, "e"), batch(6, state=RUN_STATE_COMPLETED))

    async def after(header: str, **params: Any) -> int:
        response = await scene.post({"type": "runs.resume", "params": params}, last_event_id=header, **SSE)
        assert said(response.text) == [(f"{RUN}:5", "e")]
        return int(scene.server.calls[-1].request.after_sequence)

    assert await after("", run_id=RUN) == 0
    assert await after("", run_id=RUN, after_sequence=3) == 3
    assert await after(f"{RUN}:4", run_id=RUN) == 4
    assert await after(f"{RUN}:4", run_id=RUN, after_sequence=3) == 3
    assert await after("run_2:4", run_id=RUN) == 0
    assert await after(f"{RUN}:4", thread_id="thr_1") == 0


async def test_a_run_is_cancelled_and_told_how_it_ended(scene: Scene) -> None:
    scene.server.script("CancelRun", CancelRunResponse(run_id=RUN, state=RUN_STATE_CANCELLED))
    scene.server.script("CancelRun", CancelRunResponse())
    response = await scene.post({"type": "runs.cancel", "params": {"thread_id": "thr_1"}})
    assert (response.status_code, response.json()) == (200, {"run_id": RUN, "state": "cancelled"})
    assert scene.server.calls[-1].request.thread_id == "thr_1"
    assert (await scene.post({"type": "runs.cancel", "params": {"thread_id": "thr_1"}})).json() == {}


async def test_the_last_batch_says_how_a_run_ended_and_is_not_shown(scene: Scene) -> None:
    scene.server.script("CreateThread", batch(1, "a"), batch(2, state=RUN_STATE_COMPLETED))
    scene.server.script("CreateThread", EventBatch(run_id=RUN, state=RUN_STATE_COMPLETED))
    assert (await scene.post(**SSE)).text == f'id: {RUN}:1\ndata: {{"type":"progress_update","text":"a"}}\n\n'
    empty = await scene.post(**SSE, **FRAME)
    assert (empty.status_code, empty.text) == (200, "")


# A server that breaks off


@pytest.mark.parametrize(
    "failure",
    [
        GONE,
        DatabaseError("away", reason=reasons.ERROR_REASON_DATABASE_UNAVAILABLE),
        # Who resumes is told what was kept, and that it was interrupted, as events.
        UnavailableError("lost", reason=reasons.ERROR_REASON_RUN_INTERRUPTED),
    ],
)
async def test_a_page_notices_nothing_of_a_server_that_breaks_off(scene: Scene, failure: Any) -> None:
    scene.server.script("CreateThread", batch(1, "a", "b"), batch(3, "c"), failure)
    scene.server.script("ResumeRun", failure)
    scene.server.script("ResumeRun", batch(4, "d"), failure)
    scene.server.script("ResumeRun", batch(5, "e"), batch(6, state=RUN_STATE_COMPLETED))
    response = await scene.post(**SSE, **FRAME, authorization="Bearer x", last_event_id="run_7:1")
    assert said(response.text) == [(f"{RUN}:{number}", text) for number, text in enumerate("abcde", 1)]
    asked = [(request.run_id, request.after_sequence) for request in scene.server.requests("ResumeRun")]
    assert asked == [(RUN, 3), (RUN, 3), (RUN, 4)]
    assert scene.server.calls[-1].metadata["authorization"] == "Bearer x"
    assert len(scene.server.requests("CreateThread")) == 1


async def test_heartbeats_go_on_while_no_server_is_there(scene: Scene) -> None:
    scene.server.script("CreateThread", batch(1, "a"), GONE)
    for _ in range(3):
        scene.server.script("ResumeRun", GONE)
    scene.server.script("ResumeRun", batch(2, "b"))
    text = (await scene.post(**SSE)).text
    assert text.partition('"a"')[2].partition('"b"')[0].count(": heartbeat") >= 3


@pytest.mark.parametrize("resume_seconds", [0.0, 0.4])
async def test_after_the_time_for_it_the_page_is_told_that_it_broke(resume_seconds: float) -> None:
    async with open_scene(replace(QUICK, resume_seconds=resume_seconds)) as scene:
        scene.server.script("CreateThread", batch(1, "a"), GONE)
        scene.server.script("ResumeRun", GONE)
        began = asyncio.get_running_loop().time()
        *_, (id_, error) = frames_of((await scene.post(**SSE)).text)
        took = asyncio.get_running_loop().time() - began
    assert (id_, error["type"], error["allow_retry"]) == ("", "error", True)
    assert error["message"] == "The chat server can't be reached."
    assert resume_seconds <= took < resume_seconds + 5
    assert bool(scene.server.requests("ResumeRun")) is (resume_seconds > 0)


async def test_the_time_starts_anew_with_each_batch() -> None:
    async with open_scene(replace(QUICK, resume_seconds=0.35)) as scene:
        scene.server.script("CreateThread", batch(1, "0"), GONE)
        for number in range(1, 5):
            scene.server.script("ResumeRun", GONE)
            scene.server.script("ResumeRun", batch(number + 1, str(number)), GONE)
        scene.server.script("ResumeRun", batch(6, "5"))
        text = (await scene.post(**SSE)).text
        assert said(text) == [(f"{RUN}:{number + 1}", str(number)) for number in range(6)]


@pytest.mark.parametrize(
    "failure",
    [
        NotFoundError("No such run.", reason=reasons.ERROR_REASON_RUN_NOT_FOUND),
        grpc.StatusCode.INTERNAL,
    ],
)
async def test_what_will_not_pass_is_told_at_once(scene: Scene, failure: Any) -> None:
    scene.server.script("CreateThread", batch(1, "a"), GONE)
    scene.server.script("ResumeRun", failure)
    *_, (_, error) = frames_of((await scene.post(**SSE)).text)
    assert error["type"] == "error"
    assert len(scene.server.requests("ResumeRun")) == 1


async def test_a_failure_of_the_run_itself_is_not_resumed(scene: Scene) -> None:
    scene.server.script("CreateThread", batch(1, "a"), grpc.StatusCode.INTERNAL)
    *_, (_, error) = frames_of((await scene.post(**SSE)).text)
    assert error["type"] == "error"
    assert not scene.server.requests("ResumeRun")


@pytest.mark.parametrize("state", [RUN_STATE_COMPLETED, RUN_STATE_CANCELLED, RUN_STATE_INTERRUPTED])
async def test_a_server_that_breaks_off_after_the_end_breaks_nothing(scene: Scene, state: Any) -> None:
    scene.server.script("CreateThread", batch(1, "a"), batch(2, state=state), GONE)
    assert said((await scene.post(**SSE)).text) == [(f"{RUN}:1", "a")]
    assert not scene.server.requests("ResumeRun")


async def test_how_a_run_failed_is_asked_for_where_the_server_breaks_off_before_saying_it(scene: Scene) -> None:
    scene.server.script("CreateThread", batch(1, "a"), batch(2, state=RUN_STATE_FAILED), GONE)
    scene.server.script("ResumeRun", batch(2, state=RUN_STATE_FAILED), NotFoundError("It failed."))
    assert said((await scene.post(**SSE)).text) == [(f"{RUN}:1", "a"), ("", "It failed.")]
    assert scene.server.requests("ResumeRun")[0].after_sequence == 1


async def test_leaving_while_no_server_is_there_leaves_nothing_behind(scene: Scene) -> None:
    await scene.post({"type": "threads.list", "params": {}})
    before = len(asyncio.all_tasks())
    scene.server.script("CreateThread", batch(1, "a"), GONE)
    scene.server.script("ResumeRun", GONE)
    pages = [Page.send(scene) for _ in range(5)]
    await until(lambda: len(scene.server.requests("ResumeRun")) >= 5)
    for page in pages:
        page.leave()
    await until(lambda: scene.is_idle)
    asked = len(scene.server.requests("ResumeRun"))
    await until(lambda: len(asyncio.all_tasks()) <= before)
    await asyncio.sleep(0.5)
    assert len(scene.server.requests("ResumeRun")) == asked


async def test_leaving_a_resumed_stream_ends_its_call(scene: Scene) -> None:
    scene.server.script("CreateThread", batch(1, "a"), GONE)
    scene.server.script("ResumeRun", batch(2, "b"), asyncio.Event())
    page = Page.send(scene)
    await page.sees('"b"')
    assert scene.server.open_calls == 1
    page.leave()
    await until(lambda: scene.is_idle)


@pytest.mark.parametrize("is_resumed", [False, True])
async def test_a_bridge_that_goes_down_resumes_nothing(scene: Scene, *, is_resumed: bool) -> None:
    scene.server.script("CreateThread", batch(1, "a"), GONE)
    scene.server.script("ResumeRun", asyncio.Event() if is_resumed else GONE)
    page = asyncio.create_task(scene.post(**SSE))
    await until(lambda: bool(scene.server.requests("ResumeRun")))
    await scene.app.state.streams.drain(0)
    assert said((await page).text)[-1] == ("", "The chat server is restarting.")
    await until(lambda: scene.is_idle)


@asynccontextmanager
async def relay_to(port: int) -> AsyncIterator[tuple[int, Callable[[], None]]]:
    """A connection that can be cut: its port, and what cuts all that go through it."""
    writers: list[asyncio.StreamWriter] = []
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, other_writer))
        for source, sink in ((reader, other_writer), (other_reader, writer)):
            task = asyncio.create_task(pump(source, sink))
            pumps.add(task)
            task.add_done_callback(pumps.discard)

    def cut() -> None:
        for writer in writers:
            writer.transport.abort()
        writers.clear()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], cut
    finally:
        server.close()
        cut()
        for task in tuple(pumps):
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def test_a_connection_that_is_cut_costs_no_token_and_repeats_none() -> None:
    async with (
        FakeServer() as server,
        relay_to(server.port) as (port, cut),
        bridge_before(f"127.0.0.1:{port}") as (app, http),
    ):
        scene = Scene(server, app, http)
        server.script("CreateThread", *(batch(n, f"t{n}") for n in range(1, 101)), asyncio.Event())
        server.script("ResumeRun", *(batch(n, f"t{n}") for n in range(101, 201)), asyncio.Event())
        server.script("ResumeRun", *(batch(n, f"t{n}") for n in range(201, 301)))
        text = ""
        cuts = 0
        async with http.stream("POST", "/api/chatkit", json=SAY_HI, headers=SSE) as response:
            async for chunk in response.aiter_text():
                text += chunk
                if f'"t{(cuts + 1) * 100}"' in text and cuts < 2:
                    cut()
                    cuts += 1
        assert said(text) == [(f"{RUN}:{n}", f"t{n}") for n in range(1, 301)]
        assert [request.after_sequence for request in server.requests("ResumeRun")] == [100, 200]
        await until(lambda: scene.is_idle)


# A server that breaks off before it has said a word


async def test_a_call_that_breaks_before_its_answer_began_is_made_again_with_its_id(scene: Scene) -> None:
    scene.server.script("CreateThread", GONE)
    scene.server.script("CreateThread", GONE)
    scene.server.script("CreateThread", batch(1, "a"))
    assert said((await scene.post(**SSE)).text) == [(f"{RUN}:1", "a")]
    assert len({request.request_id for request in scene.server.requests("CreateThread")}) == 1


async def test_who_asked_for_no_stream_still_gets_the_real_status(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lasting_call, "_START_SECONDS", 0.3)
    scene.server.script("CreateThread", GONE)
    response = await scene.post()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "UNAVAILABLE")
    assert 2 <= len(scene.server.requests("CreateThread")) <= 5
    (frame,) = frames_of((await scene.post(**SSE)).text)
    assert frame[1]["message"] == "The chat server can't be reached."
    scene.server.script("CreateThread", NotFoundError("No such thread."))
    assert (await scene.post()).status_code == 404


@pytest.mark.parametrize(
    ("operation", "rpc", "params"),
    [
        ("threads.get_by_id", "GetThread", {"thread_id": "t"}),
        ("threads.list", "ListThreads", {}),
        ("items.list", "ListItems", {"thread_id": "t"}),
        ("runs.cancel", "CancelRun", {"run_id": "r"}),
        ("threads.search", "SearchThreads", {"query": "q"}),
        ("threads.update", "UpdateThread", {"thread_id": "t", "title": "x"}),
        ("threads.delete", "DeleteThread", {"thread_id": "t"}),
        ("items.feedback", "AddFeedback", {"thread_id": "t", "item_ids": ["i"], "kind": "positive"}),
    ],
)
async def test_what_changes_nothing_the_second_time_is_tried_four_times(
    scene: Scene, operation: str, rpc: str, params: dict[str, Any]
) -> None:
    for _ in range(3):
        scene.server.script(rpc, GONE)
    scene.server.script(rpc)
    assert (await scene.post({"type": operation, "params": params})).status_code == 200
    assert len(scene.server.requests(rpc)) == 4


async def test_what_would_be_done_twice_is_tried_once(scene: Scene) -> None:
    scene.server.script("Transcribe", GONE)
    body = {"type": "input.transcribe", "params": {"audio_base64": "AAAA", "mime_type": "audio/ogg"}}
    assert (await scene.post(body)).status_code == 503
    assert len(scene.server.requests("Transcribe")) == 1


# Several servers


async def test_of_two_servers_the_living_one_answers() -> None:
    async with FakeServer() as dead:
        pass
    async with FakeServer() as living:
        living.script("CreateThread", batch(1, "a"))
        both = f"ipv4:{dead.target},{living.target}"
        async with bridge_before(both) as (_, http):
            for _ in range(4):
                assert (await http.get("/api/chatkit/health")).status_code == 200
                assert (await http.post("/api/chatkit", json={"type": "threads.list", "params": {}})).status_code == 200
                assert said((await http.post("/api/chatkit", json=SAY_HI, headers=SSE)).text) == [(f"{RUN}:1", "a")]


async def test_a_run_whose_server_dies_goes_on_at_the_other(scene: Scene) -> None:
    async with FakeServer() as other:
        for server in (scene.server, other):
            server.script("CreateThread", batch(1, "a"), asyncio.Event())
            server.script("ResumeRun", batch(2, "b"), batch(3, state=RUN_STATE_COMPLETED))
        async with bridge_before(f"ipv4:{scene.server.target},{other.target}") as (_, http):
            page = asyncio.create_task(http.post("/api/chatkit", json=SAY_HI, headers=SSE))
            await until(lambda: scene.server.open_calls + other.open_calls == 1)
            first, second = (scene.server, other) if scene.server.open_calls else (other, scene.server)
            await asyncio.sleep(0.1)
            first.script("CreateThread", GONE)
            await first.__aexit__(None, None, None)
            assert said((await page).text) == [(f"{RUN}:1", "a"), (f"{RUN}:2", "b")]
            assert [request.after_sequence for request in second.requests("ResumeRun")] == [1]


async def test_a_server_that_says_it_does_not_serve_gets_no_calls(scene: Scene) -> None:
    async with FakeServer() as other:
        for server in (scene.server, other):
            server.script("CreateThread", batch(1, "a"))
        await other.set_serving(is_serving=False)
        async with bridge_before(f"ipv4:{scene.server.target},{other.target}") as (app, http):
            for _ in range(6):
                assert await app.state.backend.is_serving()
                assert said((await http.post("/api/chatkit", json=SAY_HI, headers=SSE)).text) == [(f"{RUN}:1", "a")]
        assert not other.requests("CreateThread")
        assert len(scene.server.requests("CreateThread")) == 6


async def test_where_no_server_serves_they_still_say_why(scene: Scene) -> None:
    lost = DatabaseError("The database can't be reached.", reason=reasons.ERROR_REASON_DATABASE_UNAVAILABLE)
    scene.server.script("ListThreads", lost)
    await scene.server.set_serving(is_serving=False)
    health = await scene.http.get("/api/chatkit/health")
    assert (health.status_code, health.json()["backend"]) == (503, "database unavailable")
    for body in ({"type": "threads.list", "params": {}}, SAY_HI):
        response = await scene.post(body)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "DATABASE_UNAVAILABLE")
    await scene.server.set_serving(is_serving=True)
    scene.server.script("CreateThread", batch(1, "a"))
    assert said((await scene.post(**SSE)).text) == [(f"{RUN}:1", "a")]


# Those who vanish


async def test_a_page_that_takes_nothing_is_given_up_after_three_heartbeats() -> None:
    async with open_scene(replace(QUICK, heartbeat_seconds=0.5)) as scene:
        scene.server.script("CreateThread", *(batch(n, "x" * 1_000_000) for n in range(1, 20)), asyncio.Event())
        page = Page.send(scene)
        await page.sees("xxx")
        await asyncio.sleep(1.1)
        assert len(scene.app.state.streams) == 1
        await until(lambda: scene.is_idle, seconds=1.5)
        page.leave()


def test_a_connection_whose_other_side_takes_nothing_ends() -> None:
    with bound_socket("BRIDGE_LISTEN", Address("127.0.0.1", 0)) as listener:
        notice_who_vanishes(listener)
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if sys.platform == "linux":
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000


@pytest.mark.parametrize("text", ["-1", "601", "long"])
def test_a_time_to_resume_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESUME_SECONDS", text)
    with pytest.raises(SettingsError, match="RESUME_SECONDS"):
        Settings.from_env()


# With the real server


PATIENT = ServerSettings(environment="development", limits=NO_LIMITS)


def say(text: str) -> dict[str, Any]:
    return {"type": "threads.create", "params": {"input": {"content": [{"type": "input_text", "text": text}]}}}


def ids_of(text: str) -> list[str]:
    return [id_ for id_, _ in frames_of(text)]


async def test_a_repeated_key_shows_the_answer_again_or_what_is_missing_of_it(database_url: str) -> None:
    async with open_system(database_url, ScriptedServer) as system:
        head = {**SSE, "idempotency-key": "once"}
        first = (await system.http.post("/api/chatkit", json=say("tokens 3"), headers=head)).text
        again = (await system.http.post("/api/chatkit", json=say("tokens 3"), headers=head)).text
        assert frames_of(again) == frames_of(first)
        last_seen = ids_of(first)[3]
        rest = await system.http.post(
            "/api/chatkit", json=say("tokens 3"), headers={**head, "last-event-id": last_seen}
        )
        assert frames_of(rest.text) == frames_of(first)[4:]
        resume = {"type": "runs.resume", "params": {"run_id": last_seen.partition(":")[0]}}
        rest = await system.http.post("/api/chatkit", json=resume, headers={**SSE, "last-event-id": last_seen})
        assert frames_of(rest.text) == frames_of(first)[4:]
        other = await system.http.post("/api/chatkit", json=say("tokens 4"), headers={"idempotency-key": "once"})
        assert (other.status_code, other.json()["error"]["code"]) == (422, "REQUEST_ID_REUSED")


async def test_a_page_that_says_the_same_twice_is_answered_twice(database_url: str) -> None:
    async with open_system(database_url, ScriptedServer) as system:
        runs = set()
        for _ in range(3):
            answer = await system.http.post("/api/chatkit", json=say("tokens 1"), headers={**SSE, **FRAME})
            await until(lambda: not len(system.app.state.acknowledgements))
            runs.add(ids_of(answer.text)[0])
        assert len(runs) == 3


async def test_a_page_that_repeats_its_post_before_its_answer_began_is_answered_once(database_url: str) -> None:
    async with open_system(database_url, ScriptedServer, server=PATIENT) as system:
        chat: Any = ChatServiceStub(system.channel)
        body = json.dumps(say("tokens 1")).encode()
        request = CreateThreadRequest()
        request.input.content.add().input_text.text = "tokens 1"
        identify(request, Headers(FRAME), body)
        # As a bridge would that died before its page saw a word.
        (first, *_) = [answer async for answer in chat.CreateThread(request)]
        head = {**SSE, **FRAME, "content-type": "application/json"}
        answer = await system.http.post("/api/chatkit", content=body, headers=head)
        assert ids_of(answer.text)[0] == f"{first.batch.run_id}:1"


async def test_cancelling_a_run_ends_the_stream_that_shows_it_cleanly(database_url: str) -> None:
    made: list[ScriptedServer] = []

    def factory(store: Any) -> ScriptedServer:
        made.append(ScriptedServer(store))
        return made[-1]

    async with open_system(database_url, factory) as system:
        page = asyncio.create_task(system.http.post("/api/chatkit", json=say("wait"), headers=SSE))
        await made[0].is_silent.wait()
        threads = (await system.http.post("/api/chatkit", json={"type": "threads.list", "params": {}})).json()
        cancel = {"type": "runs.cancel", "params": {"thread_id": threads["data"][0]["id"]}}
        cancelled = (await system.http.post("/api/chatkit", json=cancel)).json()
        *_, (id_, last) = frames_of((await page).text)
        assert cancelled == {"run_id": id_.partition(":")[0], "state": "cancelled"}
        assert (last["type"], last["item"]["content"][0]["text"]) == ("thread.item.done", "one two ")


async def test_a_cut_connection_to_the_real_server_costs_no_token(database_url: str) -> None:
    async with (
        open_system(database_url, ScriptedServer, server=PATIENT) as system,
        relay_to(system.server.port) as (port, cut),
        bridge_before(f"127.0.0.1:{port}") as (app, http),
    ):
        text, cuts = "", 0
        async with http.stream("POST", "/api/chatkit", json=say("tokens 300 0.005"), headers=SSE) as response:
            async for chunk in response.aiter_text():
                text += chunk
                if cuts < 3 and f'"t{(cuts + 1) * 60} "' in text:
                    cut()
                    cuts += 1
        run_id = ids_of(text)[0].partition(":")[0]
        assert ids_of(text) == [f"{run_id}:{number}" for number in range(1, len(frames_of(text)) + 1)]
        deltas = [event["update"]["delta"] for _, event in frames_of(text) if "delta" in event.get("update", {})]
        assert deltas == [f"t{number} " for number in range(300)]
        await until(lambda: not len(app.state.streams) and not len(system.server.runs))
