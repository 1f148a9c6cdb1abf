"""How callers are recognised, as an operator sets it: one issuer, by its public keys or by a secret shared with it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from chatkit_grpc.environment import Environment, check_http_url, check_origins
from environs import ValidationError
from environs import validate as must_be

DEVELOPMENT = "development"
JWKS_PATH = "/api/auth/jwks"
MIN_SECRET_BYTES = 32

_EXAMPLES = re.compile(
    r"change[-_ ]?me|example|your[-_ ]|secret|password|placeholder|openssl|0123456789", re.IGNORECASE
)
"""What secrets in documentation look like, Better Auth's own default among them."""
_MIN_DIFFERENT_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """The settings of authentication. README.md lists them with what they are for; each is the variable of its name."""

    better_auth_url: str | None = None
    better_auth_secret: str | None = None
    better_auth_sessions: bool = False
    jwks_url: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_user_claim: str = "sub"
    service_audience: str | None = None
    service_scope: str | None = None
    service_certificates: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()

    @classmethod
    def read(cls, env: Environment) -> AuthSettings:
        """Read the environment; `env.check()` tells what is wrong with it."""
        default = cls()
        settings: dict[str, Any] = {
            "better_auth_url": (env.str("BETTER_AUTH_URL", "", validate=_base_url) or "").rstrip("/") or None,
            "better_auth_secret": env.text("BETTER_AUTH_SECRET"),
            "better_auth_sessions": env.bool("BETTER_AUTH_SESSIONS", default.better_auth_sessions),
            "jwks_url": env.str("JWKS_URL", "", validate=check_http_url) or None,
            "jwt_issuer": env.text("JWT_ISSUER"),
            "jwt_audience": env.text("JWT_AUDIENCE"),
            "jwt_user_claim": env.str("JWT_USER_CLAIM", default.jwt_user_claim, validate=must_be.Length(1, 100)),
            "service_audience": env.text("SERVICE_AUDIENCE"),
            "service_scope": env.text("SERVICE_SCOPE"),
            "service_certificates": env.words("SERVICE_CERTIFICATES"),
            "allowed_origins": env.words("ALLOWED_ORIGINS", validate=check_origins),
        }
        return cls(**settings)

    @property
    def key_set_url(self) -> str | None:
        """Where the issuer publishes its keys; None where a secret is shared with it."""
        return self.jwks_url or (self.better_auth_url and self.better_auth_url + JWKS_PATH)

    @property
    def issuer(self) -> str | None:
        """Who must have issued a token."""
        return self.jwt_issuer or self.better_auth_url

    @property
    def audience(self) -> str | None:
        """For whom a user's token must be."""
        return self.jwt_audience or self.better_auth_url

    @property
    def takes_tokens(self) -> bool:
        """Whether there is something to check tokens with."""
        return bool(self.key_set_url or self.better_auth_secret)

    def problems(self, environment: str) -> list[str]:
        """What would let in the wrong people, or nobody at all, a line for each setting that is wrong."""
        return [*self._problems(), *([] if environment == DEVELOPMENT else self._problems_of_production())]

    def _problems(self) -> list[str]:
        problems = []
        secret = self.better_auth_secret
        if secret is not None and len(secret.encode()) < MIN_SECRET_BYTES:
            problems.append(
                f"BETTER_AUTH_SECRET: expected {MIN_SECRET_BYTES} bytes or more; make one with: {_MAKE_ONE}"
            )
        if self.takes_tokens and not self.issuer:
            problems.append("JWT_ISSUER: expected who issues the tokens, as they say in `iss`")
        if self.takes_tokens and not self.audience:
            problems.append("JWT_AUDIENCE: expected whom the tokens are for, as they say in `aud`")
        if self.better_auth_sessions and secret is None:
            problems.append(
                "BETTER_AUTH_SECRET: BETTER_AUTH_SESSIONS needs the secret that the cookies are signed with"
            )
        if self.better_auth_sessions and self.better_auth_url is None:
            problems.append("BETTER_AUTH_URL: BETTER_AUTH_SESSIONS needs it: by https the cookie has another name")
        if self.service_audience is not None and self.service_audience == self.audience:
            problems.append("SERVICE_AUDIENCE: expected another one than users' tokens have")
        return problems

    def _problems_of_production(self) -> list[str]:
        secret = self.better_auth_secret
        if not self.takes_tokens:
            return [_NO_KEYS]
        if secret is not None and (_EXAMPLES.search(secret) or len(set(secret)) < _MIN_DIFFERENT_CHARACTERS):
            return [f"BETTER_AUTH_SECRET: expected a secret of your own, got one as in examples; {_MAKE_ONE} makes one"]
        return []


_NO_KEYS = (
    "BETTER_AUTH_URL: expected where Better Auth is, so that users' tokens can be checked with its keys "
    "(or JWKS_URL, or BETTER_AUTH_SECRET to check tokens that are signed with it). "
    "To try things out without tokens: ENVIRONMENT=development"
)
NO_AUTH = AuthSettings()
_MAKE_ONE = "openssl rand -base64 32"


def _base_url(url: str) -> None:
    check_http_url(url)
    if url.rstrip("/").endswith("/api/auth") or "?" in url or "#" in url:
        raise ValidationError("expected where Better Auth is, without /api/auth, such as https://login.example.com")
