"""Better Auth's session cookies: signed with its secret, and looked up in its table, since a session can be ended.

Its cookie cache (`session_data`) is none: that says what was so some minutes ago.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from hashlib import sha256
from urllib.parse import unquote

from chatkit_grpc.environment import SettingsError
from chatkit_grpc.errors import AuthenticationError, DatabaseError, PermissionDeniedError
from chatkit_grpc.services import HOST_KEY, SESSION_COOKIE, Metadata
from chatkit_grpc.v1 import access_pb2
from chatkit_grpc.v1.access_pb2 import Access

from server.database import Database, is_about_the_schema

_SECURE_PREFIX = "__Secure-"
_LOOK_AT_TABLE = """
select token, "userId", "expiresAt" from "session" limit 0
"""
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
        self._schemes = ("https",) if is_secure else ("http", "https")

    async def check_table(self) -> None:
        """Raise SettingsError where Better Auth keeps its sessions elsewhere, or otherwise."""
        try:
            await self._database.fetch(_LOOK_AT_TABLE)
        except DatabaseError as error:
            if not is_about_the_schema(error):
                raise
            raise SettingsError(
                'BETTER_AUTH_SESSIONS: expected Better Auth\'s table "session" in this database, with the columns '
                'token, "userId" and "expiresAt"'
            ) from None

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
            for name, _, value in (part.strip(" \t").partition("=") for part in header.split(";"))
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
        origins, hosts = ([value for key, value in metadata if key == name] for name in ("origin", HOST_KEY))
        own = {f"{scheme}://{host}" for scheme in self._schemes for host in hosts if isinstance(host, str) and host}
        if len(origins) != 1 or len(hosts) > 1 or origins[0] not in self._origins | own:
            raise PermissionDeniedError(
                "A session's cookie counts only for pages of the same site: name this one in ALLOWED_ORIGINS."
            )
