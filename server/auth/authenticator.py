"""From a call's metadata to who makes it: by a token, by a session's cookie, or in development by nothing at all.

The first of them that is there decides: a token that is no good is not made up for by a cookie, and neither by
development.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

from chatkit_grpc.errors import AuthenticationError, DatabaseError
from chatkit_grpc.services import Metadata
from chatkit_grpc.v1.access_pb2 import ACCESS_ALL_USERS, Access

from server.auth.acting import (
    USER_ID_FORM,
    act_for,
    act_for_all,
    check_is_for_users,
    is_user_id,
    named_user,
    no_service,
    not_for_users,
    service_for_all,
    user_in,
)
from server.auth.jwks import KeySet
from server.auth.sessions import Sessions
from server.auth.settings import DEVELOPMENT, AuthSettings
from server.auth.tokens import Claims, IssuerKeys, Keys, SharedSecret, TokenVerifier, invalid, missing
from server.context import Auth
from server.database import Database, is_about_the_schema

DEVELOPMENT_USER = "dev-user"
_FIRST_USER = """
select id from "user" order by "createdAt", id limit 1
"""

log = logging.getLogger(__name__)


class Authenticator:
    """Recognises who makes a call.

    verifier: checks tokens, where there is something to check them with. sessions: checks cookies, where that is
    wanted. development_user: who calls without either; None in production.
    """

    def __init__(
        self,
        settings: AuthSettings,
        verifier: TokenVerifier | None,
        sessions: Sessions | None,
        development_user: str | None,
    ) -> None:
        self._settings = settings
        self._verifier = verifier
        self._sessions = sessions
        self._development_user = development_user

    async def __call__(self, metadata: Metadata, access: Access.ValueType) -> Auth:
        """Who makes a call, and for whom.

        access: what the call is for.
        Raises AuthenticationError, PermissionDeniedError, ValidationError for a bad x-user-id, UnavailableError and
        DatabaseError where it can't be said for now.
        """
        credentials = [value for key, value in metadata if key == "authorization"]
        # Whom a call names is looked at once it is clear who calls: a stranger is told that he is one, and no more.
        if credentials:
            claims = await self._claims_of(credentials)
            if access == ACCESS_ALL_USERS:
                return act_for_all(named_user(metadata), claims, self._settings)
            return self._by_token(claims, named_user(metadata))
        if self._sessions and (user_id := await self._sessions.user_of(metadata, access)) is not None:
            if access == ACCESS_ALL_USERS:
                raise not_for_users()
            return _by_session(user_id, named_user(metadata))
        if self._development_user is not None and access == ACCESS_ALL_USERS:
            return service_for_all(self._development_user, named_user(metadata))
        if self._development_user is not None:
            return Auth(named_user(metadata) or self._development_user, "development")
        raise missing()

    async def _claims_of(self, credentials: list[str | bytes]) -> Claims:
        if self._verifier is None:
            raise AuthenticationError(
                "This server can't check tokens yet: set BETTER_AUTH_URL, or call without one.",
                metadata={"cause": "invalid"},
            )
        if len(credentials) > 1:
            raise invalid("another one came beside it")
        scheme, _, token = str(credentials[0]).partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise AuthenticationError("authorization: expected `Bearer TOKEN`.", metadata={"cause": "invalid"})
        return await self._verifier.verify(token.strip())

    def _by_token(self, claims: Claims, named: str | None) -> Auth:
        if named is not None:
            return act_for(named, claims, self._settings)
        check_is_for_users(claims, self._settings)
        return Auth(user_in(claims, self._settings.jwt_user_claim), "token", claims=claims)


def _by_session(user_id: str, named: str | None) -> Auth:
    if named is not None:
        raise no_service()
    if not is_user_id(user_id):
        raise AuthenticationError(
            f"The session's user has an odd id: expected {USER_ID_FORM}.", metadata={"cause": "invalid"}
        )
    return Auth(user_id, "session")


@asynccontextmanager
async def open_authenticator(
    settings: AuthSettings, environment: str, database: Database
) -> AsyncIterator[Authenticator]:
    """What recognises callers as the settings say. Raises SettingsError where Better Auth's sessions aren't there."""
    async with AsyncExitStack() as stack:
        keys: Keys | None = None
        if settings.key_set_url:
            keys = IssuerKeys(await stack.enter_async_context(KeySet(settings.key_set_url)))
        elif settings.better_auth_secret:
            keys = SharedSecret(settings.better_auth_secret)
        verifier = _verifier(keys, settings) if keys else None
        sessions = await _sessions(settings, database)
        user = await _development_user(database) if environment == DEVELOPMENT else None
        yield Authenticator(settings, verifier, sessions, user)


def _verifier(keys: Keys, settings: AuthSettings) -> TokenVerifier:
    audiences = [name for name in (settings.audience, settings.service_audience) if name]
    return TokenVerifier(keys, audiences=audiences, issuer=settings.issuer or "")


async def _sessions(settings: AuthSettings, database: Database) -> Sessions | None:
    if not settings.better_auth_sessions or settings.better_auth_secret is None:
        return None
    url = urlsplit(settings.better_auth_url or "")
    own = (f"{url.scheme}://{url.netloc}",) if url.netloc else ()
    sessions = Sessions(
        database,
        settings.better_auth_secret,
        is_secure=url.scheme == "https",
        origins=(*own, *settings.allowed_origins),
    )
    await sessions.check_table()
    return sessions


async def _development_user(database: Database) -> str:
    """The first user of the database, where Better Auth keeps its users in it."""
    try:
        found = await database.fetchval(_FIRST_USER)
    except DatabaseError as error:
        if not is_about_the_schema(error):
            raise
        found = None
    user = str(found) if found is not None and is_user_id(str(found)) else DEVELOPMENT_USER
    log.warning("ENVIRONMENT=development: whoever calls without a token is %s", user)
    return user
