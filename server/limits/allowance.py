"""What a user may still have of something that is limited by time, counted in PostgreSQL for all servers together.

It is the generic cell rate algorithm: the row says when the allowance will be full again, and each unit puts that off.
"""

from __future__ import annotations

from typing import NamedTuple

from server.database import Database
from server.limits.refusals import too_many_runs_started
from server.limits.settings import LimitSettings

# Takes up to $5 units of $3 seconds each from an allowance of $4 seconds; none where there isn't one. The times are the
# clock's and not the statement's, which may have waited for its turn.
TAKE = """
with taken as (
    insert into rate_limits as counted (user_id, name, full_at, granted)
    values ($1, $2, clock_timestamp() + make_interval(secs => $3 * least($5, floor($4::float8 / $3::float8 + 1e-6))),
        least($5, floor($4::float8 / $3::float8 + 1e-6)))
    on conflict (user_id, name) do update set (full_at, granted) = (
        select base + make_interval(secs => $3 * number), number
        from (select greatest(counted.full_at, clock_timestamp()) as base, clock_timestamp() as time) as now
        cross join lateral (
            select greatest(1, least($5, floor(($4 - extract(epoch from base - time)::float8) / $3 + 1e-6))) as number
        ) as units
    )
    where greatest(counted.full_at, clock_timestamp()) + make_interval(secs => $3 - $4) <= clock_timestamp()
    returning granted
)
select
    coalesce((select granted from taken), 0) as granted,
    (
        select extract(epoch from full_at - clock_timestamp())::float8 + $3 - $4 from rate_limits
        where user_id = $1 and name = $2
    ) as retry_after
"""


class Taken(NamedTuple):
    """How much was granted; where nothing was, in how many seconds there will be something."""

    granted: int
    retry_after: float


async def take(
    database: Database, user_id: str, name: str, seconds_each: float, window: float, units: int = 1
) -> Taken:
    """Take units from a user's allowance, as many as there are. Raises DatabaseError."""
    row = await database.fetchrow(TAKE, user_id, name, seconds_each, window, units)
    if row is None:  # a select without a table has one row
        raise AssertionError
    return Taken(row["granted"], max(0.0, row["retry_after"] or 0.0))


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
        if not taken.granted:
            raise too_many_runs_started(settings, taken.retry_after)
