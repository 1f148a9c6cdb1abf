"""The bytes in PostgreSQL, a row for each piece: no more than one is ever in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from chatkit.types import AttachmentUploadDescriptor

from server.attachments import refusals
from server.attachments.byte_store import Found, Place, Storage, Writer
from server.attachments.statements import ADD_CHUNK, LOAD_CHUNK
from server.database import Database


class PostgresBytes:
    """A ByteStore. The rows go with that of the attachment."""

    storage: Storage = "postgres"

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def writing(self, place: Place) -> AsyncIterator[Writer]:
        """Write the bytes of an upload. What isn't complete never counts, and is swept."""
        yield _Writer(self._database, place)

    async def read(self, place: Place, etag: str | None) -> AsyncGenerator[bytes, None]:
        """The bytes. They end early where the attachment is deleted meanwhile; who knows their size sees it."""
        number = 0
        values = (place.user_id, place.attachment_id, place.epoch)
        while (piece := await self._database.fetchval(LOAD_CHUNK, *values, number)) is not None:
            yield piece
            number += 1

    async def find(self, place: Place) -> Found | None:
        """Nobody else can put anything there."""
        return None

    async def delete(self, place: Place) -> None:
        """Nothing is left of a row that was deleted."""

    def descriptor(self, place: Place, mime_type: str, size: int) -> AttachmentUploadDescriptor | None:
        """A page sends them to the bridge."""
        return None

    def url(self, place: Place, name: str, mime_type: str) -> str | None:
        """A page reads them from the bridge."""
        return None

    async def aclose(self) -> None:
        """The database is closed by whoever opened it."""


class _Writer:
    def __init__(self, database: Database, place: Place) -> None:
        self._database = database
        self._place = place
        self._number = 0

    async def write(self, piece: bytes) -> None:
        values = (self._place.user_id, self._place.attachment_id, self._place.epoch)
        if not await self._database.fetch(ADD_CHUNK, *values, self._number, piece):
            raise refusals.overtaken(self._place.attachment_id)
        self._number += 1

    async def complete(self) -> str | None:
        return None
