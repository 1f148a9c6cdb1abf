"""The streams that are open now, so that each is ended, also by a bridge that goes down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from chatkit_grpc.errors import ChatKitError, UnavailableError
from chatkit_grpc.v1.run_pb2 import EventBatch

from bridge import sse
from bridge.lasting_call import CallEnded, LastingCall


class Streams:
    """All streams of this process."""

    def __init__(self) -> None:
        self._calls: set[LastingCall] = set()
        self._all_ended = asyncio.Event()
        self._all_ended.set()

    async def open(self, call: LastingCall) -> Stream:
        """Wait for a call's first batch. Raises ChatKitError where there is none. Whoever opens a stream ends it."""
        self._calls.add(call)
        self._all_ended.clear()
        try:
            return Stream(await call.read(), call, self)
        except CallEnded:
            self.end(call)
            raise _going_down() from None
        except BaseException:
            self.end(call)
            raise

    def end(self, call: LastingCall) -> None:
        """End a call, if it hasn't ended yet."""
        call.end()
        self._calls.discard(call)
        if not self._calls:
            self._all_ended.set()

    async def drain(self, grace: float) -> None:
        """Let streams end by themselves for `grace` seconds, then end them with an error that allows a retry."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._all_ended.wait()
        for call in tuple(self._calls):
            call.end()

    def __len__(self) -> int:
        return len(self._calls)


class Stream:
    """One stream, from its first batch on."""

    def __init__(self, first: EventBatch | None, call: LastingCall, streams: Streams) -> None:
        self._first = first
        self._call = call
        self._streams = streams
        self._is_ended = False

    @property
    def run_id(self) -> str:
        """The run that is watched; empty where nothing came of it."""
        return "" if self._first is None else self._first.run_id

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The events as SSE frames, those of a batch together; a failure is the last of them."""
        batch = self._first
        try:
            while batch is not None:
                if frames := sse.frames(batch):
                    yield frames
                batch = await self._call.read()
        except ChatKitError as error:
            yield sse.error_frame(error)
        except CallEnded:
            if not self._is_ended:
                yield sse.error_frame(_going_down())

    def end(self) -> None:
        """End the call: one watcher less for its run."""
        self._is_ended = True
        self._streams.end(self._call)


def _going_down() -> UnavailableError:
    return UnavailableError("The chat server is restarting.")
