"""Reading logs as they grow: one statement for all who wait, a few a second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Generic, TypeVar

from chatkit_grpc.errors import ChatKitError, DatabaseError

from server.runs.wakeups import Wakeups
from server.worker import Worker

K = TypeVar("K", bound=Hashable)
P = TypeVar("P")

_PAUSE_AFTER_FAILURE = 0.5


class Tail(Worker, Generic[K, P]):
    """Waits for news of many logs at once.

    read: a page of each of some logs, after a position each. has_news: whether a page is worth waking somebody for.
    interval: seconds from one statement to the next at least.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[Mapping[K, int]], Awaitable[Mapping[K, P]]],
        has_news: Callable[[P], bool],
        wakeups: Wakeups,
        *,
        interval: float,
    ) -> None:
        super().__init__(name, self._serve_for_ever)
        self._interval = interval
        self._read = read
        self._has_news = has_news
        self._wakeups = wakeups
        self._waiting: dict[asyncio.Future[P | None], tuple[K, int]] = {}
        self._failure: ChatKitError | None = None
        self._somebody_waits = asyncio.Event()

    async def next_page(self, key: K, after: int) -> P | None:
        """The next page of a log that has news. None where there is no such log. Raises what `fail` was given."""
        if self._failure is not None:
            raise self._failure
        future: asyncio.Future[P | None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = (key, after)
        self._somebody_waits.set()
        try:
            return await future
        finally:
            self._waiting.pop(future, None)

    def fail(self, error: ChatKitError) -> None:
        """Let all who wait give up, and whoever comes."""
        self._failure = error
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)

    async def _serve_for_ever(self) -> None:
        with self._wakeups.subscribed() as wakeup:
            if self._waiting:
                self._somebody_waits.set()
            while True:
                await self._somebody_waits.wait()
                self._somebody_waits.clear()
                try:
                    await self._serve()
                except DatabaseError:
                    await asyncio.sleep(_PAUSE_AFTER_FAILURE)
                await asyncio.sleep(self._interval)
                await self._wait_for_news(wakeup)

    async def _wait_for_news(self, wakeup: asyncio.Event) -> None:
        """Until somebody new waits, or there may be something for those who do."""
        if not self._waiting or self._somebody_waits.is_set():
            return
        news = asyncio.ensure_future(self._wakeups.wait(wakeup))
        somebody = asyncio.ensure_future(self._somebody_waits.wait())
        try:
            await asyncio.wait({news, somebody}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
            somebody.cancel()
        self._somebody_waits.set()

    async def _serve(self) -> None:
        # Two who wait for the same log at different positions: the one further back is served first, the other soon.
        wanted: dict[K, int] = {}
        for key, after in self._waiting.values():
            wanted[key] = min(after, wanted.get(key, after))
        if not wanted:
            return
        pages = await self._read(wanted)
        for future, (key, after) in tuple(self._waiting.items()):
            # Who has come meanwhile, or is further than the page begins, is served the next time.
            if future.done() or wanted.get(key) != after:
                continue
            page = pages.get(key)
            if page is None or self._has_news(page):
                future.set_result(page)
