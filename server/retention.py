"""Forgetting what nobody needs any longer, in small batches: logs, runs, and threads where these have an end."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from chatkit_grpc.errors import DatabaseError

from server.database import Database
from server.settings import Settings
from server.statements import DELETE_THREAD, FORGET_RUNS
from server.worker import Worker

_SWEEP_SECONDS = 20.0
_SWEEPS_IN_AN_HOUR = round(3600 / _SWEEP_SECONDS)
_BATCH = 2000
"""Rows that a statement deletes at most. Each says whether there may be more."""
_PAUSE_BETWEEN_BATCHES = 0.2
_RUN_SECONDS = 24 * 3600.0
"""How long a run's row stays, for the sake of its request_id."""
_USAGE_SECONDS = 35 * 24 * 3600.0
"""How long a day's tokens stay: a month's bill can be made of them."""

# The events of runs that ended long enough ago, the oldest of each first. Several servers take different runs.
SWEEP_EVENTS = """
with due as (
    select user_id, run_id from runs where has_log and ended_at < now() - make_interval(secs => $1)
    limit 50
    for update skip locked
), swept as (
    delete from run_events where ctid = any (array(
        select event.ctid from due join run_events as event using (user_id, run_id)
        order by event.user_id, event.run_id, event.last_sequence
        limit $2
    ))
    returning 1
), emptied as (
    update runs set has_log = false from due
    where runs.user_id = due.user_id and runs.run_id = due.run_id and (select count(*) from swept) < $2
)
select (select count(*) from swept) = $2 or (select count(*) from due) = 50
"""

# Without an index, hence once an hour: an index that serves one old row in a thousand costs each new one.
SWEEP_RUNS = """
with swept as (
    delete from runs where ctid = any (array(
        select ctid from runs where ended_at < now() - make_interval(secs => $1) and not has_log
        limit $2
        for update skip locked
    ))
    returning 1
)
select count(*) = $2 from swept
"""

SWEEP_CHANGES = """
with swept as (
    delete from thread_events where ctid = any (array(
        select ctid from thread_events where created_at < now() - make_interval(secs => $1)
        limit $2
        for update skip locked
    ))
    returning 1
)
select count(*) = $2 from swept
"""

# An allowance that is full again is as good as none that was ever touched.
SWEEP_RATE_LIMITS = """
with swept as (
    delete from rate_limits where ctid = any (array(
        select ctid from rate_limits where full_at < now() - make_interval(secs => $1)
        limit $2
        for update skip locked
    ))
    returning 1
)
select count(*) = $2 from swept
"""

SWEEP_USAGE = """
with swept as (
    delete from token_usage where ctid = any (array(
        select ctid from token_usage where day < (now() - make_interval(secs => $1))::date
        limit $2
    ))
    returning 1
)
select count(*) = $2 from swept
"""

# Threads that nothing was written to for long.
OLD_THREADS = """
select user_id, session_id from chat_sessions
where updated_at < now() - make_interval(secs => $1) and active_run_id is null
limit 10000
"""

log = logging.getLogger(__name__)


class Retention(Worker):
    """Sweeps now and then, as long as the context is open.

    others: sweeps of what this module knows nothing of; they raise DatabaseError, too.
    """

    def __init__(self, database: Database, settings: Settings, *others: Callable[[], Awaitable[None]]) -> None:
        super().__init__("retention", self._sweep_for_ever)
        self._database = database
        self._others = others
        self._log_seconds = settings.run_log_ttl_seconds
        self._thread_seconds = None if settings.thread_ttl_days is None else settings.thread_ttl_days * 86400.0

    async def sweep(self) -> None:
        """Forget all that is due now. Raises DatabaseError."""
        await self._sweep_batches(SWEEP_EVENTS, self._log_seconds)
        await self._sweep_batches(SWEEP_CHANGES, self._log_seconds)
        for sweep in self._others:
            await sweep()

    async def sweep_whole_tables(self) -> None:
        """Forget what can't be found by an index. Raises DatabaseError."""
        await self._sweep_batches(SWEEP_RUNS, _RUN_SECONDS)
        await self._sweep_batches(SWEEP_RATE_LIMITS, 0.0)
        await self._sweep_batches(SWEEP_USAGE, _USAGE_SECONDS)
        if self._thread_seconds is not None:
            await self._sweep_threads(self._thread_seconds)

    async def _sweep_threads(self, seconds: float) -> None:
        rows = await self._database.fetch(OLD_THREADS, seconds)
        for row in rows:
            if await self._database.fetch(DELETE_THREAD, row["user_id"], row["session_id"], seconds):
                await self._database.fetch(FORGET_RUNS, row["user_id"], row["session_id"])
            await asyncio.sleep(0)

    async def _sweep_batches(self, statement: str, seconds: float) -> None:
        has_more = True
        while has_more:
            has_more = await self._database.fetchval(statement, seconds, _BATCH)
            await asyncio.sleep(_PAUSE_BETWEEN_BATCHES)

    async def _sweep_for_ever(self) -> None:
        sweeps = 0
        while True:
            # Servers that were started together needn't sweep together.
            await asyncio.sleep(_SWEEP_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 # nobody must not guess it
            sweeps += 1
            try:
                await self.sweep()
                if sweeps % _SWEEPS_IN_AN_HOUR == 1:
                    await self.sweep_whole_tables()
            except DatabaseError as error:
                log.info("the sweep is put off: %s", error.code)
