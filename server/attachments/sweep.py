"""Forgetting attachments that nobody needs: uploads that were abandoned, and what belonged to threads that are gone."""

from __future__ import annotations

import logging

from chatkit_grpc.errors import UnavailableError

from server.attachments.byte_store import ByteStore, Place
from server.attachments.statements import DELETE_LEFTOVER, FIND_LEFTOVERS, FORGET_EXPIRED, PUT_LEFTOVER_OFF
from server.database import Database

_BATCH = 50
_FAILURES_IN_A_ROW = 3
"""After so many it is the store, and not an object that can't be deleted."""

log = logging.getLogger(__name__)


class AttachmentSweep:
    """Forgets what has expired, and deletes what is left of it elsewhere until that is done."""

    def __init__(self, database: Database, byte_store: ByteStore) -> None:
        self._database = database
        self._bytes = byte_store

    async def __call__(self) -> None:
        """Forget all that is due, and delete it as far as its store can be reached. Raises DatabaseError."""
        has_more = True
        while has_more:
            has_more = await self._database.fetchval(FORGET_EXPIRED, self._bytes.storage, _BATCH)
        await self._delete_leftovers()

    async def _delete_leftovers(self) -> None:
        failures = 0
        for row in await self._database.fetch(FIND_LEFTOVERS, self._bytes.storage):
            place = Place(row["user_id"], row["attachment_id"], row["upload_epoch"])
            try:
                await self._bytes.delete(place)
            except UnavailableError:
                failures += 1
                await self._database.fetch(PUT_LEFTOVER_OFF, place.user_id, place.attachment_id)
                if failures == _FAILURES_IN_A_ROW:
                    log.info("the sweep of attachments is put off: their store can't be reached")
                    return
                continue
            failures = 0
            await self._database.fetch(DELETE_LEFTOVER, place.user_id, place.attachment_id)
