"""News from other servers: a NOTIFY says that there is something to read, and never what.

One that doesn't arrive costs time and nothing else. PgBouncer drops LISTEN without a word, and a connection may be dead
without anybody noticing; so each listener sends itself a probe now and then, and where it doesn't come back, whoever
waits here is woken by the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

import asyncpg
from chatkit_grpc.errors import DatabaseError

from server.database import Connection, Database
from server.ids import new_id
from server.worker import Worker

CHANNEL = "chatkit_grpc"
"""Payloads: "log" (events, or the end of a run, or something on a thread), "cancel", and probes."""

PROBE_SECONDS = 5.0
"""How often a listener tries whether it still hears."""
_PROBE_TIMEOUT = 2.0
_SECONDS_BY_CLOCK = {True: 1.0, False: 0.2}
"""How long whoever waits sleeps at most, by whether the listener hears."""
_PAUSE_AFTER_FAILURE = 1.0
_NOTIFY = "select pg_notify('chatkit_grpc', $1)"

log = logging.getLogger(__name__)


class Wakeups(Worker):
    """Listens on a connection of its own.

    on_cancel: called where another server wants a run stopped.
    """

    def __init__(self, database: Database, on_cancel: Callable[[], None]) -> None:
        super().__init__("wakeups", self._listen_for_ever)
        self._database = database
        self._on_cancel = on_cancel
        self._waiters: set[asyncio.Event] = set()
        self._probe = ""
        self._probe_heard = asyncio.Event()
        self._hears: bool | None = None

    @property
    def hears(self) -> bool:
        """Whether the listener heard its last probe."""
        return bool(self._hears)

    @contextlib.contextmanager
    def subscribed(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever there is something to read."""
        wakeup = asyncio.Event()
        self._waiters.add(wakeup)
        try:
            yield wakeup
        finally:
            self._waiters.discard(wakeup)

    async def wait(self, wakeup: asyncio.Event) -> None:
        """Wait until there may be something to read, and no longer than is good where nobody tells."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SECONDS_BY_CLOCK[self.hears]):
                await wakeup.wait()
        wakeup.clear()

    def wake(self) -> None:
        """Let everybody look who waits."""
        for wakeup in self._waiters:
            wakeup.set()

    async def _listen_for_ever(self) -> None:
        while True:
            try:
                await self._listen()
            except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, DatabaseError):
                # Whatever was missed meanwhile is read now and then by the clock.
                self._set_hears(hears=False)
            await asyncio.sleep(_PAUSE_AFTER_FAILURE)

    async def _listen(self) -> None:
        connection: Connection = await asyncpg.connect(
            self._database.url, timeout=PROBE_SECONDS, statement_cache_size=0
        )
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _connection: lost.set())
        try:
            await connection.add_listener(CHANNEL, self._heard)
            while not lost.is_set() and await self._hears_probe():
                self._set_hears(hears=True)
                self.wake()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_SECONDS):
                        await lost.wait()
            self._set_hears(hears=False)
        finally:
            connection.terminate()

    async def _hears_probe(self) -> bool:
        self._probe = f"probe {new_id('run')}"
        self._probe_heard.clear()
        await self._database.fetch(_NOTIFY, self._probe)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PROBE_TIMEOUT):
                await self._probe_heard.wait()
        return self._probe_heard.is_set()

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        if payload == "log":
            self.wake()
        elif payload == "cancel":
            self._on_cancel()
        elif payload == self._probe:
            self._probe_heard.set()

    def _set_hears(self, *, hears: bool) -> None:
        before, self._hears = self._hears, hears
        if hears and before is False:
            log.info("NOTIFY arrives again")
        elif not hears and before is not False:
            log.warning("NOTIFY doesn't arrive (behind PgBouncer it never does): other servers' news come by the clock")
