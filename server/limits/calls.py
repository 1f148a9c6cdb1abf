"""How many calls a user may make, whatever they do: counted in PostgreSQL, reserved in blocks.

A server reserves some calls at a time, so that one in twenty asks the database, and a user who has none left is sent
away from memory. Where the database can't be asked the call goes on: what it does needs the database itself, or nothing
is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass, field

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
    """What a server knows of a user's calls. expires, refused_until: by the loop's clock."""

    left: int = 0
    expires: float = 0.0
    refused_until: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class CallLimiter:
    """Counts calls by user."""

    def __init__(self, database: Database, settings: LimitSettings) -> None:
        self._database = database
        self._settings = settings
        self._block = max(1, min(BLOCK, settings.rate_limit_calls // 10))
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._loop = asyncio.get_running_loop()

    async def admit(self, user_id: str) -> None:
        """Count a call. Raises LimitError where the user has made too many."""
        if not self._settings.rate_limit_calls:
            return
        account = self._account(user_id)
        async with account.lock:  # those who come at once wait for one reservation
            if account.left <= 0 or account.expires < self._loop.time():
                await self._reserve(user_id, account)
            account.left -= 1

    def _account(self, user_id: str) -> _Account:
        account = self._accounts.setdefault(user_id, _Account())
        self._accounts.move_to_end(user_id)
        if len(self._accounts) > _MOST_USERS:
            self._accounts.popitem(last=False)
        return account

    async def _reserve(self, user_id: str, account: _Account) -> None:
        """Reserve a block, or a single call where there isn't one left. Raises LimitError where there are none."""
        now = self._loop.time()
        if account.refused_until > now:
            raise too_many_calls(self._settings, account.refused_until - now)
        count, taken = self._block, await self._take(user_id, self._block)
        if not taken.is_taken and count > 1:
            count, taken = 1, await self._take(user_id, 1)
        if not taken.is_taken:
            account.refused_until = now + taken.retry_after
            raise too_many_calls(self._settings, taken.retry_after)
        account.left, account.expires = count, now + self._settings.rate_limit_window

    async def _take(self, user_id: str, count: int) -> Taken:
        seconds = count * self._settings.seconds_per_call
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await take(self._database, user_id, "calls", seconds, self._settings.rate_limit_window)
        except (DatabaseError, TimeoutError) as error:
            log.warning("calls can't be counted for now: %s", type(error).__name__)
            return Taken(is_taken=True, retry_after=0.0)
