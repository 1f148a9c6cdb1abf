"""Until when a call may last whose caller has set no deadline, or a very late one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
from chatkit_grpc.errors import ChatKitError, UnavailableError
from chatkit_grpc.v1 import error_reason_pb2 as reasons

_CLOSE_ENOUGH_SECONDS = 1.0
"""A caller's deadline that is at most so much later than ours counts: what it takes to watch the time is saved."""

T = TypeVar("T")


def seconds_for(call: grpc.aio.ServicerContext[Any, Any], most: float) -> float | None:
    """How long a call may take, where its caller doesn't see to that himself.

    A caller who forgot it, and went away, is not served for ever.
    """
    left: float | None = call.time_remaining()
    return None if left is not None and left <= most + _CLOSE_ENOUGH_SECONDS else most


def out_of_time(seconds: float | None) -> ChatKitError:
    """What the caller is told then."""
    return UnavailableError(
        f"The call took longer than {seconds:g} s, which is the longest here.",
        reason=reasons.ERROR_REASON_DEADLINE_EXCEEDED,
    )


async def within(work: Awaitable[T], seconds: float | None, error: Callable[[], ChatKitError]) -> T:
    """The result of work that may take so long; then raises an error."""
    timeout = asyncio.timeout(seconds)
    try:
        async with timeout:
            return await work
    except TimeoutError:
        if timeout.expired():
            raise error() from None
        raise


async def until(
    responses: AsyncGenerator[T, None], seconds: float | None, error: Callable[[], ChatKitError]
) -> AsyncGenerator[T, None]:
    """What is yielded within a time; then raises an error.

    Only the wait for the next one is cut short. A cancel while gRPC waits for a slow reader would land in gRPC's own
    code, which then never ends the call.
    """
    end = asyncio.get_running_loop().time() + (seconds or 0.0)
    async with aclosing(responses):
        if seconds is None:
            async for response in responses:
                yield response
            return
        while True:
            left = end - asyncio.get_running_loop().time()
            try:
                response = await within(anext(responses), max(left, 0.0), error)
            except StopAsyncIteration:
                return
            yield response
