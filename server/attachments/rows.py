"""What is known of attachments, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chatkit.types import Attachment

from server.attachments import refusals, statements
from server.attachments.byte_store import Place, Storage
from server.attachments.settings import AttachmentSettings
from server.database import Database
from server.records import attachment_of, json_of
from server.statements import DELETE_ATTACHMENT
from server.store import RecordNotFoundError


@dataclass(frozen=True, slots=True)
class Kept:
    """An attachment whose bytes the server keeps, or is going to.

    expected_size: how many bytes were announced. size: how many count as the user's; once uploaded, how many it has.
    """

    attachment: Attachment
    place: Place
    size: int
    expected_size: int | None
    is_uploaded: bool
    etag: str | None


class AttachmentRows:
    """Reads and writes them; each method is one statement."""

    def __init__(self, database: Database, storage: Storage, settings: AttachmentSettings) -> None:
        self._database = database
        self._storage = storage
        self._settings = settings

    async def register(self, user_id: str, attachment: Attachment, size: int | None) -> None:
        """Write a new one. size: as it was announced, if it was. Raises LimitError where the user has too much."""
        limits = (self._settings.max_user_attachments, self._settings.max_user_attachment_bytes)
        values = (attachment.id, attachment.name, attachment.mime_type, json_of(attachment), self._storage, size or 0)
        ttl = self._settings.attachment_ttl_seconds
        if not await self._database.fetch(statements.REGISTER, user_id, *values, *limits, size, ttl):
            raise refusals.too_many_files(*limits)

    async def find(self, user_id: str, attachment_id: str) -> Kept:
        """An attachment. Raises RecordNotFoundError, also for one whose bytes are kept elsewhere."""
        row = await self._database.fetchrow(statements.FIND, user_id, attachment_id)
        if row is None or row["storage"] is None:
            raise RecordNotFoundError.attachment(attachment_id)
        attachment = attachment_of(row, attachment_id).model_copy(update={"thread_id": row["session_id"]})
        return Kept(
            attachment=attachment,
            place=Place(user_id, attachment_id, row["upload_epoch"]),
            size=row["size"],
            expected_size=row["expected_size"],
            is_uploaded=row["is_uploaded"],
            etag=row["etag"],
        )

    async def awaited(self, user_id: str, attachment_ids: Sequence[str]) -> list[str]:
        """Which of some attachments have no bytes yet. Raises RecordNotFoundError where one isn't there."""
        rows = await self._database.fetch(statements.FIND_AWAITED, user_id, list(attachment_ids))
        for row in rows:
            if not row["is_known"]:
                raise RecordNotFoundError.attachment(row["attachment_id"])
        return [row["attachment_id"] for row in rows]

    async def begin_upload(self, user_id: str, attachment_id: str) -> Place:
        """Begin an upload, which ends all others of the attachment. Raises ConflictError."""
        ttl = self._settings.attachment_ttl_seconds
        epoch = await self._database.fetchval(statements.BEGIN_UPLOAD, user_id, attachment_id, ttl)
        if epoch is None:
            raise refusals.overtaken(attachment_id)
        return Place(user_id, attachment_id, epoch)

    async def reserve(self, place: Place, more: int) -> None:
        """Count more bytes as the user's. Raises LimitError where he has too many, ConflictError."""
        limits = (self._settings.max_user_attachments, self._settings.max_user_attachment_bytes)
        row = await self._database.fetchrow(statements.RESERVE, *_values(place), more, limits[1])
        if row is None or not row["is_last"]:
            raise refusals.overtaken(place.attachment_id)
        if not row["has_room"]:
            raise refusals.too_many_files(*limits)

    async def finish_upload(
        self, place: Place, attachment: Attachment, size: int, preview: bytes | None, etag: str | None
    ) -> bool:
        """Let it count. False where it does already, or where its upload isn't the last one any more."""
        values = (size, attachment.name, attachment.mime_type, json_of(attachment), preview, etag)
        ttl = self._settings.attachment_ttl_seconds
        return bool(await self._database.fetch(statements.FINISH_UPLOAD, *_values(place), *values, ttl))

    async def forget(self, place: Place) -> None:
        """Delete an attachment. It needn't be there."""
        await self._database.fetch(DELETE_ATTACHMENT, place.user_id, place.attachment_id)

    async def preview(self, user_id: str, attachment_id: str) -> tuple[bytes | None, bool]:
        """The preview, if there is one, and whether the bytes are there. Raises RecordNotFoundError."""
        row = await self._database.fetchrow(statements.LOAD_PREVIEW, user_id, attachment_id)
        if row is None or row["storage"] is None:
            raise RecordNotFoundError.attachment(attachment_id)
        return row["preview"], row["is_uploaded"]


def _values(place: Place) -> tuple[Any, ...]:
    return (place.user_id, place.attachment_id, place.epoch)
