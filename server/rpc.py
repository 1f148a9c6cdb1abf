"""From a gRPC call to a method of a service, in one way for all RPCs: is the request right, what failed."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import grpc
from chatkit_grpc import codec, free_json
from chatkit_grpc.errors import UnavailableError, ValidationError
from chatkit_grpc.free_json import Invalid
from chatkit_grpc.services import PREVIEW_KEY, REQUEST_METADATA_KEY, Metadata
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from server.auth.passing import keep_authorization
from server.context import Auth, RequestContext, RequestInfo
from server.failures import abort
from server.limits.deadline import out_of_time, seconds_for, until, within
from server.limits.settings import LimitSettings
from server.limits.sizes import check_sizes

log = logging.getLogger(__name__)

_NOTHING_UNDER_WAY_SECONDS = 0.25
_PASSING_OVER_SECONDS = 5.0
_CREDENTIALS = frozenset({"authorization", "cookie", PREVIEW_KEY})

UnaryMethod = Callable[[Any, RequestContext], Awaitable[Message]]
StreamMethod = Callable[[Any, RequestContext], AsyncGenerator[bytes, None]]
UploadMethod = Callable[[AsyncIterator[Any], RequestContext], Awaitable[Message]]
Call = grpc.aio.ServicerContext[Any, Any]


class ServiceAdapter:
    """Offers the methods of plain classes as gRPC services: CreateThread calls `create_thread(request, context)`.

    Its handlers take who calls as `auth`, from the interceptor (server/auth/interceptor.py) and nobody else.
    A streaming method yields serialised responses, so that one that many watch is serialised once. One that takes a
    stream is given its requests as they come, each checked, and reads no further than it wants.

    keeps_authorization: whether users' tokens are kept with their contexts, to be passed on (server/auth/passing.py).
    """

    def __init__(self, limits: LimitSettings, *, keeps_authorization: bool = False) -> None:
        self._limits = limits
        self._keeps_authorization = keeps_authorization

    def handler(self, descriptor: ServiceDescriptor, service: object) -> grpc.GenericRpcHandler:
        """The handler of a service. Raises AttributeError where the class lacks the method of an RPC."""
        methods = {method.name: self._method(method, service) for method in descriptor.methods}
        return grpc.method_handlers_generic_handler(descriptor.full_name, methods)

    def _method(self, method: MethodDescriptor, service: object) -> grpc.RpcMethodHandler[Any, Any]:
        behaviour = getattr(service, _snake_case(method.name))
        rpc = f"/{method.containing_service.full_name}/{method.name}"
        request_type = GetMessageClass(method.input_type)
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(self._upload(rpc, request_type, behaviour))
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(rpc, request_type, behaviour))
        return grpc.unary_unary_rpc_method_handler(self._unary(rpc, request_type, behaviour))

    def _unary(self, rpc: str, request_type: type[Message], behaviour: UnaryMethod) -> Callable[..., Awaitable[bytes]]:
        async def serve(body: bytes, call: Call, *, auth: Auth) -> bytes:
            seconds = seconds_for(call, self._limits.call_deadline_seconds)
            try:
                request, context = self._accept(rpc, request_type, body, call, auth)
                response = await within(behaviour(request, context), seconds, partial(out_of_time, seconds))
                return response.SerializeToString()
            except Exception as error:  # noqa: BLE001 # the edge: whatever it is, the caller gets a status
                await abort(rpc, call, error)

        return serve

    def _stream(
        self, rpc: str, request_type: type[Message], behaviour: StreamMethod
    ) -> Callable[..., AsyncGenerator[bytes, None]]:
        async def serve(body: bytes, call: Call, *, auth: Auth) -> AsyncGenerator[bytes, None]:
            seconds = seconds_for(call, self._limits.stream_deadline_seconds)
            try:
                request, context = self._accept(rpc, request_type, body, call, auth)
                responses = behaviour(request, context)
                if seconds is not None:
                    responses = until(responses, seconds, partial(out_of_time, seconds))
                # A generator that is merely dropped is closed some time later, and its run would go on until then.
                async with aclosing(responses):
                    async for response in responses:
                        yield response
            except Exception as error:  # noqa: BLE001 # the edge: whatever it is, the caller gets a status
                await abort(rpc, call, error)

        return serve

    def _upload(
        self, rpc: str, request_type: type[Message], behaviour: UploadMethod
    ) -> Callable[..., Awaitable[bytes]]:
        async def serve(bodies: AsyncIterator[bytes], call: Call, *, auth: Auth) -> bytes:
            seconds = seconds_for(call, self._limits.stream_deadline_seconds)

            async def requests() -> AsyncGenerator[Message, None]:
                async for body in bodies:
                    yield self._checked(rpc, request_type, body, auth)

            try:
                context = self._context(rpc, call, auth)
                async with aclosing(requests()) as checked:
                    response = await within(behaviour(checked, context), seconds, partial(out_of_time, seconds))
                return response.SerializeToString()
            except Exception as error:  # noqa: BLE001 # the edge: whatever it is, the caller gets a status
                await _pass_over(bodies)
                await abort(rpc, call, error)

        return serve

    def _accept(
        self, rpc: str, request_type: type[Message], body: bytes, call: Call, auth: Auth
    ) -> tuple[Message, RequestContext]:
        """What a call is made with; who makes it is known by now."""
        return self._checked(rpc, request_type, body, auth), self._context(rpc, call, auth)

    def _checked(self, rpc: str, request_type: type[Message], body: bytes, auth: Auth) -> Message:
        try:
            request = request_type.FromString(body)
        except DecodeError:
            raise ValidationError.at("$", f"expected a {request_type.DESCRIPTOR.full_name}") from None
        log.debug("%s for %s: %s", rpc, auth.user_id, request)
        # In this order: how much there is to check is limited first.
        check_sizes(request, self._limits)
        codec.check(request)
        return request

    def _context(self, rpc: str, call: Call, auth: Auth) -> RequestContext:
        metadata: Metadata = tuple(call.invocation_metadata() or ())
        context = RequestContext.of(auth, _request_info(rpc, metadata))
        if self._keeps_authorization:
            keep_authorization(context, metadata)
        return context


async def _pass_over(bodies: AsyncIterator[bytes]) -> None:
    """Take what is under way of a call that has failed, and forget it.

    A status that comes while a client of grpc.aio writes is told to it as an internal error.
    """
    with suppress(TimeoutError, UnavailableError):
        async with asyncio.timeout(_PASSING_OVER_SECONDS):
            while True:
                async with asyncio.timeout(_NOTHING_UNDER_WAY_SECONDS):
                    if await anext(bodies, None) is None:
                        return


def _request_info(rpc: str, metadata: Metadata) -> RequestInfo:
    headers = {key: value for key, value in metadata if isinstance(value, str) and key not in _CREDENTIALS}
    raw = next((value for key, value in metadata if key == REQUEST_METADATA_KEY), b"{}")
    try:
        members = free_json.loads(raw)
    except Invalid as error:
        raise ValidationError.at("$.metadata", error.description) from None
    if not isinstance(members, dict):
        raise ValidationError.at("$.metadata", f"expected an object, got {free_json.kind_of(members)}")
    return RequestInfo(rpc=rpc, headers=headers, metadata=members)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
