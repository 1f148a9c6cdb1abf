"""The default assistant over the whole path: HTTP, bridge, gRPC, the SDK's core, Postgres and a model's server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from server.assistant import Assistant, create_assistant
from server.settings import Settings
from server.store import PostgresStore
from tests.fake_openai import Call, Fail, FakeOpenAI, Say, Step
from tests.system import System, open_system
from tests.unlimited import NO_LIMITS

KINDS = ("responses", "chat_completions")
SSE = {"accept": "text/event-stream"}


@asynccontextmanager
async def system_with(
    monkeypatch: pytest.MonkeyPatch, database_url: str, kind: str, *script: Step
) -> AsyncIterator[tuple[System, FakeOpenAI]]:
    async with FakeOpenAI(script) as fake:
        settings = Settings(environment="development", limits=NO_LIMITS, run_grace_seconds=0, thread_titles=False)
        if kind == "responses":
            monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)  # read by OpenAI's own client
            settings = replace(settings, openai_api_key="sk-test")
        else:
            settings = replace(settings, model_base_url=fake.base_url, model_name="fake")

        def factory(store: PostgresStore) -> Assistant:
            return create_assistant(store, settings)

        async with open_system(database_url, factory, server=settings) as system:
            yield system, fake


def say(text: str, thread_id: str | None = None) -> dict[str, Any]:
    params: dict[str, Any] = {"input": {"content": [{"type": "input_text", "text": text}]}}
    if thread_id is None:
        return {"type": "threads.create", "params": params}
    return {"type": "threads.add_user_message", "params": {**params, "thread_id": thread_id}}


async def events_of(system: System, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = await system.http.post("/api/chatkit", json=body, headers=SSE)
    lines = response.text.split("\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


async def stored(system: System) -> list[dict[str, Any]]:
    rows = await system.server.database.fetch("select item from chat_messages order by position")
    return [json.loads(row["item"]) for row in rows]


def answers(items: list[dict[str, Any]]) -> list[str]:
    return [item["content"][0]["text"] for item in items if item["type"] == "assistant_message"]


@pytest.mark.parametrize("kind", KINDS)
async def test_three_turns_with_a_tool_are_answered_and_stored(
    kind: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (Say(text="Alpha"), Call("add_numbers", {"numbers": [2, 40]}), Say(text="Beta"), Say(text="Gamma"))
    async with system_with(monkeypatch, database_url, kind, *script) as (system, fake):
        first = await events_of(system, say("One"))
        thread_id = first[0]["thread"]["id"]
        await events_of(system, say("Two", thread_id))
        await events_of(system, say("Three", thread_id))
        items = await stored(system)
        assert [text.strip() for text in answers(items)] == ["Alpha", "Beta", "Gamma"]
        ids = [item["id"] for item in items]
        assert len(ids) == len(set(ids))
        assert "__fake_id__" not in json.dumps(items)
        last = json.dumps(fake.requests[-1])
        positions = [last.index(word) for word in ("One", "Alpha", "Two", "Beta", "Three")]
        assert positions == sorted(positions)
        assert "42" in json.dumps(fake.requests[2])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_leaves_stops_the_model_and_keeps_what_it_said(
    kind: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (Say(tokens=1000, delay=0.01), Say(text="Next"))
    async with system_with(monkeypatch, database_url, kind, *script) as (system, fake):
        seen = ""
        async with system.http.stream("POST", "/api/chatkit", json=say("One"), headers=SSE) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    seen += event.get("update", {}).get("delta", "")
                if "t5 " in seen:
                    break
        async with asyncio.timeout(10):
            while fake.open_streams or len(system.server.runs):
                await asyncio.sleep(0.01)
        sent = fake.tokens_sent
        await asyncio.sleep(0.1)
        assert fake.tokens_sent == sent < 1000
        items = await stored(system)
        (kept,) = answers(items)
        assert kept.startswith(seen)
        assert items[-1]["type"] == "sdk_hidden_context"
        await events_of(system, say("Two", items[0]["thread_id"]))
        assert [text.strip() for text in answers(await stored(system))][1:] == ["Next"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_model_that_fails_is_told_to_the_person(
    kind: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with system_with(monkeypatch, database_url, kind, Fail(401)) as (system, _):
        error = (await events_of(system, say("One")))[-1]
        assert (error["type"], error["allow_retry"]) == ("error", True)
        assert "credentials" in error["message"]
