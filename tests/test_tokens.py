"""Tokens that open the door, and all the others, tried at the door of a real server."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import jwt
import pytest
from chatkit_grpc.errors import ChatKitError, from_rpc_error
from cryptography.hazmat.primitives import serialization
from grpc.aio import AioRpcError, Channel

from server.auth.settings import AuthSettings
from tests.database import fresh_database
from tests.issuer import ALGORITHMS, AUDIENCE, SECRET, Issuer, Key, claims, encoded, forged, hs256, open_issuer
from tests.scripted import ScriptedServer
from tests.system import BY_SECRET, PRODUCTION, System, open_system

LIST_THREADS = "/chatkit_grpc.v1.ThreadService/ListThreads"


@pytest.fixture(scope="module")
async def issuer() -> AsyncIterator[Issuer]:
    async with open_issuer() as issuer:
        yield issuer


@pytest.fixture(scope="module")
async def one_database(postgres_url: str, migrated_template: str) -> AsyncIterator[str]:
    async with fresh_database(postgres_url, migrated_template) as database_url:
        yield database_url


@pytest.fixture(scope="module")
async def with_keys(one_database: str, issuer: Issuer) -> AsyncIterator[System]:
    """A server that knows the issuer's keys, and the secret too, as one needs that takes session cookies as well."""
    auth = AuthSettings(
        better_auth_url=AUDIENCE,
        jwks_url=issuer.url,
        better_auth_secret=SECRET,
        service_audience="https://services.test",
    )
    async with open_system(one_database, ScriptedServer, server=replace(PRODUCTION, auth=auth)) as system:
        yield system


@pytest.fixture(scope="module")
async def with_secret(one_database: str) -> AsyncIterator[System]:
    async with open_system(one_database, ScriptedServer, server=PRODUCTION) as system:
        yield system


async def answer(channel: Channel, *authorization: str, **metadata: str) -> ChatKitError | None:
    """What a call with such a header is refused with; None where it is let in."""
    sent = [("authorization", value) for value in authorization]
    sent += [(name.replace("_", "-"), value) for name, value in metadata.items()]
    call: Any = channel.unary_unary(LIST_THREADS)
    try:
        await call(b"", metadata=sent, timeout=20)
    except AioRpcError as error:
        return from_rpc_error(error)
    return None


def pem(key: Key) -> bytes:
    return key.private.public_key().public_bytes(  # type: ignore[no-any-return]
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def raw(key: Key) -> bytes:
    return key.private.public_key().public_bytes(  # type: ignore[no-any-return]
        serialization.Encoding.Raw, serialization.PublicFormat.Raw
    )


def hs256_by(secret: bytes, kid: str) -> str:
    return forged({"alg": "HS256", "kid": kid}, claims(), secret)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_token_of_each_algorithm_of_better_auth_opens_the_door(
    with_keys: System, issuer: Issuer, algorithm: str
) -> None:
    assert await answer(with_keys.channel, f"Bearer {issuer.sign(by=algorithm)}") is None
    assert await answer(with_keys.channel, f"bearer  {issuer.sign(by=algorithm, aud=['x', AUDIENCE])} ") is None


async def test_a_token_signed_with_the_secret_opens_the_door(with_secret: System) -> None:
    assert await answer(with_secret.channel, f"Bearer {hs256()}") is None


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
async def test_clocks_may_differ_by_half_a_minute(with_secret: System, name: str) -> None:
    now = int(time.time())
    seconds = {"exp": -1, "nbf": 1, "iat": 1}[name]
    assert await answer(with_secret.channel, f"Bearer {hs256(**{name: now + seconds * 25})}") is None
    refused = await answer(with_secret.channel, f"Bearer {hs256(**{name: now + seconds * 40})}")
    assert refused is not None


# What is wrong with a token wherever it is: by what signs it, and by what the refusal says.
Sign = Callable[..., str]
NOW = int(time.time())
BAD_CLAIMS: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"exp": NOW - 3600}, "it has expired"),
    "without an end": ({"exp": None}, "it lacks `exp`"),
    "end is a text": ({"exp": str(NOW + 36000)}, "`exp` is no time"),
    "end is words": ({"exp": "never"}, "malformed"),
    "end is true": ({"exp": True}, "expired"),
    "end is a list": ({"exp": [NOW + 36000]}, "malformed"),
    "end is infinite": ({"exp": float("inf")}, "malformed"),
    "end is no number": ({"exp": float("nan")}, "malformed"),
    "end is beyond all numbers": ({"exp": 10**400}, "`exp` is no time"),
    "not valid yet": ({"nbf": NOW + 3600}, "not valid yet"),
    "from the future": ({"iat": NOW + 3600}, "not valid yet"),
    "beginning is a text": ({"nbf": str(NOW)}, "`nbf` is no time"),
    "without a subject": ({"sub": None}, "it lacks `sub`"),
    "subject is empty": ({"sub": ""}, "is no user's id"),
    "subject is a number": ({"sub": 1}, "malformed"),
    "subject is a list": ({"sub": ["alice"]}, "malformed"),
    "subject is an object": ({"sub": {"id": "alice"}}, "malformed"),
    "subject with a NUL": ({"sub": "alice\0"}, "is no user's id"),
    "subject with a space": ({"sub": "alice bob"}, "is no user's id"),
    "subject with a line's end": ({"sub": "alice\n"}, "is no user's id"),
    "subject with a look-alike": ({"sub": "\u0430lice"}, "is no user's id"),
    "subject is too long": ({"sub": "a" * 129}, "is no user's id"),
    "subject is SQL": ({"sub": "a' or 1=1 --"}, "is no user's id"),
    "without an audience": ({"aud": None}, "it lacks `aud`"),
    "for somebody else": ({"aud": "https://shop.test"}, "`aud`"),
    "for a part of us": ({"aud": AUDIENCE + "/x"}, "`aud`"),
    "for nobody": ({"aud": []}, "`aud`"),
    "for a number": ({"aud": 1}, ""),
    "for a list with a number": ({"aud": [AUDIENCE, 1]}, ""),
    "without an issuer": ({"iss": None}, "`iss`"),
    "issued by somebody else": ({"iss": "https://evil.test"}, "`iss`"),
    "issued by a part of it": ({"iss": AUDIENCE[:-1]}, "`iss`"),
    "issuer is a list": ({"iss": [AUDIENCE]}, ""),
}


@pytest.mark.parametrize("case", BAD_CLAIMS)
async def test_a_token_with_bad_claims_is_refused(with_secret: System, case: str) -> None:
    wrong, said = BAD_CLAIMS[case]
    error = await answer(with_secret.channel, f"Bearer {hs256(**wrong)}")
    assert error is not None
    assert error.code == "UNAUTHENTICATED"
    assert said in error.message
    assert error.metadata["cause"] == ("expired" if "has expired" in said or said == "expired" else "invalid")


HUGE = "x" * 20_000
BAD_TOKENS: dict[str, Callable[[Issuer], str]] = {
    "no token": lambda _: "",
    "one word": lambda _: "token",
    "two parts": lambda issuer: issuer.sign().rpartition(".")[0],
    "four parts": lambda issuer: issuer.sign() + ".x",
    "without a signature": lambda issuer: issuer.sign().rpartition(".")[0] + ".",
    "another's signature": lambda issuer: issuer.sign().rpartition(".")[0] + "." + issuer.sign(sub="b").split(".")[2],
    "a claim changed": lambda issuer: replaced_payload(issuer.sign(), claims(sub="admin")),
    "header is no JSON": lambda _: f"{encoded(b'{')}.{encoded(claims())}.x",
    "header is a list": lambda _: forged(["EdDSA"], claims(), b"x"),
    "header is a number": lambda _: forged(1, claims(), b"x"),
    "header without an algorithm": lambda _: forged({"kid": "EdDSA"}, claims(), b"x"),
    "payload is no JSON": lambda issuer: signed(issuer, b"alice"),
    "payload is a list": lambda issuer: signed(issuer, b"[]"),
    "payload is nested": lambda issuer: signed(issuer, b"[" * 5000),
    "algorithm none": lambda _: forged({"alg": "none"}, claims()),
    "algorithm none with a key": lambda _: forged({"alg": "none", "kid": "EdDSA"}, claims()),
    "algorithm NONE": lambda _: forged({"alg": "NONE", "kid": "EdDSA"}, claims()),
    "algorithm is a list": lambda _: forged({"alg": ["none"], "kid": "EdDSA"}, claims()),
    "HS256 with the secret": lambda _: hs256(),
    "HS256 with the secret and a key": lambda _: hs256_by(SECRET.encode(), "EdDSA"),
    "HS256 with the raw public key": lambda issuer: hs256_by(raw(issuer.keys[0]), "EdDSA"),
    "HS256 with the PEM": lambda issuer: hs256_by(pem(issuer.keys[3]), "RS256"),
    "HS256 with the JWK": lambda issuer: hs256_by(json.dumps(issuer.keys[0].jwk).encode(), "EdDSA"),
    "HS256 with nothing": lambda _: forged({"alg": "HS256", "kid": "EdDSA"}, claims(), b"\0"),
    "HS512 with the secret": lambda _: forged({"alg": "HS512"}, claims(), SECRET.encode(), hashlib.sha512),
    "without a key's name": lambda _: forged({"alg": "EdDSA"}, claims(), b"x"),
    "key's name is a number": lambda _: forged({"alg": "EdDSA", "kid": 1}, claims(), b"x"),
    "key's name is empty": lambda _: forged({"alg": "EdDSA", "kid": ""}, claims(), b"x"),
    "key's name is a path": lambda _: forged({"alg": "HS256", "kid": "../../dev/null"}, claims(), b"\0"),
    "key's name is SQL": lambda _: forged({"alg": "EdDSA", "kid": "' or 1=1 --"}, claims(), b"x"),
    "an unknown key": lambda _: Key.make("EdDSA", "mine").sign(claims()),
    "another key of that name": lambda _: Key.make("EdDSA").sign(claims()),
    "a key of another algorithm": lambda issuer: Key("ES256", "EdDSA", issuer.keys[0].private).sign(claims()),
    "another algorithm of the key": lambda issuer: Key("RS256", "RS384", issuer.keys[3].private).sign(claims()),
    "PS256 with the key for RS256": lambda issuer: Key("RS256", "PS256", issuer.keys[3].private).sign(claims()),
    "a key of its own": lambda _: own_key("jwk"),
    "a key elsewhere": lambda _: own_key("jku"),
    "a certificate elsewhere": lambda _: own_key("x5u"),
    "an extension that must be understood": lambda issuer: issuer.keys[0].sign(claims(), crit=["exp"]),
    "an encrypted one": lambda _: "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..x.y.z",
    "Better Auth's cookie cache": lambda issuer: issuer.keys[0].sign(claims(), typ="better-auth.session-cache+jwt"),
    "type is a list": lambda issuer: issuer.keys[0].sign(claims(), typ=["JWT"]),
    "larger than allowed": lambda issuer: issuer.sign(name=HUGE),
    "larger than allowed, and nothing": lambda _: HUGE,
    "dots": lambda _: "." * 10_000,
    "blanks within": lambda issuer: issuer.sign().replace(".", " ."),
    "standard base64": lambda issuer: issuer.sign().replace("-", "+").replace("_", "/") + "=",
}


def replaced_payload(token: str, payload: object) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{encoded(payload)}.{signature}"


def signed(issuer: Issuer, payload: bytes) -> str:
    key = issuer.keys[0]
    return jwt.PyJWS().encode(payload, key.private, key.algorithm, {"kid": key.kid})


def own_key(where: str) -> str:
    key = Key.make("EdDSA", "mine")
    return key.sign(claims(), **{where: key.jwk if where == "jwk" else "http://127.0.0.1:9/keys"})


@pytest.mark.parametrize("case", BAD_TOKENS)
async def test_what_is_no_token_of_the_issuers_is_refused(with_keys: System, issuer: Issuer, case: str) -> None:
    error = await answer(with_keys.channel, f"Bearer {BAD_TOKENS[case](issuer)}")
    assert error is not None
    assert (error.code, error.metadata["cause"]) == ("UNAUTHENTICATED", "invalid")
    assert await answer(with_keys.channel, f"Bearer {issuer.sign()}") is None


# Better Auth signs these with the same secret: cookie cache, verification of an address, change of an address.
OTHERS_OF_BETTER_AUTH: dict[str, dict[str, Any]] = {
    "cookie cache": {"session": {"id": "s"}, "user": {"id": "alice"}, "updatedAt": NOW, "version": "1"},
    "e-mail verification": {"email": "alice@example.com"},
    "change of e-mail": {"email": "alice@example.com", "updateTo": "x@example.com", "requestType": "change-email"},
}


@pytest.mark.parametrize("case", OTHERS_OF_BETTER_AUTH)
async def test_what_better_auth_signs_for_itself_opens_nothing(with_secret: System, case: str) -> None:
    others = {"sub": None, "aud": None, "iss": None, **OTHERS_OF_BETTER_AUTH[case]}
    error = await answer(with_secret.channel, f"Bearer {hs256(**others)}")
    assert error is not None
    assert (error.code, "it lacks `" in error.message) == ("UNAUTHENTICATED", True)


@pytest.mark.parametrize("case", [*ALGORITHMS, "none", "HS512", "a short secret"])
async def test_a_server_with_a_secret_takes_nothing_else(with_secret: System, issuer: Issuer, case: str) -> None:
    tokens = {
        "none": lambda: forged({"alg": "none"}, claims()),
        "HS512": lambda: forged({"alg": "HS512"}, claims(), SECRET.encode(), hashlib.sha512),
        "a short secret": lambda: hs256_by(SECRET[:8].encode(), "x"),
    }
    token = tokens[case]() if case in tokens else issuer.sign(by=case)
    error = await answer(with_secret.channel, f"Bearer {token}")
    assert error is not None
    assert error.code == "UNAUTHENTICATED"


BAD_HEADERS: dict[str, list[str]] = {
    "none": [],
    "empty": [""],
    "the scheme alone": ["Bearer"],
    "the scheme and blanks": ["Bearer   "],
    "another scheme": ["Basic YWxpY2U6cGFzc3dvcmQ="],
    "a bare token": ["TOKEN"],
    "a token and a user": ["Token TOKEN"],
    "two": ["Bearer TOKEN", "Bearer TOKEN"],
    "a good one and nonsense": ["Bearer TOKEN", "x"],
    "two in one": ["Bearer TOKEN, Bearer TOKEN"],
}


@pytest.mark.parametrize("case", BAD_HEADERS)
async def test_a_header_that_is_not_one_bearer_is_refused(with_keys: System, issuer: Issuer, case: str) -> None:
    error = await answer(with_keys.channel, *(text.replace("TOKEN", issuer.sign()) for text in BAD_HEADERS[case]))
    assert error is not None
    assert (error.code, error.metadata["cause"]) == ("UNAUTHENTICATED", "invalid" if BAD_HEADERS[case] else "missing")


async def test_the_user_can_be_another_claim(database_url: str) -> None:
    auth = replace(BY_SECRET, jwt_user_claim="https://x/uid")
    async with open_system(database_url, ScriptedServer, server=replace(PRODUCTION, auth=auth)) as system:
        assert await answer(system.channel, f"Bearer {hs256(**{'https://x/uid': 'u1'})}") is None
        error = await answer(system.channel, f"Bearer {hs256()}")
        assert error is not None
        assert "`https://x/uid` is no user's id" in error.message


async def test_while_the_issuer_is_away_from_the_start_it_is_nobodys_fault(database_url: str) -> None:
    auth = AuthSettings(better_auth_url=AUDIENCE, jwks_url="http://127.0.0.1:9/")
    async with open_system(database_url, ScriptedServer, server=replace(PRODUCTION, auth=auth)) as system:
        error = await answer(system.channel, f"Bearer {Key.make('EdDSA').sign(claims())}")
        assert error is not None
        assert (error.code, error.retry_after) == ("UNAVAILABLE", 2)
        response = await system.http.post(
            "/api/chatkit",
            json={"type": "threads.list", "params": {}},
            headers={"authorization": f"Bearer {Key.make('EdDSA').sign(claims())}"},
        )
        assert (response.status_code, response.headers["retry-after"]) == (503, "2")
