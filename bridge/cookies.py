"""The cookies of a page that concern the server: its session's, and none of the others that a site sets."""

from __future__ import annotations

from chatkit_grpc.services import SESSION_COOKIE
from starlette.datastructures import Headers


def session_cookies(headers: Headers) -> list[str]:
    """Each session cookie of a request as it came, all of them: more than one is for the server to judge."""
    cookies = (part.strip(" \t") for header in headers.getlist("cookie") for part in header.split(";"))
    return [cookie for cookie in cookies if cookie.partition("=")[0].removeprefix("__Secure-") == SESSION_COOKIE]
