"""MCP servers at a URL: a real one over a socket, whose users must never mix, and odd ones."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from server.mcp_servers.caller import Caller, in_metadata
from server.mcp_servers.settings import HttpSettings
from tests.fake_openai import Call, Say
from tests.mcp_fixtures import Plugged, output_in, plugged, until
from tests.mcp_http_server import ODD, app_of, flooding_app, odd_app, real_server, serve
from tests.page import post, say
from tests.system import PRODUCTION

# With sessions, as most servers have them, and without, as the newest protocol has it.
SESSIONS = pytest.mark.parametrize("has_sessions", [True, False])


def user_in(header: str) -> str:
    """Whose token is in a header."""
    claims = header.removeprefix("Bearer ").split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(claims + "=="))["sub"])


@asynccontextmanager
async def plugged_http(database_url: str, *, has_sessions: bool = False, **settings: Any) -> AsyncIterator[Plugged]:
    async with serve(app_of(real_server(), has_sessions=has_sessions)) as port:
        server = HttpSettings(url=f"http://127.0.0.1:{port}/mcp", **settings)
        async with plugged(database_url, {"web": server}, settings=PRODUCTION) as running:
            yield running


async def test_a_server_gets_the_headers_of_the_file_and_no_users_token(database_url: str) -> None:
    async with plugged_http(database_url, headers={"Authorization": "Bearer of-the-server"}) as running:
        assert await running.call("mcp_web__whoami", user="alice") == "Bearer of-the-server"


@SESSIONS
async def test_a_server_that_may_gets_the_users_own_token(database_url: str, has_sessions: bool) -> None:
    async with plugged_http(
        database_url,
        has_sessions=has_sessions,
        headers={"Authorization": "Bearer of-the-server"},
        pass_authorization=True,
    ) as running:
        assert user_in(await running.call("mcp_web__whoami", user="alice")) == "alice"


@SESSIONS
async def test_calls_of_users_at_once_never_mix(database_url: str, has_sessions: bool) -> None:
    async with plugged_http(database_url, has_sessions=has_sessions, pass_authorization=True) as running:
        server = running.servers.agent_options()["mcp_servers"][0]

        async def call(user: str) -> str:
            meta = in_metadata(Caller(user, "thr_1", f"Bearer {user}"))
            result = await server.call_tool("whoami", {"seconds": 0.05}, meta)
            return str(result.content[0].text)

        users = [f"user{number % 5}" for number in range(30)]
        assert await asyncio.gather(*map(call, users)) == [f"Bearer {user}" for user in users]


async def test_two_users_who_ask_at_once_are_told_apart(database_url: str) -> None:
    async with plugged_http(database_url, pass_authorization=True) as running:
        whoami = Call("mcp_web__whoami", {"seconds": 0.3})
        running.model.then(whoami, whoami, Say(text="Done."))
        users = ["alice", "bob"]
        await asyncio.gather(*(post(running.system, say(f"I am {u}"), **running.headers(u)) for u in users))
        for request in running.model.requests[-2:]:
            said = request["input"][0]["content"][0]["text"].removeprefix("I am ")
            assert user_in(output_in(request)) == said


async def test_what_a_server_remembers_of_one_user_in_a_session_another_never_sees(database_url: str) -> None:
    async with plugged_http(database_url, has_sessions=True, pass_authorization=True) as running:
        assert await running.call("mcp_web__remember", {"word": "alice's"}, user="alice") == "alice's"
        assert await running.call("mcp_web__remember", {"word": "bob's"}, user="bob") == "bob's"


async def test_a_users_token_is_in_no_log_and_in_no_context(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []
    async with plugged_http(database_url, pass_authorization=True) as running:
        load = running.system.server.store.load_thread_items

        async def spy(*arguments: Any) -> Any:
            seen.append(arguments[-1])
            return await load(*arguments)

        running.system.server.store.load_thread_items = spy  # type: ignore[assignment]
        with caplog.at_level(logging.DEBUG):
            token = await running.call("mcp_web__whoami", user="alice")
            assert user_in(token) == "alice"
    assert token not in "\n".join(record.getMessage() for record in caplog.records if "server" in record.name)
    assert seen
    assert all(token not in f"{context!r}{dict(context)!r}" for context in seen)


async def test_without_a_token_such_a_server_is_not_called(database_url: str) -> None:
    async with serve(real_server().streamable_http_app()) as port:
        server = HttpSettings(url=f"http://127.0.0.1:{port}/mcp", pass_authorization=True)
        async with plugged(database_url, {"web": server}) as running:
            assert "log in with a token" in await running.call("mcp_web__whoami")


async def test_a_slow_call_of_one_user_holds_up_no_other(database_url: str) -> None:
    async with plugged_http(database_url, has_sessions=True) as running:
        server = running.servers.agent_options()["mcp_servers"][0]
        slow = asyncio.create_task(server.call_tool("nap", {"seconds": 2}))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await server.call_tool("nap", {"seconds": 0})
        assert time.monotonic() - began < 1
        slow.cancel()


@SESSIONS
async def test_a_users_call_ends_in_time_too(database_url: str, has_sessions: bool) -> None:
    async with plugged_http(
        database_url, has_sessions=has_sessions, pass_authorization=True, call_timeout_seconds=0.5
    ) as running:
        began = time.monotonic()
        assert "did not answer within 0.5 seconds" in await running.call("mcp_web__nap", {"seconds": 5}, user="alice")
        assert time.monotonic() - began < 2


async def test_a_large_result_is_refused_and_the_server_stays(database_url: str) -> None:
    async with plugged_http(database_url, max_message_bytes=100_000) as running:
        assert "refused the call" in await running.call("mcp_web__large", {"characters": 1_000_000})
        assert await running.call("mcp_web__large", {"characters": 3}) == "xxx"


@SESSIONS
async def test_a_server_that_was_away_comes_back(database_url: str, has_sessions: bool) -> None:
    async with serve(app_of(real_server(), has_sessions=has_sessions)) as port:
        settings = HttpSettings(url=f"http://127.0.0.1:{port}/mcp", connect_timeout_seconds=2)
        context = plugged(database_url, {"web": settings})
        running = await context.__aenter__()
        assert await running.call("mcp_web__nap", {"seconds": 0}) == "awake"
    try:
        failed = await running.call("mcp_web__nap", {"seconds": 0})
        assert "broke off" in failed or "refused" in failed
        await running.until("web", is_up=False)
        assert not [name for name in await running.tools() if name.startswith("mcp_")]
        async with serve(app_of(real_server(), has_sessions=has_sessions), port):
            await running.until("web")
            assert await running.call("mcp_web__nap", {"seconds": 0}) == "awake"
    finally:
        await context.__aexit__(None, None, None)


async def test_servers_that_answer_oddly_are_left_out(database_url: str) -> None:
    async with AsyncExitStack() as stack:
        servers = {}
        for manner in ODD:
            port = await stack.enter_async_context(serve(odd_app(manner)))
            servers[manner.replace(" ", "_")] = HttpSettings(
                url=f"http://127.0.0.1:{port}/mcp", connect_timeout_seconds=0.5
            )
        port = await stack.enter_async_context(serve(real_server().streamable_http_app()))
        servers["good"] = HttpSettings(url=f"http://127.0.0.1:{port}/mcp")
        running = await stack.enter_async_context(plugged(database_url, servers, wait=False))
        await running.until("good")
        assert await running.call("mcp_good__nap", {"seconds": 0}) == "awake"
        await asyncio.sleep(0.7)
        assert [name for name, is_up in running.servers.health_of_parts().items() if is_up] == ["mcp.good"]


async def test_a_flood_of_events_ends_the_call(database_url: str) -> None:
    async with serve(flooding_app()) as port:
        server = HttpSettings(url=f"http://127.0.0.1:{port}/mcp", call_timeout_seconds=20)
        async with plugged(database_url, {"web": server}) as running:
            assert "broke off" in await running.call("mcp_web__flood")


async def test_health_and_logs_name_a_server_and_not_its_address(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        server = HttpSettings(url="http://127.0.0.1:9/mcp?key=secret", headers={"x-key": "secret"})
        assert "secret" not in repr(server.headers and server).replace("key=secret", "")
        async with plugged(database_url, {"web": server}, wait=False) as running:
            await until(lambda: "MCP server web can't be connected" in caplog.text)
            health = (await running.system.http.get("/api/chatkit/health")).json()
            assert health["mcp_servers"] == {"web": "unavailable"}
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]
    assert "secret" not in json.dumps(ours)
