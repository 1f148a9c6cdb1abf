"""How both halves read their environment: what a variable must be, and an error that names all that are wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple, Self, cast
from urllib.parse import urlsplit

from environs import Env, EnvValidationError, ValidationError


class SettingsError(Exception):
    """Some settings are not what they must be; the message names each of them and says what it wants."""


class Address(NamedTuple):
    """Where to listen or to connect.

    port: 0 lets the system choose one.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read host:port. Samples: "127.0.0.1:50051", "[::1]:8000", "0.0.0.0:0". Raises ValidationError."""
        host, colon, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not colon or not bare or not port.isdecimal() or int(port) > 65535 or (":" in bare and bare == host):
            raise ValidationError(f"expected host:port such as 127.0.0.1:8000, got {text!r}")
        return cls(bare, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?")
PLAINTEXT_HINT = "Where the network between is yours alone: ALLOW_PLAINTEXT=true"
GRPC_LISTEN = Address("127.0.0.1", 50051)
BRIDGE_LISTEN = Address("127.0.0.1", 8000)
"""Where the halves listen unless they are told otherwise."""


def check_http_url(url: str) -> None:
    """Raise ValidationError unless it is the URL of something that is asked by HTTP, without a password in it."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or 1) > 0
    except ValueError:
        is_url = False
    if url and (not is_url or url != url.strip()):
        raise ValidationError("expected a URL such as https://host/v1/")
    if "@" in url:
        raise ValidationError("expected a URL without a user and password")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own, for itself only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_plaintext_url(url: str | None) -> bool:
    """Whether what is asked for at a URL travels in plaintext, and not only on this machine."""
    parts = urlsplit(url or "")
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def check_origins(origins: list[str]) -> None:
    """Raise ValidationError unless all are origins, none of them a wildcard."""
    for origin in origins:
        if origin == "*":
            raise ValidationError("expected origins; a wildcard would let any site act with a user's cookie")
        if not _ORIGIN.fullmatch(origin) or origin.endswith((":80", ":443")):
            raise ValidationError(f"expected origins as browsers write them, such as https://app.test, got {origin!r}")


def read_file(setting: str, path: Path) -> bytes:
    """What the file of a setting holds. Raises SettingsError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting}: can't read {path}: {error.strerror}") from None


class Environment(Env):
    """The process's environment. Read it all, then call `check`, which reports all that is wrong at once."""

    def __init__(self) -> None:
        super().__init__(eager=False)
        self.add_parser("_address", Address.parse)

    def address(self, name: str, default: Address) -> Address:
        """A host:port."""
        found: Address | None = self._address(name, str(default))
        return found or default

    def words(self, name: str, validate: Callable[[list[str]], None] = lambda _: None) -> tuple[str, ...]:
        """Words with commas between them, and blanks if that reads better."""
        found: list[str] | None = self.list(name, [], validate=lambda words: validate(_stripped(words)))
        return tuple(_stripped(found or []))

    def file(self, name: str) -> Path | None:
        """The path of a file; whether it can be read is seen when it is."""
        text = self.text(name)
        return None if text is None else Path(text)

    def text(self, name: str) -> str | None:
        """Any text. An empty one counts as none, since `docker run -e NAME=` makes such."""
        return self.str(name, "") or None

    def check(self) -> None:
        """Raise SettingsError if anything that was read is wrong."""
        try:
            self.seal()
        except EnvValidationError as error:
            wrong = cast("dict[str, list[str]]", error.error_messages)
            lines = [f"{name}: {' '.join(map(str, messages))}" for name, messages in wrong.items()]
            raise SettingsError("\n".join(lines)) from None


def _stripped(words: list[str]) -> list[str]:
    """Without blanks around them, and without empty ones, which a comma at the end would make."""
    return [word.strip() for word in words if word.strip()]
