"""What an assistant gets as its attachment_store, and AttachmentService works with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from chatkit.server import ChatKitServer
from chatkit.store import AttachmentStore
from chatkit.types import (
    Attachment,
    AttachmentCreateParams,
    AttachmentUploadDescriptor,
    FileAttachment,
    ImageAttachment,
)
from chatkit_grpc.errors import LimitError, ValidationError
from pydantic import AnyUrl

from server.attachments import refusals
from server.attachments.byte_store import ByteStore, Found, Place
from server.attachments.file_names import clean_name
from server.attachments.file_types import HEAD_BYTES, PICTURES, agreed_type, check_allowed, check_announced
from server.attachments.preview_keys import PreviewKeys
from server.attachments.previews import Previews
from server.attachments.rows import AttachmentRows, Kept
from server.attachments.settings import AttachmentSettings
from server.attachments.uploads import Intake, Taken, in_pieces, picture_file, with_first
from server.attachments.urls import Urls
from server.context import RequestContext
from server.ids import new_id


@dataclass(frozen=True, slots=True)
class Download:
    """An attachment that is read.

    url: where it can be read instead. pieces: its bytes; whoever asked closes them.
    """

    attachment: Attachment
    size: int
    url: str | None
    pieces: AsyncGenerator[bytes, None]


class Attachments(AttachmentStore[RequestContext]):
    """A user's attachments: hand it to your ChatKitServer, `ChatKitServer(store, store.attachments)`.

    Each method acts for the user of its context; what is somebody else's isn't there.
    """

    def __init__(
        self,
        rows: AttachmentRows,
        byte_store: ByteStore,
        settings: AttachmentSettings,
        keys: PreviewKeys,
        previews: Previews,
        urls: Urls,
    ) -> None:
        self._rows = rows
        self._bytes = byte_store
        self._settings = settings
        self._keys = keys
        self._previews = previews
        self._urls = urls

    def generate_attachment_id(self, mime_type: str, context: RequestContext) -> str:
        """An id that nobody can guess."""
        return new_id("attachment")

    async def create_attachment(self, input: AttachmentCreateParams, context: RequestContext) -> Attachment:  # noqa: A002 # the SDK's name
        """Register a file, whose bytes are to come as its upload_descriptor says.

        Raises ValidationError for a type that isn't taken, and LimitError for too many bytes, of it or of the user.
        """
        if input.size > self._settings.max_attachment_bytes:
            raise refusals.too_large(self._settings.max_attachment_bytes)
        if input.size <= 0:
            raise refusals.empty()
        mime_type = check_announced(input.mime_type, self._settings.attachment_types)
        attachment_id = self.generate_attachment_id(mime_type, context)
        place = Place(context["user_id"], attachment_id)
        descriptor = self._bytes.descriptor(place, mime_type, input.size) or AttachmentUploadDescriptor(
            url=AnyUrl(self._urls.of(attachment_id, context)), method="PUT", headers={"Content-Type": mime_type}
        )
        attachment = self._made(attachment_id, input.name, mime_type, context)
        attachment.upload_descriptor = descriptor
        await self._rows.register(place.user_id, attachment, input.size)
        return attachment

    async def delete_attachment(self, attachment_id: str, context: RequestContext) -> None:
        """Delete the bytes, as far as they don't go with what the store knows of it."""
        kept = await self._rows.find(context["user_id"], attachment_id)
        await self._bytes.delete(kept.place)

    async def upload_new(
        self, name: str, mime_type: str, size: int | None, chunks: AsyncGenerator[bytes, None], context: RequestContext
    ) -> Attachment:
        """Register and upload a file at once. size: as it is announced, if it is.

        Raises ValidationError, LimitError and ConflictError; then nothing is left of it.
        """
        if size is not None and size > self._settings.max_attachment_bytes:
            raise refusals.too_large(self._settings.max_attachment_bytes)
        check_announced(mime_type, self._settings.attachment_types)
        async with aclosing(in_pieces(chunks)) as pieces:
            first = await anext(pieces, b"")
            if not first or size == 0:
                raise refusals.empty()
            found = self._agreed(mime_type, first)
            attachment = self._made(self.generate_attachment_id(found, context), name, found, context)
            await self._rows.register(context["user_id"], attachment, size)
            try:
                place = await self._rows.begin_upload(context["user_id"], attachment.id)
                return await self._take(place, attachment, size, first, pieces)
            except BaseException:
                # Also where the caller went away: what he had reserved is free again.
                await asyncio.shield(self._rows.forget(Place(context["user_id"], attachment.id)))
                raise

    async def upload(
        self, attachment_id: str, size: int | None, chunks: AsyncGenerator[bytes, None], context: RequestContext
    ) -> Attachment:
        """Upload a file that was registered. size: as the caller says, if he does.

        Raises RecordNotFoundError, ValidationError and ConflictError; then it can be uploaded again.
        """
        kept = await self._rows.find(context["user_id"], attachment_id)
        if kept.is_uploaded:
            raise refusals.uploaded_already(attachment_id)
        if size is not None and kept.expected_size is not None and size != kept.expected_size:
            raise refusals.other_size(kept.expected_size, f"{size:,}")
        place = await self._rows.begin_upload(context["user_id"], attachment_id)
        async with aclosing(in_pieces(chunks)) as pieces:
            first = await anext(pieces, b"")
            found = self._agreed(kept.attachment.mime_type, first) if first else kept.attachment.mime_type
            attachment = self._checked(kept.attachment, found, context)
            return await self._take(place, attachment, kept.expected_size, first, pieces)

    async def find(self, attachment_id: str, context: RequestContext) -> Kept:
        """What is known of an attachment. Raises RecordNotFoundError."""
        kept = await self._rows.find(context["user_id"], attachment_id)
        return await self._collected(kept, context) or kept

    async def download(self, attachment_id: str, context: RequestContext, *, accepts_url: bool = False) -> Download:
        """An attachment's bytes. Raises RecordNotFoundError, and ConflictError where they aren't there yet."""
        kept = await self._uploaded(attachment_id, context)
        attachment = kept.attachment
        url = self._bytes.url(kept.place, attachment.name, attachment.mime_type) if accepts_url else None
        return Download(attachment, kept.size, url, self._bytes.read(kept.place, kept.etag))

    async def preview(self, attachment_id: str, context: RequestContext) -> bytes:
        """The preview of a picture, as WebP. Raises RecordNotFoundError and NotFoundError where there is none."""
        preview, is_uploaded = await self._rows.preview(context["user_id"], attachment_id)
        if not is_uploaded:
            await self._uploaded(attachment_id, context)
            preview, _ = await self._rows.preview(context["user_id"], attachment_id)
        if preview is None:
            raise refusals.no_preview()
        return preview

    async def require_uploaded(self, attachment_ids: Sequence[str], context: RequestContext) -> None:
        """Raise RecordNotFoundError where one of some attachments isn't there, ConflictError where it has no bytes."""
        if not attachment_ids:
            return
        for attachment_id in await self._rows.awaited(context["user_id"], attachment_ids):
            await self._uploaded(attachment_id, context)

    async def _uploaded(self, attachment_id: str, context: RequestContext) -> Kept:
        kept = await self.find(attachment_id, context)
        if not kept.is_uploaded:
            raise refusals.not_uploaded(attachment_id)
        return kept

    async def _collected(self, kept: Kept, context: RequestContext) -> Kept | None:
        """An attachment whose bytes the page has put into the store itself, checked now, if they are there."""
        # Once an upload through this server was begun, only such a one counts.
        is_possible = not kept.is_uploaded and kept.place.epoch == 0
        found = await self._bytes.find(kept.place) if is_possible else None
        if found is None:
            return None
        try:
            await self._collect(kept, found, context)
        except (ValidationError, LimitError):
            # What isn't as it must be can be put there again.
            await self._bytes.delete(kept.place)
            raise
        return await self._rows.find(kept.place.user_id, kept.place.attachment_id)

    async def _collect(self, kept: Kept, found: Found, context: RequestContext) -> None:
        if found.size > self._settings.max_attachment_bytes:
            raise refusals.too_large(self._settings.max_attachment_bytes)
        if found.size != kept.expected_size:
            raise refusals.other_size(kept.expected_size or 0, f"{found.size:,}")
        async with aclosing(in_pieces(self._bytes.read(kept.place, found.etag))) as pieces:
            first = await anext(pieces, b"")
            mime_type = self._agreed(kept.attachment.mime_type, first)
            preview = await self._preview_of(first, pieces) if mime_type in PICTURES else None
        attachment = self._checked(kept.attachment, mime_type, context)
        # Where somebody else was faster, it is done.
        await self._rows.finish_upload(kept.place, attachment, found.size, preview, found.etag)

    async def _preview_of(self, first: bytes, pieces: AsyncGenerator[bytes, None]) -> bytes:
        with picture_file() as picture:
            async for piece in with_first(first, pieces):
                picture.write(piece)
            return await self._previews.make(picture)

    async def _take(
        self,
        place: Place,
        attachment: Attachment,
        expected: int | None,
        first: bytes,
        others: AsyncGenerator[bytes, None],
    ) -> Attachment:
        reserve = partial(self._rows.reserve, place)
        intake = Intake(self._settings.max_attachment_bytes, expected, reserve, self._previews.make)
        async with aclosing(with_first(first, others)) as pieces, self._bytes.writing(place) as writer:
            taken: Taken = await intake.take(attachment.mime_type, pieces, writer)
            # Before what was written is let go: where it doesn't count, it is given up.
            if not await self._rows.finish_upload(place, attachment, taken.size, taken.preview, taken.etag):
                raise refusals.overtaken(place.attachment_id)
        return attachment

    def _agreed(self, declared: str, first: bytes) -> str:
        mime_type = agreed_type(declared, first[:HEAD_BYTES])
        check_allowed(mime_type, self._settings.attachment_types)
        return mime_type

    def _checked(self, registered: Attachment, mime_type: str, context: RequestContext) -> Attachment:
        """An attachment whose bytes are there. The URL of its preview stays as messages have it, whoever asks."""
        if isinstance(registered, ImageAttachment) and mime_type in PICTURES:
            return registered.model_copy(update={"mime_type": mime_type, "upload_descriptor": None})
        made = self._made(registered.id, registered.name, mime_type, context)
        return made.model_copy(update={"thread_id": registered.thread_id, "metadata": registered.metadata})

    def _made(self, attachment_id: str, name: str, mime_type: str, context: RequestContext) -> Attachment:
        name = clean_name(name)
        if mime_type not in PICTURES:
            return FileAttachment(id=attachment_id, name=name, mime_type=mime_type)
        key = self._keys.make(context["user_id"], attachment_id)
        url = AnyUrl(self._urls.of_preview(attachment_id, key, context))
        return ImageAttachment(id=attachment_id, name=name, mime_type=mime_type, preview_url=url)


async def require_uploaded(
    server: ChatKitServer[RequestContext], attachment_ids: Sequence[str], context: RequestContext
) -> None:
    """Raise why a message can't bring attachments, where this server keeps them: before it is stored, or answered."""
    if isinstance(server.attachment_store, Attachments):
        await server.attachment_store.require_uploaded(attachment_ids, context)
