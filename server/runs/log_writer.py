"""The log's writer: what all runs of the process say, in one statement a flush."""

from __future__ import annotations

import asyncio
import logging

from chatkit_grpc.errors import DatabaseError

from server.lease import Lease
from server.runs.membership import Membership
from server.runs.run import Run
from server.runs.store import Piece, RunStore
from server.settings import LogMode
from server.worker import Worker

INTERVAL_SECONDS = {"behind": 0.1, "ahead": 0.01}
"""From one flush to the next, by the mode."""
_PAUSE_AFTER_FAILURE = 0.2
LARGEST_FLUSH_BYTES = 4 * 1024 * 1024
"""About how much a flush writes at most: what has gathered while the database was away is written in many."""
FURTHEST_BEHIND_SECONDS = 0.2
"""How long a token may be shown before it is in the log. Where the database is slower, watchers wait for it."""

log = logging.getLogger(__name__)


class LogWriter(Worker):
    """Writes behind the runs, and never keeps one waiting. Leave the context once all runs have ended."""

    def __init__(self, store: RunStore, membership: Membership, mode: LogMode) -> None:
        super().__init__("run log", self._write_for_ever)
        self._store = store
        self._membership = membership
        self._interval = INTERVAL_SECONDS[mode]
        self._shows_logged_only = mode == "ahead"
        self._dirty: set[Run] = set()
        self._in_flight: set[Run] = set()
        self._behind_since: float | None = None
        self._loop = asyncio.get_running_loop()
        self._something_to_do = asyncio.Event()
        self._flushed = asyncio.Condition()

    @property
    def may_show_unlogged(self) -> bool:
        """Whether watchers may see what isn't in the log: where that is the mode, and while the log keeps up."""
        if self._shows_logged_only:
            return False
        since = self._behind_since
        return since is None or self._loop.time() - since < FURTHEST_BEHIND_SECONDS

    def add(self, run: Run) -> None:
        """A run has said something that isn't in the log."""
        self._dirty.add(run)
        if self._behind_since is None:
            self._behind_since = self._loop.time()
        self._something_to_do.set()

    async def release(self, run: Run) -> None:
        """Leave a run alone from now on: what it says is written by its end."""
        self._dirty.discard(run)
        async with self._flushed:
            await self._flushed.wait_for(lambda: run not in self._in_flight)
        self._dirty.discard(run)

    async def _write_for_ever(self) -> None:
        while True:
            await self._something_to_do.wait()
            self._something_to_do.clear()
            began = self._loop.time()
            try:
                await self._flush()
            except DatabaseError as error:
                log.warning("the log can't be written for now: %s", error.code)
                await asyncio.sleep(_PAUSE_AFTER_FAILURE)
            await asyncio.sleep(max(0.0, began + self._interval - self._loop.time()))

    async def _flush(self) -> None:
        began = self._loop.time()
        pieces = self._take()
        is_all = not self._dirty
        try:
            await self._append(pieces)
            if is_all:
                # What is unlogged now was said after that began.
                self._behind_since = began if self._dirty else None
        except BaseException:
            for run in self._in_flight:
                run.was_not_logged()
            raise
        finally:
            self._in_flight = set()
            async with self._flushed:
                self._flushed.notify_all()

    def _take(self) -> list[tuple[Lease, Piece]]:
        """What the runs have said since the last flush. Where that is much, some are left for the next one."""
        dirty, self._dirty, self._in_flight = self._dirty, set(), set()
        pieces: list[tuple[Lease, Piece]] = []
        left = LARGEST_FLUSH_BYTES
        for run in dirty:
            if left <= 0:
                self._dirty.add(run)
                continue
            self._in_flight.add(run)
            taken = run.take_unlogged(left)
            left -= sum(len(piece.events) for piece in taken)
            pieces += ((run.lease, piece) for piece in taken)
        if self._dirty:
            self._something_to_do.set()
        return pieces

    async def _append(self, pieces: list[tuple[Lease, Piece]]) -> None:
        if not pieces:
            return
        held = await self._store.append(self._membership.server_id, pieces)
        last = {lease.run_id: piece.last for lease, piece in pieces}
        for run in self._in_flight:
            if run.id not in held:
                run.lose()
            elif run.id in last:
                run.was_logged(last[run.id])
