"""Tools as the page sees them while they run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents import Agent, RunContextWrapper, function_tool
from chatkit.widgets import DynamicWidgetRoot
from chatkit_grpc import codec
from chatkit_grpc.v1.event_pb2 import ThreadStreamEvent

from server.assistant import Assistant
from server.model_choice import choose_model
from server.models import OpenModel, OpenModels, open_model
from server.offline_model import OfflineModel
from server.runs.pending_items import PendingItems
from server.settings import Settings
from server.store import PostgresStore
from server.team import Team
from server.tool_tasks import title_of
from tests.database import fresh_database
from tests.fake_openai import Call, Fail, FakeOpenAI, Say
from tests.mcp_fixtures import Plugged, child, plugged
from tests.page import body_of, events_of, post, say
from tests.system import open_system

KINDS = ("responses", "chat_completions")
SUM = Call("add_numbers", {"numbers": [1, 2]})


@pytest.fixture(scope="module", params=KINDS)
async def either(request: pytest.FixtureRequest, postgres_url: str, migrated_template: str) -> AsyncIterator[Plugged]:
    """A system with a model of either kind."""
    async with (
        fresh_database(postgres_url, migrated_template) as url,
        plugged(url, {"box": child()}, kind=request.param) as running,
    ):
        yield running


async def answer(running: Plugged, *script: Any) -> list[Any]:
    running.model.then(*script)
    return events_of(await post(running.system, say("Go")))


def state_of(task: Any) -> str:
    return str(task["status_indicator"] if task["type"] == "custom" else task["type"])


def shown(events: list[Any]) -> list[str]:
    """What the page is told of tools and messages, in order."""
    told = []
    for event in events:
        kind, item = event["type"].removeprefix("thread.item."), event.get("item", {})
        update = event.get("update", {})
        if "workflow" in update.get("type", ""):
            task = update["task"]
            word = update["type"].removeprefix("workflow.task.")
            told.append(f"{word} {update['task_index']} {state_of(task)}")
        elif item.get("type") == "workflow":
            states = [state_of(task) for task in item["workflow"]["tasks"]]
            told.append(" ".join([f"workflow {kind}", *states]))
        elif item.get("type") == "assistant_message":
            told.append(f"message {kind}")
    return told


async def kept(running: Plugged, events: list[Any]) -> list[Any]:
    thread_id = events[0]["thread"]["id"]
    response = await post(running.system, body_of("items.list", thread_id=thread_id, order="asc"))
    return list(response.json()["data"])


async def test_a_tool_is_shown_while_it_runs(either: Plugged) -> None:
    events = await answer(either, SUM, Say(text="3"))
    assert shown(events) == [
        "workflow added loading",
        "updated 0 complete",
        "workflow done complete",
        "message added",
        "message done",
    ]
    (task,) = (await kept(either, events))[1]["workflow"]["tasks"]
    assert task["title"] == "Add numbers"


async def test_what_the_model_says_first_is_shown_first(either: Plugged) -> None:
    events = await answer(either, Call("add_numbers", {"numbers": [1]}, saying="Let me see."), Say(text="1"))
    assert shown(events)[:4] == ["message added", "message done", "workflow added loading", "updated 0 complete"]
    assert [item["type"] for item in await kept(either, events)][1:] == [
        "assistant_message",
        "workflow",
        "assistant_message",
    ]


async def test_tools_that_run_at_once_are_told_apart_though_they_look_alike(either: Plugged) -> None:
    events = await answer(either, Call("add_numbers", {"numbers": [1]}, also=[SUM] * 9), Say(text="1"))
    told = shown(events)
    assert sorted(word for word in told if word.endswith("complete") and word.startswith("updated")) == [
        f"updated {number} complete" for number in range(10)
    ]
    assert told.count("workflow added loading") == 1
    assert [word.split()[1] for word in told if word.startswith("added ")] == [str(n) for n in range(1, 10)]
    done = next(word for word in told if word.startswith("workflow done"))
    assert done.split()[2:] == ["complete"] * 10
    assert told.index(done) == len(told) - 3


async def test_whoever_follows_the_events_ends_with_what_is_kept(either: Plugged) -> None:
    events = await answer(either, Call("add_numbers", {"numbers": [1]}, also=[SUM] * 4), Say(text="1"))
    done = next(e for e in events if e["type"] == "thread.item.done" and e["item"]["type"] == "workflow")
    pending = PendingItems()
    for event in events[: events.index(done)]:
        pending.apply(codec.decode(ThreadStreamEvent, event))
    (workflow,) = pending.items()
    tasks = json.loads(codec.encode(workflow))["workflow"]["tasks"]
    assert tasks == done["item"]["workflow"]["tasks"]


async def test_tools_of_several_turns_are_one_workflow(either: Plugged) -> None:
    events = await answer(either, SUM, SUM, Say(text="1"))
    assert shown(events)[:5] == [
        "workflow added loading",
        "updated 0 complete",
        "added 1 loading",
        "updated 1 complete",
        "workflow done complete complete",
    ]


async def test_tools_are_shown_beside_the_models_thoughts(database_url: str) -> None:
    async with plugged(database_url, {}, kind="chat_completions") as running:
        thinking = Call("add_numbers", {"numbers": [1]}, thinking="I should add.")
        told = shown(await answer(running, thinking, Say(text="1")))
        assert told[:5] == [
            "workflow added",
            "added 0 thought",
            "added 1 loading",
            "updated 1 complete",
            "workflow done thought complete",
        ]


async def test_a_tool_that_fails_is_shown_as_failed(either: Plugged) -> None:
    events = await answer(either, Call("mcp_box__fail", {}), Say(text="Oh."))
    (task,) = (await kept(either, events))[1]["workflow"]["tasks"]
    assert (task["title"], task["content"]) == ("box: fail", "This did not work.")


async def test_where_the_model_fails_afterwards_its_tools_stay(either: Plugged) -> None:
    events = await answer(either, SUM, Fail(400))
    assert shown(events)[-1] == "workflow done complete"
    assert events[-1]["type"] == "error"
    assert [item["type"] for item in await kept(either, events)] == ["user_message", "workflow"]


async def test_a_page_that_leaves_stops_the_tool_and_nothing_is_shown_for_ever(either: Plugged) -> None:
    either.model.then(Call("mcp_box__hang", {}), Say(text="Never."))
    async with (
        asyncio.timeout(10),
        either.system.http.stream(
            "POST",
            "/api/chatkit",
            content=json.dumps(say("Go")),
            headers={"content-type": "application/json", "accept": "text/event-stream"},
        ) as response,
    ):
        async for line in response.aiter_lines():
            if "loading" in line:
                break
    async with asyncio.timeout(10):
        while True:
            threads = (await post(either.system, body_of("threads.list", limit=1))).json()["data"]
            page = await post(either.system, body_of("items.list", thread_id=threads[0]["id"], order="asc"))
            workflows = [item for item in page.json()["data"] if item["type"] == "workflow"]
            if workflows and "loading" not in json.dumps(workflows):
                break
            await asyncio.sleep(0.05)


async def test_a_stop_ends_a_task_whose_workflow_something_else_has_ended(database_url: str) -> None:
    """Two tools at once: one shows a card, the other is still at it."""
    async with FakeOpenAI((Call("slow", {}, also=[Call("card", {})]), Say())) as model:
        opened = open_model(choose_model(Settings(model_base_url=model.base_url, model_name="fake")))
        team = Team([("a", Agent(name="A", tools=[slow, card]))])

        def factory(store: PostgresStore) -> Assistant:
            return Assistant(store, OpenModels([opened]), team=team)

        async with open_system(database_url, factory) as system:
            answering = asyncio.create_task(post(system, say("Go")))
            async with asyncio.timeout(10):
                while not await system.server.database.fetchval(SHOWN):
                    await asyncio.sleep(0.02)
            thread_id = await system.server.database.fetchval("select session_id from chat_sessions")
            await post(system, body_of("runs.cancel", thread_id=thread_id))
            await answering
            page = await post(system, body_of("items.list", thread_id=thread_id, order="asc"))
            workflows = [item["workflow"] for item in page.json()["data"] if item["type"] == "workflow"]
            assert workflows
            assert "loading" not in json.dumps(workflows)


SHOWN = "select count(*) from chat_messages where item_type = 'widget'"


@function_tool
async def slow() -> str:
    """Takes its time."""
    await asyncio.sleep(60)
    return ""


@function_tool
async def card(run: RunContextWrapper[Any]) -> str:
    """Shows a card."""
    await asyncio.sleep(0.3)
    await run.context.stream_widget(DynamicWidgetRoot.model_validate({"type": "Card", "children": []}))
    return "shown"


async def test_a_tool_that_shows_something_itself_is_shown_as_done(database_url: str) -> None:
    def factory(store: PostgresStore) -> Assistant:
        return Assistant(store, OpenModels([OpenModel(OfflineModel(0), choose_model(Settings()))]))

    async with open_system(database_url, factory) as system:
        for command in ("/widget", "/progress", "/workflow", "/form", "/error"):
            thread_id = events_of(await post(system, say(command)))[0]["thread"]["id"]
            items = (await post(system, body_of("items.list", thread_id=thread_id, order="asc"))).json()["data"]
            tasks = [task for item in items if item["type"] == "workflow" for task in item["workflow"]["tasks"]]
            mine = [task for task in tasks if (task.get("title") or "").startswith("Show ")]
            assert len(mine) == 1, command
            assert mine[0]["status_indicator"] == "complete", command
            assert mine[0].get("content") == ("This did not work." if command == "/error" else None)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("current_time", "Current time"),
        ("mcp_threads__search_threads", "threads: search threads"),
        ("mcp_a_b__c__d", "a_b: c  d"),
        ("x", "X"),
        ("", ""),
    ],
)
def test_a_tools_name_is_made_readable(name: str, title: str) -> None:
    assert title_of(name) == title
