"""The bridge's settings: read from the environment once, checked at start, never changed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit_grpc.environment import (
    BRIDGE_LISTEN,
    GRPC_LISTEN,
    PLAINTEXT_HINT,
    Address,
    Environment,
    SettingsError,
    check_http_url,
    check_origins,
    is_loopback,
)
from environs import ValidationError
from environs import validate as must_be

_PLAIN_TARGET = re.compile(
    r"(?:dns:(?:///)?|ipv4:|ipv6:)?((?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]):\d+(?:,(?:[0-9.]+|\[[0-9a-fA-F:]+\]):\d+)*)"
)
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of the bridge. README.md lists them with what they are for; each is the variable of its name."""

    bridge_listen: Address = BRIDGE_LISTEN
    grpc_target: str = str(GRPC_LISTEN)
    grpc_ca: Path | None = None
    grpc_certificate: Path | None = None
    grpc_key: Path | None = None
    grpc_server_name: str | None = None
    allow_plaintext: bool = False
    allowed_origins: tuple[str, ...] = ()
    public_url: str | None = None
    max_request_bytes: int = 4 * 1024 * 1024
    max_header_bytes: int = 64 * 1024
    max_connections: int = 10_000
    request_timeout_seconds: float = 20.0
    heartbeat_seconds: float = 5.0
    call_timeout_seconds: float = 30.0
    stream_timeout_seconds: float = 3600.0
    resume_seconds: float = 20.0
    shutdown_grace_seconds: float = 5.0
    log_level: str = "INFO"

    @classmethod
    def from_env(cls) -> Settings:
        """Read the environment. Raises SettingsError, which names every setting that is wrong."""
        env = Environment()
        # With __slots__ a class attribute is no default, so one instance stands for them.
        default = cls()
        settings: dict[str, Any] = {
            "bridge_listen": env.address("BRIDGE_LISTEN", default.bridge_listen),
            "grpc_target": env.str("GRPC_TARGET", default.grpc_target, validate=_target),
            "grpc_ca": env.file("GRPC_CA"),
            "grpc_certificate": env.file("GRPC_CERTIFICATE"),
            "grpc_key": env.file("GRPC_KEY"),
            "grpc_server_name": env.text("GRPC_SERVER_NAME"),
            "allow_plaintext": env.bool("ALLOW_PLAINTEXT", default.allow_plaintext),
            "allowed_origins": env.words("ALLOWED_ORIGINS", validate=check_origins),
            "public_url": env.str("PUBLIC_URL", "", validate=check_http_url) or None,
            "max_request_bytes": env.int(
                "MAX_REQUEST_BYTES", default.max_request_bytes, validate=must_be.Range(1024, 2**30)
            ),
            "max_header_bytes": env.int(
                "MAX_HEADER_BYTES", default.max_header_bytes, validate=must_be.Range(4096, 2**20)
            ),
            "max_connections": env.int(
                "MAX_CONNECTIONS", default.max_connections, validate=must_be.Range(1, 1_000_000)
            ),
            "request_timeout_seconds": env.float(
                "REQUEST_TIMEOUT_SECONDS", default.request_timeout_seconds, validate=must_be.Range(0.1, 3600)
            ),
            "heartbeat_seconds": env.float(
                "HEARTBEAT_SECONDS", default.heartbeat_seconds, validate=must_be.Range(0.1, 60)
            ),
            "call_timeout_seconds": env.float(
                "CALL_TIMEOUT_SECONDS", default.call_timeout_seconds, validate=must_be.Range(0.1, 3600)
            ),
            "stream_timeout_seconds": env.float(
                "STREAM_TIMEOUT_SECONDS", default.stream_timeout_seconds, validate=must_be.Range(1, 86400)
            ),
            "resume_seconds": env.float("RESUME_SECONDS", default.resume_seconds, validate=must_be.Range(0, 600)),
            "shutdown_grace_seconds": env.float(
                "SHUTDOWN_GRACE_SECONDS", default.shutdown_grace_seconds, validate=must_be.Range(0, 3600)
            ),
            "log_level": env.str("LOG_LEVEL", default.log_level, validate=must_be.OneOf(LOG_LEVELS)),
        }
        env.check()
        made = cls(**settings)
        made.check()
        return made

    def check(self) -> None:
        """Raise SettingsError for what doesn't go together, or isn't safe."""
        problems = []
        if (self.grpc_certificate is None) != (self.grpc_key is None):
            missing = "GRPC_KEY" if self.grpc_key is None else "GRPC_CERTIFICATE"
            problems.append(f"{missing}: expected it beside the other one of GRPC_CERTIFICATE and GRPC_KEY")
        if self.grpc_ca is None and (self.grpc_certificate is not None or self.grpc_server_name is not None):
            problems.append("GRPC_CA: expected who issues the servers' certificates; without it there is no TLS")
        if self.grpc_ca is None and not self.allow_plaintext and not _stays_here(self.grpc_target):
            problems.append(
                f"GRPC_TARGET: tokens would travel to {self.grpc_target} in plaintext: expected GRPC_CA. "
                f"{PLAINTEXT_HINT}"
            )
        if problems:
            raise SettingsError("\n".join(problems))


def _stays_here(target: str) -> bool:
    """Whether a target is on this machine, all of it. What isn't plainly that is taken for abroad.

    So are names that a certain name server is asked for: it may say anything.
    """
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    found = _PLAIN_TARGET.fullmatch(target)
    return found is not None and all(
        is_loopback(address.rpartition(":")[0].strip("[]")) for address in found[1].split(",")
    )


def _target(text: str) -> None:
    """One of gRPC's own forms, or host:port. gRPC itself takes anything, and then never finds it."""
    if re.match(r"(dns|ipv4|ipv6|unix|unix-abstract|xds|vsock):", text):
        return
    if not Address.parse(text).port:
        raise ValidationError(f"expected a port other than 0, got {text!r}")
