"""The settings under which a user may do as much as he wants, for processes that a test or a benchmark starts."""

from __future__ import annotations

UNLIMITED = {"RATE_LIMIT_REQUESTS": "0", "RATE_LIMIT_CALLS": "0", "MAX_USER_RUNS": "0"}
