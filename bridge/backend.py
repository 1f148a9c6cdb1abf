"""The servers as the bridge sees them: for each ChatKit operation the RPC that the schema says it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import grpc
from chatkit_grpc.errors import (
    AuthenticationError,
    ChatKitError,
    DatabaseError,
    PermissionDeniedError,
    ValidationError,
    from_rpc_error,
)
from chatkit_grpc.services import GO_ON_KEY, SERVICES, Metadata
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.chatkit_request_pb2 import ChatKitRequest
from chatkit_grpc.v1.thread_service_pb2 import ListThreadsRequest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from bridge.channel import open_channel
from bridge.settings import Settings

_ASK_SECONDS = 2.0
"""How long a server may take to say how it is."""

StreamCall = grpc.aio.UnaryStreamCall[Message, Any]


@dataclass(frozen=True, slots=True)
class Method:
    """The RPC of an operation."""

    path: str
    is_stream: bool
    is_upload: bool
    response_type: type[Message]


METHODS: dict[str, Method] = {
    # Every RPC owns its request, so that the request's type names the RPC.
    method.input_type.full_name: Method(
        path=f"/{service.full_name}/{method.name}",
        is_stream=method.server_streaming,
        is_upload=method.client_streaming,
        response_type=GetMessageClass(method.output_type),
    )
    for service in SERVICES.values()
    for method in service.methods
}


class Backend:
    """Calls the server. Open it inside the event loop that uses it, and close it."""

    def __init__(self, settings: Settings, credentials: grpc.ChannelCredentials | None) -> None:
        self._settings = settings
        self._channel = open_channel(settings, credentials)
        self._any_channel = open_channel(settings, credentials, takes_any=True)
        self._calls: dict[str, Any] = {
            method.path: _caller(self._channel, method)(
                method.path, request_serializer=_serialize, response_deserializer=method.response_type.FromString
            )
            for method in METHODS.values()
        }
        self._list_threads_anywhere: Any = self._any_channel.unary_unary(
            METHODS[ListThreadsRequest.DESCRIPTOR.full_name].path, request_serializer=_serialize
        )

    async def close(self) -> None:
        """Close the channels, which ends the calls that are still open."""
        await self._channel.close()
        await self._any_channel.close()

    async def call(self, path: str, request: Message, metadata: Metadata) -> Message:
        """Make a unary call. Raises ChatKitError."""
        try:
            response: Message = await self._calls[path](
                request, metadata=metadata, timeout=self._settings.call_timeout_seconds
            )
        except grpc.aio.AioRpcError as error:
            raise await self.explain(from_rpc_error(error), metadata) from None
        return response

    def stream(self, path: str, request: Message, metadata: Metadata, seconds: float) -> StreamCall:
        """Begin a streaming call. Whoever begins one cancels it in the end."""
        call: StreamCall = self._calls[path](request, metadata=metadata, timeout=seconds)
        return call

    async def first_of(self, call: StreamCall, metadata: Metadata) -> Message:
        """The first response of a streaming call. Raises ChatKitError where there is none."""
        try:
            first = await call.read()
        except grpc.aio.AioRpcError as error:
            raise await self.explain(from_rpc_error(error), metadata) from None
        if first is grpc.aio.EOF:
            raise ChatKitError("The chat server said nothing.")
        return cast("Message", first)

    async def upload(self, path: str, requests: AsyncGenerator[Message, None], metadata: Metadata) -> Message:
        """Make a call with many requests. Raises ChatKitError, and what they raise: then the server forgets it all."""
        call = self._calls[path](metadata=metadata, timeout=self._settings.stream_timeout_seconds)
        try:
            await _write_all(call, requests)
            response: Message = await call
        except grpc.aio.AioRpcError as error:
            raise await self.explain(from_rpc_error(error), metadata) from None
        finally:
            call.cancel()
        return response

    async def explain(self, failure: ChatKitError, metadata: Metadata) -> ChatKitError:
        """The failure, or what is behind it: where no server takes calls, one that takes none may know why.

        It is asked for something that the caller may ask, that changes nothing, and that needs the database.
        """
        if failure.reason != reasons.ERROR_REASON_UNAVAILABLE:
            return failure
        try:
            await self._list_threads_anywhere(ListThreadsRequest(limit=1), metadata=metadata, timeout=_ASK_SECONDS)
        except grpc.aio.AioRpcError as error:
            reason = from_rpc_error(error)
            return (
                reason if isinstance(reason, (AuthenticationError, PermissionDeniedError, DatabaseError)) else failure
            )
        return failure

    async def authenticate(self, metadata: Metadata) -> None:
        """Let the server say whether it knows the caller. Raises what it says of a stranger.

        Used where a request is refused before the server has seen it, so that a stranger learns nothing but that he is
        one. The call asks for what can't be, so that the server refuses it as soon as it knows the caller.
        """
        impossible = ListThreadsRequest(limit=-1)
        try:
            await self.call(METHODS[impossible.DESCRIPTOR.full_name].path, impossible, metadata)
        except ValidationError:
            return

    async def is_serving(self, service: str = "") -> bool | None:
        """What grpc.health.v1 says of the servers or of a part of them. None where none can be reached."""
        # Of several servers the first channel knows one that serves, and the other one finds those that don't.
        for channel in (self._channel, self._any_channel):
            with suppress(grpc.aio.AioRpcError):
                return await _check_health(channel, service)
        return None

    async def parts(self, prefix: str) -> dict[str, bool]:
        """What grpc.health.v1 says of the parts of a server whose names begin so; nothing where it can't be asked."""
        with suppress(grpc.aio.AioRpcError):
            ask = self._channel.unary_unary(
                "/grpc.health.v1.Health/List",
                request_serializer=_serialize,
                response_deserializer=health_pb2.HealthListResponse.FromString,  # type: ignore[attr-defined] # stubs are older
            )
            request = health_pb2.HealthListRequest()  # type: ignore[attr-defined] # as above
            response = await ask(request, timeout=_ASK_SECONDS)
            return {
                name.removeprefix(prefix): part.status == health_pb2.HealthCheckResponse.SERVING
                for name, part in sorted(response.statuses.items())
                if name.startswith(prefix)
            }
        return {}


async def _check_health(channel: grpc.aio.Channel, service: str) -> bool:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=_serialize,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    response = await check(health_pb2.HealthCheckRequest(service=service), timeout=_ASK_SECONDS)
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def _caller(channel: grpc.aio.Channel, method: Method) -> Any:
    if method.is_upload:
        return channel.stream_unary
    return channel.unary_stream if method.is_stream else channel.unary_unary


async def _write_all(call: Any, requests: AsyncGenerator[Message, None]) -> None:
    """Send requests once the server has let the caller in, as fast as it takes them.

    No more of them once it has answered: the call itself says what.
    """
    if GO_ON_KEY not in dict(await call.initial_metadata() or ()):
        return
    async for request in requests:
        try:
            await call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await call.done_writing()


def method_of(request: ChatKitRequest) -> tuple[Method, Message]:
    """The RPC of a ChatKit request, and the request that it takes."""
    parameters: Message = getattr(request, str(request.WhichOneof("operation")))
    return METHODS[parameters.DESCRIPTOR.full_name], parameters


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
