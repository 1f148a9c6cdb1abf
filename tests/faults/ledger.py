"""What PostgreSQL holds, read past all servers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from tests.faults.violation import ViolationError

_RECONNECT_SECONDS = 15.0

_ITEMS = """
select session_id, message_id, item_type, hidden, run_id, item
from chat_messages where user_id = $1 order by session_id, position
"""
_RUNS = """
select run_id, session_id, epoch, state, server_id, request_id, last_sequence, ended_at
from runs where user_id = $1 order by session_id, epoch
"""
_ACTIVE = """
select count(*) from chat_sessions as thread
left join runs as run on run.user_id = thread.user_id and run.session_id = thread.session_id and run.ended_at is null
where thread.user_id = any($1) and (thread.active_run_id is not null or run.run_id is not null)
"""
_BACKENDS = """
select state, count(*) from pg_stat_activity
where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
group by state
"""
# All that a run may write; what it says of watching and of cancelling is not the run's.
_SNAPSHOT = """
select 'item' as kind, message_id as id, item::text as what from chat_messages where user_id = $1
union all
select 'run', run_id, concat_ws(' ', session_id, epoch, state, last_sequence, ended_at) from runs where user_id = $1
union all
select 'log', run_id, concat_ws(' ', first_sequence, last_sequence, md5(events)) from run_events where user_id = $1
union all
select 'thread', session_id, concat_ws(' ', active_run_id, run_epoch, log_position, next_position)
from chat_sessions where user_id = $1
order by 1, 2, 3
"""


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item of a thread. text: what it says, where it is a message."""

    thread_id: str
    item_id: str
    kind: str
    is_hidden: bool
    run_id: str | None
    text: str


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run's row."""

    run_id: str
    thread_id: str
    epoch: int
    state: str
    server_id: str
    request_id: str | None
    last_sequence: int | None
    has_ended: bool


class Ledger:
    """Asks PostgreSQL, on a connection of its own each time: it may have been restarted since."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def items(self, user: str) -> list[StoredItem]:
        """All items of a user's threads, in the threads' order."""
        return [_item_of(row) for row in await self._fetch(_ITEMS, user)]

    async def runs(self, user: str) -> list[StoredRun]:
        """All runs of a user, in the order in which they had their threads."""
        return [_run_of(row) for row in await self._fetch(_RUNS, user)]

    async def snapshot(self, user: str) -> list[tuple[str, ...]]:
        """Everything that a run can write, in an order."""
        return [tuple(map(str, row)) for row in await self._fetch(_SNAPSHOT, user)]

    async def is_quiet(self, users: Sequence[str]) -> bool:
        """Whether no run of these users is active, and no thread of theirs leased."""
        return bool((await self._fetch(_ACTIVE, list(users)))[0][0] == 0)

    async def until_quiet(self, user: str, seconds: float) -> None:
        """Wait for that. Raises ViolationError."""
        deadline = time.monotonic() + seconds
        while not await self.is_quiet([user]):
            if time.monotonic() > deadline:
                active = [run for run in await self.runs(user) if not run.has_ended]
                raise ViolationError(f"expected no active run after {seconds:g} s of quiet, got {active}")
            await asyncio.sleep(0.05)

    async def backends(self) -> dict[str, int]:
        """The connections that PostgreSQL has, by what they do."""
        return {row["state"] or "?": row["count"] for row in await self._fetch(_BACKENDS)}

    async def _fetch(self, statement: str, *values: object) -> list[asyncpg.Record]:
        deadline = time.monotonic() + _RECONNECT_SECONDS
        while True:
            try:
                return await self._fetch_once(statement, *values)
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)

    async def _fetch_once(self, statement: str, *values: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self._url)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(statement, *values)
            return rows
        finally:
            await connection.close()


def _item_of(row: asyncpg.Record) -> StoredItem:
    content = json.loads(row["item"]).get("content", [])
    parts = content if isinstance(content, list) else []
    return StoredItem(
        thread_id=row["session_id"],
        item_id=row["message_id"],
        kind=row["item_type"],
        is_hidden=row["hidden"],
        run_id=row["run_id"],
        text="".join(part.get("text", "") for part in parts),
    )


def _run_of(row: asyncpg.Record) -> StoredRun:
    return StoredRun(
        run_id=row["run_id"],
        thread_id=row["session_id"],
        epoch=row["epoch"],
        state=row["state"],
        server_id=row["server_id"],
        request_id=row["request_id"],
        last_sequence=row["last_sequence"],
        has_ended=row["ended_at"] is not None,
    )
