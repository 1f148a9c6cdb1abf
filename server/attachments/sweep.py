"""Forgetting attachments that nobody needs: uploads that were abandoned, and what belonged to threads that are gone."""

from __future__ import annotations

import asyncio
import logging

from chatkit_grpc.errors import UnavailableError

from server.attachments.byte_store import ByteStore, Place
from server.attachments.statements import DELETE_EXPIRED, FIND_EXPIRED
from server.database import Database

log = logging.getLogger(__name__)


class AttachmentSweep:
    """Deletes what has expired, bytes first: a row without bytes can be deleted again, not the reverse."""

    def __init__(self, database: Database, byte_store: ByteStore) -> None:
        self._database = database
        self._bytes = byte_store

    async def __call__(self) -> None:
        """Delete all that is due, as far as its bytes can be reached. Raises DatabaseError."""
        for row in await self._database.fetch(FIND_EXPIRED, self._bytes.storage):
            place = Place(row["user_id"], row["attachment_id"], row["upload_epoch"])
            try:
                await self._bytes.delete(place)
            except UnavailableError:
                log.info("the sweep of attachments is put off: their store can't be reached")
                return
            await self._database.fetch(DELETE_EXPIRED, place.user_id, place.attachment_id)
            await asyncio.sleep(0)
