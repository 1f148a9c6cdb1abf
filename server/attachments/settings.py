"""What an operator says about attachments. 0 stands for "no limit" where a limit is about how many a user has."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from chatkit_grpc.environment import PLAINTEXT_HINT, Environment, check_http_url, is_plaintext_url
from environs import ValidationError
from environs import validate as must_be

DEFAULT_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf", "text/*", "application/json")
KINDS_FOR_A_MODEL = ("image", "pdf", "text")
_TYPE = re.compile(r"[a-z0-9.+-]+/(\*|[a-z0-9.+-]+)|\*/\*")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PARAMETERS = frozenset({"endpoint", "public_endpoint", "region"})


@dataclass(frozen=True, slots=True)
class S3Location:
    """Where objects are, in an S3-compatible store.

    bucket_url: the bucket's URL as the server finds it. public_bucket_url: as browsers do.
    prefix: what the keys of all objects begin with; empty or with a slash at its end.
    """

    bucket_url: str
    public_bucket_url: str
    prefix: str
    region: str

    @classmethod
    def parse(cls, url: str) -> S3Location:
        """Read s3://bucket/prefix?endpoint=…&public_endpoint=…&region=…. Raises ValidationError."""
        parts = urlsplit(url)
        if parts.scheme != "s3" or not _BUCKET.fullmatch(parts.netloc):
            raise ValidationError("expected s3://bucket/prefix?endpoint=https://host&region=name")
        parameters = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if unknown := sorted(set(parameters) - _PARAMETERS):
            raise ValidationError(f"expected endpoint, public_endpoint and region, got {unknown[0]!r}")
        for name in ("endpoint", "public_endpoint"):
            check_http_url(parameters.get(name, ""))
        region = parameters.get("region", "us-east-1")
        own = f"https://{parts.netloc}.s3.{region}.amazonaws.com"
        bucket_url = f"{parameters['endpoint'].rstrip('/')}/{parts.netloc}" if "endpoint" in parameters else own
        public = parameters.get("public_endpoint")
        prefix = quote(parts.path.strip("/"))
        return cls(
            bucket_url=bucket_url,
            public_bucket_url=f"{public.rstrip('/')}/{parts.netloc}" if public else bucket_url,
            prefix=f"{prefix}/" if prefix else "",
            region=region,
        )


@dataclass(frozen=True, slots=True)
class AttachmentSettings:
    """The settings of attachments. README.md lists them with what they are for; each is the variable of its name."""

    attachments_url: str | None = None
    aws_access_key_id: str | None = None
    aws_secret_access_key: str | None = field(default=None, repr=False)
    aws_session_token: str | None = field(default=None, repr=False)
    max_attachment_bytes: int = 20 * 1024 * 1024
    max_user_attachments: int = 1000
    max_user_attachment_bytes: int = 2**30
    attachment_types: tuple[str, ...] = DEFAULT_TYPES
    attachment_ttl_seconds: float = 86400.0
    attachments_for_model: tuple[str, ...] = ()
    attachment_bytes_for_model: int = 10 * 1024 * 1024

    @classmethod
    def read(cls, env: Environment) -> AttachmentSettings:
        """Read the environment; `env.check()` tells what is wrong with it."""
        default = cls()

        def number(name: str, lowest: int, highest: int) -> int | None:
            found: int | None = env.int(name, getattr(default, name.lower()), validate=must_be.Range(lowest, highest))
            return found

        settings: dict[str, Any] = {
            "attachments_url": env.str("ATTACHMENTS_URL", "", validate=_s3_url) or None,
            "aws_access_key_id": env.text("AWS_ACCESS_KEY_ID"),
            "aws_secret_access_key": env.text("AWS_SECRET_ACCESS_KEY"),
            "aws_session_token": env.text("AWS_SESSION_TOKEN"),
            "max_attachment_bytes": number("MAX_ATTACHMENT_BYTES", 1, 2**40),
            "max_user_attachments": number("MAX_USER_ATTACHMENTS", 0, 10**9),
            "max_user_attachment_bytes": number("MAX_USER_ATTACHMENT_BYTES", 0, 2**50),
            "attachment_types": env.words("ATTACHMENT_TYPES", validate=_types) or default.attachment_types,
            "attachment_ttl_seconds": env.float(
                "ATTACHMENT_TTL_SECONDS", default.attachment_ttl_seconds, validate=must_be.Range(60, 365 * 86400)
            ),
            "attachments_for_model": env.words("ATTACHMENTS_FOR_MODEL", validate=_kinds),
            "attachment_bytes_for_model": number("ATTACHMENT_BYTES_FOR_MODEL", 0, 2**30),
        }
        return cls(**settings)

    def problems(self, *, allow_plaintext: bool) -> list[str]:
        """What doesn't go together, or isn't safe."""
        if self.attachments_url is None:
            return []
        problems = []
        if self.aws_access_key_id is None or self.aws_secret_access_key is None:
            problems.append("AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY: expected both beside ATTACHMENTS_URL")
        location = S3Location.parse(self.attachments_url)
        if not allow_plaintext and any(map(is_plaintext_url, (location.bucket_url, location.public_bucket_url))):
            problems.append(f"ATTACHMENTS_URL: files would travel in plaintext: expected https. {PLAINTEXT_HINT}")
        return problems


NO_ATTACHMENT_SETTINGS = AttachmentSettings()


def _s3_url(url: str) -> None:
    if url:
        S3Location.parse(url)


def _types(types: list[str]) -> None:
    for name in types:
        if not _TYPE.fullmatch(name):
            raise ValidationError(f"expected MIME types such as image/png or text/*, got {name!r}")


def _kinds(kinds: list[str]) -> None:
    for kind in kinds:
        if kind not in KINDS_FOR_A_MODEL:
            raise ValidationError(f"expected words of {', '.join(KINDS_FOR_A_MODEL)}, got {kind!r}")
