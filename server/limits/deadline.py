"""Until when a call may last that has no deadline of its own, and one that lasts as long as its token does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import grpc
from chatkit_grpc.errors import AuthenticationError, UnavailableError
from chatkit_grpc.v1 import error_reason_pb2 as reasons

from server.auth.tokens import LEEWAY_SECONDS
from server.context import Auth


class Deadline:
    """The deadline of a call whose caller has set none: a caller who forgot it, and went away, is not served for ever.

    seconds: from now on.
    """

    def __init__(self, call: grpc.aio.ServicerContext[Any, Any], seconds: float) -> None:
        self._seconds = seconds if call.time_remaining() is None else None
        self._timeout = asyncio.timeout(self._seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._timeout.__aexit__(kind, error, tb)

    def meant(self, error: Exception) -> Exception:
        """What an error means: where the time is up, that it is."""
        if not self._timeout.expired():
            return error
        return UnavailableError(
            f"The call took longer than {self._seconds:g} s; give it a deadline if it may take longer.",
            reason=reasons.ERROR_REASON_DEADLINE_EXCEEDED,
        )


@asynccontextmanager
async def token_holds(auth: Auth) -> AsyncIterator[None]:
    """As long as the caller's token counts, for what has no end of its own; then raises AuthenticationError."""
    expires = auth.claims.get("exp")
    seconds = None if expires is None else max(0.0, expires + LEEWAY_SECONDS - time.time())
    holding = asyncio.timeout(seconds)
    try:
        async with holding:
            yield
    except TimeoutError:
        if not holding.expired():
            raise
        raise AuthenticationError(
            "The token has expired; go on with a new one.", metadata={"cause": "expired"}
        ) from None
