"""A streaming call that outlasts its connection: where a server breaks off, it goes on at whichever one is there."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import grpc
from chatkit_grpc.errors import DETAILS_KEY, from_rpc_error
from chatkit_grpc.services import Metadata
from chatkit_grpc.v1.run_pb2 import RUN_STATE_FAILED, RUN_STATE_UNSPECIFIED, EventBatch
from chatkit_grpc.v1.run_service_pb2 import ResumeRunRequest
from google.protobuf.message import Message

from bridge.backend import METHODS, Backend, Method, StreamCall
from bridge.settings import Settings

_START_SECONDS = 2.0
"""How long a call is tried that has brought nothing yet: whoever made it sees nothing in that time."""
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 1.0
_RESUME = METHODS[ResumeRunRequest.DESCRIPTOR.full_name]

log = logging.getLogger(__name__)


class CallEnded(Exception):  # noqa: N818 # no error: it was asked for
    """The call was ended from this side, by end()."""


class LastingCall:
    """Brings the batches of a run, each once and in order, over as many calls as that takes.

    A call that breaks before its first batch is made again as it was, which is safe since it carries a request_id or
    changes nothing. Later the run is resumed after the last batch.
    """

    def __init__(
        self, backend: Backend, method: Method, parameters: Message, metadata: Metadata, settings: Settings
    ) -> None:
        self._backend = backend
        self._method = method
        self._parameters = parameters
        self._metadata = metadata
        self._resume_seconds = settings.resume_seconds
        self._deadline = asyncio.get_running_loop().time() + settings.stream_timeout_seconds
        self._last: EventBatch | None = None
        self._backoff: _Backoff | None = None
        self._is_ended = asyncio.Event()
        self._call = self._begin()

    async def read(self) -> EventBatch | None:
        """Wait for the next batch; None is the end. Raises ChatKitError, and CallEnded after end()."""
        while True:
            try:
                response: Any = await self._call.read()
            except grpc.aio.AioRpcError as error:
                if self._is_complete():
                    return None
                await self._wait_to_go_on(error)
                self._call = self._begin()
            except asyncio.CancelledError:
                # Reading a call that was cancelled on this side raises this as well, but then nobody cancels this task.
                if _is_being_cancelled():
                    raise
                raise CallEnded from None
            else:
                if response is grpc.aio.EOF:
                    return None
                self._last = response.batch
                if self._last.events:
                    self._backoff = None
                return self._last

    def end(self) -> None:
        """End the call, if it hasn't ended yet."""
        self._is_ended.set()
        self._call.cancel()

    def _begin(self) -> StreamCall:
        seconds = max(0.0, self._deadline - asyncio.get_running_loop().time())
        if self._last is None:
            return self._backend.stream(self._method.path, self._parameters, self._metadata, seconds)
        after = self._last.first_sequence + len(self._last.events) - 1
        request = ResumeRunRequest(run_id=self._last.run_id, after_sequence=after)
        return self._backend.stream(_RESUME.path, request, self._metadata, seconds)

    def _is_complete(self) -> bool:
        """Whether nothing is missing but the status; that of a run that failed is still to come."""
        return self._last is not None and self._last.state not in {RUN_STATE_UNSPECIFIED, RUN_STATE_FAILED}

    async def _wait_to_go_on(self, error: grpc.aio.AioRpcError) -> None:
        """Raises ChatKitError where it is no use to go on, or has been for too long."""
        failure = from_rpc_error(error)
        # What a run failed with may have this status too; then a server says so, and it is no connection that broke.
        has_failed = self._last is not None and self._last.state == RUN_STATE_FAILED
        is_told = any(key == DETAILS_KEY for key, _ in error.trailing_metadata())
        if failure.grpc_status is not grpc.StatusCode.UNAVAILABLE or (has_failed and is_told):
            raise failure from None
        if self._backoff is None:
            self._backoff = _Backoff(_START_SECONDS if self._last is None else self._resume_seconds)
            log.info("the server broke off: %s", failure.code)
        delay = self._backoff.next(at_least=failure.retry_after or 0.0)
        if delay is None:
            raise await self._backend.explain(failure, self._metadata) from None
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._is_ended.wait()
        if self._is_ended.is_set():
            raise CallEnded


class _Backoff:
    """Waits between attempts, longer each time, and not longer in all than some seconds."""

    def __init__(self, seconds: float) -> None:
        self._until = asyncio.get_running_loop().time() + seconds
        self._delay = _FIRST_DELAY

    def next(self, at_least: float) -> float | None:
        """Seconds until the next attempt; None where there should be no other.

        at_least: how long the server wants to be left alone.
        """
        left = self._until - asyncio.get_running_loop().time()
        if left <= at_least:
            return None
        delay = min(max(self._delay, at_least), left)
        self._delay = min(self._delay * 2, _LONGEST_DELAY)
        return delay


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
