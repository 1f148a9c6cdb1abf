"""Session cookies of Better Auth: signed, looked up, and good for pages of the same site only."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx
import pytest
from chatkit_grpc.environment import SettingsError

from server.app import open_server
from tests.issuer import SECRET, hs256
from tests.scripted import ScriptedServer
from tests.system import ANY_PORT, BY_SECRET, PRODUCTION, System, open_system

SESSION = "better-auth.session_token"
TOKEN = "GRBaqzgjDtBo2GujDzBuxHub0EaJYJDe"  # noqa: S105 # of no session outside these tests
LIST: dict[str, Any] = {"type": "threads.list", "params": {}}
ENDED = "0vvJfUVhJrOXHMyIxKAbZ5cmbfrqGrIc"
APP = "https://app.test"
SESSIONS = replace(BY_SECRET, better_auth_sessions=True, better_auth_url=None, allowed_origins=(APP,))


def say(text: str) -> dict[str, Any]:
    return {"type": "threads.create", "params": {"input": {"content": [{"type": "input_text", "text": text}]}}}


def signature(token: str, secret: str = SECRET) -> str:
    return base64.b64encode(hmac.digest(secret.encode(), token.encode(), hashlib.sha256)).decode()


def cookie(token: str = TOKEN, secret: str = SECRET) -> str:
    return quote(f"{token}.{signature(token, secret)}", safe="")


@pytest.fixture
async def with_table(database_url: str) -> str:
    """A database with Better Auth's table of sessions."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            'create table "session" (id text primary key, token text not null unique, "userId" text not null,'
            ' "expiresAt" timestamptz not null)'
        )
        for token, user_id, hours in ((TOKEN, "alice", 1), (ENDED, "alice", -1), ("odd", "not an id", 1)):
            expires = datetime.now(UTC) + timedelta(hours=hours)
            await connection.execute('insert into "session" values ($1, $1, $2, $3)', token, user_id, expires)
    finally:
        await connection.close()
    return database_url


@pytest.fixture
async def system(with_table: str) -> AsyncIterator[System]:
    async with open_system(with_table, ScriptedServer, server=replace(PRODUCTION, auth=SESSIONS)) as system:
        yield system


async def post(system: System, body: Mapping[str, Any], **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await system.http.post("/api/chatkit", json=body, headers=sent)


async def test_a_session_reads_and_writes_as_its_user(system: System) -> None:
    page = {"cookie": f"theme=dark; {SESSION}={cookie()}; x=1", "origin": APP}
    assert "t1" in (await post(system, say("tokens 2"), **page)).text
    assert len((await post(system, LIST, **page)).json()["data"]) == 1
    of_alice = await post(system, LIST, authorization=f"Bearer {hs256(sub='alice')}")
    assert len(of_alice.json()["data"]) == 1


BAD_COOKIES: dict[str, str] = {
    "none": "theme=dark",
    "empty": f"{SESSION}=",
    "not signed": f"{SESSION}={TOKEN}",
    "signed with nothing": f"{SESSION}={TOKEN}.",
    "signed with another secret": f"{SESSION}={cookie(secret=SECRET[::-1])}",
    "signature of another": f"{SESSION}={TOKEN}.{quote(signature(ENDED), safe='')}",
    "signature is no base64": f"{SESSION}={TOKEN}.%F0%9F%92%A9",
    "signature cut": f"{SESSION}={cookie()[:-8]}",
    "no token": f"{SESSION}={quote('.' + signature(''), safe='')}",
    "unknown": f"{SESSION}={cookie('x' * 32)}",
    "ended": f"{SESSION}={cookie(ENDED)}",
    "twice": f"{SESSION}={cookie()}; {SESSION}={cookie()}",
    "another name": f"session_token={cookie()}",
    "another case": f"{SESSION.upper()}={cookie()}",
    "the name for https": f"__Secure-{SESSION}={cookie()}",
    "a user that is none": f"{SESSION}={cookie('odd')}",
    "SQL": f"{SESSION}={cookie(chr(39) + ' or true --')}",
    "NUL": f"{SESSION}={cookie(TOKEN + chr(0))}",
    "half an emoji": f"{SESSION}=%ED%A0%BD.x",
}


@pytest.mark.parametrize("case", BAD_COOKIES)
async def test_what_is_no_session_opens_nothing(system: System, case: str) -> None:
    response = await post(system, LIST, cookie=BAD_COOKIES[case], origin=APP)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "UNAUTHENTICATED")
    cause = response.json()["error"]["details"]["cause"]
    nothing = {"none", "another name", "another case", "the name for https"}
    assert cause == (
        "missing" if case in nothing else "expired" if case in {"unknown", "ended", "SQL", "NUL"} else "invalid"
    )


@pytest.mark.parametrize("token", ["x", hs256(exp=1)])
async def test_a_bad_token_is_not_made_up_for_by_a_session(system: System, token: str) -> None:
    response = await post(system, LIST, cookie=f"{SESSION}={cookie()}", authorization=f"Bearer {token}")
    assert response.status_code == 401


async def test_a_session_acts_for_nobody_else(system: System) -> None:
    response = await post(system, LIST, cookie=f"{SESSION}={cookie()}", x_user_id="bob")
    assert response.status_code == 403


FOREIGN = [
    None,
    "null",
    "",
    "https://evil.test",
    "https://app.test.evil.test",
    "http://app.test",
    f"{APP}:8443",
    APP + "/",
]


@pytest.mark.parametrize("origin", FOREIGN)
async def test_another_sites_page_changes_nothing(system: System, origin: str | None) -> None:
    headers = {"cookie": f"{SESSION}={cookie()}"} | ({} if origin is None else {"origin": origin})
    delete = {"type": "threads.delete", "params": {"thread_id": "thr_1"}}
    for body in (say("tokens 1"), delete):
        response = await post(system, body, **headers)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "PERMISSION_DENIED")
        assert "ALLOWED_ORIGINS" in response.json()["error"]["message"]
    # It reads, but the browser shows the answer to nobody.
    assert (await post(system, LIST, **headers)).json()["data"] == []


async def test_the_bridges_own_pages_change_things(system: System) -> None:
    response = await post(system, say("tokens 2"), cookie=f"{SESSION}={cookie()}", origin=system.url)
    assert "t1" in response.text


async def test_whoever_claims_another_host_is_not_believed(system: System) -> None:
    headers = {"cookie": f"{SESSION}={cookie()}", "origin": "https://evil.test", "x_forwarded_host": "evil.test"}
    assert (await post(system, say("tokens 1"), **headers)).status_code == 403


async def test_where_pages_are_served_by_https_only_the_secure_cookie_counts(with_table: str) -> None:
    auth = replace(SESSIONS, better_auth_url="https://login.test", jwks_url="http://127.0.0.1:9/")
    async with open_system(with_table, ScriptedServer, server=replace(PRODUCTION, auth=auth)) as system:
        plain, secure = f"{SESSION}={cookie()}", f"__Secure-{SESSION}={cookie()}"
        assert (await post(system, LIST, cookie=plain)).status_code == 401
        assert (await post(system, LIST, cookie=secure)).status_code == 200
        assert (await post(system, LIST, cookie=f"{plain}; {secure}")).status_code == 200
        own = await post(system, say("tokens 2"), cookie=secure, origin="https://login.test")
        assert "t1" in own.text


async def test_without_the_setting_a_session_opens_nothing(with_table: str) -> None:
    async with open_system(with_table, ScriptedServer, server=PRODUCTION) as system:
        response = await post(system, LIST, cookie=f"{SESSION}={cookie()}", origin=APP)
        assert response.status_code == 401


async def test_a_server_that_can_find_no_sessions_does_not_start(database_url: str) -> None:
    settings = replace(PRODUCTION, auth=SESSIONS, database_url=database_url, grpc_listen=ANY_PORT)
    with pytest.raises(SettingsError, match='BETTER_AUTH_SESSIONS: there is no table "session"'):
        async with open_server(settings, ScriptedServer):
            pytest.fail("expected a refusal")
