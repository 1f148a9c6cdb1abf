"""Better Auth's session cookies: signed with its secret, and looked up in its table, since a session can be ended.

Its cookie cache (`session_data`) is none: that says what was so some minutes ago.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from hashlib import sha256
from urllib.parse import unquote, urlsplit

from chatkit_grpc.environment import SettingsError
from chatkit_grpc.errors import AuthenticationError, PermissionDeniedError
from chatkit_grpc.services import HOST_KEY, SESSION_COOKIE, Metadata
from chatkit_grpc.v1 import access_pb2
from chatkit_grpc.v1.access_pb2 import Access

from server.database import Database

_SECURE_PREFIX = "__Secure-"
_FIND_TABLE = "select to_regclass('\"session\"')::text"
_FIND_USER = """
select "userId" from "session" where token = $1 and "expiresAt" > now()
"""


class Sessions:
    """Recognises users by their session cookies.

    secret: BETTER_AUTH_SECRET. is_secure: whether pages are served by https, where a cookie without the prefix may have
    been planted by a neighbouring host. origins: the pages that may change something, beside those of the bridge's own.
    """

    def __init__(self, database: Database, secret: str, *, is_secure: bool, origins: Sequence[str]) -> None:
        self._database = database
        self._secret = secret.encode()
        self._name = _SECURE_PREFIX + SESSION_COOKIE if is_secure else SESSION_COOKIE
        self._origins = frozenset(origins)

    async def check_table(self) -> None:
        """Raise SettingsError where Better Auth keeps its sessions elsewhere."""
        if await self._database.fetchval(_FIND_TABLE) is None:
            raise SettingsError(
                'BETTER_AUTH_SESSIONS: there is no table "session" in this database; expected Better Auth\'s own'
            )

    async def user_of(self, metadata: Metadata, access: Access.ValueType) -> str | None:
        """The user of a call's session, None where it has none.

        Raises AuthenticationError for a session that isn't one (any more), and PermissionDeniedError where another
        site's page wants to change something.
        """
        cookie = self._cookie(metadata)
        if cookie is None:
            return None
        token = self._checked(cookie)
        if access != access_pb2.ACCESS_READ:
            self._check_origin(metadata)
        user_id = await self._database.fetchval(_FIND_USER, token)
        if user_id is None:
            raise AuthenticationError("The session has ended; log in again.", metadata={"cause": "expired"})
        return str(user_id)

    def _cookie(self, metadata: Metadata) -> str | None:
        found = [
            value
            for key, header in metadata
            if key == "cookie" and isinstance(header, str)
            for name, _, value in (part.strip().partition("=") for part in header.split(";"))
            if name == self._name
        ]
        if len(found) > 1:
            raise AuthenticationError("Two session cookies came at once; log in again.", metadata={"cause": "invalid"})
        return found[0] if found else None

    def _checked(self, cookie: str) -> str:
        """The session's token. The signature says that Better Auth has issued it, and not that it still holds."""
        token, _, signature = unquote(cookie).rpartition(".")
        expected = hmac.digest(self._secret, token.encode(), sha256)
        try:
            is_signed = hmac.compare_digest(base64.b64decode(signature, validate=True), expected)
        except (binascii.Error, ValueError):
            is_signed = False
        if not token or not is_signed:
            raise AuthenticationError("The session cookie is no good; log in again.", metadata={"cause": "invalid"})
        return token

    def _check_origin(self, metadata: Metadata) -> None:
        sent = dict(metadata)
        origin, host = sent.get("origin"), sent.get(HOST_KEY)
        if not isinstance(origin, str) or not (origin in self._origins or _host_of(origin) == host):
            raise PermissionDeniedError(
                "A session's cookie counts only for pages of the same site: name this one in ALLOWED_ORIGINS."
            )


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
