"""Times at the SDK's door: inside the SDK they are naive and local, everywhere else they are aware and in UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def to_utc(time: datetime) -> datetime:
    """The same moment, aware and in UTC. A naive time is taken as local, as the SDK means it."""
    return time.astimezone(UTC)


def to_local(time: datetime) -> datetime:
    """The same moment, naive and local, as the SDK wants it: it subtracts such times, and crashes on aware ones."""
    # Not astimezone(): that loses which of the two is meant when a clock goes back and an hour comes twice.
    local = datetime.fromtimestamp(int(time.replace(microsecond=0).timestamp()))  # noqa: DTZ006  # naive on purpose
    return local.replace(microsecond=time.microsecond)
