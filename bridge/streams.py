"""The streams that are open now, so that each is ended, also by a bridge that goes down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import grpc
from chatkit_grpc.errors import UnavailableError, from_rpc_error

from bridge import sse
from bridge.backend import StreamCall


class Streams:
    """All streams of this process."""

    def __init__(self) -> None:
        self.is_going_down = False
        self._calls: set[StreamCall] = set()
        self._all_ended = asyncio.Event()
        self._all_ended.set()

    async def open(self, call: StreamCall) -> Stream:
        """Wait for a call's first batch. Raises ChatKitError where there is none. Whoever opens a stream ends it."""
        self._calls.add(call)
        self._all_ended.clear()
        try:
            return Stream(await call.read(), call, self)
        except BaseException as error:
            self.end(call)
            if isinstance(error, grpc.aio.AioRpcError):
                raise from_rpc_error(error) from None
            if isinstance(error, asyncio.CancelledError) and self.is_going_down and not _is_being_cancelled():
                raise _going_down() from None
            raise

    def end(self, call: StreamCall) -> None:
        """End a call, if it hasn't ended yet."""
        call.cancel()
        self._calls.discard(call)
        if not self._calls:
            self._all_ended.set()

    async def drain(self, grace: float) -> None:
        """Let streams end by themselves for `grace` seconds, then end them with an error that allows a retry."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._all_ended.wait()
        self.is_going_down = True
        for call in tuple(self._calls):
            call.cancel()

    def __len__(self) -> int:
        return len(self._calls)


class Stream:
    """One stream, from its first batch on."""

    def __init__(self, first: Any, call: StreamCall, streams: Streams) -> None:
        self._first = first
        self._call = call
        self._streams = streams
        self._is_ended = False

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The events as SSE frames, those of a batch together; a failure is the last of them."""
        response = self._first
        try:
            while response is not grpc.aio.EOF:
                yield sse.frames(response.batch)
                response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            yield sse.error_frame(from_rpc_error(error))
        except asyncio.CancelledError:
            # Reading a call that was cancelled here raises this as well, but then nobody cancels this task.
            if _is_being_cancelled():
                raise
            if not self._is_ended:
                yield sse.error_frame(_going_down())

    def end(self) -> None:
        """End the call, and so the run that nobody watches any more."""
        self._is_ended = True
        self._streams.end(self._call)


def _going_down() -> UnavailableError:
    return UnavailableError("The chat server is restarting.")


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
