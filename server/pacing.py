"""How long an answer's next batch may wait: not at all, but when the process has more to send than it can send singly.

A token that is sent on its own costs several times what it costs in a batch. So under load a stream that has just
sent something waits for the next tick, which it shares with all the others, and sends then what has come up. What it
never does is hold back the first token after a silence.
"""

from __future__ import annotations

import asyncio
from typing import Final

QUIET_RATE: Final = 1_000.0
"""Events per second, in the whole process, up to which nothing waits."""
BUSY_RATE: Final = 4_000.0
"""Events per second from which streams wait the longest."""
LONGEST_WAIT: Final = 0.04
"""Seconds from one tick to the next when it is busiest."""
_WINDOW: Final = 0.1
"""Seconds over which the rate is measured."""


class Pacer:
    """The clock that all streams of a process share."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._window_began = self._loop.time()
        self.events = 0
        """How many events came up since the load was last measured; whoever publishes one adds it."""
        self._interval = 0.0
        self._waiting: list[asyncio.Future[None]] = []

    async def pause(self) -> None:
        """Wait after something was sent, for as long as the load of the process asks for."""
        self._measure()
        if self._interval:
            await self._next_tick()

    def _measure(self) -> None:
        now = self._loop.time()
        elapsed = now - self._window_began
        if elapsed < _WINDOW:
            return
        rate = self.events / elapsed
        busyness = min(1.0, max(0.0, (rate - QUIET_RATE) / (BUSY_RATE - QUIET_RATE)))
        self._interval = busyness * LONGEST_WAIT
        self._window_began, self.events = now, 0

    def _next_tick(self) -> asyncio.Future[None]:
        if not self._waiting:
            self._loop.call_later(self._interval, self._tick)
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(waiter)
        return waiter

    def _tick(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():  # one that was cancelled is
                waiter.set_result(None)
