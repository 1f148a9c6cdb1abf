"""Watching runs: from memory where the run is made here and the watcher keeps up, otherwise from the log.

Any number may watch, each with a position and nothing else, so that a slow one costs no memory and slows nobody.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from chatkit_grpc.errors import DatabaseError, NotFoundError
from chatkit_grpc.v1 import error_reason_pb2 as reasons

from server.lease import LeaseLostError
from server.runs.batches import Said, ending, nothing_new, parts_after
from server.runs.log_writer import FURTHEST_BEHIND_SECONDS
from server.runs.run import Run
from server.runs.runs import TAIL_SECONDS, Runs
from server.runs.store import LogPage, Piece, RunKey, run_not_found
from server.worker import Worker

PROMISE_SECONDS = 3.0
"""How long a promise to watch a foreign run holds."""
_RENEW_SECONDS = 1.0
SETTLED_SECONDS = FURTHEST_BEHIND_SECONDS + TAIL_SECONDS + 0.1
"""After how long whoever watches by the log has seen all that had been said when he came."""


class Watching(Worker):
    """Streams what runs say, wherever they are made."""

    def __init__(self, runs: Runs) -> None:
        super().__init__("promises to watch", self._promise_for_ever)
        self._runs = runs
        self._store = runs.run_store
        self._foreign: Counter[RunKey] = Counter()
        self._somebody_watches = asyncio.Event()

    def watch(self, key: RunKey, after: int, *, is_live: bool = False) -> AsyncGenerator[Said, None]:
        """What a run said after an event, and what it goes on to say, until it has ended.

        is_live: whether nothing of it counts as replayed, since the caller was there when it began. Nor does it for one
            who has all up to an event.
        Raises what the run failed with after its last event, NotFoundError without such a run, and EVENTS_EXPIRED where
        what was asked for is no longer kept.
        """
        is_live = is_live or after > 0
        run = self._runs.get(key)
        if run is None:
            return self._watch_log(key, after, is_live=is_live)
        return self.watch_run(run, after, 0 if is_live else run.sequence)

    async def watch_run(self, run: Run, after: int = 0, replayed_until: int = 0) -> AsyncGenerator[Said, None]:
        """Watch a run that is made here. No `client_effect` up to `replayed_until` is repeated."""
        wakeup = asyncio.Event()
        run.watch(wakeup)
        position, index = after, run.index_after(after)
        try:
            if after and after == run.sequence:
                yield nothing_new(run.id, after)  # the caller is to know that he watches, however long it is silent
            while not run.is_lost:
                wakeup.clear()
                pieces, index = await self._available(run, index, position)
                for piece in pieces:
                    for part in parts_after(piece, position, replayed_until):
                        yield Said(run.id, part)
                    position = max(position, piece.last)
                if run.has_ended.is_set():
                    if not pieces:
                        break
                elif pieces:
                    await self._runs.pacer.pause()
                else:
                    await wakeup.wait()
            for said in ending(run.id, run.sequence, run.state, run.error):
                yield said
        finally:
            run.unwatch(wakeup)
            self._runs.left(run)

    async def _available(self, run: Run, index: int, position: int) -> tuple[Sequence[Piece], int]:
        """What a watcher may see next, and the index of the batch that follows it."""
        if not self._runs.membership.is_sure:
            await self._runs.membership.made_sure()
        try:
            piece = run.batch_at(index)
        except LookupError:
            logged = await self._logged_after(run, position)
            return logged, run.index_after(logged[-1].last)
        if piece is None or run.is_lost or (piece.last > run.logged and not self._runs.log.may_show_unlogged):
            return (), index
        return (piece,), index + 1

    async def _logged_after(self, run: Run, position: int) -> list[Piece]:
        """A page of the log, for a watcher who is further behind than the run's memory goes."""
        page = (await self._store.read({run.key: position})).get(run.key)
        if page is None or not page.pieces:
            raise LeaseLostError
        return page.pieces

    async def _watch_log(self, key: RunKey, after: int, *, is_live: bool) -> AsyncGenerator[Said, None]:
        self._foreign[key] += 1
        self._somebody_watches.set()
        try:
            async for said in self._follow_log(key, after, is_live=is_live):
                yield said
        finally:
            self._foreign[key] -= 1
            if not self._foreign[key]:
                del self._foreign[key]

    async def _follow_log(self, key: RunKey, after: int, *, is_live: bool) -> AsyncGenerator[Said, None]:
        page = (await self._store.read({key: after})).get(key)
        if page is None:
            raise run_not_found(key.run_id)
        effects = _Effects(0 if is_live else await self._store.last_logged(key), is_live=is_live)
        position = after
        if after and not page.has_news:
            yield nothing_new(key.run_id, after)
        while True:
            for piece in page.pieces:
                if piece.first > position + 1:
                    raise events_expired(piece.first)
                for part in parts_after(piece, position, effects.replayed_until(piece)):
                    yield Said(key.run_id, part)
                position = max(position, piece.last)
            if page.end_sequence is not None and position >= page.end_sequence:
                break
            page = await self._next_page(key, position, page)
        for said in ending(key.run_id, page.end_sequence, page.state, page.error):
            yield said

    async def _next_page(self, key: RunKey, position: int, page: LogPage) -> LogPage:
        if page.end_sequence is not None and not page.pieces:
            raise events_expired(page.end_sequence + 1)
        if page.is_full:
            following = (await self._store.read({key: position})).get(key)
            if following is not None and following.has_news:
                return following
        following = await self._runs.tail.next_page(key, position)
        if following is None:
            raise run_not_found(key.run_id)
        return following

    async def _promise_for_ever(self) -> None:
        """Tell the servers of foreign runs that somebody watches here."""
        while True:
            await self._somebody_watches.wait()
            self._somebody_watches.clear()
            if not self._foreign:
                continue
            with suppress(DatabaseError):  # the next promise may get through
                await self._store.promise_to_watch(list(self._foreign), PROMISE_SECONDS)
            await asyncio.sleep(_RENEW_SECONDS)
            self._somebody_watches.set()


class _Effects:
    """Up to which event a `client_effect` counts as replayed, for a watcher of the log.

    What was said before he came may be logged a little later, and read later still.
    """

    def __init__(self, last_logged: int, *, is_live: bool) -> None:
        self._replayed_until = last_logged
        self._loop = asyncio.get_running_loop()
        self._until = 0.0 if is_live else self._loop.time() + SETTLED_SECONDS

    def replayed_until(self, piece: Piece) -> int:
        """The number of that event, now that a piece has come."""
        if self._loop.time() < self._until:
            self._replayed_until = piece.last
        return self._replayed_until


def events_expired(oldest_sequence: int | None = None) -> NotFoundError:
    """What was asked for is no longer kept. oldest_sequence: of a run, the number of the first event that is."""
    return NotFoundError(
        "What was asked for is no longer kept; read the thread instead.",
        reason=reasons.ERROR_REASON_EVENTS_EXPIRED,
        metadata={} if oldest_sequence is None else {"oldest_sequence": str(oldest_sequence)},
    )
