"""The headers that responses have in common."""

from __future__ import annotations

NOSNIFF = {"X-Content-Type-Options": "nosniff"}
"""What a response says it is, it is."""
PAGE = {
    **NOSNIFF,
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Asked for again each time, so that a page never meets the script of another version.
    "Cache-Control": "no-cache",
}
RETRY = (
    "Retry-After",
    "RateLimit",
    "RateLimit-Policy",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
)
"""What tells a client when to come back."""
FROM_OTHER_ORIGINS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "Last-Event-ID",
    "chatkit-frame-instance-id",  # which ChatKit's page sends along
    "Traceparent",
    "X-Request-Id",
)
"""What pages of allowed origins may send along."""
