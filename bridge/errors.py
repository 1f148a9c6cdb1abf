"""A failure as an HTTP response, with the headers that say when to come back."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping

from chatkit_grpc.errors import ChatKitError, Quota
from starlette.responses import JSONResponse

from bridge.headers import NOSNIFF

_UNAUTHENTICATED = 401
log = logging.getLogger(__name__)


def error_response(error: ChatKitError) -> JSONResponse:
    """A failure with its real status. Sample: {"error": {"code": "THREAD_NOT_FOUND", "message": …, "details": {…}}}."""
    details: dict[str, object] = dict(error.metadata)
    if error.violations:
        details["violations"] = [{"path": v.path, "description": v.description} for v in error.violations]
    if error.quota is not None:
        details["quota"] = {
            "name": error.quota.name,
            "limit": error.quota.limit,
            "window_seconds": error.quota.window_seconds,
        }
    return json_error(error.code, error.message, details, error.http_status, _headers_of(error))


def defect(error: Exception) -> ChatKitError:
    """A bug of ours. Its words may quote a conversation, so only its place is logged."""
    log.error("the bridge failed: %s\n%s", type(error).__qualname__, "".join(traceback.format_tb(error.__traceback__)))
    return ChatKitError("The bridge failed.")


def json_error(
    code: str, message: str, details: Mapping[str, object], status: int, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The shape of all our errors."""
    body = {"error": {"code": code, "message": message, "details": details}}
    return JSONResponse(body, status_code=status, headers={**NOSNIFF, **(headers or {})})


def _headers_of(error: ChatKitError) -> dict[str, str]:
    headers = {"WWW-Authenticate": "Bearer"} if error.http_status == _UNAUTHENTICATED else {}
    if error.retry_after is not None:
        seconds = max(1, math.ceil(error.retry_after))
        headers["Retry-After"] = str(seconds)
        if error.quota is not None:
            headers |= _rate_limit_headers(error.quota, seconds)
    return headers


def _rate_limit_headers(quota: Quota, seconds: int) -> dict[str, str]:
    """Those of draft-ietf-httpapi-ratelimit-headers, and the three of its first versions, which more clients know."""
    window = "" if quota.window_seconds is None else f";w={quota.window_seconds}"
    return {
        "RateLimit-Policy": f'"{quota.name}";q={quota.limit}{window}',
        "RateLimit": f'"{quota.name}";r=0;t={seconds}',
        "RateLimit-Limit": str(quota.limit),
        "RateLimit-Remaining": "0",
        "RateLimit-Reset": str(seconds),
    }
