"""All runs of this server: what they share, and how each ends with all that it said kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from chatkit.types import ErrorEvent, ThreadItemDoneEvent
from chatkit_grpc.errors import DatabaseError, NotFoundError, UnavailableError
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.run_pb2 import RunState

from server import sdk
from server.context import RequestContext
from server.database import Database
from server.failures import describe
from server.lease import Lease, LeaseLostError
from server.pacing import Pacer
from server.runs.log_writer import LogWriter
from server.runs.membership import Membership
from server.runs.partial_answer import INTERRUPTED, interruption_marker, kept_item, pending_items
from server.runs.pending_items import item_id
from server.runs.recovery import Recovery
from server.runs.run import PATIENCE_SECONDS, Run
from server.runs.store import LogPage, Piece, RunKey, RunStore, ThreadKey
from server.runs.tail import Tail
from server.runs.wakeups import Wakeups
from server.settings import Settings
from server.store import PostgresStore

TAIL_SECONDS = 0.25
"""With the log's ten statements a second, two for threads and those of the clock, these stay under twenty a second."""
_BEHIND_ALL_EVENTS = (1 << 63) - 1
"""Where a log has no news but its end."""
_RETRY_SECONDS = 0.5
_ATTEMPTS = 5
"""How often the end of a run is tried that the database refuses. After that it is ended from its log."""
_LAST_WORDS_SECONDS = 0.5
"""How long the assistants of lost runs may take to end when the server goes down."""
_FINISH_SECONDS = 10.0
"""How long a run that was stopped may take to store what it said when the server goes down."""

T = TypeVar("T")
log = logging.getLogger(__name__)


class Runs:
    """All runs that are made here. Leave the context to stop them and to wait until what they said is stored.

    reserved: the database over connections that nobody else uses, for heartbeat and log.
    """

    def __init__(self, database: Database, reserved: Database, store: PostgresStore, settings: Settings) -> None:
        self.run_store = RunStore(database)
        self.recovery = Recovery(database)
        self.wakeups = Wakeups(database, self._look_for_cancels)
        self.membership = Membership(
            reserved,
            settings.lease_seconds,
            on_cancel=self._cancel_all,
            on_death=self._lose_all,
            on_orphans=self._end_orphans,
        )
        self.tail: Tail[RunKey, LogPage] = Tail(
            "run tail", self.run_store.read, lambda page: page.has_news, self.wakeups, interval=TAIL_SECONDS
        )
        self.log = LogWriter(RunStore(reserved), self.membership, settings.run_log)
        self.pacer = Pacer()
        self._draining = asyncio.Event()
        self.left_behind = 0
        self._store = store
        self._grace = settings.run_grace_seconds
        self._runs: dict[str, Run] = {}
        self._by_thread: dict[ThreadKey, Run] = {}
        self._unwatched: set[Run] = set()
        self._unknown: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._abandoned: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.wakeups)
            await stack.enter_async_context(self.membership)
            await stack.enter_async_context(self.log)
            await stack.enter_async_context(self.tail)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.drain(0)
        if self._abandoned:
            await asyncio.wait(self._abandoned, timeout=_LAST_WORDS_SECONDS)
        self.left_behind = len([task for task in self._abandoned if not task.done()]) + len(self._tasks)
        for task in tuple(self._tasks):
            task.cancel()
        await self._stack.aclose()

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def is_draining(self) -> bool:
        """Whether no more runs are started."""
        return self._draining.is_set()

    async def drain(self, grace: float) -> None:
        """Start no more runs, let those under way finish for a while, then stop them with what they said kept."""
        self._draining.set()
        # Those who wait for the runs of others can do that elsewhere.
        self.tail.fail(going_down())
        if self._tasks and grace:
            await asyncio.wait(self._tasks, timeout=grace)
        for run in tuple(self._runs.values()):
            run.cancel(RunState.RUN_STATE_INTERRUPTED)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PATIENCE_SECONDS + _FINISH_SECONDS)

    def get(self, key: RunKey) -> Run | None:
        """The run with a key, where it is made here."""
        run = self._runs.get(key.run_id)
        return run if run is not None and run.lease.user_id == key.user_id else None

    def active_on(self, thread: ThreadKey) -> Run | None:
        """The run that is active on a thread, where it is made here."""
        return self._by_thread.get(thread)

    def begin(self, lease: Lease, context: RequestContext, events: sdk.EventStream) -> Run:
        """Begin a run that has its lease."""
        lease.give_to(context)
        run = Run(lease, context, events, self.pacer, self.log.add)
        self._runs[run.id] = run
        self._by_thread[ThreadKey(lease.user_id, lease.thread_id)] = run
        self.own(self._supervise(run), f"supervisor of {run.id}")
        return run

    def own(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Do something in a task that ends before this server does."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever awaits it gets it; of a start, the caller may have left

    def left(self, run: Run) -> None:
        """The last watcher of a run has left: it goes on for the grace, in which others may come."""
        run.last_watched = asyncio.get_running_loop().time()
        if self._grace < 0 or run.is_watched or run.is_over.done() or run in self._unwatched:
            return
        self._unwatched.add(run)
        self.own(self._stop_unwatched(run), f"grace of {run.id}")

    async def stop(self, key: RunKey) -> None:
        """Stop a run, wherever it is made, and wait until it has ended."""
        if run := self.get(key):
            run.cancel()
        else:
            await self.run_store.request_cancel(key)
        await self.wait_for_end(key)

    async def wait_for_end(self, key: RunKey) -> None:
        """Wait until a run has ended, wherever it is made. Its server sees to that, or others do once it is dead.

        Raises UnavailableError when this server goes down meanwhile.
        """
        if run := self.get(key):
            await run.has_ended.wait()
            return
        await self.tail.next_page(key, _BEHIND_ALL_EVENTS)

    async def unless_draining(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something that may take long. Raises UnavailableError when the server goes down meanwhile."""
        working, draining = asyncio.ensure_future(work), asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({working, draining}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise going_down()
            return working.result()
        finally:
            working.cancel()
            draining.cancel()
            await asyncio.wait({working, draining})

    async def _supervise(self, run: Run) -> None:
        """See a run through, from its first event until it has given its lease back."""
        await run.is_over
        if not run.task.done():
            self._abandoned.add(run.task)
            run.task.add_done_callback(self._abandoned.discard)
        try:
            if not run.has_ended.is_set():
                await self._until_stored(run, self._settle)
                await self.log.release(run)
                await self._until_stored(run, self._end)
        except LeaseLostError:
            run.lose()
        except Exception as error:  # noqa: BLE001 # the watchers must not wait for ever
            log.error("%s can't be ended: %s", run.id, describe(error))  # noqa: TRY400 # may quote what was said
            run.lose()
        finally:
            self._forget(run)

    def _forget(self, run: Run) -> None:
        self._runs.pop(run.id, None)
        thread = ThreadKey(run.lease.user_id, run.lease.thread_id)
        if self._by_thread.get(thread) is run:
            del self._by_thread[thread]

    async def _until_stored(self, run: Run, store: Callable[[Run], Awaitable[None]]) -> None:
        """Do it until the database lets us, or the lease is lost."""
        attempts = 0
        while True:
            try:
                await store(run)
                return
            except DatabaseError as error:
                attempts += error.reason != reasons.ERROR_REASON_DATABASE_UNAVAILABLE
                if attempts == _ATTEMPTS:
                    raise
                log.warning("%s can't be stored for now: %s", run.id, error.code)
            await asyncio.sleep(_RETRY_SECONDS)
            if run.has_ended.is_set():
                raise LeaseLostError

    async def _settle(self, run: Run) -> None:
        """Keep what was begun and not finished, and tell the watchers that it is kept."""
        for message in pending_items(await self.all_said(run)) if run.pending else ():
            name = item_id(message)
            item = kept_item(message)
            if item is None or name not in run.pending:
                continue
            if name in run.lease.stored:
                item = await self._store.load_item(run.lease.thread_id, name, run.context)
            else:
                await self._store.add_thread_item(run.lease.thread_id, item, run.context)
            if run.is_cancelled:
                run.publish(
                    ThreadItemDoneEvent(item=item)
                )  # not behind an `error` of the core, which a page shows as the last there is
            run.pending.pop(name, None)
        run.pending.clear()
        if run.lacks_marker:
            marker = interruption_marker(run.lease.thread_id, run.id)
            await self._store.add_thread_item(run.lease.thread_id, marker, run.context)
        if run.outcome == RunState.RUN_STATE_INTERRUPTED:
            run.publish(ErrorEvent(code="custom", message=INTERRUPTED, allow_retry=True))

    async def all_shown(self, run: Run) -> Sequence[Piece]:
        """All that watchers of a run may see so far. Pieces may overlap."""
        said = await self.all_said(run)
        if self.membership.is_sure and self.log.may_show_unlogged:
            return said
        return [piece for piece in said if piece.last <= run.logged]

    async def all_said(self, run: Run) -> Sequence[Piece]:
        """All that a run has said so far. Pieces may overlap."""
        said = run.said()
        if said is None:
            # In this order: what is written meanwhile is there twice, and not left out.
            tail = run.unlogged_tail()
            said = [*await self.run_store.read_whole(run.key), *tail]
        return said

    async def _end(self, run: Run) -> None:
        tail = run.unlogged_tail()
        context = run.context
        has_ended = await self.run_store.end(
            *(run.lease, run.outcome, run.sequence, run.error, tail), context.tokens_used, context.usage
        )
        # Either it had been done already and only the answer got lost, or the lease is lost.
        if not has_ended and await self._state_of(run.key) != run.outcome:
            raise LeaseLostError
        run.was_logged(run.sequence)
        run.end(run.outcome)

    async def _state_of(self, key: RunKey) -> RunState.ValueType:
        try:
            return (await self.run_store.find(key)).state
        except NotFoundError:
            return RunState.RUN_STATE_UNSPECIFIED

    async def _stop_unwatched(self, run: Run) -> None:
        """Stop a run once its grace has passed in which nobody watched it, here or elsewhere."""
        try:
            seconds = self._grace or await self._grace_left(run)
            while not (run.is_watched or run.is_over.done()):
                if seconds <= 0:
                    run.cancel()
                    return
                await asyncio.wait({run.is_over}, timeout=seconds)
                seconds = await self._grace_left(run)
        finally:
            self._unwatched.discard(run)

    async def _grace_left(self, run: Run) -> float:
        """Seconds for which a run may still go on by itself."""
        since = asyncio.get_running_loop().time() - run.last_watched
        try:
            elsewhere = await self.run_store.unwatched_for(run.key)
        except DatabaseError:
            return _RETRY_SECONDS  # somebody may watch elsewhere
        return self._grace - (since if elsewhere is None else min(since, elsewhere))

    def _look_for_cancels(self) -> None:
        if self._runs:
            self.membership.beat_now()

    def _cancel_all(self, run_ids: Sequence[str]) -> None:
        for run_id in run_ids:
            if run := self._runs.get(run_id):
                run.cancel()

    async def _end_orphans(self) -> None:
        """End the runs that nobody makes: those of dead servers, and those of this one that it doesn't know.

        A start may be written to the database and its answer be lost; an end may fail.
        """
        await self.recovery.end_orphans()
        known = self._runs.keys()
        self._unknown = await self.recovery.end_strays(self.membership.server_id, known, self._unknown)

    def _lose_all(self) -> None:
        for run in tuple(self._runs.values()):
            run.lose()


def going_down() -> UnavailableError:
    """What a call gets that would start something on a server that is about to stop."""
    return UnavailableError("The chat server is restarting.")
