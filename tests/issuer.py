"""An issuer of tokens: keys of all kinds, tokens signed with them as asked, and a key set over a real socket."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

SECRET = "kS7-4vQpZr2nX0bT9mLwYc8eJfGhUaDi"  # noqa: S105 # for nothing but these tests
AUDIENCE = "https://chat.test"

ALGORITHMS: Mapping[str, Any] = {
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "PS256": lambda: rsa.generate_private_key(65537, 2048),
}


@dataclass(frozen=True)
class Key:
    """A key pair. kid: also says which algorithm it is for."""

    kid: str
    algorithm: str
    private: Any

    @classmethod
    def make(cls, algorithm: str, kid: str | None = None) -> Key:
        return cls(kid or algorithm, algorithm, ALGORITHMS[algorithm]())

    @property
    def jwk(self) -> dict[str, Any]:
        to_jwk: Any = jwt.get_algorithm_by_name(self.algorithm).to_jwk
        members: dict[str, Any] = json.loads(to_jwk(self.private.public_key()))
        return {"alg": self.algorithm, "kid": self.kid, **{k: v for k, v in members.items() if k != "key_ops"}}

    def sign(self, claims: Mapping[str, Any], **header: Any) -> str:
        return jwt.encode(dict(claims), self.private, self.algorithm, {"kid": self.kid, "typ": None, **header})


def claims(**others: Any) -> dict[str, Any]:
    """What Better Auth's tokens claim; None leaves one out."""
    now = int(time.time())
    found = {"sub": "alice", "iss": AUDIENCE, "aud": AUDIENCE, "iat": now, "exp": now + 900, **others}
    return {name: value for name, value in found.items() if value is not None}


def encoded(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header: object, payload: object, secret: bytes = b"", digest: Any = hashlib.sha256) -> str:
    """A token made by hand, signed with HMAC or, without a secret, not at all."""
    signed = f"{encoded(header)}.{encoded(payload)}"
    return f"{signed}.{encoded(hmac.digest(secret, signed.encode(), digest)) if secret else ''}"


def hs256(**others: Any) -> str:
    """A token signed with the secret."""
    return forged({"alg": "HS256"}, claims(**others), SECRET.encode())


@dataclass
class Issuer:
    """Publishes a key set.

    fetches: how often it was asked. manner: how it answers; "hang" never does.
    """

    keys: list[Key]
    manner: Literal["well", "error", "hang", "nonsense", "too much", "elsewhere", "no keys"] = "well"
    fetches: int = 0
    others: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def sign(self, *, by: str = "EdDSA", **others: Any) -> str:
        return next(key for key in self.keys if key.kid == by).sign(claims(**others))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.fetches += 1
                if self.manner == "hang":
                    await reader.read()
                    return
                writer.write(self._answer())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self) -> bytes:
        keys = [*self.others, *(key.jwk for key in self.keys)]
        status, headers, body = "200 OK", "", json.dumps({"keys": keys}).encode()
        if self.manner == "error":
            status = "503 Service Unavailable"
        elif self.manner == "nonsense":
            body = b"<html>"
        elif self.manner == "too much":
            body = body + b" " * 70_000
        elif self.manner == "elsewhere":
            status, headers = "302 Found", f"Location: {self.url}/elsewhere\r\n"
        elif self.manner == "no keys":
            body = b'{"keys": []}'
        return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def open_issuer(*keys: Key) -> AsyncIterator[Issuer]:
    issuer = Issuer(list(keys) or [Key.make(algorithm) for algorithm in ALGORITHMS])
    server = await asyncio.start_server(issuer._serve, "127.0.0.1", 0)
    issuer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield issuer
    finally:
        server.close()
