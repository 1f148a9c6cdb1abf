"""How many of something a user has at once on this server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from chatkit_grpc.errors import LimitError


class AtOnce:
    """Counts by user.

    most: how many one may have; 0 for any number. refusal: what whoever wants more is told.
    """

    def __init__(self, most: int, refusal: Callable[[], LimitError]) -> None:
        self._most = most
        self._refusal = refusal
        self._counts: Counter[str] = Counter()

    @contextmanager
    def one_more(self, user_id: str) -> Iterator[None]:
        """Counts one as long as the context is open. Raises LimitError where the user has too many."""
        if self._most and self._counts[user_id] >= self._most:
            raise self._refusal()
        self._counts[user_id] += 1
        try:
            yield
        finally:
            self._counts[user_id] -= 1
            if not self._counts[user_id]:
                del self._counts[user_id]

    def __len__(self) -> int:
        """How many there are of all users."""
        return self._counts.total()
