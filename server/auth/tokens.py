"""JWTs: what a token must be, and with what it is checked, which a token never says itself.

A server has the public keys of the issuer, or a secret that it shares with it. Where it has the keys, no HS256 token
opens it: whoever knows a public key could sign one with that. Better Auth signs other things with the same secret,
links in mails and its cookie cache; none of them says whom it is about and for
whom: `sub` and `aud` must be there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jwt
from chatkit_grpc.errors import AuthenticationError, ChatKitError
from jwt.types import Options

from server.auth.jwks import KeySet
from server.context import Auth

MAX_TOKEN_BYTES = 16 * 1024
LEEWAY_SECONDS = 30
_END_OF_TIME = 2**53

Claims = Mapping[str, Any]

_TYPES = frozenset({None, "JWT", "jwt", "at+jwt"})
"""What a token may say that it is. Better Auth's cookie cache says something else."""
_OPTIONS: Options = {"require": ["exp", "sub", "aud"], "enforce_minimum_key_length": True}
_WRONG: Sequence[tuple[type[Exception], str]] = (
    (jwt.ExpiredSignatureError, "it has expired"),
    (jwt.ImmatureSignatureError, "it is not valid yet (`nbf` or `iat`)"),
    (jwt.InvalidAudienceError, "it is for somebody else (`aud`)"),
    (jwt.InvalidIssuerError, "somebody else has issued it (`iss`)"),
    (jwt.InvalidSignatureError, "its signature is wrong"),
    (jwt.InvalidAlgorithmError, "it is signed in another way than this server expects (`alg`)"),
)


class Keys(Protocol):
    """What tokens are checked with."""

    async def key_for(self, header: Mapping[str, Any]) -> tuple[Any, str]:
        """The key and its one algorithm for a token with this header. Raises AuthenticationError."""
        ...


class IssuerKeys:
    """The public keys of the issuer, by their `kid`."""

    def __init__(self, key_set: KeySet) -> None:
        self._key_set = key_set

    async def key_for(self, header: Mapping[str, Any]) -> tuple[Any, str]:
        """The key that the token names. Raises UnavailableError too, where no keys could be had so far."""
        kid = header.get("kid")
        if not isinstance(kid, str) or not kid:
            raise invalid("it doesn't say which key it is signed with (`kid`)")
        key = await self._key_set.get(kid)
        if key is None:
            raise invalid("it is signed with a key that its issuer doesn't publish (`kid`)")
        return key.key, key.algorithm_name


class SharedSecret:
    """A secret that the issuer knows too."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    async def key_for(self, header: Mapping[str, Any]) -> tuple[Any, str]:
        """The secret, whatever the token says."""
        return self._secret, "HS256"


class TokenVerifier:
    """Checks tokens.

    audiences: a token must be for one of them. issuer: who must have issued it.
    """

    def __init__(self, keys: Keys, *, audiences: Sequence[str], issuer: str) -> None:
        self._keys = keys
        self._audiences = audiences
        self._issuer = issuer

    async def verify(self, token: str) -> Claims:
        """What a token claims. Raises AuthenticationError, and UnavailableError where it can't be checked for now."""
        if len(token) > MAX_TOKEN_BYTES:
            raise invalid(f"it is larger than {MAX_TOKEN_BYTES} bytes")
        try:
            key, algorithm = await self._keys.key_for(_header(token))
            claims = jwt.decode(
                *(token, key, [algorithm], _OPTIONS),
                audience=self._audiences,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
            )
        except ChatKitError:
            raise
        except Exception as error:  # noqa: BLE001 # whatever a made-up token does to the parser, it opens nothing
            raise _refusal(error) from None
        return _checked(claims)


def _header(token: str) -> Mapping[str, Any]:
    header = jwt.get_unverified_header(token)
    if header.get("typ") not in _TYPES:
        raise invalid("it is something else (`typ`)")
    return header


def invalid(what_is_wrong: str, cause: str = "invalid") -> AuthenticationError:
    """The refusal of a token. Sample: invalid("its signature is wrong")."""
    return AuthenticationError(f"The token is no good: {what_is_wrong}.", metadata={"cause": cause})


def missing() -> AuthenticationError:
    """What a call is told that brings nothing to be recognised by."""
    return AuthenticationError("Log in first: no token came with the call.", metadata={"cause": "missing"})


def token_expired() -> AuthenticationError:
    """What a call is told whose token has expired while it lasted."""
    return AuthenticationError("The token has expired; go on with a new one.", metadata={"cause": "expired"})


def seconds_left(auth: Auth) -> float | None:
    """How long the token still counts that a call was made with; None where it was made without one."""
    expires = auth.claims.get("exp")
    return None if expires is None else max(0.0, expires + LEEWAY_SECONDS - time.time())


def _refusal(error: Exception) -> AuthenticationError:
    if isinstance(error, jwt.MissingRequiredClaimError):
        return invalid(f"it lacks `{error.claim}`")
    for kind, what_is_wrong in _WRONG:
        if isinstance(error, kind):
            return invalid(what_is_wrong, "expired" if kind is jwt.ExpiredSignatureError else "invalid")
    return invalid("it is malformed")


def _checked(claims: Claims) -> Claims:
    """What PyJWT takes and the standard doesn't: times that are texts, and one that never comes."""
    for name in ("exp", "nbf", "iat"):
        time = claims.get(name, 0)
        if isinstance(time, bool) or not isinstance(time, int | float) or time > _END_OF_TIME:
            raise invalid(f"`{name}` is no time")
    return claims
