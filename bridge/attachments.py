"""Attachments by HTTP: uploaded as a form or as a body, downloaded, and shown small; all of it as it comes and goes."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

import grpc
from chatkit_grpc import codec
from chatkit_grpc.errors import ChatKitError, ValidationError, from_rpc_error
from chatkit_grpc.services import PREVIEW_KEY, Metadata
from chatkit_grpc.v1 import attachment_service_pb2 as pb
from chatkit_grpc.v1.attachment_pb2 import Attachment
from google.protobuf.message import Message
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.types import Send

from bridge.backend import METHODS, Backend, StreamCall
from bridge.errors import defect, error_response
from bridge.headers import NOSNIFF
from bridge.metadata import metadata_of
from bridge.multipart import file_of
from bridge.settings import Settings

_CHUNK_BYTES = 256 * 1024
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_UPLOAD, _DOWNLOAD, _PREVIEW = (
    METHODS[request.DESCRIPTOR.full_name].path
    for request in (pb.UploadAttachmentRequest, pb.DownloadAttachmentRequest, pb.GetPreviewRequest)
)
log = logging.getLogger(__name__)
_SAFE = {
    **NOSNIFF,
    # Whatever it is, it does nothing here.
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Referrer-Policy": "no-referrer",
}


class AttachmentEndpoints:
    """What is below /api/chatkit/attachments. Each answers a failure with its real status."""

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self._backend = backend
        self._settings = settings

    async def upload_form(self, request: Request) -> Response:
        """POST: ChatKit's direct upload. The form's field `file` becomes an attachment."""
        return await _answered(self._upload_form(request))

    async def upload_body(self, request: Request) -> Response:
        """PUT: the second of two phases. The body is the file of a registered attachment."""
        return await _answered(self._upload_body(request))

    async def download(self, request: Request) -> Response:
        """GET: the file, for whoever it belongs to."""
        return await _answered(self._download(request))

    async def preview(self, request: Request) -> Response:
        """GET: a small version of a picture, for whoever it belongs to or has its key."""
        return await _answered(self._preview(request))

    async def _upload_form(self, request: Request) -> Response:
        metadata = metadata_of(request, self._settings)
        async with aclosing(self._body_of(request)) as body:
            # Of a stranger nothing is read.
            await self._backend.authenticate(metadata)
            seconds = self._settings.request_timeout_seconds
            try:
                async with asyncio.timeout(seconds):
                    file = await file_of(request.headers.get("content-type", ""), body)
            except TimeoutError:
                raise ValidationError.at("$.file", f"expected its beginning within {seconds:g} s") from None
            first = pb.UploadAttachmentRequest(name=file.name, mime_type=file.mime_type)
            return await self._upload(first, file.chunks, metadata)

    async def _upload_body(self, request: Request) -> Response:
        first = pb.UploadAttachmentRequest(attachment_id=request.path_params["attachment_id"])
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and len(declared) < 19:
            first.size = int(declared)
        async with aclosing(self._body_of(request)) as body:
            return await self._upload(first, body, metadata_of(request, self._settings))

    async def _upload(
        self, first: pb.UploadAttachmentRequest, chunks: AsyncGenerator[bytes, None], metadata: Metadata
    ) -> Response:
        async with aclosing(_requests(first, chunks)) as requests:
            answer = await self._backend.upload(_UPLOAD, requests, metadata)
        return Response(codec.encode(answer), media_type="application/json", headers=NOSNIFF)

    async def _download(self, request: Request) -> Response:
        asked = pb.DownloadAttachmentRequest(attachment_id=request.path_params["attachment_id"], accepts_url=True)
        metadata = metadata_of(request, self._settings)
        call = self._backend.stream(_DOWNLOAD, asked, metadata, self._settings.stream_timeout_seconds)
        try:
            head: Any = await self._backend.first_of(call, metadata)
            if head.HasField("url"):
                call.cancel()
                return RedirectResponse(head.url, headers={**_SAFE, "Cache-Control": "no-store"})
            if request.method == "HEAD":
                call.cancel()
                return Response(headers=_download_headers(head))
            return _Download(head, call)
        except BaseException:
            call.cancel()
            raise

    async def _preview(self, request: Request) -> Response:
        metadata = metadata_of(request, self._settings)
        if key := request.query_params.get("key"):
            metadata = [(PREVIEW_KEY, _UNPRINTABLE.sub("?", key[:2000]))]
        asked = pb.GetPreviewRequest(attachment_id=request.path_params["attachment_id"])
        answer: Any = await self._backend.call(_PREVIEW, asked, metadata)
        headers = {
            **_SAFE,
            "Cache-Control": "private, max-age=86400, immutable",
            # ChatKit shows it in a frame of another origin.
            "Cross-Origin-Resource-Policy": "cross-origin",
        }
        return Response(answer.image, media_type=answer.mime_type, headers=headers)

    async def _body_of(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Raises ChatKitError where the client falls silent, and ClientDisconnect."""
        seconds = self._settings.request_timeout_seconds
        chunks = request.stream()
        while True:
            try:
                async with asyncio.timeout(seconds):
                    chunk = await anext(chunks, None)
            except TimeoutError:
                raise ValidationError(f"Nothing of the file arrived within {seconds:g} s.") from None
            if chunk is None:
                return
            if chunk:
                yield chunk


class _Download(StreamingResponse):
    """The bytes of an attachment, to be kept as a file. Where they break off, so does the connection."""

    def __init__(self, head: Any, call: StreamCall) -> None:
        super().__init__(_bytes_of(head, call), headers=_download_headers(head))

    async def stream_response(self, send: Send) -> None:
        """Send it. A response that isn't complete makes uvicorn close the connection."""
        try:
            await super().stream_response(send)
        except grpc.aio.AioRpcError as error:
            log.info("a download broke off: %s", from_rpc_error(error).code)


def _download_headers(head: Any) -> dict[str, str]:
    attachment: Attachment = head.attachment
    members = getattr(attachment, str(attachment.WhichOneof("attachment")))
    return {
        **_SAFE,
        # Not as media_type, to which a charset would be added.
        "Content-Type": members.mime_type,
        "Content-Length": str(head.size),
        "Content-Disposition": content_disposition(members.name),
        "Cache-Control": "private, max-age=300",
    }


def content_disposition(name: str) -> str:
    """The header that lets a browser keep a file under a name (RFC 6266); in ASCII for those that know no other.

    Sample: attachment; filename="a_b.txt"; filename*=UTF-8''a%22b.txt
    """
    plain = re.sub(r"[^A-Za-z0-9._ ()-]", "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='', errors='replace')}"


async def _bytes_of(head: Any, call: StreamCall) -> AsyncGenerator[bytes, None]:
    response = head
    try:
        while response is not grpc.aio.EOF:
            yield response.chunk
            response = await call.read()
    finally:
        call.cancel()


async def _requests(
    first: pb.UploadAttachmentRequest, chunks: AsyncGenerator[bytes, None]
) -> AsyncGenerator[Message, None]:
    """What is uploaded, and then its bytes, in messages of a bounded size."""
    yield first
    async with aclosing(chunks):
        async for chunk in chunks:
            for at in range(0, len(chunk), _CHUNK_BYTES):
                yield pb.UploadAttachmentRequest(chunk=chunk[at : at + _CHUNK_BYTES])


async def _answered(answering: Awaitable[Response]) -> Response:
    try:
        return await answering
    except ClientDisconnect:
        return Response(status_code=499)
    except ChatKitError as error:
        return error_response(error)
    except Exception as failure:  # noqa: BLE001 # the edge
        return error_response(defect(failure))
