"""What a server does all the time beside its calls, each in a task that has an owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from server.failures import describe

_PAUSE_AFTER_FAILURE = 0.5

log = logging.getLogger(__name__)


class Worker:
    """Works in a task of its own while its context is open, and begins anew after a failure that nobody foresaw.

    work: has no end; what it waits for when the context is left is cancelled.
    """

    def __init__(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._name = name
        self._work = work
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._work_for_ever(), name=self._name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _work_for_ever(self) -> None:
        while True:
            try:
                await self._work()
            except Exception as error:  # noqa: BLE001 # whatever it is, the others rely on this going on
                log.error("%s failed: %s", self._name, describe(error))  # noqa: TRY400 # its words may quote a row
            await asyncio.sleep(_PAUSE_AFTER_FAILURE)
