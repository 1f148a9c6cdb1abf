"""The gRPC server from outside, as an internal service or a tool such as grpcurl sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import grpc
import pytest
from chatkit.server import ChatKitServer
from chatkit_grpc.environment import SettingsError
from chatkit_grpc.errors import ChatKitError, from_rpc_error
from chatkit_grpc.services import REQUEST_METADATA_KEY, SERVICES
from chatkit_grpc.v1 import (
    chat_service_pb2,
    chat_service_pb2_grpc,
    chatkit_request_pb2,
    run_pb2,
    thread_service_pb2,
    thread_service_pb2_grpc,
)
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from bridge.backend import METHODS
from server import sdk
from server.app import open_server
from tests.database import execute, with_database
from tests.scripted import ScriptedServer
from tests.system import ANY_PORT, PRODUCTION, System, open_system

ATTACHMENT_METHODS = {"UploadAttachment", "DownloadAttachment", "GetAttachment", "GetPreview"}
"""Offered at addresses of their own."""
ALL_METHODS: list[MethodDescriptor] = [method for service in SERVICES.values() for method in service.methods]


@pytest.fixture
async def system(database_url: str) -> AsyncIterator[System]:
    async with open_system(database_url, ScriptedServer) as system:
        yield system


async def failure_of(channel: grpc.aio.Channel, method: MethodDescriptor, body: bytes, **metadata: str) -> ChatKitError:
    path = f"/{method.containing_service.full_name}/{method.name}"
    sent = tuple((key.replace("_", "-"), value) for key, value in metadata.items())
    make_call: Any = channel.unary_stream(path) if method.server_streaming else channel.unary_unary(path)
    call = make_call(body, metadata=sent)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call.read() if method.server_streaming else call)
    return from_rpc_error(caught.value)


def test_each_operation_of_chatkit_is_one_rpc() -> None:
    operations = chatkit_request_pb2.ChatKitRequest.DESCRIPTOR.oneofs_by_name["operation"].fields
    assert len(operations) == 20
    of_services = {"WatchThread", "AppendItem", "AcknowledgeRun", "ListFeedback", "ListAllFeedback"}
    elsewhere = of_services | ATTACHMENT_METHODS
    offered = {method.input_type.full_name for method in ALL_METHODS if method.name not in elsewhere}
    assert {field.message_type.full_name for field in operations if field.message_type} == offered
    assert len(ALL_METHODS) == len(METHODS)


def test_all_streaming_responses_are_the_same_on_the_wire() -> None:
    stand_in = chat_service_pb2.CreateThreadResponse.DESCRIPTOR.fields_by_name["batch"]
    others = {"WatchThread", "DownloadAttachment"}
    streams = [method for method in ALL_METHODS if method.server_streaming and method.name not in others]
    assert len(streams) == 7
    for method in streams:
        (field,) = method.output_type.fields
        assert (field.name, field.number) == (stand_in.name, stand_in.number)
        assert field.message_type is not None
        assert field.message_type.full_name == run_pb2.EventBatch.DESCRIPTOR.full_name


@pytest.mark.parametrize("method", ALL_METHODS, ids=lambda method: method.name)
async def test_bytes_that_are_no_message_are_a_bad_request(system: System, method: MethodDescriptor) -> None:
    error = await failure_of(system.channel, method, b"\xff\xff\xff\xff")
    assert (error.code, error.violations[0].path) == ("INVALID_REQUEST", "$")


@pytest.mark.parametrize("method", ALL_METHODS, ids=lambda method: method.name)
async def test_outside_of_development_every_rpc_is_closed(database_url: str, method: MethodDescriptor) -> None:
    async with open_system(database_url, ScriptedServer, server=PRODUCTION) as system:
        for metadata in ({}, {"x_user_id": "alice"}, {"authorization": "Bearer x"}):
            for body in (b"", b"\xff"):
                error = await failure_of(system.channel, method, body, **metadata)
                assert error.code == "UNAUTHENTICATED"


# These have nothing that must be there but text, and a text may be empty.
ASKING_FOR_NOTHING = {"ListThreads", "CreateAttachment", "Transcribe", "ListFeedback", "ListAllFeedback"}
REQUIRED = [method for method in ALL_METHODS if method.name not in ASKING_FOR_NOTHING]


@pytest.mark.parametrize("method", REQUIRED, ids=lambda method: method.name)
async def test_an_empty_request_is_told_what_is_missing_or_not_there(system: System, method: MethodDescriptor) -> None:
    error = await failure_of(system.channel, method, GetMessageClass(method.input_type)().SerializeToString())
    assert error.code in {"INVALID_REQUEST", "THREAD_NOT_FOUND", "ATTACHMENT_NOT_FOUND", "RUN_NOT_FOUND"}


async def test_two_user_ids_are_refused(system: System) -> None:
    call: Any = system.channel.unary_unary("/chatkit_grpc.v1.ThreadService/ListThreads")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", metadata=(("x-user-id", "alice"), ("x-user-id", "bob")))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_metadata_that_is_no_object_is_refused(system: System) -> None:
    call: Any = system.channel.unary_unary("/chatkit_grpc.v1.ThreadService/ListThreads")
    for value in (b"[]", b"{", b"\xff", b"[" * 7000, b"NaN"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", metadata=((REQUEST_METADATA_KEY, value),))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_generated_stubs_work(system: System) -> None:
    chat, threads = (
        chat_service_pb2_grpc.ChatServiceStub(system.channel),
        thread_service_pb2_grpc.ThreadServiceStub(system.channel),
    )
    request = chat_service_pb2.CreateThreadRequest()
    request.input.content.add().input_text.text = "tokens 4"
    calls: Any = chat.CreateThread(request)
    events = [event async for response in calls for event in response.batch.events]
    assert events[0].HasField("thread_created")
    listing: Any = threads.ListThreads(thread_service_pb2.ListThreadsRequest())
    assert [thread.id for thread in (await listing).data] == [events[0].thread_created.thread.id]


async def test_reflection_describes_the_services(system: System) -> None:
    def describe() -> set[str]:
        with grpc.insecure_channel(system.target) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            services = set(database.get_services())
            database.FindFileContainingSymbol("chatkit_grpc.v1.ChatService")
            return services

    services = await asyncio.to_thread(describe)
    assert {"chatkit_grpc.v1.ChatService", "chatkit_grpc.v1.ThreadService"} <= services


async def test_it_serves_only_while_the_database_answers(postgres_url: str, database_url: str) -> None:
    async with open_system(database_url, ScriptedServer) as system:
        stub: Any = health_pb2_grpc.HealthStub(system.channel)
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

        async def becomes(status: int) -> None:
            async with asyncio.timeout(10):
                while (await stub.Check(health_pb2.HealthCheckRequest())).status != status:
                    await asyncio.sleep(0.05)

        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == serving
        name = urlsplit(database_url).path.removeprefix("/")
        server = with_database(postgres_url, "postgres")
        await execute(server, f"alter database {name} allow_connections false")
        await _kick_out(server, name)
        await becomes(not_serving)
        assert (await system.http.get("/api/chatkit/health")).status_code == 503
        response = await system.http.post("/api/chatkit", json={"type": "threads.list", "params": {}})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "DATABASE_UNAVAILABLE")
        await execute(server, f"alter database {name} allow_connections true")
        await becomes(serving)
        response = await system.http.post("/api/chatkit", json={"type": "threads.list", "params": {}})
        assert response.status_code == 200


async def _kick_out(server_url: str, name: str) -> None:
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)
    finally:
        await connection.close()


async def test_a_connection_lost_in_the_middle_fails_one_request_at_most(postgres_url: str, database_url: str) -> None:
    async with open_system(database_url, ScriptedServer) as system:
        name = urlsplit(database_url).path.removeprefix("/")
        for _ in range(5):
            await _kick_out(with_database(postgres_url, "postgres"), name)
            codes = [
                (await system.http.post("/api/chatkit", json={"type": "threads.list", "params": {}})).status_code
                for _ in range(3)
            ]
            assert codes[0] in {200, 503}
            assert codes[1:] == [200, 200]


async def test_a_second_server_on_the_same_port_is_refused(system: System, database_url: str) -> None:
    address = ANY_PORT._replace(port=system.server.port)
    with pytest.raises(SettingsError, match="GRPC_LISTEN: can't listen on"):
        async with open_server(replace(PRODUCTION, database_url=database_url, grpc_listen=address), ScriptedServer):
            pass


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (lambda _: "no server", "expected a ChatKitServer, the factory made a str"),
        (lambda _: ScriptedServer(object()), "must keep the store that its factory is given"),  # type: ignore[arg-type]
    ],
)
async def test_a_factory_that_makes_something_else_is_refused(database_url: str, factory: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        async with open_server(replace(PRODUCTION, database_url=database_url, grpc_listen=ANY_PORT), factory):
            pass


def test_an_sdk_with_other_insides_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sdk.check_version()
    monkeypatch.delattr(ChatKitServer, "_process_streaming_impl")
    with pytest.raises(sdk.SDKError, match=r"has no ChatKitServer\._process_streaming_impl"):
        sdk.check_version()


def test_an_sdk_that_was_never_tried_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sdk, "SDK_VERSION", "9.9.9")
    sdk.check_version()
    assert "openai-chatkit 9.9.9 has not been tried; known: 1.6.5" in caplog.text
