"""From a call's metadata to who makes it: by a token, by a session's cookie, or in development by nothing at all.

The first of them that is there decides: a token that is no good is not made up for by a cookie, and neither by
development.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

from chatkit_grpc.errors import AuthenticationError
from chatkit_grpc.services import Metadata
from chatkit_grpc.v1.access_pb2 import Access

from server.auth.acting import USER_ID, act_for, is_service, named_user
from server.auth.jwks import KeySet
from server.auth.sessions import Sessions
from server.auth.settings import DEVELOPMENT, AuthSettings
from server.auth.tokens import IssuerKeys, Keys, SharedSecret, TokenVerifier, invalid
from server.context import Auth
from server.database import Database

DEVELOPMENT_USER = "dev-user"
_FIND_USERS_TABLE = "select to_regclass('\"user\"')::text"
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
        if credentials:
            auth, is_a_service = await self._by_token(credentials)
        elif self._sessions and (user_id := await self._sessions.user_of(metadata, access)) is not None:
            auth, is_a_service = Auth(_user_id(user_id), "session"), False
        elif self._development_user is not None:
            return Auth(named_user(metadata) or self._development_user, "development")
        else:
            raise AuthenticationError("Log in first: no token came with the call.", metadata={"cause": "missing"})
        named = named_user(metadata)
        return auth if named is None else act_for(auth, named, is_service=is_a_service)

    async def _by_token(self, credentials: list[str | bytes]) -> tuple[Auth, bool]:
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
        claims = await self._verifier.verify(token.strip())
        user_id = _user_id(claims.get(self._settings.jwt_user_claim), self._settings.jwt_user_claim)
        return Auth(user_id, "token", claims=claims), is_service(claims, self._settings)


def _user_id(value: object, claim: str = "id") -> str:
    if not isinstance(value, str) or not USER_ID.fullmatch(value):
        raise invalid(f"`{claim}` is no user's id: expected 1 to 128 letters, digits or _.:@|-")
    return value


@asynccontextmanager
async def open_authenticator(
    settings: AuthSettings, environment: str, database: Database
) -> AsyncIterator[Authenticator]:
    """What recognises callers as the settings say. Raises SettingsError."""
    settings.check(environment)
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
    found = await database.fetchval(_FIRST_USER) if await database.fetchval(_FIND_USERS_TABLE) else None
    user = found if isinstance(found, str) and USER_ID.fullmatch(found) else DEVELOPMENT_USER
    log.warning("ENVIRONMENT=development: whoever calls without a token is %s", user)
    return user
