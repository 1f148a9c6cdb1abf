"""POST /api/chatkit: a ChatKit request in, JSON or a stream out, and for each failure the answer its page can show.

A page that asked for a stream gets its failures as an `error` event in one, since it would show nothing for most 4xx,
and would repeat the request for each 5xx; only 401 and 429 mean something to it. All others get the real status.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import traceback
from collections.abc import Mapping

from chatkit_grpc import codec
from chatkit_grpc.errors import ChatKitError, LimitError, ValidationError
from chatkit_grpc.services import REQUEST_METADATA_KEY, USER_HEADER
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.chatkit_request_pb2 import ChatKitRequest
from google.protobuf.message import DecodeError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from bridge import sse
from bridge.backend import Backend, method_of
from bridge.event_stream import EventStream
from bridge.settings import Settings
from bridge.streams import Streams

_FORWARDED = ("authorization", "accept-language", "user-agent", USER_HEADER, "x-request-id", "traceparent")
"""Headers that the server is told, under their own names."""
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
log = logging.getLogger(__name__)
_METADATA_LIMIT = 8 * 1024
_STATUSES_A_PAGE_UNDERSTANDS = frozenset({401, 429})


class Endpoint:
    """The one endpoint of ChatKit's protocol."""

    def __init__(self, backend: Backend, streams: Streams, settings: Settings) -> None:
        self._backend = backend
        self._streams = streams
        self._settings = settings

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        wants_stream = "text/event-stream" in request.headers.get("accept", "")
        try:
            return await self._answer(request)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as failure:  # noqa: BLE001 # the edge: a page repeats what is answered with a bare 500
            error = failure if isinstance(failure, ChatKitError) else _defect(failure)
            if wants_stream and error.http_status not in _STATUSES_A_PAGE_UNDERSTANDS:
                return Response(sse.error_frame(error), headers=sse.HEADERS)
            return error_response(error)

    async def _answer(self, request: Request) -> Response:
        metadata = _metadata_of(request)
        try:
            chatkit_request = await self._read(request)
        except ChatKitError:
            await self._backend.authenticate(metadata)
            raise
        method, parameters = method_of(chatkit_request)
        if chatkit_request.metadata:
            metadata.append((REQUEST_METADATA_KEY, chatkit_request.metadata.encode()))
        if not method.is_stream:
            answer = await self._backend.call(method.path, parameters, metadata)
            return Response(codec.encode(answer), media_type="application/json")
        call = self._backend.stream(method.path, parameters, metadata)
        return EventStream(await self._streams.open(call), self._settings.heartbeat_seconds)

    async def _read(self, request: Request) -> ChatKitRequest:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await self._read_body(request)
        if content_type == "application/x-protobuf":
            chatkit_request = _parse_protobuf(body)
        elif content_type == "application/json":
            chatkit_request = codec.decode_request(ChatKitRequest, body)
        else:
            # A browser sends any other type to any site without asking that site first.
            raise ValidationError.at(
                "Content-Type", f"expected application/json or application/x-protobuf, got {content_type!r}"
            )
        if len(chatkit_request.metadata.encode()) > _METADATA_LIMIT:
            raise ValidationError.at("$.metadata", f"expected at most {_METADATA_LIMIT} bytes of JSON")
        return chatkit_request

    async def _read_body(self, request: Request) -> bytes:
        """Read no more than is allowed, and wait no longer. Raises ChatKitError and ClientDisconnect."""
        seconds = self._settings.call_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                return await _read_at_most(request, self._settings.max_request_bytes)
        except TimeoutError:
            raise ValidationError(f"The body of the request did not arrive within {seconds:g} s.") from None


def error_response(error: ChatKitError) -> JSONResponse:
    """A failure with its real status. Sample: {"error": {"code": "THREAD_NOT_FOUND", "message": …, "details": {…}}}."""
    details: dict[str, object] = dict(error.metadata)
    if error.violations:
        details["violations"] = [{"path": v.path, "description": v.description} for v in error.violations]
    headers = {} if error.retry_after is None else {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    return json_error(error.code, error.message, details, error.http_status, headers)


def json_error(
    code: str, message: str, details: Mapping[str, object], status: int, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The shape of all our errors."""
    body = {"error": {"code": code, "message": message, "details": details}}
    return JSONResponse(body, status_code=status, headers=headers)


def _metadata_of(request: Request) -> list[tuple[str, str | bytes]]:
    # gRPC takes printable ASCII only. What isn't becomes "?" and is not dropped: a user's id that can't be sent must
    # not turn into no id.
    return [(name, _UNPRINTABLE.sub("?", value)) for name in _FORWARDED for value in request.headers.getlist(name)]


async def _read_at_most(request: Request, limit: int) -> bytes:
    too_large = LimitError(
        f"The request is larger than {limit} bytes.",
        reason=reasons.ERROR_REASON_REQUEST_TOO_LARGE,
        metadata={"limit_bytes": str(limit)},
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def _defect(error: Exception) -> ChatKitError:
    """A bug of ours. Its words may quote a conversation, so only its place is logged."""
    log.error("the bridge failed: %s\n%s", type(error).__qualname__, "".join(traceback.format_tb(error.__traceback__)))
    return ChatKitError("The bridge failed.")


def _parse_protobuf(body: bytes) -> ChatKitRequest:
    try:
        chatkit_request = ChatKitRequest.FromString(body)
    except DecodeError:
        raise ValidationError.at("$", f"expected a {ChatKitRequest.DESCRIPTOR.full_name}") from None
    codec.check(chatkit_request)
    return chatkit_request
