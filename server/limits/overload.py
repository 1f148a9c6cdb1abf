"""When a server starts nothing new: it makes too many runs, or its event loop is late, and each more would slow all."""

from __future__ import annotations

import asyncio
import logging

from server.limits.settings import LimitSettings
from server.worker import Worker

_INTERVAL_SECONDS = 0.1
_WEIGHT = 0.25
"""What the last measurement counts. A single pause, such as a collection of garbage, is no overload."""

log = logging.getLogger(__name__)


class Overload(Worker):
    """Measures how late the event loop is, as long as the context is open.

    lag: seconds by which what was due ran late, smoothed over about half a second.
    """

    def __init__(self, settings: LimitSettings) -> None:
        super().__init__("loop lag", self._measure_for_ever)
        self._settings = settings
        self._is_late = False
        self.lag = 0.0

    def is_over(self, active_runs: int) -> bool:
        """Whether the server has too much to do to start another run."""
        most = self._settings.max_active_runs
        return self._is_late or bool(most and active_runs >= most)

    async def _measure_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _INTERVAL_SECONDS
            await asyncio.sleep(_INTERVAL_SECONDS)
            self._note(max(0.0, loop.time() - due))

    def _note(self, lag: float) -> None:
        self.lag += _WEIGHT * (lag - self.lag)
        bound = self._settings.max_loop_lag_seconds
        # Not at once again: a server at its bound would go to and fro.
        is_late = bool(bound) and self.lag > (bound / 2 if self._is_late else bound)
        if is_late is not self._is_late:
            self._is_late = is_late
            log.warning(
                "overload: new runs are %s, the event loop is %.1f s late", "refused" if is_late else "taken", self.lag
            )
