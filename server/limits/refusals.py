"""What those are told who want too much."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from chatkit_grpc.errors import LimitError, Quota, UnavailableError
from chatkit_grpc.v1 import error_reason_pb2 as reasons

from server.limits.settings import LimitSettings

_SOON_SECONDS = 5.0
"""When to come back where nobody knows: an answer may end at any time."""
_OVERLOAD_SECONDS = 1.0


def too_many_runs_started(settings: LimitSettings, retry_after: float) -> LimitError:
    """The user has started as many runs as he may for now."""
    quota = Quota("runs", settings.rate_limit_requests, math.ceil(settings.rate_limit_window))
    return _limit(f"The limit of {_messages(quota.limit)} in {_seconds(quota.window_seconds)}", quota, retry_after)


def too_many_calls(settings: LimitSettings, retry_after: float) -> LimitError:
    """The user has made as many calls as he may for now."""
    quota = Quota("calls", settings.rate_limit_calls, math.ceil(settings.rate_limit_window))
    return _limit(f"The limit of {quota.limit:,} calls in {_seconds(quota.window_seconds)}", quota, retry_after)


def too_many_runs_at_once(settings: LimitSettings) -> LimitError:
    """The user has as many runs being made as he may."""
    quota = Quota("active_runs", settings.max_user_runs)
    text = f"{_answers(quota.limit)} being made already; wait for one to end, or stop one."
    return LimitError(text, quota=quota, retry_after=_SOON_SECONDS)


def too_many_streams(settings: LimitSettings) -> LimitError:
    """The user has as many streams open on this server as he may."""
    quota = Quota("streams", settings.max_user_streams)
    return LimitError(f"{quota.limit:,} streams are open already; close one.", quota=quota, retry_after=_SOON_SECONDS)


def out_of_tokens(settings: LimitSettings) -> LimitError:
    """The user's runs have taken as many tokens today as they may."""
    now = datetime.now(UTC)
    tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    quota = Quota("tokens", settings.tokens_per_day, 86400)
    return LimitError(
        "The tokens for today are used up; there are more after midnight (UTC).",
        quota=quota,
        retry_after=(tomorrow - now).total_seconds(),
    )


def overloaded() -> UnavailableError:
    """The server starts nothing new for now."""
    return UnavailableError(
        "The chat server has too much to do; try again in a moment.",
        reason=reasons.ERROR_REASON_OVERLOADED,
        retry_after=_OVERLOAD_SECONDS,
    )


def _limit(text: str, quota: Quota, retry_after: float) -> LimitError:
    wait = max(1, math.ceil(retry_after))
    # The next allowance may be there by now, but never "at once": that would be no refusal.
    retry_after = max(retry_after, 0.001)
    return LimitError(f"{text} is reached. Try again in {_seconds(wait)}.", quota=quota, retry_after=retry_after)


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count:,} messages"


def _answers(count: int) -> str:
    return "An answer is" if count == 1 else f"{count:,} answers are"


def _seconds(count: int | None) -> str:
    return "1 second" if count == 1 else f"{count:,} seconds"
