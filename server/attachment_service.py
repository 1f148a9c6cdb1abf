"""AttachmentService: attachments, as far as the assistant takes any."""

from __future__ import annotations

from chatkit.server import ChatKitServer
from chatkit.store import AttachmentStore
from chatkit.types import AttachmentCreateParams
from chatkit_grpc.errors import ValidationError
from chatkit_grpc.v1 import attachment_service_pb2 as pb
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.attachment_pb2 import Attachment

from server import sdk
from server.context import RequestContext
from server.store import PostgresStore


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

    def _attachment_store(self) -> AttachmentStore[RequestContext]:
        if self._server.attachment_store is None:
            raise ValidationError("This assistant takes no attachments.", reason=reasons.ERROR_REASON_UNSUPPORTED)
        return self._server.attachment_store
