"""What the server is told of an HTTP request beside what is asked for."""

from __future__ import annotations

import re

from chatkit_grpc.services import HOST_KEY, PUBLIC_URL_KEY, USER_HEADER
from starlette.requests import Request

from bridge.cookies import session_cookies
from bridge.settings import Settings

_FORWARDED = ("authorization", "accept-language", "origin", "user-agent", USER_HEADER, "x-request-id", "traceparent")
"""Headers that the server is told, under their own names."""
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


def metadata_of(request: Request, settings: Settings) -> list[tuple[str, str | bytes]]:
    """The metadata of the call that a request becomes."""
    # gRPC takes printable ASCII only. What isn't becomes "?" and is not dropped: a user's id that can't be sent must
    # not turn into no id.
    sent = [(name, value) for name in _FORWARDED for value in request.headers.getlist(name)]
    sent += [("cookie", cookie) for cookie in session_cookies(request.headers)]
    sent += [(HOST_KEY, request.headers.get("host", "")), (PUBLIC_URL_KEY, _public_url(request, settings))]
    return [(name, _UNPRINTABLE.sub("?", value)) for name, value in sent]


def _public_url(request: Request, settings: Settings) -> str:
    """Where pages find this bridge. Without PUBLIC_URL it is what this one called."""
    if settings.public_url is not None:
        return settings.public_url.rstrip("/")
    return f"{request.scope['scheme']}://{request.headers.get('host', '')}"
