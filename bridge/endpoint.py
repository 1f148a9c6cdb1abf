"""POST /api/chatkit: a ChatKit request in, JSON or a stream out, and for each failure the answer its page can show.

A page that asked for a stream gets its failures as an `error` event in one, since it would show nothing for most 4xx,
and would repeat the request for each 5xx; only 401 and 429 mean something to it. All others get the real status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

from chatkit_grpc import codec
from chatkit_grpc.errors import ChatKitError, LimitError, ValidationError
from chatkit_grpc.services import REQUEST_METADATA_KEY, Metadata
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.chatkit_request_pb2 import ChatKitRequest
from google.protobuf.message import DecodeError, Message
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from bridge import request_ids, sse
from bridge.acknowledgements import Acknowledgements
from bridge.backend import Backend, Method, method_of
from bridge.errors import defect, error_response
from bridge.event_stream import EventStream
from bridge.headers import NOSNIFF
from bridge.last_event_id import LastEventId
from bridge.lasting_call import LastingCall
from bridge.metadata import metadata_of
from bridge.settings import Settings
from bridge.streams import Streams

_METADATA_LIMIT = 8 * 1024
_LARGE_BODY_BYTES = 64 * 1024
_STATUSES_A_PAGE_UNDERSTANDS = frozenset({401, 429})


class Endpoint:
    """The one endpoint of ChatKit's protocol."""

    def __init__(
        self, backend: Backend, streams: Streams, acknowledgements: Acknowledgements, settings: Settings
    ) -> None:
        self._backend = backend
        self._streams = streams
        self._acknowledgements = acknowledgements
        self._settings = settings

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        wants_stream = "text/event-stream" in request.headers.get("accept", "")
        try:
            return await self._answer(request)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as failure:  # noqa: BLE001 # the edge: a page repeats what is answered with a bare 500
            error = failure if isinstance(failure, ChatKitError) else defect(failure)
            if wants_stream and error.http_status not in _STATUSES_A_PAGE_UNDERSTANDS:
                return Response(sse.error_frame(error), headers=sse.HEADERS)
            return error_response(error)

    async def _answer(self, request: Request) -> Response:
        metadata = metadata_of(request, self._settings)
        try:
            body = await self._read_body(request)
            chatkit_request = await self._parse(request.headers.get("content-type", ""), body, metadata)
            method, parameters = method_of(chatkit_request)
            counts_until_seen = request_ids.identify(parameters, request.headers, body)
        except ChatKitError:
            await self._backend.authenticate(metadata)
            raise
        if chatkit_request.metadata:
            metadata.append((REQUEST_METADATA_KEY, chatkit_request.metadata.encode()))
        if last_event := LastEventId.of(request.headers):
            metadata.append(last_event.metadata)
            last_event.apply(parameters)
        if method.is_stream:
            opening = self._open(method, parameters, metadata, counts_until_seen=counts_until_seen)
            return await _unless_disconnected(request, opening)
        answer = await self._backend.call(method.path, parameters, metadata)
        return Response(codec.encode(answer), media_type="application/json", headers=NOSNIFF)

    async def _parse(self, content_type: str, body: bytes, metadata: Metadata) -> ChatKitRequest:
        """Read a body. A large one takes its time: not for strangers, and not while all others wait."""
        if len(body) <= _LARGE_BODY_BYTES:
            return _parse(content_type, body)
        await self._backend.authenticate(metadata)
        return await asyncio.to_thread(_parse, content_type, body)

    async def _open(
        self, method: Method, parameters: Message, metadata: Metadata, *, counts_until_seen: bool
    ) -> EventStream:
        call = LastingCall(self._backend, method, parameters, metadata, self._settings)
        stream = await self._streams.open(call)
        acknowledge = partial(self._acknowledgements.begin, stream.run_id, metadata) if counts_until_seen else None
        return EventStream(stream, self._settings.heartbeat_seconds, acknowledge)

    async def _read_body(self, request: Request) -> bytes:
        """Read no more than is allowed, and wait no longer. Raises ChatKitError and ClientDisconnect."""
        seconds = self._settings.request_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                return await _read_at_most(request, self._settings.max_request_bytes)
        except TimeoutError:
            raise ValidationError(f"The body of the request did not arrive within {seconds:g} s.") from None


async def _unless_disconnected(request: Request, opening: Coroutine[Any, Any, EventStream]) -> EventStream:
    """Open a stream, which may take until another answer has ended. Raises ClientDisconnect where the client leaves."""
    leaving = asyncio.create_task(_disconnected(request))
    task = asyncio.create_task(opening)
    try:
        await asyncio.wait({leaving, task}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        leaving.cancel()
        task.cancel()
        await asyncio.wait({leaving, task})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _parse(content_type: str, body: bytes) -> ChatKitRequest:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "application/x-protobuf":
        chatkit_request = _parse_protobuf(body)
    elif media_type == "application/json":
        chatkit_request = codec.decode_request(ChatKitRequest, body)
    else:
        # A browser sends any other type to any site without asking that site first.
        expected = "expected application/json or application/x-protobuf"
        raise ValidationError.at("Content-Type", f"{expected}, got {media_type!r}")
    if len(chatkit_request.metadata.encode()) > _METADATA_LIMIT:
        raise ValidationError.at("$.metadata", f"expected at most {_METADATA_LIMIT} bytes of JSON")
    return chatkit_request


def _parse_protobuf(body: bytes) -> ChatKitRequest:
    try:
        chatkit_request = ChatKitRequest.FromString(body)
    except DecodeError:
        raise ValidationError.at("$", f"expected a {ChatKitRequest.DESCRIPTOR.full_name}") from None
    codec.check(chatkit_request)
    return chatkit_request


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
