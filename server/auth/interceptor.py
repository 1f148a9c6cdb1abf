"""Before every call: who makes it, and whether he may. What isn't let through reaches no service.

A handler gets its caller from here, as an argument that nobody else passes: without the interceptor it can't be called.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from chatkit_grpc.errors import PermissionDeniedError
from chatkit_grpc.v1 import access_pb2

from server.auth.access import ALWAYS_OPEN, REFLECTION, RULES, access_of
from server.auth.authenticator import Authenticator
from server.context import Auth
from server.failures import abort
from server.limits.calls import CallLimiter

if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler  # generic in its stubs only
Call = grpc.aio.ServicerContext[Any, Any]


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call through once its caller is known and hasn't called too often; otherwise its request isn't even read.

    has_reflection: whether anybody may ask which services there are.
    """

    def __init__(self, authenticate: Authenticator, calls: CallLimiter, *, has_reflection: bool) -> None:
        self._authenticate = authenticate
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
        try:
            auth = await self._authenticate(tuple(handler_call_details.invocation_metadata or ()), access)
            await self._calls.admit(auth.user_id)
        except Exception as error:  # noqa: BLE001 # whatever it is, the call goes no further
            return _refusal(rpc, error)
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if access == access_pb2.ACCESS_UNSPECIFIED:
            return _refusal(rpc, PermissionDeniedError("Nobody may call this: its schema doesn't say who may."))
        return _for_caller(handler, auth)


def _for_caller(handler: Handler, auth: Auth) -> Handler:
    """The handler, told who calls."""
    streams = ("unary", "stream")
    kind = f"{streams[handler.request_streaming]}_{streams[handler.response_streaming]}"
    make: Callable[..., Handler] = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(partial(getattr(handler, kind), auth=auth), handler.request_deserializer, handler.response_serializer)


def _refusal(rpc: str, error: Exception) -> Handler:
    """Streaming both ways, so that it is called whatever the client sends, and before that has come."""
    # What a stranger calls it stands in no log.
    name = rpc if rpc in RULES else "an unknown RPC"

    async def refuse(_requests: object, call: Call) -> None:
        await abort(name, call, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
