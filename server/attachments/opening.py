"""Everything of this package put together, as the settings say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from server.attachments.attachments import Attachments
from server.attachments.byte_store import ByteStore
from server.attachments.postgres_bytes import PostgresBytes
from server.attachments.preview_keys import PreviewKeys, load_preview_keys
from server.attachments.previews import Previews
from server.attachments.rows import AttachmentRows
from server.attachments.s3_bytes import S3Bytes
from server.attachments.s3_client import S3Client
from server.attachments.settings import AttachmentSettings
from server.attachments.sweep import AttachmentSweep
from server.attachments.urls import Urls
from server.database import Database


@dataclass(frozen=True, slots=True)
class OpenAttachments:
    """attachments: for assistants and the service. keys: for who may see previews. sweep: for retention."""

    attachments: Attachments
    keys: PreviewKeys
    sweep: AttachmentSweep


@asynccontextmanager
async def open_attachments(
    database: Database, of_users: Database, settings: AttachmentSettings, public_url: str | None
) -> AsyncIterator[OpenAttachments]:
    """Open them until the context is left.

    database: for what is nobody's in particular. of_users: the same as the store sees it.
    Raises SettingsError, and DatabaseError.
    """
    byte_store: ByteStore = S3Bytes(S3Client(settings)) if settings.attachments_url else PostgresBytes(of_users)
    previews = Previews()
    try:
        keys = await load_preview_keys(database)
        rows = AttachmentRows(of_users, byte_store.storage, settings)
        attachments = Attachments(rows, byte_store, settings, keys, previews, Urls(public_url))
        yield OpenAttachments(attachments, keys, AttachmentSweep(database, byte_store))
    finally:
        previews.close()
        await byte_store.aclose()
