"""AttachmentService: attachments, as far as the assistant takes any."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from chatkit.server import ChatKitServer
from chatkit.store import AttachmentStore
from chatkit.types import AttachmentCreateParams
from chatkit_grpc.errors import UnavailableError, ValidationError
from chatkit_grpc.v1 import attachment_service_pb2 as pb
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.attachment_pb2 import Attachment

from server import sdk
from server.attachments.attachments import Attachments, Download
from server.attachments.preview_keys import BY_KEY
from server.attachments.previews import MIME_TYPE
from server.context import RequestContext
from server.store import PostgresStore, RecordNotFoundError


class AttachmentService:
    """A user's own attachments."""

    def __init__(self, server: ChatKitServer[RequestContext], store: PostgresStore) -> None:
        self._server = server
        self._store = store

    async def create_attachment(
        self, request: pb.CreateAttachmentRequest, context: RequestContext
    ) -> pb.CreateAttachmentResponse:
        """Register a file and say where to upload it."""
        params = sdk.parse(AttachmentCreateParams, request)
        attachment = await self._attachment_store().create_attachment(params, context)
        await self._store.save_attachment(attachment, context)
        return pb.CreateAttachmentResponse(attachment=sdk.to_message(attachment, Attachment))

    async def delete_attachment(
        self, request: pb.DeleteAttachmentRequest, context: RequestContext
    ) -> pb.DeleteAttachmentResponse:
        """Delete an attachment, its bytes first: a row without bytes can be deleted again, not the reverse."""
        attachment_store = self._attachment_store()
        await self._store.load_attachment(request.attachment_id, context)
        await attachment_store.delete_attachment(request.attachment_id, context)
        await self._store.delete_attachment(request.attachment_id, context)
        return pb.DeleteAttachmentResponse()

    async def upload_attachment(
        self, requests: AsyncGenerator[pb.UploadAttachmentRequest, None], context: RequestContext
    ) -> pb.UploadAttachmentResponse:
        """Upload a file, of a registered attachment or of a new one."""
        first = await anext(requests, pb.UploadAttachmentRequest())
        size = first.size if first.HasField("size") else None
        async with aclosing(_chunks(first, requests)) as chunks:
            if first.attachment_id:
                attachments = await self._attachments_with(first.attachment_id, context)
                attachment = await attachments.upload(first.attachment_id, size, chunks, context)
            elif not first.name:
                raise ValidationError.at("$.params.name", "expected the file's name, or an attachment_id")
            else:
                attachments = self._attachments()
                attachment = await attachments.upload_new(first.name, first.mime_type, size, chunks, context)
        return pb.UploadAttachmentResponse(attachment=sdk.to_message(attachment, Attachment))

    async def download_attachment(
        self, request: pb.DownloadAttachmentRequest, context: RequestContext
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of an attachment, or where to read them."""
        attachments = await self._attachments_with(request.attachment_id, context)
        download = await attachments.download(request.attachment_id, context, accepts_url=request.accepts_url)
        attachment = sdk.to_message(download.attachment, Attachment)
        head = pb.DownloadAttachmentResponse(attachment=attachment, size=download.size, url=download.url)
        if download.url is not None:
            yield head.SerializeToString()
            return
        async with aclosing(_whole(download)) as pieces:
            # What fails at once is to be a status, and not an answer that breaks.
            head.chunk = await anext(pieces)
            yield head.SerializeToString()
            async for piece in pieces:
                yield pb.DownloadAttachmentResponse(chunk=piece).SerializeToString()

    async def get_attachment(
        self, request: pb.GetAttachmentRequest, context: RequestContext
    ) -> pb.GetAttachmentResponse:
        """What is known of an attachment."""
        attachments = await self._attachments_with(request.attachment_id, context)
        kept = await attachments.find(request.attachment_id, context)
        size = kept.size if kept.is_uploaded else kept.expected_size
        message = sdk.to_message(kept.attachment, Attachment)
        return pb.GetAttachmentResponse(attachment=message, size=size, uploaded=kept.is_uploaded)

    async def get_preview(self, request: pb.GetPreviewRequest, context: RequestContext) -> pb.GetPreviewResponse:
        """A small version of a picture."""
        auth = context["auth"]
        if auth.method == BY_KEY and auth.claims["attachment_id"] != request.attachment_id:
            raise RecordNotFoundError.attachment(request.attachment_id)
        attachments = await self._attachments_with(request.attachment_id, context)
        image = await attachments.preview(request.attachment_id, context)
        return pb.GetPreviewResponse(mime_type=MIME_TYPE, image=image)

    async def _attachments_with(self, attachment_id: str, context: RequestContext) -> Attachments:
        """What keeps an attachment's bytes. That there is one is asked first, as where any is deleted."""
        await self._store.load_attachment(attachment_id, context)
        return self._attachments()

    def _attachments(self) -> Attachments:
        attachments = self._attachment_store()
        if not isinstance(attachments, Attachments):
            raise ValidationError(
                "This assistant keeps attachments elsewhere.", reason=reasons.ERROR_REASON_UNSUPPORTED
            )
        return attachments

    def _attachment_store(self) -> AttachmentStore[RequestContext]:
        if self._server.attachment_store is None:
            raise ValidationError("This assistant takes no attachments.", reason=reasons.ERROR_REASON_UNSUPPORTED)
        return self._server.attachment_store


async def _chunks(
    first: pb.UploadAttachmentRequest, others: AsyncGenerator[pb.UploadAttachmentRequest, None]
) -> AsyncGenerator[bytes, None]:
    yield first.chunk
    async for request in others:
        yield request.chunk


async def _whole(download: Download) -> AsyncGenerator[bytes, None]:
    """The bytes. Raises UnavailableError where fewer come than there should be: somebody has deleted them meanwhile."""
    left = download.size
    async with aclosing(download.pieces) as pieces:
        async for piece in pieces:
            left -= len(piece)
            yield piece
    if left:
        raise UnavailableError(
            "The attachment was deleted while it was read.", reason=reasons.ERROR_REASON_ATTACHMENT_STORE_FAILED
        )
