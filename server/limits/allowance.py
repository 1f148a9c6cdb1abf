"""What a user may still have of something that is limited by time, counted in PostgreSQL for all servers together.

It is the generic cell rate algorithm: the row says when the allowance will be full again, and each unit puts that off.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from chatkit_grpc.errors import DatabaseError

from server.database import Database
from server.limits.refusals import out_of_tokens, too_many_runs_started
from server.limits.settings import LimitSettings

log = logging.getLogger(__name__)

# Takes some units, which are $3 seconds together, from an allowance of $4 seconds: all of them or none. The times are
# the clock's and not the statement's, which may have waited for its turn. (START in runs/statements.py does the same.)
TAKE = """
with taken as (
    insert into rate_limits as used (user_id, name, full_at)
    values ($1, $2, clock_timestamp() + make_interval(secs => $3))
    on conflict (user_id, name) do update set
        full_at = least(greatest(used.full_at, clock_timestamp()), clock_timestamp() + make_interval(secs => $4 - $3))
            + make_interval(secs => $3)
    -- One that is further away than a window is of another window, or of another clock.
    where used.full_at <= clock_timestamp() + make_interval(secs => $4 - $3)
        or used.full_at > clock_timestamp() + make_interval(secs => $4 + 1)
    returning full_at
)
select
    exists (select from taken) as is_taken,
    coalesce((
        select least(greatest(extract(epoch from full_at - clock_timestamp())::float8 + $3 - $4, 0), $4)
        from rate_limits where user_id = $1 and name = $2
    ), 0) as retry_after
"""


class Taken(NamedTuple):
    """Whether the units were taken; where not, in how many seconds they can be."""

    is_taken: bool
    retry_after: float


async def take(database: Database, user_id: str, name: str, seconds: float, window: float) -> Taken:
    """Take from a user's allowance as much as fills again in some seconds. Raises DatabaseError."""
    (row,) = await database.fetch(TAKE, user_id, name, seconds, window)
    return Taken(row["is_taken"], row["retry_after"])


COUNT_TOKENS = """
insert into token_usage as used (user_id, day, tokens)
values ($1, (now() at time zone 'utc')::date, $2)
on conflict (user_id, day) do update set tokens = used.tokens + excluded.tokens
"""

HAS_NO_TOKENS = """
select exists (
    select from token_usage where user_id = $1 and day = (now() at time zone 'utc')::date and tokens >= $2
)
"""


class RunAllowance:
    """For what costs as much as a run and isn't one: it is counted as one. Where it can't be counted, it isn't done."""

    def __init__(self, database: Database, settings: LimitSettings) -> None:
        self._database = database
        self._settings = settings

    async def take(self, user_id: str) -> None:
        """Count one. Raises LimitError where the user has no more, or no more tokens today, and DatabaseError."""
        settings = self._settings
        if settings.tokens_per_day and await self._database.fetchval(HAS_NO_TOKENS, user_id, settings.tokens_per_day):
            raise out_of_tokens(settings)
        if not settings.rate_limit_requests:
            return
        seconds, window = settings.seconds_per_run, settings.rate_limit_window
        taken = await take(self._database, user_id, "runs", seconds, window)
        if not taken.is_taken:
            raise too_many_runs_started(settings, taken.retry_after)

    async def count_tokens(self, user_id: str, tokens: int) -> None:
        """Count what it took. What was done is not taken back where it can't be counted."""
        if tokens <= 0:
            return
        try:
            await self._database.fetch(COUNT_TOKENS, user_id, tokens)
        except DatabaseError as error:
            log.warning("tokens can't be counted: %s", error.code)
