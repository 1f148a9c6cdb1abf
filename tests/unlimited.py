"""Settings under which a user may do as much as he wants: for a server in this process, and for one in its own."""

from __future__ import annotations

from server.limits.settings import LimitSettings

NO_LIMITS = LimitSettings(rate_limit_requests=0, rate_limit_calls=0, max_user_runs=0)
UNLIMITED = {name.upper(): "0" for name in ("rate_limit_requests", "rate_limit_calls", "max_user_runs")}
