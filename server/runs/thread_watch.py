"""Watching a thread: runs that begin and end, what they say, and what else is changed, from any server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from chatkit_grpc.errors import ChatKitError, ValidationError
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.run_pb2 import EventBatch
from chatkit_grpc.v1.thread_service_pb2 import RunEnded, RunStarted, WatchThreadResponse

from server.runs.batches import Said
from server.runs.runs import Runs, going_down
from server.runs.store import Change, RunKey, RunStore, ThreadKey, ThreadPage
from server.runs.tail import Tail
from server.runs.watching import Watching, events_expired
from server.store import RecordNotFoundError

_TAIL_SECONDS = 0.5
_CURSOR = re.compile(r"(\d{1,18})(?:\.(\d{1,18})\.(\S{1,128}))?")


@dataclass(slots=True)
class Cursor:
    """How far a watcher of a thread is.

    position: of the last thing that he was told of. sequence: of the last event that he has of the active run.
    """

    position: int
    sequence: int = 0
    run_id: str | None = None

    def __str__(self) -> str:
        return f"{self.position}.{self.sequence}.{self.run_id}" if self.run_id else str(self.position)

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The cursor of an earlier response. Raises ValidationError."""
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise ValidationError.at("$.params.after", "expected the cursor of an earlier response")
        return cls(int(match[1]), int(match[2] or 0), match[3])


class ThreadWatch:
    """Streams what happens on threads."""

    def __init__(self, runs: Runs, watching: Watching) -> None:
        self._store: RunStore = runs.run_store
        self._watching = watching
        self._tail: Tail[ThreadKey, ThreadPage] = Tail(
            "thread tail",
            self._store.read_thread,
            lambda page: bool(page.changes),
            runs.wakeups,
            interval=_TAIL_SECONDS,
        )

    async def __aenter__(self) -> Self:
        await self._tail.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._tail.__aexit__(kind, error, tb)

    def dismiss(self) -> None:
        """Let all watchers go: this server goes down, and another one can serve them."""
        self._tail.fail(going_down())

    async def watch(self, thread: ThreadKey, after: str | None) -> AsyncGenerator[bytes, None]:
        """Everything that happens on a thread after a cursor, or from now on with what the active run has said.

        Raises NotFoundError once there is no such thread, ValidationError for what is no cursor of this thread,
        EVENTS_EXPIRED where what came after the cursor is no longer kept, and UnavailableError when the server goes
        down.
        """
        end = await self._store.thread_end(thread)
        if end is None:
            raise RecordNotFoundError.thread(thread.thread_id)
        cursor = Cursor.parse(after) if after else Cursor(end[0], 0, end[1])
        await self._check_kept(thread, cursor)
        watcher = _Watcher(thread, cursor, self._tail, self._watching)
        if not after and cursor.run_id:
            yield _response(cursor, run_started=RunStarted(run_id=cursor.run_id))
        try:
            async for response in watcher.responses():
                yield response
        finally:
            await watcher.close()

    async def _check_kept(self, thread: ThreadKey, cursor: Cursor) -> None:
        page = (await self._store.read_thread({thread: cursor.position})).get(thread)
        if page is None:
            raise RecordNotFoundError.thread(thread.thread_id)
        if page.end_position < cursor.position:
            raise ValidationError.at("$.params.after", "expected the cursor of an earlier response of this thread")
        if page.end_position > cursor.position and not page.changes:
            raise events_expired()


class _Watcher:
    """One who watches a thread: at any time he waits for a change, and for what the active run says next."""

    def __init__(
        self, thread: ThreadKey, cursor: Cursor, tail: Tail[ThreadKey, ThreadPage], watching: Watching
    ) -> None:
        self._thread = thread
        self._cursor = cursor
        self._tail = tail
        self._watching = watching
        self._run: AsyncGenerator[Said, None] | None = None
        self._next_change: asyncio.Future[ThreadPage | None] | None = None
        self._next_said: asyncio.Future[Said | None] | None = None
        if cursor.run_id:
            self._open_run(cursor.run_id, is_live=False)

    async def close(self) -> None:
        """Stop waiting."""
        waiting = [future for future in (self._next_change, self._next_said) if future is not None]
        for future in waiting:
            future.cancel()
        if waiting:
            await asyncio.wait(waiting)
        if self._run is not None:
            await self._run.aclose()

    async def responses(self) -> AsyncGenerator[bytes, None]:
        """What happens, as it happens."""
        while True:
            if self._next_change is None:
                self._next_change = asyncio.ensure_future(self._tail.next_page(self._thread, self._cursor.position))
            if self._next_said is None and self._run is not None:
                self._next_said = asyncio.ensure_future(self._say_next())
            waiting = {future for future in (self._next_change, self._next_said) if future is not None}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if self._next_said is not None and self._next_said.done():
                said, self._next_said = self._next_said.result(), None
                if said is not None:
                    yield self._told(said)
            if self._next_change.done():
                page, self._next_change = self._next_change.result(), None
                async for response in self._changes(page):
                    yield response

    async def _changes(self, page: ThreadPage | None) -> AsyncGenerator[bytes, None]:
        if page is None:
            raise RecordNotFoundError.thread(self._thread.thread_id)
        if page.changes and page.changes[0].position != self._cursor.position + 1:
            raise events_expired()
        for change in page.changes:
            if change.kind == "run_ended":
                async for response in self._rest_of_run():
                    yield response
            self._cursor.position = change.position
            if change.kind != "changed" or change.events:  # what is hidden changes nothing that a watcher sees
                yield self._changed(change)

    def _changed(self, change: Change) -> bytes:
        if change.kind == "run_started" and change.run_id:
            self._cursor.run_id, self._cursor.sequence = change.run_id, 0
            self._open_run(change.run_id, is_live=True)  # it began after his cursor: nothing of it was told before
            return _response(self._cursor, run_started=RunStarted(run_id=change.run_id))
        if change.kind == "run_ended" and change.run_id:
            self._cursor.run_id, self._cursor.sequence, self._run = None, 0, None
            return _response(self._cursor, run_ended=RunEnded(run_id=change.run_id, state=change.state))
        return _response(self._cursor, batch=EventBatch.FromString(change.events))

    async def _rest_of_run(self) -> AsyncGenerator[bytes, None]:
        """All that the run has said must have been told before its end is."""
        while self._run is not None:
            said = await (self._next_said or self._say_next())
            self._next_said = None
            if said is not None:
                yield self._told(said)

    def _open_run(self, run_id: str, *, is_live: bool) -> None:
        self._run = self._watching.watch(RunKey(self._thread.user_id, run_id), self._cursor.sequence, is_live=is_live)

    async def _say_next(self) -> Said | None:
        """What the active run says next. None where that is all, however it ended: the change tells how."""
        run = self._run
        if run is None:
            return None
        try:
            said = await anext(run, None)
        except ChatKitError as error:
            if error.reason in _ENDS_THE_WATCH:
                raise
            said = None
        if said is None or said.state:
            self._run = None
            with suppress(ChatKitError):
                await run.aclose()
            return None
        return said

    def _told(self, said: Said) -> bytes:
        self._cursor.sequence = said.piece.last
        return _response(self._cursor, batch=EventBatch.FromString(said.batch()))


_ENDS_THE_WATCH = frozenset(
    {
        reasons.ERROR_REASON_UNAVAILABLE,
        reasons.ERROR_REASON_EVENTS_EXPIRED,
        reasons.ERROR_REASON_DATABASE_UNAVAILABLE,
        reasons.ERROR_REASON_RUN_INTERRUPTED,
    }
)
"""What ends a watch of the thread, with the cursor to go on from, and not only the run."""


def _response(
    cursor: Cursor,
    *,
    run_started: RunStarted | None = None,
    batch: EventBatch | None = None,
    run_ended: RunEnded | None = None,
) -> bytes:
    return WatchThreadResponse(
        cursor=str(cursor), run_started=run_started, batch=batch, run_ended=run_ended
    ).SerializeToString()
