"""This server among the others: it says that it lives, and notices who doesn't.

All leases of a server live and die with its heartbeat. It counts from when the heartbeat was sent, so that it stops
trusting its leases before anybody else may take them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import asyncpg
from chatkit_grpc.errors import DatabaseError

from server.database import Database
from server.ids import new_id
from server.runs import statements
from server.worker import Worker

_BEAT_SECONDS = 1.0
"""From one heartbeat to the next at most."""
_CHECK_ORPHANS_EVERY = 5
"""Beats between two looks for runs whose server somebody else forgot without ending them."""

log = logging.getLogger(__name__)


class Membership:
    """The heartbeat of a server. It has begun once the context is entered; leave it when all runs have ended.

    lease_seconds: how long a server may be silent before it is taken for dead.
    on_cancel: called with the ids of own runs that somebody wants stopped.
    on_death: called when others took this server for dead: none of its leases holds any longer.
    on_orphans: awaited where there may be runs without a server.
    """

    def __init__(
        self,
        database: Database,
        lease_seconds: float,
        *,
        on_cancel: Callable[[Sequence[str]], None],
        on_death: Callable[[], None],
        on_orphans: Callable[[], Awaitable[None]],
    ) -> None:
        self.server_id = new_id("server")
        self._database = database
        self._lease_seconds = lease_seconds
        self._beat_seconds = min(_BEAT_SECONDS, lease_seconds / 4)
        self._sure_seconds = lease_seconds - self._beat_seconds
        self._on_cancel = on_cancel
        self._on_death = on_death
        self._on_orphans = on_orphans
        self._loop = asyncio.get_running_loop()
        self._sure_until = 0.0
        self._unsure_since: float | None = None
        self._last_beat = self._loop.time()
        self._made_sure = asyncio.Condition()
        self._beat_now = asyncio.Event()
        self._beats = 0
        self._workers = (Worker("heartbeat", self._beat_for_ever), Worker("orphans", self._bury_for_ever))
        self._orphans = asyncio.Event()
        self._sent: set[asyncio.Task[asyncpg.Record | None]] = set()

    async def __aenter__(self) -> Self:
        await self._register()
        for worker in self._workers:
            await worker.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        for worker in self._workers:
            await worker.__aexit__(kind, error, tb)
        if self._sent:
            await asyncio.wait(self._sent, timeout=_BEAT_SECONDS)
        try:
            await self._database.fetch(statements.FORGET_SERVER, self.server_id)
        except DatabaseError:
            log.info("the database is away; others will notice that this server has ended")

    @property
    def is_sure(self) -> bool:
        """Whether nobody else can have taken this server's leases yet."""
        return self._loop.time() < self._sure_until

    async def made_sure(self) -> None:
        """Wait until it is clear whether this server's leases hold: then it is sure, or its runs are lost."""
        async with self._made_sure:
            await self._made_sure.wait_for(lambda: self.is_sure)

    def beat_now(self) -> None:
        """There is something to learn: don't wait for the next beat."""
        self._beat_now.set()

    async def _register(self) -> None:
        began = self._loop.time()
        await self._database.fetch(statements.REGISTER_SERVER, self.server_id)
        await self._is_sure_from(began)
        self._orphans.set()

    async def _beat_for_ever(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._beat_seconds):
                    await self._beat_now.wait()
            self._beat_now.clear()
            try:
                await self._beat()
            except DatabaseError:
                self._unsure_since = self._loop.time()
                # The lease runs on: try again before the next beat is due.
                await asyncio.sleep(self._beat_seconds / 5)
                self._beat_now.set()

    async def _beat(self) -> None:
        began = self._loop.time()
        row = await self._send_beat()
        if row is None:
            await self._was_taken_for_dead()
            return
        await self._is_sure_from(began)
        if row["cancelled"]:
            self._on_cancel(row["cancelled"])
        self._beats += 1
        self._note_pause(began)
        if self._unsure_since is None and (row["others_are_late"] or self._beats % _CHECK_ORPHANS_EVERY == 0):
            self._orphans.set()

    async def _send_beat(self) -> asyncpg.Record | None:
        """Say that it lives, and say so again where the answer stays out: the connection may have fallen silent."""
        beats = {self._begin_beat()}
        try:
            done, _ = await asyncio.wait(beats, timeout=self._lease_seconds / 3)
            if not done:
                beats.add(self._begin_beat())
                done, _ = await asyncio.wait(beats, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for beat in beats:
                beat.cancel()

    def _begin_beat(self) -> asyncio.Task[asyncpg.Record | None]:
        beat = asyncio.create_task(
            self._database.fetchrow(statements.HEARTBEAT, self.server_id, self._lease_seconds), name="beat"
        )
        self._sent.add(beat)
        beat.add_done_callback(self._was_answered)
        return beat

    def _was_answered(self, beat: asyncio.Task[asyncpg.Record | None]) -> None:
        self._sent.discard(beat)
        if not beat.cancelled():
            beat.exception()  # of one that nobody waits for any more

    def _note_pause(self, began: float) -> None:
        """Who had no database for a while, or stood still, can't tell who else did."""
        if began - self._last_beat > self._lease_seconds / 2:
            self._unsure_since = began
        if self._unsure_since is not None and began - self._unsure_since > self._lease_seconds:
            self._unsure_since = None
        self._last_beat = began

    async def _is_sure_from(self, began: float) -> None:
        self._sure_until = began + self._sure_seconds
        async with self._made_sure:
            self._made_sure.notify_all()

    async def _was_taken_for_dead(self) -> None:
        log.error("this server was silent for too long; others have ended its runs")
        self._on_death()
        self.server_id = new_id("server")
        await self._register()

    async def _bury_for_ever(self) -> None:
        while True:
            await self._orphans.wait()
            self._orphans.clear()
            if self._unsure_since is not None:
                continue
            try:
                values = (self._lease_seconds, self.server_id)
                for row in await self._database.fetch(statements.FORGET_DEAD_SERVERS, *values):
                    log.warning("server %s is dead", row["server_id"])
                await self._on_orphans()
            except DatabaseError as error:
                log.warning("the runs of dead servers can't be ended for now: %s", error.code)
