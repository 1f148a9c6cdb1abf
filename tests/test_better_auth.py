"""Users who log in with Better Auth itself: its tokens, its keys, its session cookies, and what else it signs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from server.auth.settings import AuthSettings
from tests import npm
from tests.issuer import SECRET
from tests.scripted import ScriptedServer
from tests.system import PRODUCTION, System, open_system
from tests.test_sessions import LIST, SESSION, say
from tests.test_tokens import answer

# Where there is no Node.js with npm, pytest collects nothing here; test_tokens.py and test_sessions.py try the same.
__test__ = npm.IS_THERE

FOLDER = Path(__file__).parent / "better_auth"


@dataclass(frozen=True, slots=True)
class BetterAuth:
    """A running one. http: a browser, with its cookies."""

    url: str
    http: httpx.AsyncClient

    async def sign_up(self) -> str:
        """The id of a new user, who is logged in."""
        body = {"email": "ada@example.com", "password": "correct horse", "name": "Ada"}
        response = await self.http.post("/api/auth/sign-up/email", json=body)
        user_id: str = response.raise_for_status().json()["user"]["id"]
        return user_id

    async def token(self) -> str:
        """A token of whoever is logged in."""
        token: str = (await self.http.get("/api/auth/token")).raise_for_status().json()["token"]
        return token

    def settings(self) -> AuthSettings:
        return AuthSettings(better_auth_url=self.url, better_auth_secret=SECRET, better_auth_sessions=True)


@asynccontextmanager
async def open_better_auth(database_url: str, algorithm: str = "EdDSA") -> AsyncIterator[BetterAuth]:
    npm.install(FOLDER)
    options = {"database": database_url, "secret": SECRET, "algorithm": algorithm}
    process = await asyncio.create_subprocess_exec(
        *("node", str(FOLDER / "server.mjs"), json.dumps(options)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
        async with httpx.AsyncClient(base_url=url, headers={"Origin": url}, timeout=30) as http:
            yield BetterAuth(url, http)
    finally:
        process.stdin.close()
        await process.wait()


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "ES512", "RS256", "PS256"])
async def test_its_tokens_open_the_door(database_url: str, algorithm: str) -> None:
    async with open_better_auth(database_url, algorithm) as better_auth:
        user_id = await better_auth.sign_up()
        settings = replace(PRODUCTION, auth=AuthSettings(better_auth_url=better_auth.url))
        async with open_system(database_url, ScriptedServer, server=settings) as system:
            headers = {"Authorization": f"Bearer {await better_auth.token()}"}
            response = await system.http.post("/api/chatkit", json=say("tokens 2"), headers=headers)
            assert "t1" in response.text
            # Nothing else of it does: neither the session's own token, nor the cookie cache.
            for cookie in better_auth.http.cookies.jar:
                error = await answer(system.channel, f"Bearer {cookie.value}")
                assert error is not None
                assert error.code == "UNAUTHENTICATED"
            assert await system.server.database.fetchval("select user_id from chat_sessions") == user_id


@pytest.fixture
async def better_auth(database_url: str) -> AsyncIterator[BetterAuth]:
    async with open_better_auth(database_url) as better_auth:
        yield better_auth


@pytest.fixture
async def system(database_url: str, better_auth: BetterAuth) -> AsyncIterator[System]:
    settings = replace(PRODUCTION, auth=better_auth.settings())
    async with open_system(database_url, ScriptedServer, server=settings) as system:
        yield system


async def test_its_session_opens_the_door_until_the_user_logs_out(better_auth: BetterAuth, system: System) -> None:
    await better_auth.sign_up()
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in better_auth.http.cookies.jar)
    assert SESSION in cookies
    assert "session_data" in cookies
    page = {"Cookie": cookies, "Origin": better_auth.url}
    assert "t1" in (await system.http.post("/api/chatkit", json=say("tokens 2"), headers=page)).text
    assert len((await system.http.post("/api/chatkit", json=LIST, headers=page)).json()["data"]) == 1
    await better_auth.http.post("/api/auth/sign-out", json={})
    response = await system.http.post("/api/chatkit", json=LIST, headers=page)
    assert (response.status_code, response.json()["error"]["details"]) == (401, {"cause": "expired"})


async def test_its_cookie_cache_alone_opens_nothing(better_auth: BetterAuth, system: System) -> None:
    await better_auth.sign_up()
    (cache,) = [cookie for cookie in better_auth.http.cookies.jar if "session_data" in cookie.name]
    for headers in (
        {"Cookie": f"{cache.name}={cache.value}", "Origin": better_auth.url},
        {"Cookie": f"{SESSION}={cache.value}", "Origin": better_auth.url},
        {"Authorization": f"Bearer {cache.value}"},
    ):
        assert (await system.http.post("/api/chatkit", json=LIST, headers=headers)).status_code == 401
