"""How many streams a user has open on this server: each holds a place on a connection that others share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from server.limits.refusals import too_many_streams
from server.limits.settings import LimitSettings


class StreamLimiter:
    """Counts streams by user."""

    def __init__(self, settings: LimitSettings) -> None:
        self._settings = settings
        self._open: Counter[str] = Counter()

    @contextmanager
    def opened(self, user_id: str) -> Iterator[None]:
        """Counts a stream while it is open. Raises LimitError where the user has too many."""
        most = self._settings.max_user_streams
        if most and self._open[user_id] >= most:
            raise too_many_streams(self._settings)
        self._open[user_id] += 1
        try:
            yield
        finally:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]
