"""The bridge's one endpoint from outside: who gets which status, and what bad input is told."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from chatkit_grpc import codec
from chatkit_grpc.v1.chat_service_pb2 import AddClientToolOutputRequest
from chatkit_grpc.v1.chatkit_request_pb2 import ChatKitRequest
from chatkit_grpc.v1.thread_service_pb2 import ListItemsRequest

from bridge import endpoint
from bridge.settings import Settings as BridgeSettings
from server.settings import Settings as ServerSettings
from tests.issuer import hs256
from tests.page import SSE, a_thread, body_of, events_of, post, say
from tests.scripted import WHAT_WAS_SAID, ScriptedServer
from tests.system import PRODUCTION, System, open_bridge, open_system
from tests.unlimited import NO_LIMITS

DEVELOPMENT = ServerSettings(environment="development", limits=NO_LIMITS, run_grace_seconds=0)


@pytest.fixture
async def system(database_url: str) -> AsyncIterator[System]:
    async with open_system(database_url, ScriptedServer) as system:
        yield system


BAD = [
    (b"", "$", "not JSON: Expecting value"),
    (b"{", "$", "not JSON: "),
    (b"[]", "$", "expected an object, got a list"),
    (b'"x"', "$", "expected an object, got a string"),
    (b"\xff\xfe", "$", "not UTF-8 at byte 0"),
    (b"{}", "$.type", "missing"),
    ({"type": "threads.resume", "params": {}}, "$.type", 'unknown value "threads.resume"'),
    ({"type": 7}, "$.type", "expected a string, got a number"),
    ({"type": "items.list"}, "$.params", "missing"),
    (body_of("items.list"), "$.params.thread_id", "missing"),
    (body_of("items.list", thread_id=7), "$.params.thread_id", "expected a string, got a number"),
    (body_of("items.list", thread_id="t", limit=-1), "$.params.limit", "from 0 to 2147483647, got -1"),
    (body_of("items.list", thread_id="t", limit=2**70), "$.params.limit", "from 0 to 2147483647"),
    (body_of("items.list", thread_id="t", order="up"), "$.params.order", "expected asc or desc"),
    (b'{"type":"items.list","params":{"thread_id":"a","thread_id":"b"}}', "$.params.thread_id", "given twice"),
    (body_of("threads.get_by_id", thread_id="a\0b"), "$.params.thread_id", "NUL"),
    (say("nul \0"), "$.params.input.content[0].text", "NUL"),
    (b'{"type":"threads.get_by_id","params":{"thread_id":"\\ud800"}}', "$.params.thread_id", "surrogate"),
    (body_of("threads.create", input={"content": [{"type": "vidoe"}]}), "$.params.input.content[0].type", '"vidoe"'),
    ({**say("hi"), "metadata": {"x": "y" * 9000}}, "$.metadata", "at most 8192 bytes"),
]


@pytest.mark.parametrize(("body", "path", "said"), BAD)
async def test_a_bad_request_is_told_where_and_why(system: System, body: object, path: str, said: str) -> None:
    response = await post(system, body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["details"]["path"]) == (400, "INVALID_REQUEST", path)
    assert error["message"].startswith(f"{path}: ")
    assert said in error["message"]
    assert error["details"]["violations"][0]["path"] == path

    streamed = await post(system, body, **SSE)
    assert streamed.status_code == 200
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert events_of(streamed) == [
        {"type": "error", "code": "custom", "message": error["message"], "allow_retry": False}
    ]


async def test_a_limit_of_zero_is_the_default(system: System) -> None:
    thread, _ = await a_thread(system)
    response = await post(system, body_of("items.list", thread_id=thread, limit=0))
    assert len(response.json()["data"]) == 2


NOT_THERE = [
    (body_of("threads.get_by_id", thread_id="{thread}"), "THREAD_NOT_FOUND"),
    (body_of("items.list", thread_id="{thread}"), "THREAD_NOT_FOUND"),
    (body_of("threads.update", thread_id="{thread}", title="x"), "THREAD_NOT_FOUND"),
    (body_of("threads.delete", thread_id="{thread}"), "THREAD_NOT_FOUND"),
    (say("tokens 1", thread_id="{thread}"), "THREAD_NOT_FOUND"),
    (body_of("items.feedback", thread_id="{thread}", item_ids=["{item}"], kind="negative"), None),
    (body_of("threads.retry_after_item", thread_id="{thread}", item_id="{item}"), None),
    (body_of("threads.custom_action", thread_id="{thread}", action={"type": "x"}), "THREAD_NOT_FOUND"),
    (body_of("threads.sync_custom_action", thread_id="{thread}", action={"type": "x"}), "THREAD_NOT_FOUND"),
    (body_of("threads.add_client_tool_output", thread_id="{thread}", result=1), "THREAD_NOT_FOUND"),
    (body_of("threads.add_structured_input", thread_id="{thread}", item_id="{item}", input={}), None),
    (body_of("attachments.delete", attachment_id="{attachment}"), "ATTACHMENT_NOT_FOUND"),
]


def filled(body: dict[str, Any], **ids: str) -> dict[str, Any]:
    text = json.dumps(body)
    for name, value in ids.items():
        text = text.replace(f"{{{name}}}", value)
    filled: dict[str, Any] = json.loads(text)
    return filled


@pytest.mark.parametrize(("body", "code"), NOT_THERE)
async def test_what_is_somebody_elses_is_as_if_it_were_not_there(
    system: System, body: dict[str, Any], code: str | None
) -> None:
    thread, events = await a_thread(system)
    item = events[1]["item"]["id"]
    attachment = body_of("attachments.create", name="a", size=1, mime_type="text/plain")
    file = (await post(system, attachment)).json()["id"]
    mine = filled(body, thread=thread, item=item, attachment=file)
    theirs = await post(system, mine, **{"x-user-id": "mallory"})
    nowhere = filled(body, thread="thr_0", item="msg_0", attachment="atc_0")
    missing = await post(system, nowhere, **{"x-user-id": "mallory"})
    assert theirs.status_code == missing.status_code == 404
    assert theirs.text.replace(thread, "thr_0").replace(item, "msg_0").replace(file, "atc_0") == missing.text
    assert code is None or missing.json()["error"]["code"] == code

    streamed = await post(system, nowhere, **SSE)
    assert (streamed.status_code, events_of(streamed)[0]["type"]) == (200, "error")


async def test_feedback_on_an_item_that_is_not_there_is_refused_whole(system: System) -> None:
    thread, events = await a_thread(system)
    item = events[1]["item"]["id"]
    response = await post(
        system, body_of("items.feedback", thread_id=thread, item_ids=[item, "msg_0"], kind="positive")
    )
    assert (response.status_code, response.json()["error"]["code"]) == (404, "ITEM_NOT_FOUND")


async def test_an_unknown_cursor_is_refused(system: System) -> None:
    thread, _ = await a_thread(system)
    for body in (body_of("items.list", thread_id=thread, after="msg_0"), body_of("threads.list", after="thr_0")):
        response = await post(system, body)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "UNKNOWN_CURSOR")


async def test_an_operation_that_does_not_fit_the_thread_is_refused(system: System) -> None:
    thread, events = await a_thread(system)
    assistant = events[-1]["item"]["id"]
    for body in (
        body_of("threads.add_client_tool_output", thread_id=thread, result=1),
        body_of("threads.add_structured_input", thread_id=thread, item_id=assistant, input={}),
        body_of("threads.sync_custom_action", thread_id=thread, item_id=assistant, action={"type": "x"}),
    ):
        response = await post(system, body)
        assert (response.status_code, response.json()["error"]["code"]) == (409, "FAILED_PRECONDITION"), body


async def status_line_of_an_unfinished_body(system: System, chunk: bytes) -> bytes:
    """What a request is answered of which one chunk has come and the end never will."""
    host, _, port = system.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        head = f"POST /api/chatkit HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        async with asyncio.timeout(10):
            return await reader.readexactly(len(b"HTTP/1.1 413 "))
    finally:
        writer.close()


async def test_a_body_over_the_limit_is_refused_before_it_is_read(database_url: str) -> None:
    async with open_system(database_url, ScriptedServer, bridge=BridgeSettings(max_request_bytes=2048)) as system:
        declared = await post(system, b" " * 2049)
        assert (declared.status_code, declared.json()["error"]["code"]) == (413, "REQUEST_TOO_LARGE")
        assert await status_line_of_an_unfinished_body(system, b" " * 2049) == b"HTTP/1.1 413 "
        assert (await post(system, body_of("threads.list"))).status_code == 200


async def test_the_server_refuses_what_is_too_large_for_it(database_url: str) -> None:
    small = replace(DEVELOPMENT, max_request_bytes=2048)
    async with open_system(database_url, ScriptedServer, server=small) as system:
        response = await post(system, say("x" * 4096))
        assert (response.status_code, response.json()["error"]["code"]) == (413, "REQUEST_TOO_LARGE")


async def test_a_content_type_that_a_foreign_page_could_send_is_refused(system: System) -> None:
    response = await post(system, body_of("threads.list"), **{"content-type": "text/plain"})
    assert (response.status_code, response.json()["error"]["details"]["path"]) == (400, "Content-Type")


async def test_protobuf_is_answered_like_json(system: System) -> None:
    thread, _ = await a_thread(system)
    binary = {"content-type": "application/x-protobuf"}
    for body in (body_of("threads.list"), body_of("items.list", thread_id=thread, order="asc")):
        message = codec.decode_request(ChatKitRequest, json.dumps(body).encode())
        as_json, as_protobuf = await post(system, body), await post(system, message.SerializeToString(), **binary)
        assert as_protobuf.json() == as_json.json()
    message = codec.decode_request(ChatKitRequest, json.dumps(say("tokens 2")).encode())
    streamed = await post(system, message.SerializeToString(), **binary)
    assert [event["type"] for event in events_of(streamed)][-1] == "thread.item.done"


def protobuf(operation: ListItemsRequest | AddClientToolOutputRequest) -> bytes:
    if isinstance(operation, ListItemsRequest):
        return ChatKitRequest(list_items=operation).SerializeToString()
    return ChatKitRequest(add_client_tool_output=operation).SerializeToString()


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"\xff\xff\xff", "expected a chatkit_grpc.v1.ChatKitRequest"),
        (b"", "missing, expected one of threads.create"),
        (protobuf(ListItemsRequest(thread_id="a\0")), "NUL"),
        (protobuf(AddClientToolOutputRequest(thread_id="a", result="1,2")), "not JSON"),
    ],
)
async def test_bad_protobuf_is_refused_like_bad_json(system: System, message: bytes, said: str) -> None:
    response = await post(system, message, **{"content-type": "application/x-protobuf"})
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


async def test_outside_of_development_nobody_is_let_in(database_url: str) -> None:
    async with open_system(database_url, ScriptedServer, server=PRODUCTION) as system:
        for body in (body_of("threads.list"), say("hi"), b"not JSON", {"type": "what"}, b" " * 5_000_000):
            for headers in ({}, SSE, {"x-user-id": "alice"}, {"authorization": "Bearer x"}):
                response = await post(system, body, **headers)
                assert (response.status_code, response.json()["error"]["code"]) == (401, "UNAUTHENTICATED")
        assert (await system.http.get("/api/chatkit/health")).status_code == 200


async def test_a_large_request_is_parsed_for_no_stranger_and_beside_all_others(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bool] = []
    parse = endpoint._parse

    def noted(content_type: str, body: bytes) -> Any:
        parsed.append(threading.current_thread() is threading.main_thread())
        return parse(content_type, body)

    monkeypatch.setattr(endpoint, "_parse", noted)
    body = b'{"type": "threads.list", "params": {}, "x": [' + b"[]," * 100_000 + b"[]]}"
    async with open_system(database_url, ScriptedServer, server=PRODUCTION) as system:
        assert (await post(system, body)).status_code == 401
        assert parsed == []
        known = {"authorization": f"Bearer {hs256()}"}
        assert (await post(system, body, **known)).status_code == 200
        assert parsed == [False]


@pytest.mark.parametrize("user", ["", "a b", "ü", "x" * 129, "a'; drop table"])
async def test_a_user_id_that_is_none_is_refused(system: System, user: str) -> None:
    response = await system.http.post(
        "/api/chatkit", json=body_of("threads.list"), headers=[(b"x-user-id", user.encode())]
    )
    assert response.status_code == 400


async def test_health_tells_what_the_system_is(system: System) -> None:
    response = await system.http.get("/api/chatkit/health")
    health = response.json()
    assert response.status_code == 200
    assert health.pop("timestamp").endswith("Z")
    assert health == {
        "status": "ok",
        "backend": "serving",
        "openai_key_configured": False,
        "dictation": True,
        "mcp_servers": {},
        "session_endpoint_available": False,
        "store_implemented": True,
    }


async def test_health_knows_of_a_configured_key(database_url: str) -> None:
    async with open_system(
        database_url, ScriptedServer, server=replace(DEVELOPMENT, openai_api_key="sk-test")
    ) as system:
        assert (await system.http.get("/api/chatkit/health")).json()["openai_key_configured"] is True


async def test_without_a_server_everything_says_so() -> None:
    async with open_bridge("127.0.0.1:1") as (url, _), httpx.AsyncClient(base_url=url) as http:
        health = await http.get("/api/chatkit/health")
        assert (health.status_code, health.json()["backend"]) == (503, "unreachable")
        for body in (body_of("threads.list"), say("hi"), {"type": "what"}):
            response = await http.post("/api/chatkit", json=body)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "UNAVAILABLE")
        streamed = await http.post("/api/chatkit", json=say("hi"), headers=SSE)
        assert streamed.status_code == 200
        assert events_of(streamed) == [
            {"type": "error", "code": "custom", "message": "The chat server can't be reached.", "allow_retry": True}
        ]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/chatkit", 405),
        ("PUT", "/api/chatkit", 405),
        ("POST", "/api/chatkit/session", 404),
        ("POST", "/api/chatkit/refresh", 404),
        ("GET", "/api/chatkit/threads", 404),
        ("GET", "/api/chatkit/threads/x", 404),
        ("POST", "/session", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/static/../server/app.py", 404),
    ],
)
async def test_what_is_not_there_is_a_json_error(system: System, method: str, path: str, status: int) -> None:
    response = await system.http.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"code", "message", "details"}


async def test_the_page_is_served(system: System) -> None:
    response = await system.http.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in response.headers["content-security-policy"]


async def test_the_assistant_is_told_who_asks_and_how(database_url: str) -> None:
    servers: list[ScriptedServer] = []

    def factory(store: Any) -> ScriptedServer:
        servers.append(ScriptedServer(store))
        return servers[-1]

    async with open_system(database_url, factory, server=PRODUCTION) as system:
        body = {**say("tokens 1"), "metadata": {"n": 1}}
        headers = {"accept-language": "de", "authorization": f"Bearer {hs256(sub='bob')}"}
        await post(system, body, **headers, cookie="better-auth.session_token=secret; theme=dark")
    context = servers[0].contexts[0]
    assert context["user_id"] == context.user_id == context["auth"].user_id == "bob"
    assert context["request"].headers["accept-language"] == "de"
    assert context["request"].metadata == {"n": 1}
    assert not {"authorization", "cookie"} & set(context["request"].headers)


async def test_a_bug_in_the_assistant_is_an_error_event_without_its_words(system: System) -> None:
    response = await post(system, say("fail"), **SSE)
    assert events_of(response)[-1] == {"type": "error", "code": "stream.error", "allow_retry": True}
    assert "secret" not in response.text


async def test_what_the_assistants_bug_says_is_not_logged(system: System, caplog: pytest.LogCaptureFixture) -> None:
    await post(system, say("fail"), **SSE)
    assert "the assistant failed: KeyError" in caplog.text
    assert "say_fail" in caplog.text
    assert WHAT_WAS_SAID not in caplog.text


async def test_a_part_that_can_not_be_sent_does_not_end_the_answer(system: System) -> None:
    events = events_of(await post(system, say("deep"), **SSE))
    assert events[-2] == {
        "type": "error", "code": "custom", "message": "A part of the answer can't be shown.", "allow_retry": False
    }  # fmt: skip
    assert events[-1]["item"]["content"][0]["text"] == "after"


async def test_a_bug_of_the_bridge_is_told_as_any_other_failure(
    system: System, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise KeyError(WHAT_WAS_SAID)

    monkeypatch.setattr(endpoint, "method_of", fail)
    response = await post(system, body_of("threads.list"))
    assert (response.status_code, response.json()["error"]["message"]) == (500, "The bridge failed.")
    streamed = await post(system, body_of("threads.list"), **SSE)
    assert (streamed.status_code, streamed.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert "the bridge failed: KeyError" in caplog.text
    assert WHAT_WAS_SAID not in caplog.text


async def test_long_ids_and_headers_get_the_answer_that_short_ones_get(system: System) -> None:
    for _ in range(5):
        response = await post(
            system, body_of("threads.get_by_id", thread_id="t" * 20_000), **{"user-agent": "x" * 20_000}
        )
        assert (response.status_code, response.json()["error"]["code"]) == (404, "THREAD_NOT_FOUND")
    thread, _ = await a_thread(system)
    response = await post(system, body_of("items.list", thread_id=thread, after="m" * 20_000))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "UNKNOWN_CURSOR")


async def test_a_body_that_never_comes_is_not_waited_for(database_url: str) -> None:
    async with open_system(database_url, ScriptedServer, bridge=BridgeSettings(request_timeout_seconds=0.3)) as system:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(system.url.rpartition(":")[2]))
        head = "POST /api/chatkit HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        writer.write(head.encode())
        async with asyncio.timeout(10):
            assert await reader.readline() == b"HTTP/1.1 400 Bad Request\r\n"
        writer.close()


async def test_a_client_that_stops_reading_is_given_up(database_url: str) -> None:
    bridge = BridgeSettings(heartbeat_seconds=0.1, shutdown_grace_seconds=0)
    async with open_system(database_url, ScriptedServer, bridge=bridge) as system:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        port = int(system.url.rpartition(":")[2])
        client.connect(("127.0.0.1", port))
        body = json.dumps(say("tokens 100000")).encode()
        head = f"POST /api/chatkit HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        client.sendall(f"{head}\r\n\r\n".encode() + body)
        async with asyncio.timeout(60):
            while not len(system.app.state.streams):
                await asyncio.sleep(0.01)
            while len(system.app.state.streams) or len(system.server.runs):
                await asyncio.sleep(0.05)
        client.close()
