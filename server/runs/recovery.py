"""Ending the runs of servers that died."""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence

import asyncpg
from chatkit.types import ErrorEvent, ThreadItem, ThreadItemDoneEvent
from chatkit.types import ThreadStreamEvent as SDKEvent
from chatkit_grpc.v1.run_pb2 import RunState

from server import statements as store_statements
from server.changes import logged
from server.database import Database, PoolConnection, storable, translated
from server.failures import describe
from server.lease import Lease
from server.records import item_of
from server.runs import statements
from server.runs.partial_answer import INTERRUPTED, interruption_marker, kept_item, pending_items
from server.runs.store import Piece, RunKey, ThreadKey, end_values, piece_of
from server.store import item_values

UNLOGGED_AT_MOST = 1 << 20
"""How many events a server can have shown and not logged. An empty piece of the log stands for them, so that what is
added by others has higher numbers than all that anybody saw.
"""

log = logging.getLogger(__name__)


class Recovery:
    """Ends runs from their log: what they said goes onto the thread, and their leases are given back."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def end_orphans(self) -> None:
        """End the runs whose servers are forgotten."""
        while await self._end_all(await self._database.fetch(statements.ORPHANED_RUNS)):
            pass

    async def end_strays(self, server_id: str, known: Container[str], unknown: Container[str]) -> set[str]:
        """End runs that their own server knows nothing of: whatever went wrong there, their threads must go on.

        known: the ids of those that it makes. unknown: of those that it didn't know the last time either: one that is
        unknown for the first time may be about to begin. Returns the ids of those that it doesn't know.
        """
        rows = await self._database.fetch(statements.RUNS_OF_SERVER, server_id)
        strays = [row for row in rows if row["run_id"] not in known]
        await self._end_all([row for row in strays if row["run_id"] in unknown])
        return {row["run_id"] for row in strays}

    async def _end_all(self, rows: Sequence[asyncpg.Record]) -> int:
        """End runs. How many that were."""
        count = 0
        for row in rows:
            thread, run_id = ThreadKey(row["user_id"], row["session_id"]), row["run_id"]
            try:
                if await self.end(thread, run_id):
                    count += 1
                    log.warning("%s was interrupted; its answer is kept as far as it was logged", run_id)
            except Exception as error:  # noqa: BLE001 # one that can't be ended must not keep the others
                log.error("%s can't be ended: %s", run_id, describe(error))  # noqa: TRY400 # may quote what was said
        return count

    async def end(self, thread: ThreadKey, run_id: str) -> bool:
        """End a run whose server is forgotten, and so adds nothing more to its log. Whether it was active.

        Raises DatabaseError.
        """
        return await translated(self._end(thread, run_id))

    async def _end(self, thread: ThreadKey, run_id: str) -> bool:
        async with self._database.pool.acquire() as connection, connection.transaction():
            await connection.fetch(statements.LIMIT_RECOVERY)
            epoch = await connection.fetchval(statements.LOCK_THREAD, *thread, run_id)
            if epoch is None:
                await connection.fetch(statements.FORGET_RUN_WITHOUT_THREAD, *thread, run_id)
                return False
            lease = Lease(thread.user_id, thread.thread_id, run_id, epoch)
            await _end_from_log(connection, lease)
            return True


async def _end_from_log(connection: PoolConnection, lease: Lease) -> None:
    key = RunKey(lease.user_id, lease.run_id)
    pieces = [piece_of(row) for row in await connection.fetch(statements.READ_WHOLE_LOG, *key)]
    kept = [
        await _keep(connection, lease, item)
        for message in pending_items(pieces)
        if (item := kept_item(message)) is not None
    ]
    await _save(connection, lease, interruption_marker(lease.thread_id, lease.run_id))
    events: list[SDKEvent] = [
        *(ThreadItemDoneEvent(item=item) for item in kept),
        ErrorEvent(code="custom", message=INTERRUPTED, allow_retry=True),
    ]
    last = pieces[-1].last if pieces else 0
    unknown = Piece(last + 1, last + UNLOGGED_AT_MOST, b"")
    end = Piece(unknown.last + 1, unknown.last + len(events), logged(events))
    state = RunState.RUN_STATE_INTERRUPTED
    await connection.fetch(*end_values(lease, state, end.last, None, [unknown, end]))


async def _keep(connection: PoolConnection, lease: Lease, item: ThreadItem) -> ThreadItem:
    """Store an item as far as the log has it, unless the run has stored it itself. The item as it is kept."""
    key = (lease.user_id, lease.thread_id, storable(item.id), lease.run_id)
    if stored := await connection.fetchrow(statements.STORED_BY_RUN, *key):
        return item_of(stored)
    await _save(connection, lease, item)
    return item


async def _save(connection: PoolConnection, lease: Lease, item: ThreadItem) -> None:
    values = (lease.user_id, lease.thread_id, *item_values(item), lease.run_id, lease.epoch, None)
    await connection.fetch(store_statements.SAVE_ITEM, *map(storable, values))
