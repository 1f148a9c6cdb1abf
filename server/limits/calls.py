"""How many calls a user may make, whatever they do: counted in PostgreSQL, reserved in blocks.

A server reserves some calls at a time, so that one in twenty asks the database, and a user who has none left is sent
away from memory. Where the database can't be asked the call goes on: what it does needs the database itself, or nothing
is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass

from chatkit_grpc.errors import DatabaseError

from server.database import Database
from server.limits.allowance import Taken, take
from server.limits.refusals import too_many_calls
from server.limits.settings import LimitSettings

BLOCK = 20
"""How many calls are reserved at once: at most that many are lost to a user for each server that he calls no more."""
_PATIENCE_SECONDS = 1.0
"""How long a call waits for a reservation. Its own work would wait for the database after that."""
_MOST_USERS = 10_000
"""Whom a server remembers: beyond that it forgets whoever called longest ago."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Account:
    """What a server knows of a user's calls. refused_until: by the loop's clock, when there will be more."""

    left: int = 0
    refused_until: float = 0.0
    reserving: asyncio.Task[Taken] | None = None


class CallLimiter:
    """Counts calls by user. Close it to end what it still asks the database."""

    def __init__(self, database: Database, settings: LimitSettings) -> None:
        self._database = database
        self._settings = settings
        self._block = max(1, min(BLOCK, settings.rate_limit_calls // 10))
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._tasks: set[asyncio.Task[Taken]] = set()
        self._loop = asyncio.get_running_loop()

    async def admit(self, user_id: str) -> None:
        """Count a call. Raises LimitError where the user has made too many."""
        if not self._settings.rate_limit_calls:
            return
        account = self._account(user_id)
        while account.left <= 0:
            left = account.refused_until - self._loop.time()
            if left > 0:
                raise too_many_calls(self._settings, left)
            await self._reserve(user_id, account)
        account.left -= 1

    async def close(self) -> None:
        """End the reservations under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _account(self, user_id: str) -> _Account:
        account = self._accounts.setdefault(user_id, _Account())
        self._accounts.move_to_end(user_id)
        if len(self._accounts) > _MOST_USERS:
            self._accounts.popitem(last=False)
        return account

    async def _reserve(self, user_id: str, account: _Account) -> None:
        """Reserve a block, once for all calls of the user that wait for one."""
        if account.reserving is None:
            account.reserving = asyncio.create_task(self._take(user_id), name="reservation of calls")
            self._tasks.add(account.reserving)
            account.reserving.add_done_callback(lambda task: self._reserved(account, task))
        # Whoever waits may leave; the others still want it.
        await asyncio.wait({account.reserving})

    async def _take(self, user_id: str) -> Taken:
        seconds, window = self._settings.seconds_per_call, self._settings.rate_limit_window
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await take(self._database, user_id, "calls", seconds, window, self._block)
        except (DatabaseError, TimeoutError) as error:
            log.warning("calls can't be counted for now: %s", type(error).__name__)
            return Taken(self._block, 0.0)

    def _reserved(self, account: _Account, task: asyncio.Task[Taken]) -> None:
        self._tasks.discard(task)
        account.reserving = None
        if task.cancelled() or task.exception() is not None:
            account.left += 1  # a defect of ours, or the server goes down: the call finds that out itself
            return
        taken = task.result()
        account.left += taken.granted
        account.refused_until = self._loop.time() + taken.retry_after if not taken.granted else 0.0
