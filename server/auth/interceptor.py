"""Before every call: who makes it, and whether he may. What isn't let through reaches no service.

A handler gets its caller from here, as an argument that nobody else passes: without the interceptor it can't be called.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from chatkit_grpc.errors import LimitError, PermissionDeniedError, UnavailableError
from chatkit_grpc.services import GO_ON_KEY, Metadata
from chatkit_grpc.v1 import access_pb2
from chatkit_grpc.v1 import error_reason_pb2 as reasons

from server.attachments.preview_keys import BY_KEY
from server.auth.access import ALWAYS_OPEN, REFLECTION, RULES, access_of
from server.auth.certificates import ServiceCertificates
from server.context import Auth
from server.failures import abort
from server.limits.at_once import AtOnce
from server.limits.calls import CallLimiter
from server.limits.deadline import within

if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler  # generic in its stubs only
Call = grpc.aio.ServicerContext[Any, Any]
Authenticate = Callable[[Metadata, access_pb2.Access.ValueType], Awaitable[Auth]]
"""Says who makes a call that is for something, or raises."""


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call through once its caller is known and hasn't called too often; otherwise its request isn't even read.

    seconds_to_ask: how long the request of a call may take to come.
    has_reflection: whether anybody may ask which services there are.
    """

    def __init__(
        self,
        authenticate: Authenticate,
        certificates: ServiceCertificates,
        calls: CallLimiter,
        streams: AtOnce,
        *,
        seconds_to_ask: float,
        has_reflection: bool,
    ) -> None:
        self._authenticate = authenticate
        self._certificates = certificates
        self._calls = calls
        self._streams = streams
        self._seconds = seconds_to_ask
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
            # Certificates are shown to handlers only.
            if not self._certificates.apply_to(metadata, access):
                auth = await self._admitted(await self._authenticate(metadata, access))
        except Exception as error:  # noqa: BLE001 # whatever it is, the call goes no further
            return _refusal(rpc, error)
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if access == access_pb2.ACCESS_UNSPECIFIED:
            return _refusal(rpc, PermissionDeniedError("Nobody may call this: its schema doesn't say who may."))
        return self._guarded(rpc, handler, auth)

    async def _admitted(self, auth: Auth) -> Auth:
        await self._calls.admit(_counted_as(auth))
        return auth

    async def _request(self, call: Call) -> bytes:
        body: Any = await within(call.read(), self._seconds, _no_request)
        if body is grpc.aio.EOF:
            raise _no_request()
        request: bytes = body
        return request

    async def _requests(self, call: Call) -> AsyncGenerator[bytes, None]:
        """The requests of a call that takes many, each of which has as long to come as that of one that takes one."""
        while True:
            body: Any = await within(call.read(), self._seconds, _no_request)
            if body is grpc.aio.EOF:
                return
            yield body

    def _guarded(self, rpc: str, handler: Handler, known: Auth | None) -> Handler:
        """The handler of an RPC, told who calls.

        For gRPC each takes many requests: then it is called before the first has come, and not only once it has, if it
        ever does.
        """
        if handler.request_streaming:
            return self._guarded_upload(rpc, handler, known)
        behaviour: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary

        async def prepare(call: Call) -> tuple[bytes, Auth]:
            try:
                auth = known or await self._admitted(self._certificates.caller(call, access_of(rpc)))
                return await self._request(call), auth
            except Exception as error:  # noqa: BLE001 # whatever it is, the call goes no further
                await abort(rpc, call, error)

        async def serve(_requests: object, call: Call) -> object:
            body, auth = await prepare(call)
            return await behaviour(body, call, auth=auth)

        async def stream(_requests: object, call: Call) -> AsyncGenerator[object, None]:
            body, auth = await prepare(call)
            try:
                with self._streams.one_more(auth.user_id):
                    async with aclosing(behaviour(body, call, auth=auth)) as responses:
                        async for response in responses:
                            yield response
            except LimitError as error:
                await abort(rpc, call, error)

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.stream_unary_rpc_method_handler(serve)

    def _guarded_upload(self, rpc: str, handler: Handler, known: Auth | None) -> Handler:
        """The handler of an RPC with many requests and one response. It counts as a stream."""
        behaviour: Any = handler.stream_unary

        async def serve(_requests: object, call: Call) -> object:
            try:
                auth = known or await self._admitted(self._certificates.caller(call, access_of(rpc)))
            except Exception as error:  # noqa: BLE001 # whatever it is, the call goes no further
                await abort(rpc, call, error)
            try:
                with self._streams.one_more(auth.user_id):
                    # A client of grpc.aio that writes while it is refused is told of an internal error.
                    await call.send_initial_metadata(((GO_ON_KEY, "1"),))
                    async with aclosing(self._requests(call)) as requests:
                        return await behaviour(requests, call, auth=auth)
            except LimitError as error:
                await abort(rpc, call, error)

        return grpc.stream_unary_rpc_method_handler(serve)


def _counted_as(auth: Auth) -> str:
    """Whose calls these are. Whoever has the key of a picture's preview uses up none of its owner's."""
    # No user's id has a blank.
    return f"preview {auth.claims['attachment_id']}" if auth.method == BY_KEY else auth.user_id


def _no_request() -> UnavailableError:
    return UnavailableError("The request did not arrive.", reason=reasons.ERROR_REASON_DEADLINE_EXCEEDED)


def _refusal(rpc: str, error: Exception) -> Handler:
    """Streaming both ways, so that it is called whatever the client sends, and before that has come."""
    # What a stranger calls it stands in no log.
    name = rpc if rpc in RULES else "an unknown RPC"

    async def refuse(_requests: object, call: Call) -> None:
        await abort(name, call, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
