"""The server as the bridge sees it: a channel, and for each ChatKit operation the RPC that the schema says it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from chatkit_grpc.errors import AuthenticationError, ChatKitError, LimitError, UnavailableError, from_rpc_error
from chatkit_grpc.services import SERVICES, Metadata
from chatkit_grpc.v1 import thread_service_pb2
from chatkit_grpc.v1.chatkit_request_pb2 import ChatKitRequest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from bridge.settings import Settings

StreamCall = grpc.aio.UnaryStreamCall[Message, Any]


@dataclass(frozen=True, slots=True)
class Method:
    """The RPC of an operation."""

    path: str
    is_stream: bool
    response_type: type[Message]


METHODS: dict[str, Method] = {
    # Every RPC owns its request, so that the request's type names the RPC.
    method.input_type.full_name: Method(
        path=f"/{service.full_name}/{method.name}",
        is_stream=method.server_streaming,
        response_type=GetMessageClass(method.output_type),
    )
    for service in SERVICES.values()
    for method in service.methods
}


class Backend:
    """Calls the server. Open it inside the event loop that uses it, and close it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._channel = grpc.aio.insecure_channel(
            settings.grpc_target,
            options=[
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
                # A server that vanished is noticed in about 25 s, one that comes back within 2.
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.http2.ping_timeout_ms", 5_000),
                ("grpc.http2.max_pings_without_data", 0),
                # A token may be large, and gRPC's own limit of 8 KiB drops calls at random up to 16.
                ("grpc.max_metadata_size", 64 * 1024),
                ("grpc.absolute_max_metadata_size", 64 * 1024),
                # What http_proxy names is not on the way to our own server.
                ("grpc.enable_http_proxy", 0),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 2_000),
            ],
        )
        self._check_health = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=_serialize,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self._calls: dict[str, Any] = {
            method.path: (self._channel.unary_stream if method.is_stream else self._channel.unary_unary)(
                method.path, request_serializer=_serialize, response_deserializer=method.response_type.FromString
            )
            for method in METHODS.values()
        }

    async def close(self) -> None:
        """Close the channel, which ends the calls that are still open."""
        await self._channel.close()

    async def call(self, path: str, request: Message, metadata: Metadata) -> Message:
        """Make a unary call. Raises ChatKitError."""
        try:
            response: Message = await self._calls[path](
                request, metadata=metadata, timeout=self._settings.call_timeout_seconds
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return response

    def stream(self, path: str, request: Message, metadata: Metadata) -> StreamCall:
        """Begin a streaming call. Whoever begins one cancels it in the end."""
        call: StreamCall = self._calls[path](request, metadata=metadata, timeout=self._settings.stream_timeout_seconds)
        return call

    async def authenticate(self, metadata: Metadata) -> None:
        """Let the server say whether it knows the caller. Raises AuthenticationError, LimitError or UnavailableError.

        Used where a request is refused before the server has seen it, so that a stranger learns nothing but that he is
        one. The call lacks what it needs, so that the server refuses it as soon as it knows the caller.
        """
        incomplete = thread_service_pb2.AddFeedbackRequest()
        try:
            await self.call(METHODS[incomplete.DESCRIPTOR.full_name].path, incomplete, metadata)
        except (AuthenticationError, LimitError, UnavailableError):
            raise
        except ChatKitError:
            return

    async def is_serving(self, service: str = "") -> bool | None:
        """What grpc.health.v1 says of the server or of a part of it. None where the server can't be reached."""
        try:
            response = await self._check_health(health_pb2.HealthCheckRequest(service=service), timeout=2.0)
        except grpc.aio.AioRpcError:
            return None
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def method_of(request: ChatKitRequest) -> tuple[Method, Message]:
    """The RPC of a ChatKit request, and the request that it takes."""
    parameters: Message = getattr(request, str(request.WhichOneof("operation")))
    return METHODS[parameters.DESCRIPTOR.full_name], parameters


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
