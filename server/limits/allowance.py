"""What a user may still have of something that is limited by time, counted in PostgreSQL for all servers together.

It is the generic cell rate algorithm: the row says when the allowance will be full again, and each unit puts that off.
"""

from __future__ import annotations

from typing import NamedTuple

from server.database import Database
from server.limits.refusals import too_many_runs_started
from server.limits.settings import LimitSettings

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


class RunAllowance:
    """For what costs as much as a run and isn't one: it is counted as one. Where it can't be counted, it isn't done."""

    def __init__(self, database: Database, settings: LimitSettings) -> None:
        self._database = database
        self._settings = settings

    async def take(self, user_id: str) -> None:
        """Count one. Raises LimitError where the user has no more, and DatabaseError."""
        settings = self._settings
        if not settings.rate_limit_requests:
            return
        seconds, window = settings.seconds_per_run, settings.rate_limit_window
        taken = await take(self._database, user_id, "runs", seconds, window)
        if not taken.is_taken:
            raise too_many_runs_started(settings, taken.retry_after)
