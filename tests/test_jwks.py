"""The issuer's keys: fetched seldom, kept through an outage, and never asked for as a token says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from chatkit_grpc.errors import UnavailableError
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from server.auth import jwks
from server.auth.jwks import FRESH_SECONDS, PAUSE_SECONDS, STALE_SECONDS, KeySet, usable_keys
from tests.issuer import Issuer, Key, open_issuer


class Clock:
    """The loop's time, moved on by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, keys: KeySet) -> None:
        self._ahead = 0.0
        loop = asyncio.get_running_loop()

        class Later:
            time = staticmethod(lambda: loop.time() + self._ahead)

        monkeypatch.setattr(keys, "_loop", Later)

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with open_issuer(Key.make("EdDSA", "first")) as issuer:
        yield issuer


async def fetched(keys: KeySet) -> None:
    if keys._fetching is not None:
        await asyncio.shield(keys._fetching)


async def test_keys_are_fetched_once_for_all_who_ask(issuer: Issuer) -> None:
    async with KeySet(issuer.url) as keys:
        found = await asyncio.gather(*(keys.get("first") for _ in range(50)))
        assert all(key is not None and key.algorithm_name == "EdDSA" for key in found)
    assert issuer.fetches == 1


async def test_made_up_keys_cause_no_flood(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with KeySet(issuer.url) as keys:
        clock = Clock(monkeypatch, keys)
        await keys.get("first")
        for _ in range(4):
            assert await asyncio.gather(*(keys.get(f"made-up-{n}") for n in range(500))) == [None] * 500
            clock.advance(PAUSE_SECONDS / 4)
        assert issuer.fetches == 2  # the first ones, and one search
        clock.advance(1)
        await asyncio.gather(*(keys.get(f"made-up-{n}") for n in range(500)))
        assert issuer.fetches == 3


async def test_a_new_key_is_found(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with KeySet(issuer.url) as keys:
        clock = Clock(monkeypatch, keys)
        await keys.get("first")
        for name in ("second", "third"):
            issuer.keys.append(Key.make("ES256", name))
            key = await keys.get(name)
            assert key is not None
            assert key.algorithm_name == "ES256"
            clock.advance(PAUSE_SECONDS + 1)


async def test_a_key_that_is_published_no_more_counts_no_more(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with KeySet(issuer.url) as keys:
        clock = Clock(monkeypatch, keys)
        await keys.get("first")
        issuer.keys[:] = [Key.make("ES256", "second")]
        clock.advance(FRESH_SECONDS + 1)
        assert await keys.get("first") is not None  # nobody waits for what is fetched in the background
        await fetched(keys)
        assert await keys.get("first") is None


@pytest.mark.parametrize("manner", ["error", "nonsense", "too much", "elsewhere", "no keys"])
async def test_keys_are_kept_through_an_outage_of_a_day(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, manner: str
) -> None:
    async with KeySet(issuer.url) as keys:
        clock = Clock(monkeypatch, keys)
        await keys.get("first")
        issuer.manner = manner  # type: ignore[assignment]  # one of them
        for _ in range(20):
            clock.advance(STALE_SECONDS / 21)
            assert await keys.get("first") is not None
            await fetched(keys)
        clock.advance(STALE_SECONDS / 20)
        with pytest.raises(UnavailableError, match="can't be reached") as caught:
            await keys.get("first")
        assert caught.value.retry_after
        issuer.manner = "well"
        clock.advance(2)
        assert await keys.get("first") is not None
        assert issuer.fetches > 20


@pytest.mark.parametrize("manner", ["error", "nonsense", "elsewhere"])
async def test_a_key_that_could_not_be_asked_for_is_not_said_to_be_unknown(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, manner: str
) -> None:
    async with KeySet(issuer.url) as keys:
        clock = Clock(monkeypatch, keys)
        await keys.get("first")
        issuer.keys.append(Key.make("ES256", "second"))
        issuer.manner = manner  # type: ignore[assignment]  # one of them
        for _ in range(3):
            with pytest.raises(UnavailableError):
                await keys.get("second")
            assert await keys.get("first") is not None
        issuer.manner = "well"
        clock.advance(PAUSE_SECONDS + 1)
        assert await keys.get("second") is not None
        assert await keys.get("made up") is None


async def test_an_issuer_that_starts_later_is_found(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    issuer.manner = "error"
    async with KeySet(issuer.url) as keys:
        clock = Clock(monkeypatch, keys)
        for _ in range(100):
            with pytest.raises(UnavailableError):
                await keys.get("first")
        assert issuer.fetches <= 2  # at once, and where a second has passed
        issuer.manner = "well"
        clock.advance(1.1)
        assert await keys.get("first") is not None


async def test_an_issuer_that_hangs_holds_up_those_who_need_it_and_no_longer_than_seconds(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "_FETCH_SECONDS", 0.3)
    async with KeySet(issuer.url) as keys:
        clock = Clock(monkeypatch, keys)
        await keys.get("first")
        issuer.manner = "hang"
        clock.advance(PAUSE_SECONDS + 1)
        unknown = asyncio.create_task(keys.get("made-up"))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(0.1):
            assert await keys.get("first") is not None
        assert not unknown.done()
        with pytest.raises(UnavailableError):
            await unknown


async def test_whoever_gives_up_waiting_stops_nobody_elses_fetch(issuer: Issuer) -> None:
    async with KeySet(issuer.url) as keys:
        impatient = asyncio.create_task(keys.get("first"))
        await asyncio.sleep(0)
        impatient.cancel()
        assert await keys.get("first") is not None
    assert issuer.fetches == 1


async def test_what_is_being_fetched_at_the_end_is_left(issuer: Issuer) -> None:
    issuer.manner = "hang"
    async with asyncio.timeout(2), KeySet(issuer.url):
        await asyncio.sleep(0.05)


async def test_a_host_that_is_not_there_is_an_outage() -> None:
    async with KeySet("http://127.0.0.1:9/api/auth/jwks") as keys:
        with pytest.raises(UnavailableError):
            await keys.get("any")


def jwk_of(algorithm: str, key: object) -> dict[str, object]:
    to_jwk: Any = jwt.get_algorithm_by_name(algorithm).to_jwk
    members: dict[str, object] = json.loads(to_jwk(key))
    return {"kid": "k", **members}


def test_keys_that_no_token_may_be_signed_with_are_left_out() -> None:
    good = Key.make("EdDSA")
    bad: list[object] = [
        {"kty": "oct", "kid": "k", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "alg": "HS256"},
        {"kty": "oct", "kid": "k", "k": "c2VjcmV0"},
        {**good.jwk, "alg": "HS256", "kid": "k"},
        {**good.jwk, "alg": "none", "kid": "k"},
        {**good.jwk, "use": "enc", "kid": "k"},
        {**good.jwk, "kid": 1},
        {**good.jwk, "kid": ""},
        {key: value for key, value in good.jwk.items() if key != "kid"},
        {**jwk_of("RS256", rsa.generate_private_key(65537, 2048).public_key()), "alg": "HS256"},
        {**jwk_of("RS256", rsa.generate_private_key(65537, 2048).public_key()), "alg": "RS512"},
        {**jwk_of("ES256", ec.generate_private_key(ec.SECP256R1()).public_key()), "alg": "ES512"},
        jwk_of("ES256K", ec.generate_private_key(ec.SECP256K1()).public_key()),
        {"kty": "OKP", "crv": "Ed25519", "x": "AAAA", "kid": "k"},
        {"kty": "RSA", "n": 1, "e": [], "kid": "k"},
        {"kty": ["RSA"], "kid": "k"},
        "EdDSA",
        None,
    ]
    assert usable_keys({"keys": [*bad, good.jwk]}).keys() == {"EdDSA"}
    none: list[Any] = [{"keys": bad}, {"keys": {}}, {"keys": None}, {}, [], None, "keys"]
    for keys in none:
        with pytest.raises(ValueError, match="no key"):
            usable_keys(keys)


async def test_keys_of_this_machine_are_not_asked_for_at_a_proxy(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could answer in the issuer's place."""
    async with open_issuer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        async with KeySet(f"{issuer.url}/jwks") as keys:
            assert await keys.get(issuer.keys[0].kid) is not None
        assert (issuer.fetches, proxy.fetches) == (1, 0)
