"""Settings under which a user may do as much as he wants: for a server in this process, and for one in its own."""

from __future__ import annotations

from dataclasses import replace

from server.limits.settings import LimitSettings

_BY_USER = ("rate_limit_requests", "rate_limit_calls", "max_user_runs", "max_user_streams")
NO_LIMITS = replace(LimitSettings(), **dict.fromkeys(_BY_USER, 0))
UNLIMITED = {name.upper(): "0" for name in _BY_USER}
