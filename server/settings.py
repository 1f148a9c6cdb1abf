"""The server's settings: read from the environment once, checked at start, never changed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import parse_qs, urlsplit

from chatkit_grpc.environment import (
    PLAINTEXT_HINT,
    Address,
    Environment,
    SettingsError,
    check_http_url,
    is_plaintext_url,
)
from environs import ValidationError
from environs import validate as must_be

from server.attachments.settings import NO_ATTACHMENT_SETTINGS, AttachmentSettings
from server.auth.settings import DEVELOPMENT, NO_AUTH, AuthSettings
from server.dictation_settings import NO_DICTATION, DictationSettings
from server.limits.settings import DEFAULT_LIMITS, LimitSettings

DEFAULT_LISTEN = Address("127.0.0.1", 50051)
ConflictPolicy = Literal["interrupt", "enqueue", "reject"]
"""What becomes of a run when another one is asked for on its thread."""
LogMode = Literal["behind", "ahead"]
"""Whether watchers see a token before it is in the log, or after."""
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of the server. README.md lists them with what they are for; each is the variable of its name."""

    database_url: str | None = None
    data_dir: Path = Path(".data")
    database_pool_size: int = 10
    database_statement_cache: bool = True
    database_timeout_seconds: float = 30.0
    row_level_security: bool = False
    grpc_listen: Address = DEFAULT_LISTEN
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    allow_plaintext: bool = False
    environment: str = "production"
    grpc_reflection: bool | None = None
    auth: AuthSettings = NO_AUTH
    limits: LimitSettings = DEFAULT_LIMITS
    attachments: AttachmentSettings = NO_ATTACHMENT_SETTINGS
    public_url: str | None = None
    chatkit_server: str = "server.assistant:create_assistant"
    max_request_bytes: int = 4 * 1024 * 1024
    shutdown_grace_seconds: float = 5.0
    run_grace_seconds: float = 10.0
    run_conflict: ConflictPolicy = "interrupt"
    run_log: LogMode = "behind"
    run_log_ttl_seconds: float = 600.0
    lease_seconds: float = 7.0
    thread_ttl_days: float | None = None
    log_level: str = "INFO"
    openai_api_key: str | None = None
    xiaomi_api_key: str | None = None
    model_base_url: str | None = None
    model_api_key: str | None = None
    model_name: str | None = None
    models: Path | None = None
    model_first_token_seconds: float = 120.0
    model_token_seconds: float = 60.0
    model_retries: int = 2
    answer_seconds: float = 600.0
    context_tokens: int = 32_000
    thread_titles: bool = True
    dictation: DictationSettings = NO_DICTATION
    mcp_servers: Path | None = None

    @classmethod
    def from_env(cls) -> Settings:
        """Read the environment. Raises SettingsError, which names every setting that is wrong."""
        env = Environment()
        # With __slots__ a class attribute is no default, so one instance stands for them.
        default = cls()
        settings: dict[str, Any] = {
            "database_url": env.str("DATABASE_URL", "", validate=_postgres_url) or None,
            "data_dir": env.path("DATA_DIR", default.data_dir),
            "database_pool_size": env.int(
                "DATABASE_POOL_SIZE", default.database_pool_size, validate=must_be.Range(1, 1000)
            ),
            "database_statement_cache": env.bool("DATABASE_STATEMENT_CACHE", default.database_statement_cache),
            "database_timeout_seconds": env.float(
                "DATABASE_TIMEOUT_SECONDS", default.database_timeout_seconds, validate=must_be.Range(0.1, 3600)
            ),
            "row_level_security": env.bool("ROW_LEVEL_SECURITY", default.row_level_security),
            "grpc_listen": env.address("GRPC_LISTEN", default.grpc_listen),
            "tls_certificate": env.file("TLS_CERTIFICATE"),
            "tls_key": env.file("TLS_KEY"),
            "tls_client_ca": env.file("TLS_CLIENT_CA"),
            "allow_plaintext": env.bool("ALLOW_PLAINTEXT", default.allow_plaintext),
            "environment": env.str("ENVIRONMENT", default.environment, validate=_environment),
            "grpc_reflection": env.bool("GRPC_REFLECTION", default.grpc_reflection),
            "auth": AuthSettings.read(env),
            "limits": LimitSettings.read(env),
            "attachments": AttachmentSettings.read(env),
            "public_url": env.str("PUBLIC_URL", "", validate=check_http_url) or None,
            "chatkit_server": env.str("CHATKIT_SERVER", default.chatkit_server, validate=_factory),
            "max_request_bytes": env.int(
                "MAX_REQUEST_BYTES", default.max_request_bytes, validate=must_be.Range(1024, 2**30)
            ),
            "shutdown_grace_seconds": env.float(
                "SHUTDOWN_GRACE_SECONDS", default.shutdown_grace_seconds, validate=must_be.Range(0, 3600)
            ),
            "run_grace_seconds": env.float("RUN_GRACE_SECONDS", default.run_grace_seconds, validate=_run_grace),
            "run_conflict": env.str(
                "RUN_CONFLICT", default.run_conflict, validate=must_be.OneOf(get_args(ConflictPolicy))
            ),
            "run_log": env.str("RUN_LOG", default.run_log, validate=must_be.OneOf(get_args(LogMode))),
            "run_log_ttl_seconds": env.float(
                "RUN_LOG_TTL_SECONDS", default.run_log_ttl_seconds, validate=must_be.Range(1, 86400)
            ),
            "lease_seconds": env.float("LEASE_SECONDS", default.lease_seconds, validate=must_be.Range(2, 3600)),
            "thread_ttl_days": env.float("THREAD_TTL_DAYS", default.thread_ttl_days, validate=_thread_ttl),
            "log_level": env.str("LOG_LEVEL", default.log_level, validate=must_be.OneOf(LOG_LEVELS)),
            "openai_api_key": env.text("OPENAI_API_KEY"),
            "xiaomi_api_key": env.text("XIAOMI_API_KEY"),
            "model_base_url": env.str("MODEL_BASE_URL", "", validate=check_http_url) or None,
            "model_api_key": env.text("MODEL_API_KEY"),
            "model_name": env.text("MODEL_NAME"),
            "mcp_servers": env.file("MCP_SERVERS"),
            "models": env.file("MODELS"),
            "model_first_token_seconds": env.float(
                "MODEL_FIRST_TOKEN_SECONDS", default.model_first_token_seconds, validate=must_be.Range(0.1, 3600)
            ),
            "model_token_seconds": env.float(
                "MODEL_TOKEN_SECONDS", default.model_token_seconds, validate=must_be.Range(0.1, 3600)
            ),
            "model_retries": env.int("MODEL_RETRIES", default.model_retries, validate=must_be.Range(0, 10)),
            "answer_seconds": env.float("ANSWER_SECONDS", default.answer_seconds, validate=must_be.Range(1, 86400)),
            "context_tokens": env.int("CONTEXT_TOKENS", default.context_tokens, validate=must_be.Range(1000, 10**8)),
            "thread_titles": env.bool("THREAD_TITLES", default.thread_titles),
            "dictation": DictationSettings.read(env),
        }
        env.check()
        made = cls(**settings)
        made.check()
        return made

    def check(self) -> None:
        """Raise SettingsError for what doesn't go together, or isn't safe."""
        problems = [
            *self._transport_problems(),
            *self.auth.problems(self.environment),
            *self.attachments.problems(allow_plaintext=self.allow_plaintext),
        ]
        if problems:
            raise SettingsError("\n".join(problems))

    def _transport_problems(self) -> list[str]:
        problems = []
        if (self.tls_certificate is None) != (self.tls_key is None):
            missing = "TLS_KEY" if self.tls_key is None else "TLS_CERTIFICATE"
            problems.append(f"{missing}: expected it beside the other one of TLS_CERTIFICATE and TLS_KEY")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            problems.append("TLS_CERTIFICATE: TLS_CLIENT_CA needs TLS_CERTIFICATE and TLS_KEY")
        if self.auth.service_certificates and self.tls_client_ca is None:
            problems.append("TLS_CLIENT_CA: SERVICE_CERTIFICATES needs who issues the clients' certificates")
        if self.tls_certificate is None and not self.grpc_listen.is_loopback and not self.allow_plaintext:
            problems.append(
                f"GRPC_LISTEN: tokens would travel to {self.grpc_listen} in plaintext: expected TLS_CERTIFICATE and "
                f"TLS_KEY. {PLAINTEXT_HINT}"
            )
        if not self.allow_plaintext and is_plaintext_url(self.auth.key_set_url):
            name = "JWKS_URL" if self.auth.jwks_url else "BETTER_AUTH_URL"
            problems.append(f"{name}: expected https, since who can change the keys can be anybody. {PLAINTEXT_HINT}")
        return problems

    @property
    def is_development(self) -> bool:
        """Whether requests without credentials act as a development user."""
        return self.environment == DEVELOPMENT

    @property
    def has_reflection(self) -> bool:
        """Whether anybody may ask which services there are; in development unless the settings say."""
        return self.is_development if self.grpc_reflection is None else self.grpc_reflection

    @property
    def database_description(self) -> str:
        """Where the database is, for people to read. Sample: "PostgreSQL at db.internal/chat"."""
        if self.database_url is None:
            return f"embedded PostgreSQL in {self.data_dir / 'postgres'}"
        return _without_password(self.database_url)


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "PostgreSQL"
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        # A password with a character that should have been escaped: what looks like the host may be half of it.
        return "PostgreSQL"
    host = parts.netloc.rpartition("@")[2] or ",".join(parse_qs(parts.query).get("host", ["localhost"]))
    return f"PostgreSQL at {host}{parts.path}"


def _postgres_url(url: str) -> None:
    # The URL may hold a password: only its scheme is shown.
    scheme = urlsplit(url).scheme if url else "postgresql"
    if scheme not in {"postgresql", "postgres"}:
        raise ValidationError(f"expected postgresql://user@host/name, got the scheme {scheme!r}")


def _run_grace(seconds: float | None) -> None:
    if seconds is not None and seconds != -1 and not 0 <= seconds <= 86400:
        raise ValidationError(f"expected 0 to 86400 seconds, or -1 for no end, got {seconds:g}")


def _thread_ttl(days: float | None) -> None:
    if days is not None and not 0 < days < 36500:
        raise ValidationError(f"expected more than 0 days and less than 36500, got {days:g}")


def _environment(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise ValidationError(f"expected development, production or a name in lower case, got {name!r}")


def _factory(path: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", path):
        raise ValidationError(f"expected package.module:factory, got {path!r}")
