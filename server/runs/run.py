"""A run: one answer, made in a task of its own, numbered event by event, and watched by whoever wants to.

The task is what makes a cancel clean: the SDK keeps a half-written answer only where a cancel lands inside its own
awaits, and its cleanup can await the database only where nobody cancels it again. Neither holds in a request's task.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Callable
from contextlib import aclosing

from chatkit.types import (
    StreamOptionsEvent,
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemRemovedEvent,
    ThreadItemReplacedEvent,
    ThreadItemUpdatedEvent,
)
from chatkit.types import ThreadStreamEvent as SDKEvent
from chatkit_grpc.errors import ChatKitError
from chatkit_grpc.v1.event_pb2 import ErrorEvent, ThreadStreamEvent
from chatkit_grpc.v1.run_pb2 import EventBatch, RunState

from server import sdk
from server.context import RequestContext
from server.failures import describe, translate
from server.lease import Lease, LeaseLostError
from server.pacing import Pacer
from server.runs.store import Piece, RunKey

PATIENCE_SECONDS = 5.0
"""How long a run may take to stop. One that takes longer is left behind, and its lease is gone."""
KEPT_BYTES = 256 * 1024
"""How much of what it said a run keeps in memory once the log has it."""

_LARGEST_BATCH = 512
_LARGEST_BATCH_BYTES = 256 * 1024
"""What a batch may hold, so that a slow reader is never sent more at once than a gRPC client takes."""
_UNSENDABLE = ThreadStreamEvent(
    error=ErrorEvent(code="custom", message="A part of the answer can't be shown.", allow_retry=False)
)
"""Stands for an event that no message can hold, such as JSON nested without end."""

log = logging.getLogger(__name__)


class Run:
    """One answer being made.

    sequence: the number of its last event. logged: of the last one that is in the log.
    state: how it ended; RUNNING until then. error: why it failed, once it has.
    pending: the ids of the items that it has begun and not finished.
    is_cancelled: whether somebody wants it stopped. is_lost: whether its lease is gone, so that nothing more is kept.
    """

    def __init__(
        self,
        lease: Lease,
        context: RequestContext,
        events: sdk.EventStream,
        pacer: Pacer,
        on_unlogged: Callable[[Run], None],
    ) -> None:
        self.lease = lease
        self.context = context
        self.sequence = 0
        self.logged = 0
        self.state: RunState.ValueType = RunState.RUN_STATE_RUNNING
        self.error: ChatKitError | None = None
        self.pending: dict[str, None] = {}
        self.is_cancelled = False
        self.is_lost = False
        self._is_closed = False
        self._state_if_cancelled: RunState.ValueType = RunState.RUN_STATE_CANCELLED
        self._pacer = pacer
        self._on_unlogged = on_unlogged
        self._is_dirty = False
        self._may_be_cancelled = False
        self._batches: list[Piece] = []
        self._dropped = 0
        self._dropped_until = 0
        self._kept_bytes = 0
        self._taken = 0
        self._open = EventBatch()
        self._open_size = 0
        self._wakeups: set[asyncio.Event] = set()
        self._loop = asyncio.get_running_loop()
        self.last_watched = self._loop.time()
        """When the last watcher left, or somebody looked at what there is."""
        self.is_over: asyncio.Future[None] = self._loop.create_future()
        """Done once the assistant has ended, or is left behind."""
        self.has_ended = asyncio.Event()
        """Set once all is stored and the lease given back."""
        self.task = asyncio.create_task(self._make(events), name=lease.run_id)
        self.task.add_done_callback(self._assistant_ended)

    @property
    def id(self) -> str:
        """The run's id."""
        return self.lease.run_id

    @property
    def key(self) -> RunKey:
        """The key of the run's row."""
        return RunKey(self.lease.user_id, self.lease.run_id)

    def cancel(self, state: RunState.ValueType = RunState.RUN_STATE_CANCELLED) -> None:
        """Stop the run; what was said is kept. More than once is the same as once.

        state: what the run then is, CANCELLED or INTERRUPTED.
        """
        if self.is_cancelled or self.is_over.done():
            return
        # Only once: a second cancel would interrupt the core while it stores what was said.
        self.is_cancelled = True
        self._state_if_cancelled = state
        self._loop.call_later(PATIENCE_SECONDS, self._give_up)
        if self._may_be_cancelled:
            self.task.cancel()

    def publish(self, event: SDKEvent) -> None:
        """Say something. The hot path: all that can be left for later is."""
        events = self._open.events
        try:
            self._open_size += sdk.write_event(event, events.add())
        except Exception as error:  # noqa: BLE001 # whatever it is, the answer goes on without it
            log.warning("an event of %s can't be sent: %s", self.id, describe(error))
            events[-1].CopyFrom(_UNSENDABLE)
        self.sequence += 1
        if len(events) >= _LARGEST_BATCH or self._open_size >= _LARGEST_BATCH_BYTES:
            self.close_batch()
        if not self._is_dirty:
            self._is_dirty = True
            self._on_unlogged(self)
        for wakeup in self._wakeups:
            wakeup.set()

    def close_batch(self) -> None:
        """Make a batch of what was said since the last one."""
        if not self._open_size and not self._open.events:
            return
        events = self._open.SerializeToString()
        batch = Piece(self.sequence - len(self._open.events) + 1, self.sequence, events)
        self._batches.append(batch)
        self._kept_bytes += len(events)
        self._open = EventBatch()
        self._open_size = 0

    def take_unlogged(self, most: int) -> list[Piece]:
        """What isn't in the log yet and hasn't been taken: so many bytes of it, or a batch that is larger."""
        taken: list[Piece] = []
        self._is_dirty = False
        for batch in self._batches[self.index_after(self._taken) - self._dropped :]:
            if taken and most < len(batch.events):
                self._is_dirty = True
                self._on_unlogged(self)
                break
            most -= len(batch.events)
            taken.append(batch)
            self._taken = batch.last
        return _joined(taken)

    def was_not_logged(self) -> None:
        """What was taken last is to be taken again; some of it may be in the log all the same."""
        self._taken = self.logged
        self._is_dirty = True
        self._on_unlogged(self)

    def was_logged(self, last: int) -> None:
        """All up to an event is in the log now: what is far back needn't be kept here any longer."""
        self.logged = last
        count = 0
        for batch in self._batches:
            if self._kept_bytes <= KEPT_BYTES or batch.last > last:
                break
            self._kept_bytes -= len(batch.events)
            count += 1
        if count:
            self._dropped_until = self._batches[count - 1].last
            self._dropped += count
            del self._batches[:count]
        self.wake_watchers()

    def lose(self) -> None:
        """End without a word: the lease is lost, and nothing that is said now will be kept."""
        if self.has_ended.is_set():
            return
        self.is_lost = self._is_closed = True
        self.error = LeaseLostError()
        self.state = RunState.RUN_STATE_INTERRUPTED
        self.has_ended.set()
        self.is_cancelled = True
        self.task.cancel()
        self._leave()
        self.wake_watchers()

    def end(self, state: RunState.ValueType) -> None:
        """All is stored: let the watchers go."""
        if not self.has_ended.is_set():
            self.state = state
            self.has_ended.set()
            self.wake_watchers()

    @property
    def lacks_marker(self) -> bool:
        """Whether it was cancelled and the core couldn't tell the model so: it didn't come to that, or failed at it."""
        task = self.task
        return self.is_cancelled and not (task.done() and (task.cancelled() or task.exception() is None))

    @property
    def outcome(self) -> RunState.ValueType:
        """How the assistant has ended."""
        if self.is_cancelled:
            return self._state_if_cancelled
        return RunState.RUN_STATE_COMPLETED if self.error is None else RunState.RUN_STATE_FAILED

    def said(self) -> list[Piece] | None:
        """All that was said, or None where some of it is in the log only."""
        self.close_batch()
        return None if self._dropped else list(self._batches)

    def unlogged_tail(self) -> list[Piece]:
        """What was said after the last event that is in the log."""
        return _joined(self._batches[self.index_after(self.logged) - self._dropped :])

    def index_after(self, sequence: int) -> int:
        """The index of the first batch that has something after an event; batches are counted from the run's start.

        -1 where that one is no longer in memory.
        """
        self.close_batch()
        if sequence < self._dropped_until:
            return -1
        return self._dropped + bisect_right(self._batches, sequence, key=lambda batch: batch.last)

    def batch_at(self, index: int) -> Piece | None:
        """The batch with an index, made of what is said so far where it is the next. None where nothing is said yet.

        Raises LookupError where it is no longer in memory.
        """
        at = index - self._dropped
        if at < 0:
            raise LookupError(index)
        if at == len(self._batches):
            self.close_batch()
        return self._batches[at] if at < len(self._batches) else None

    def watch(self, wakeup: asyncio.Event) -> None:
        """Set an event whenever there is something new, until `unwatch`."""
        self._wakeups.add(wakeup)

    def unwatch(self, wakeup: asyncio.Event) -> None:
        """Undo `watch`."""
        self._wakeups.discard(wakeup)

    def wake_watchers(self) -> None:
        """Let all watchers look again."""
        for wakeup in self._wakeups:
            wakeup.set()

    @property
    def is_watched(self) -> bool:
        """Whether anybody watches it here."""
        return bool(self._wakeups)

    async def _make(self, events: sdk.EventStream) -> None:
        # Nothing is awaited here but the core itself: a cancel that landed elsewhere would go past it.
        async with aclosing(events):
            async for event in events:
                if self._is_closed:
                    return
                if type(event) is not ThreadItemUpdatedEvent:
                    self._note(event)
                self.publish(event)
                self._pacer.events += 1

    def _note(self, event: SDKEvent) -> None:
        match event:
            case StreamOptionsEvent():
                # From here on the core keeps what was said when it is cancelled; before, it would lose the user's
                # message. The cancel lands in the first await of the assistant.
                self._may_be_cancelled = True
                if self.is_cancelled:
                    self.task.cancel()
            case ThreadItemAddedEvent():
                self.pending[event.item.id] = None
            case ThreadItemDoneEvent() | ThreadItemReplacedEvent():
                self.pending.pop(event.item.id, None)
            case ThreadItemRemovedEvent():
                self.pending.pop(event.item_id, None)

    def _assistant_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._failed(error)
        self._leave()

    def _failed(self, error: Exception) -> None:
        if self.has_ended.is_set() or self.is_over.done():
            log.info("what was left of %s ended with %s", self.id, type(error).__name__)
        elif not self.is_cancelled or isinstance(error, LeaseLostError):
            self.error = translate(error)
        else:
            log.warning("%s failed while it was being stopped: %s", self.id, describe(error))

    def _give_up(self) -> None:
        if not self.is_over.done():
            log.error("%s did not stop within %g s and is left behind", self.id, PATIENCE_SECONDS)
            self._is_closed = True
            self._leave()
            self.task.cancel()

    def _leave(self) -> None:
        """Wait for the assistant no longer."""
        if not self.is_over.done():
            self.is_over.set_result(None)


def _joined(batches: list[Piece]) -> list[Piece]:
    """Neighbouring batches as one piece, as far as it stays small: a concatenation of protobuf is one message."""
    pieces: list[Piece] = []
    parts: list[Piece] = []
    size = 0
    for batch in batches:
        if parts and size + len(batch.events) > _LARGEST_BATCH_BYTES:
            pieces.append(_as_one(parts))
            parts, size = [], 0
        parts.append(batch)
        size += len(batch.events)
    if parts:
        pieces.append(_as_one(parts))
    return pieces


def _as_one(parts: list[Piece]) -> Piece:
    if len(parts) == 1:
        return parts[0]
    return Piece(parts[0].first, parts[-1].last, b"".join(part.events for part in parts))
