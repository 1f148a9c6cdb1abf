"""Before every call: who makes it, and whether he may. What isn't let through reaches no service.

A handler gets its caller from here, as an argument that nobody else passes: without the interceptor it can't be called.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from chatkit_grpc.errors import PermissionDeniedError
from chatkit_grpc.v1 import access_pb2

from server.auth.access import ALWAYS_OPEN, REFLECTION, RULES, access_of
from server.auth.authenticator import Authenticator
from server.auth.certificates import ServiceCertificates
from server.context import Auth
from server.failures import abort
from server.limits.calls import CallLimiter

if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler  # generic in its stubs only
Behaviour = Callable[..., Any]
Call = grpc.aio.ServicerContext[Any, Any]


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call through once its caller is known and hasn't called too often; otherwise its request isn't even read.

    has_reflection: whether anybody may ask which services there are.
    """

    def __init__(
        self,
        authenticate: Authenticator,
        certificates: ServiceCertificates,
        calls: CallLimiter,
        *,
        has_reflection: bool,
    ) -> None:
        self._authenticate = authenticate
        self._certificates = certificates
        self._calls = calls
        self._open = (ALWAYS_OPEN, *REFLECTION) if has_reflection else (ALWAYS_OPEN,)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler of the call, or one that refuses it. None where there is no such RPC."""
        rpc = handler_call_details.method
        if rpc.startswith(self._open):
            return await continuation(handler_call_details)
        access = access_of(rpc)
        metadata = tuple(handler_call_details.invocation_metadata or ())
        auth: Auth | None = None
        try:
            if not self._certificates.decide(metadata):
                auth = await self._authenticate(metadata, access)
                await self._calls.admit(auth.user_id)
        except Exception as error:  # noqa: BLE001 # whatever it is, the call goes no further
            return _refusal(rpc, error)
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if access == access_pb2.ACCESS_UNSPECIFIED:
            return _refusal(rpc, PermissionDeniedError("Nobody may call this: its schema doesn't say who may."))
        if auth is None:
            return _changed(handler, lambda behaviour: self._behind_certificate(rpc, behaviour))
        return _changed(handler, lambda behaviour: partial(behaviour, auth=auth))

    def _behind_certificate(self, rpc: str, behaviour: Behaviour) -> Behaviour:
        """The behaviour for the service that calls: gRPC shows certificates to handlers only."""

        async def serve(request: object, call: Call) -> object:
            return await behaviour(request, call, auth=await self._caller(rpc, call))

        async def stream(request: object, call: Call) -> AsyncGenerator[object, None]:
            async with aclosing(behaviour(request, call, auth=await self._caller(rpc, call))) as responses:
                async for response in responses:
                    yield response

        return stream if inspect.isasyncgenfunction(behaviour) else serve

    async def _caller(self, rpc: str, call: Call) -> Auth:
        try:
            auth = self._certificates.caller(call)
            await self._calls.admit(auth.user_id)
        except Exception as error:  # noqa: BLE001 # whatever it is, the call goes no further
            await abort(rpc, call, error)
        return auth


def _changed(handler: Handler, change: Callable[[Behaviour], Behaviour]) -> Handler:
    """The handler with another behaviour."""
    streams = ("unary", "stream")
    kind = f"{streams[handler.request_streaming]}_{streams[handler.response_streaming]}"
    make: Callable[..., Handler] = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(change(getattr(handler, kind)), handler.request_deserializer, handler.response_serializer)


def _refusal(rpc: str, error: Exception) -> Handler:
    """Streaming both ways, so that it is called whatever the client sends, and before that has come."""
    # What a stranger calls it stands in no log.
    name = rpc if rpc in RULES else "an unknown RPC"

    async def refuse(_requests: object, call: Call) -> None:
        await abort(name, call, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
