"""Pages of other origins: only those of ALLOWED_ORIGINS may call, and are told when to come back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
from chatkit_grpc.environment import SettingsError

from bridge.settings import Settings as BridgeSettings
from tests.page import SSE, body_of, post, say
from tests.scripted import ScriptedServer
from tests.system import IMPATIENT, System, open_system
from tests.unlimited import NO_LIMITS

APP = "https://app.test"
SENT_BY_CHATKIT = "authorization,chatkit-frame-instance-id,content-type"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": f"{SENT_BY_CHATKIT},idempotency-key,last-event-id",
}


@pytest.fixture
async def shared(database_url: str) -> AsyncIterator[System]:
    settings = replace(IMPATIENT, limits=replace(NO_LIMITS, rate_limit_requests=1, rate_limit_window=600))
    bridge = BridgeSettings(shutdown_grace_seconds=0, allowed_origins=(APP,))
    async with open_system(database_url, ScriptedServer, server=settings, bridge=bridge) as system:
        yield system


async def preflight(system: System, origin: str) -> httpx.Response:
    return await system.http.options("/api/chatkit", headers={"origin": origin, **PREFLIGHT})


async def test_an_allowed_page_may_call_with_its_cookies(shared: System) -> None:
    asked = await preflight(shared, APP)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == APP
    assert asked.headers["access-control-allow-credentials"] == "true"
    answer = await post(shared, say("tokens 2"), origin=APP, **SSE)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, APP)
    assert answer.headers["vary"] == "Origin"
    refused = await post(shared, say("tokens 2"), origin=APP, **SSE)
    assert refused.status_code == 429
    assert refused.headers["access-control-allow-origin"] == APP
    assert "Retry-After" in refused.headers["access-control-expose-headers"]


async def test_an_allowed_page_may_put_the_bytes_of_an_attachment(shared: System) -> None:
    asked = {**PREFLIGHT, "origin": APP, "access-control-request-method": "PUT"}
    answer = await shared.http.options("/api/chatkit/attachments/atc_1", headers=asked)
    assert answer.status_code == 200
    assert "PUT" in answer.headers["access-control-allow-methods"]


@pytest.mark.parametrize("origin", ["https://evil.test", "https://app.test.evil.test", "http://app.test", "null"])
async def test_other_pages_are_told_nothing(shared: System, origin: str) -> None:
    asked = await preflight(shared, origin)
    assert asked.status_code == 400
    assert "access-control-allow-origin" not in asked.headers
    answer = await post(shared, body_of("threads.list"), origin=origin)
    assert "access-control-allow-origin" not in answer.headers


async def test_without_the_setting_no_page_of_another_origin_may_call(database_url: str) -> None:
    async with open_system(database_url, ScriptedServer) as system:
        asked = await preflight(system, APP)
        assert asked.status_code == 405
        answer = await post(system, body_of("threads.list"), origin=APP)
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origins", ["*", "https://app.test,*", "https://app.test/", "app.test"])
def test_a_wildcard_and_what_is_no_origin_is_refused_at_start(monkeypatch: pytest.MonkeyPatch, origins: str) -> None:
    monkeypatch.setenv("ALLOWED_ORIGINS", origins)
    with pytest.raises(SettingsError, match="ALLOWED_ORIGINS: expected origins"):
        BridgeSettings.from_env()


async def test_no_answer_says_what_made_it(shared: System) -> None:
    for answer in (
        await shared.http.get("/"),
        await shared.http.get("/api/chatkit/health"),
        await shared.http.get("/nothing"),
        await post(shared, body_of("threads.list")),
        await post(shared, say("tokens 1"), **SSE),
    ):
        assert "server" not in answer.headers
        assert "x-powered-by" not in answer.headers
        assert answer.headers["x-content-type-options"] == "nosniff"
    page = await shared.http.get("/")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cross-origin-opener-policy"] == "same-origin"
