"""The streams that are open now, so that a bridge which goes down can end each of them with a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import grpc
from chatkit_grpc.errors import UnavailableError, from_rpc_error

from bridge import sse
from bridge.backend import StreamCall

_GOING_DOWN = UnavailableError("The chat server is restarting.")


class Streams:
    """All streams of this process."""

    def __init__(self) -> None:
        self._calls: set[StreamCall] = set()
        self._is_going_down = False
        self._all_ended = asyncio.Event()
        self._all_ended.set()

    async def open(self, call: StreamCall) -> AsyncGenerator[bytes, None]:
        """Wait for the first batch, then hand out all of them as SSE frames. Raises ChatKitError before the first.

        Closing what this returns ends the call.
        """
        try:
            first = await call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except BaseException:
            call.cancel()
            raise
        return self._frames(first, call)

    async def _frames(self, response: Any, call: StreamCall) -> AsyncGenerator[bytes, None]:
        self._calls.add(call)
        self._all_ended.clear()
        try:
            while response is not grpc.aio.EOF:
                yield sse.frames(response.batch)
                response = await call.read()
        except grpc.aio.AioRpcError as error:
            yield sse.error_frame(from_rpc_error(error))
        except asyncio.CancelledError:
            if not self._is_going_down:
                raise
            yield sse.error_frame(_GOING_DOWN)
        finally:
            call.cancel()
            self._calls.discard(call)
            if not self._calls:
                self._all_ended.set()

    async def drain(self, grace: float) -> None:
        """Let streams end by themselves for `grace` seconds, then end them with an error that allows a retry."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._all_ended.wait()
        self._is_going_down = True
        for call in tuple(self._calls):
            call.cancel()

    def __len__(self) -> int:
        return len(self._calls)
