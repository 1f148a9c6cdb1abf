"""The issuer's public keys: fetched without holding anybody up, kept while the issuer is away, asked for seldom.

A made-up `kid` looks like the one of a new key, and must not become a way to flood the issuer: for an unknown one the
keys are fetched at most every 30 seconds. Nothing in a token says where to fetch from.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2
import jwt
from chatkit_grpc.environment import is_loopback
from chatkit_grpc.errors import UnavailableError

FRESH_SECONDS = 600.0
"""How old keys may be before they are fetched anew, in the background."""
STALE_SECONDS = 86400.0
"""How old keys may become while the issuer can't be reached."""
PAUSE_SECONDS = 30.0
"""From one search for an unknown key to the next at least, and from one attempt to renew old ones to the next."""
_PAUSE_WITHOUT_KEYS_SECONDS = 1.0
_FETCH_SECONDS = 3.0
_MAX_BYTES = 64 * 1024

_ALGORITHMS: Mapping[str, Sequence[str]] = {
    "OKP Ed25519": ("EdDSA",),
    "EC P-256": ("ES256",),
    "EC P-521": ("ES512",),
    "RSA": ("RS256", "PS256"),
}
"""By the type and curve of a key what it may sign with: what Better Auth can be set to. A shared secret is not here."""

log = logging.getLogger(__name__)


class KeySet:
    """The keys at a URL. Open it inside the event loop that uses it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._loop = asyncio.get_running_loop()
        self._fetched_at = self._tried_at = self._searched_at = float("-inf")
        self._has_failed = False
        self._fetching: asyncio.Task[None] | None = None
        # A proxy is not on the way to this very machine, and could answer in its place.
        is_here = is_loopback(urlsplit(url).hostname or "")
        self._http = httpx2.AsyncClient(timeout=_FETCH_SECONDS, follow_redirects=False, trust_env=not is_here)

    async def __aenter__(self) -> Self:
        # The issuer may start after us; and whoever calls first shouldn't have to wait.
        self._renew()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])
        await self._http.aclose()

    async def get(self, kid: str) -> jwt.PyJWK | None:
        """The key of an id, None where the issuer has none.

        Raises UnavailableError where that can't be said: there are no keys yet, or the issuer couldn't be asked for
        this one.
        """
        if self._age() > FRESH_SECONDS:
            self._renew()
        if kid not in self._keys or self._age() > STALE_SECONDS:
            await self._fetched()
        if kid not in self._keys and self._now() - self._searched_at >= PAUSE_SECONDS:
            self._searched_at = self._now()
            self._fetch()
            await self._fetched()
        if self._age() > STALE_SECONDS or (kid not in self._keys and self._has_failed):
            raise UnavailableError("Tokens can't be checked for now: their issuer can't be reached.", retry_after=2)
        return self._keys.get(kid)

    async def _fetched(self) -> None:
        """Wait for the keys that are being fetched, if any are."""
        if self._fetching is not None:
            await asyncio.shield(self._fetching)

    def _now(self) -> float:
        return self._loop.time()

    def _age(self) -> float:
        return self._now() - self._fetched_at

    def _renew(self) -> None:
        pause = PAUSE_SECONDS if self._age() <= STALE_SECONDS else _PAUSE_WITHOUT_KEYS_SECONDS
        if self._now() - self._tried_at >= pause:
            self._tried_at = self._now()
            self._fetch()

    def _fetch(self) -> None:
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._refresh(), name="jwks")
            self._fetching.add_done_callback(self._has_fetched)

    def _has_fetched(self, _task: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(_FETCH_SECONDS):
                keys = usable_keys(json.loads(await self._read()))
        except Exception as error:  # noqa: BLE001 # whatever it is, the keys that we have go on counting
            log.warning("no keys from %s: %s", self._url, _why(error))
            self._has_failed = True
            return
        self._keys, self._fetched_at, self._has_failed = keys, self._now(), False

    async def _read(self) -> bytes:
        body = bytearray()
        async with self._http.stream("GET", self._url, headers={"Accept": "application/json"}) as response:
            if response.status_code != httpx2.codes.OK:
                raise ValueError(f"status {response.status_code}")
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise ValueError(f"more than {_MAX_BYTES} bytes")
        return bytes(body)


def usable_keys(jwks: Any) -> Mapping[str, jwt.PyJWK]:
    """The keys of a key set that tokens may be signed with, by their ids. Raises ValueError where there is none."""
    listed = jwks.get("keys") if isinstance(jwks, dict) else None
    found = [_key(members) for members in listed] if isinstance(listed, list) else []
    keys = {key.key_id: key for key in found if key is not None and key.key_id}
    if not keys:
        raise ValueError("no key that could be used")
    return keys


def _key(members: Any) -> jwt.PyJWK | None:
    """A key that may sign, with its one algorithm: its own word counts where its type allows that."""
    if not isinstance(members, dict) or not isinstance(members.get("kid"), str) or members.get("use", "sig") != "sig":
        return None
    allowed = _ALGORITHMS.get(f"{members.get('kty')} {members.get('crv', '')}".strip(), ())
    algorithm = members.get("alg", allowed[0] if allowed else None)
    if algorithm not in allowed:
        return None
    try:
        return jwt.PyJWK(members, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError):
        return None


def _why(error: Exception) -> str:
    """What went wrong, without what the issuer sent."""
    return f"{type(error).__name__}{f' ({error})' if type(error) is ValueError else ''}"
