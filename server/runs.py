"""Runs: one answer each, made in a task of its own and watched by the calls that asked for it.

The task is what makes a cancel clean: the SDK keeps a half-written answer only where a cancel lands inside its own
awaits, and its cleanup can await the database only where nobody cancels it again. Neither holds in a request's task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Self

from chatkit.types import ThreadStreamEvent as SDKEvent
from chatkit_grpc.errors import ChatKitError, UnavailableError
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.chat_service_pb2 import CreateThreadResponse
from chatkit_grpc.v1.event_pb2 import ErrorEvent, ThreadStreamEvent
from chatkit_grpc.v1.run_pb2 import EventBatch

from server import sdk
from server.failures import describe, translate
from server.ids import new_id
from server.pacing import Pacer

_LARGEST_BATCH = 512
_LARGEST_BATCH_BYTES = 256 * 1024
"""What a batch may hold, so that a slow reader is never sent more at once than a gRPC client takes."""
_UNSENDABLE = ThreadStreamEvent(
    error=ErrorEvent(code="custom", message="A part of the answer can't be shown.", allow_retry=False)
)
"""Stands for an event that no message can hold, such as JSON nested without end."""

log = logging.getLogger(__name__)


class Run:
    """One answer being made. `error` is why it failed, once it has."""

    def __init__(self, events: sdk.EventStream, pacer: Pacer) -> None:
        self.id = new_id("run")
        self.error: ChatKitError | None = None
        self._pacer = pacer
        self._responses: list[bytes] = []
        self._sequence = 0
        self._open = self._new_response()
        self._size = 0
        self._wakeups: set[asyncio.Event] = set()
        self._is_finished = False
        self._is_cancelled = False
        self.task = asyncio.create_task(self._make(events), name=self.id)
        self.task.add_done_callback(self._finish)

    async def watch(self) -> AsyncGenerator[bytes, None]:
        """All batches from the first on, each in a serialised streaming response, until the run ends.

        Raises what the run failed with, after the last batch. When the last watcher leaves, the run is stopped.
        """
        wakeup = asyncio.Event()
        self._wakeups.add(wakeup)
        seen = 0
        try:
            while True:
                wakeup.clear()
                if seen == len(self._responses):
                    self._close_batch()
                if seen < len(self._responses):
                    yield self._responses[seen]
                    seen += 1
                    if not self._is_finished:
                        await self._pacer.pause()
                elif self._is_finished:
                    break
                else:
                    await wakeup.wait()
            if self.error is not None:
                raise self.error
        finally:
            self._wakeups.discard(wakeup)
            if not self._wakeups:
                self.cancel()

    def cancel(self) -> None:
        """Stop the run; what was said is kept. More than once is the same as once."""
        if self._is_cancelled or self._is_finished:
            return
        # Only once: a second cancel would interrupt the core while it stores what was said.
        self._is_cancelled = True
        self.task.cancel()

    async def _make(self, events: sdk.EventStream) -> None:
        # Nothing is awaited here but the core itself: a cancel that landed elsewhere would go past it.
        async with aclosing(events):
            async for event in events:
                self._add(event)
                self._pacer.events += 1
                for wakeup in self._wakeups:
                    wakeup.set()

    def _add(self, event: SDKEvent) -> None:
        events = self._open.batch.events
        try:
            self._size += sdk.write_event(event, events.add())
        except Exception as error:  # noqa: BLE001 # whatever it is, the answer goes on without it
            log.warning("an event of %s can't be sent: %s", self.id, describe(error))
            events[-1].CopyFrom(_UNSENDABLE)
        self._sequence += 1
        if len(events) >= _LARGEST_BATCH or self._size >= _LARGEST_BATCH_BYTES:
            self._close_batch()

    def _new_response(self) -> CreateThreadResponse:
        # The responses of all streaming calls are the same on the wire (a test says so): one stands for all.
        return CreateThreadResponse(batch=EventBatch(run_id=self.id, first_sequence=self._sequence + 1))

    def _close_batch(self) -> None:
        if self._open.batch.events:
            self._responses.append(self._open.SerializeToString())
            self._open = self._new_response()
            self._size = 0

    def _finish(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self.error = UnavailableError("The answer was stopped.", reason=reasons.ERROR_REASON_CANCELLED)
        elif isinstance(error := task.exception(), Exception):
            self.error = translate(error)
        self._is_finished = True
        for wakeup in self._wakeups:
            wakeup.set()


class Runs:
    """All runs of this process. Leave the context to stop them and to wait until what they said is stored.

    patience: seconds after which a run that doesn't stop is left behind.
    """

    def __init__(self, patience: float) -> None:
        self.left_behind = 0
        self._patience = patience
        self._pacer = Pacer()
        self._runs: set[Run] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        for run in tuple(self._runs):
            run.cancel()
        if self._runs:
            _, late = await asyncio.wait([run.task for run in self._runs], timeout=self._patience)
            self.left_behind = len(late)

    def start(self, events: sdk.EventStream) -> Run:
        """Begin a run of the core's events."""
        run = Run(events, self._pacer)
        self._runs.add(run)
        run.task.add_done_callback(lambda _: self._runs.discard(run))
        return run

    def __len__(self) -> int:
        return len(self._runs)
