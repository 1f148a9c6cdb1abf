"""Session cookies of Better Auth: signed, looked up, and good for pages of the same site only."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import pytest
from chatkit_grpc.environment import SettingsError

from server.app import open_server
from server.auth.settings import AuthSettings
from tests.database import execute
from tests.issuer import SECRET, hs256
from tests.scripted import ScriptedServer
from tests.system import ANY_PORT, PRODUCTION, System, open_system

SESSION = "better-auth.session_token"
TOKEN = "GRBaqzgjDtBo2GujDzBuxHub0EaJYJDe"  # noqa: S105 # of no session outside these tests
LIST: dict[str, Any] = {"type": "threads.list", "params": {}}
ENDED = "0vvJfUVhJrOXHMyIxKAbZ5cmbfrqGrIc"
ROWS = [(TOKEN, "alice", 1), (ENDED, "alice", -1), ("odd", "not an id", 1)]
"""The sessions that there are: token, user, and hours that it still holds."""
APP = "https://app.test"
SESSIONS = AuthSettings(
    better_auth_url="http://127.0.0.1:9",  # port 9 is "discard", where nobody listens
    better_auth_secret=SECRET,
    better_auth_sessions=True,
    allowed_origins=(APP,),
)


def say(text: str) -> dict[str, Any]:
    return {"type": "threads.create", "params": {"input": {"content": [{"type": "input_text", "text": text}]}}}


def signature(token: str, secret: str = SECRET) -> str:
    return base64.b64encode(hmac.digest(secret.encode(), token.encode(), hashlib.sha256)).decode()


def cookie(token: str = TOKEN, secret: str = SECRET) -> str:
    return quote(f"{token}.{signature(token, secret)}", safe="")


@pytest.fixture
async def with_table(database_url: str) -> str:
    """A database with Better Auth's table of sessions."""
    rows = [f"('{token}', '{user}', now() + interval '{hours} hours')" for token, user, hours in ROWS]
    await execute(
        database_url,
        'create table "session" (token text primary key, "userId" text not null, "expiresAt" timestamptz not null)',
        f'insert into "session" values {", ".join(rows)}',  # noqa: S608 # of our own making
    )
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
    "a name with a blank that browsers don't know": f"\xa0{SESSION}={cookie()}",
    "a name with a line's end that browsers don't know": f"\x85{SESSION}={cookie()}",
}


@pytest.mark.parametrize("case", BAD_COOKIES)
async def test_what_is_no_session_opens_nothing(system: System, case: str) -> None:
    headers = [(b"cookie", BAD_COOKIES[case].encode("latin-1")), (b"origin", APP.encode())]
    response = await system.http.post("/api/chatkit", json=LIST, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "UNAUTHENTICATED")
    cause = response.json()["error"]["details"]["cause"]
    nothing = {"none", "another name", "another case", "the name for https"}
    no_such_session = {"unknown", "ended", "SQL", "NUL"}
    is_missing = case in nothing or "browsers don't know" in case
    assert cause == ("missing" if is_missing else "expired" if case in no_such_session else "invalid")


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


DELETE_THREAD = "/chatkit_grpc.v1.ThreadService/DeleteThread"


@pytest.mark.parametrize("host", [None, "", "null", "evil.test"])
@pytest.mark.parametrize("origin", FOREIGN)
async def test_another_sites_page_changes_nothing_by_way_of_another_bridge_either(
    system: System, origin: str | None, host: str | None
) -> None:
    sent = [("cookie", f"{SESSION}={cookie()}"), ("origin", origin), ("chatkit-host", host)]
    if origin == "https://evil.test" and host == "evil.test":
        return  # whoever speaks for a host is believed: it is the bridge
    call: Any = system.channel.unary_unary(DELETE_THREAD)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", metadata=[(name, value) for name, value in sent if value is not None])
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_two_origins_are_none(system: System) -> None:
    for origins in ((APP, "https://evil.test"), ("https://evil.test", APP), (APP, APP)):
        headers = [("cookie", f"{SESSION}={cookie()}"), *(("origin", origin) for origin in origins)]
        response = await system.http.post("/api/chatkit", json=say("tokens 1"), headers=headers)
        assert response.status_code == 403


async def test_the_bridges_own_pages_change_things(system: System) -> None:
    response = await post(system, say("tokens 2"), cookie=f"{SESSION}={cookie()}", origin=system.url)
    assert "t1" in response.text


async def test_whoever_claims_another_host_is_not_believed(system: System) -> None:
    headers = {
        "cookie": f"{SESSION}={cookie()}",
        "origin": "https://evil.test",
        "x_forwarded_host": "evil.test",
        "chatkit_host": "evil.test",
    }
    assert (await post(system, say("tokens 1"), **headers)).status_code == 403


async def test_where_pages_are_served_by_https_only_the_secure_cookie_counts(with_table: str) -> None:
    auth = replace(SESSIONS, better_auth_url="https://login.test", jwks_url="http://127.0.0.1:9/")
    async with open_system(with_table, ScriptedServer, server=replace(PRODUCTION, auth=auth)) as system:
        plain, secure = f"{SESSION}={cookie()}", f"__Secure-{SESSION}={cookie()}"
        assert (await post(system, LIST, cookie=plain)).status_code == 401
        assert (await post(system, LIST, cookie=secure)).status_code == 200
        assert (await post(system, LIST, cookie=f"{plain}; {secure}")).status_code == 200
        plaintext = await post(system, say("tokens 1"), cookie=secure, origin=system.url)
        assert plaintext.status_code == 403
        encrypted = system.url.replace("http:", "https:")
        assert "t1" in (await post(system, say("tokens 2"), cookie=secure, origin=encrypted)).text
        own = await post(system, say("tokens 2"), cookie=secure, origin="https://login.test")
        assert "t1" in own.text


async def test_without_the_setting_a_session_opens_nothing(with_table: str) -> None:
    async with open_system(with_table, ScriptedServer, server=PRODUCTION) as system:
        response = await post(system, LIST, cookie=f"{SESSION}={cookie()}", origin=APP)
        assert response.status_code == 401


@pytest.mark.parametrize("table", [None, "create table session (id text, token text, user_id text)"])
async def test_a_server_that_can_find_no_sessions_does_not_start(database_url: str, table: str | None) -> None:
    if table:
        await execute(database_url, table)
    settings = replace(PRODUCTION, auth=SESSIONS, database_url=database_url, grpc_listen=ANY_PORT)
    with pytest.raises(SettingsError, match='BETTER_AUTH_SESSIONS: expected Better Auth\'s table "session"'):
        async with open_server(settings, ScriptedServer):
            pytest.fail("expected a refusal")
