"""What a ChatKit page can show, each behind a command of the offline model, through the front door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from chatkit.types import InferenceOptions, ToolChoice
from chatkit_grpc.errors import ValidationError

from server.assistant import Assistant, Options
from server.model_choice import choose_model
from server.models import OpenModel, OpenModels, open_model
from server.offline_model import OfflineModel
from server.settings import Settings
from server.store import PostgresStore
from server.team import make_team
from tests.page import SSE, body_of, events_of, post, say
from tests.system import IMPATIENT, System, open_system


def quick_assistant(store: PostgresStore) -> Assistant:
    offline = OpenModel(OfflineModel(0), choose_model(Settings()))
    return Assistant(store, OpenModels([offline]), Options())


@pytest.fixture
async def system(database_url: str) -> AsyncIterator[System]:
    async with open_showcase(database_url) as system:
        yield system


@asynccontextmanager
async def open_showcase(database_url: str) -> AsyncIterator[System]:
    async with open_system(database_url, quick_assistant, server=IMPATIENT) as system:
        yield system


async def ask(system: System, body: Any) -> list[Any]:
    return events_of(await post(system, body, **SSE))


async def command(system: System, text: str) -> tuple[str, list[Any]]:
    events = await ask(system, say(text))
    assert events[-1]["type"] != "error", events[-1]
    return events[0]["thread"]["id"], events


def done(events: list[Any], kind: str) -> list[Any]:
    return [event["item"] for event in events if event["type"] == "thread.item.done" and event["item"]["type"] == kind]


def of(events: list[Any], kind: str) -> list[Any]:
    return [event for event in events if event["type"] == kind]


def words(events: list[Any]) -> str:
    return str(done(events, "assistant_message")[-1]["content"][0]["text"])


async def click(system: System, thread_id: str, widget: Any, action: Any) -> list[Any]:
    return await ask(system, body_of("threads.custom_action", thread_id=thread_id, item_id=widget["id"], action=action))


async def items(system: System, thread_id: str) -> list[Any]:
    page = (await post(system, body_of("items.list", thread_id=thread_id, order="asc", limit=99))).json()
    return list(page["data"])


def component(widget: Any, kind: str, label: str = "") -> Any:
    if isinstance(widget, dict):
        if widget.get("type") == kind and widget.get("label", "") in {
            label,
            widget.get("label", "") if not label else "",
        }:
            return widget
        for inner in widget.values():
            if found := component(inner, kind, label):
                return found
    for inner in widget if isinstance(widget, list) else ():
        if found := component(inner, kind, label):
            return found
    return None


async def test_help_lists_every_command(system: System) -> None:
    _, events = await command(system, "/help")
    shown = [
        tool.name.removeprefix("show_")
        for tool in make_team(shows_off=True).default.tools
        if tool.name.startswith("show_")
    ]
    assert len(shown) > 15
    assert all(f"`/{name}`" in words(events) for name in shown)


async def test_an_unknown_command_is_said_to_be_unknown(system: System) -> None:
    assert "/help" in words((await command(system, "/nonsense"))[1])


async def test_a_widget_and_the_action_that_streams(system: System) -> None:
    thread_id, events = await command(system, "/widget")
    (widget,) = done(events, "widget")
    action = component(widget["widget"], "Button", "Count")["onClickAction"]
    events = await ask(
        system, body_of("threads.custom_action", thread_id=thread_id, item_id=widget["id"], action=action)
    )
    (replaced,) = of(events, "thread.item.replaced")
    assert component(replaced["item"]["widget"], "Text")["value"] == "Counted to 1"
    (stored,) = [item for item in await items(system, thread_id) if item["type"] == "widget"]
    assert stored["widget"] == replaced["item"]["widget"]


async def test_the_action_that_changes_the_widget_alone(system: System) -> None:
    thread_id, events = await command(system, "/widget")
    (widget,) = done(events, "widget")
    action = component(widget["widget"], "Button", "Count quietly")["onClickAction"]
    assert action["streaming"] is False
    body = body_of("threads.sync_custom_action", thread_id=thread_id, item_id=widget["id"], action=action)
    updated = (await post(system, body)).json()["updated_item"]
    assert component(updated["widget"], "Text")["value"] == "Counted to 1"
    (stored,) = [item for item in await items(system, thread_id) if item["type"] == "widget"]
    assert stored["widget"] == updated["widget"]


@pytest.mark.parametrize("payload", [None, {"count": "x"}, {"count": -1}, {"count": 1e99}, [], "text"])
async def test_an_action_with_any_payload_breaks_nothing(system: System, payload: Any) -> None:
    thread_id, events = await command(system, "/widget")
    (widget,) = done(events, "widget")
    for kind in ("showcase.count", "showcase.greet"):
        action = {"type": kind, "payload": payload}
        body = body_of("threads.custom_action", thread_id=thread_id, item_id=widget["id"], action=action)
        assert (await ask(system, body))[-1]["type"] != "error"


async def test_an_unknown_action_is_an_error_in_words(system: System) -> None:
    thread_id, _ = await command(system, "/widget")
    action = {"type": "no.such", "payload": {}}
    events = await ask(system, body_of("threads.custom_action", thread_id=thread_id, action=action))
    assert "Nothing here knows" in events[-1]["message"]
    answer = await post(system, body_of("threads.sync_custom_action", thread_id=thread_id, action=action))
    assert answer.status_code == 400
    assert "$.params.action.type" in answer.text


async def test_what_is_filled_in_in_a_form_comes_with_its_action(system: System) -> None:
    thread_id, events = await command(system, "/widget-form")
    (widget,) = done(events, "widget")
    action = component(widget["widget"], "Form")["onSubmitAction"]
    action["payload"] = {"name": "Ada", "drink": "tea"}
    events = await ask(
        system, body_of("threads.custom_action", thread_id=thread_id, item_id=widget["id"], action=action)
    )
    assert words(events) == "Hello Ada! One tea, coming up."


@pytest.mark.parametrize(("name", "root"), [("gallery", "ListView"), ("chart", "Card")])
async def test_other_widgets(system: System, name: str, root: str) -> None:
    _, events = await command(system, f"/{name}")
    assert done(events, "widget")[0]["widget"]["type"] == root


async def test_structured_input_is_asked_and_answered(system: System) -> None:
    thread_id, events = await command(system, "/form")
    (item,) = done(events, "structured_input")
    assert item["status"] == "pending"
    assert not done(events, "assistant_message")
    answers = {"colour": {"values": ["Red", "Blue"]}, "why": {"values": ["So"]}}
    body = body_of(
        "threads.add_structured_input",
        thread_id=thread_id,
        item_id=item["id"],
        input={"status": "answered", "answers": answers},
    )
    events = await ask(system, body)
    (replaced,) = of(events, "thread.item.replaced")
    assert replaced["item"]["status"] == "answered"
    assert replaced["item"]["inputs"][0]["answer"]["values"] == ["Red", "Blue"]
    assert "- Which colours do you like?: Red, Blue" in words(events)


async def test_questions_that_were_talked_past_are_skipped(system: System) -> None:
    thread_id, events = await command(system, "/form")
    events = await ask(system, say("Something else", thread_id=thread_id))
    (replaced,) = of(events, "thread.item.replaced")
    assert (replaced["item"]["type"], replaced["item"]["status"]) == ("structured_input", "skipped")
    assert done(events, "assistant_message")


async def test_a_client_tool_is_called_once_and_goes_on_with_its_output(system: System) -> None:
    thread_id, events = await command(system, "/client-tool")
    (call,) = done(events, "client_tool_call")
    assert (call["name"], call["status"]) == ("get_page_title", "pending")
    # A page would call it for each of the two.
    assert not [event for event in of(events, "thread.item.added") if event["item"]["type"] == "client_tool_call"]
    events = await ask(system, body_of("threads.add_client_tool_output", thread_id=thread_id, result={"title": "Shop"}))
    assert done(events, "assistant_message")
    (stored,) = [item for item in await items(system, thread_id) if item["type"] == "client_tool_call"]
    assert (stored["status"], stored["output"]) == ("completed", {"title": "Shop"})


async def test_a_client_tool_call_left_behind_is_closed_by_the_next_message(system: System) -> None:
    thread_id, _ = await command(system, "/client-tool")
    events = await ask(system, say("Never mind", thread_id=thread_id))
    (replaced,) = of(events, "thread.item.replaced")
    assert (replaced["item"]["status"], list(replaced["item"]["output"])) == ("completed", ["error"])
    late = await post(system, body_of("threads.add_client_tool_output", thread_id=thread_id, result=1))
    assert late.status_code == 409


async def test_effects_progress_and_notices(system: System) -> None:
    _, events = await command(system, "/effect")
    assert [(event["name"], event["data"]) for event in of(events, "client_effect")] == [("confetti", {"seconds": 2})]
    _, events = await command(system, "/progress")
    assert [event["text"] for event in of(events, "progress_update")] == [f"Step {step} of 3 …" for step in (1, 2, 3)]
    _, events = await command(system, "/notice")
    assert [event["level"] for event in of(events, "notice")] == ["info", "warning", "danger"]


async def test_annotations_have_sources_of_each_kind(system: System) -> None:
    _, events = await command(system, "/sources")
    annotations = done(events, "assistant_message")[0]["content"][0]["annotations"]
    assert [annotation["source"]["type"] for annotation in annotations] == ["url", "file", "entity"]


async def test_a_generated_image_gets_sharper(system: System) -> None:
    thread_id, events = await command(system, "/image")
    updates = [
        event["update"]
        for event in of(events, "thread.item.updated")
        if event["update"]["type"] == "generated_image.updated"
    ]
    assert [round(update["progress"], 2) for update in updates] == [0.33, 0.67, 1.0]
    (stored,) = [item for item in await items(system, thread_id) if item["type"] == "generated_image"]
    assert stored["image"]["url"].startswith("data:image/svg+xml;base64,")


async def test_a_workflow_has_tasks_of_each_kind(system: System) -> None:
    thread_id, _ = await command(system, "/workflow")
    workflows = [item["workflow"] for item in await items(system, thread_id) if item["type"] == "workflow"]
    shown = next(workflow for workflow in workflows if len(workflow["tasks"]) == 5)
    assert [task["type"] for task in shown["tasks"]] == ["thought", "web_search", "file", "image", "custom"]
    assert {task["status_indicator"] for task in shown["tasks"]} == {"complete"}
    assert shown["expanded"] is True


async def test_a_locked_thread_takes_no_message_but_the_click_that_unlocks_it(system: System) -> None:
    thread_id, events = await command(system, "/lock")
    assert of(events, "thread.updated")[-1]["thread"]["status"]["type"] == "locked"
    refused = await post(system, say("Hi", thread_id=thread_id))
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "THREAD_LOCKED")
    (widget,) = done(events, "widget")
    action = component(widget["widget"], "Button", "Unlock")["onClickAction"]
    events = await ask(
        system, body_of("threads.custom_action", thread_id=thread_id, item_id=widget["id"], action=action)
    )
    assert of(events, "thread.updated")[-1]["thread"]["status"]["type"] == "active"
    assert (await post(system, say("Hi", thread_id=thread_id))).status_code == 200


async def test_a_closed_thread_takes_nothing_more(system: System) -> None:
    thread_id, events = await command(system, "/close")
    assert of(events, "thread.updated")[-1]["thread"]["status"]["type"] == "closed"
    assert (await post(system, say("Hi", thread_id=thread_id))).json()["error"]["code"] == "THREAD_CLOSED"


async def test_an_error_may_be_retried(system: System) -> None:
    events = await ask(system, say("/error"))
    assert (events[-1]["type"], events[-1]["allow_retry"]) == ("error", True)
    assert "Nothing is wrong" in events[-1]["message"]


async def test_a_hand_over_by_command_and_back(system: System) -> None:
    thread_id, events = await command(system, "/handoff editor")
    assert "This is the Editor" in words(events)
    events = await ask(system, say("/help", thread_id=thread_id))
    assert "/handoff assistant" in words(events)
    events = await ask(system, say("/handoff assistant", thread_id=thread_id))
    assert "This is the Assistant" in words(events)


async def test_tags_and_quoted_text_reach_the_model_and_the_thread(system: System) -> None:
    body = say("What about")
    tag = {"type": "input_tag", "id": "c1", "text": "Berkeley", "data": {"country": "US"}, "group": "Places"}
    body["params"]["input"]["content"].append(tag)
    body["params"]["input"]["quoted_text"] = "grew out of a project"
    events = await ask(system, body)
    assert "“What about@Berkeley”" in words(events)
    (message,) = done(events, "user_message")
    assert (message["quoted_text"], message["content"][1]["data"]) == ("grew out of a project", {"country": "US"})


async def test_no_real_model_is_given_these_tools(store: PostgresStore) -> None:
    options = InferenceOptions(tool_choice=ToolChoice(id="show_form"))
    offline = OpenModel(OfflineModel(0), choose_model(Settings()))
    real = open_model(choose_model(Settings(openai_api_key="sk-test")))
    Assistant(store, OpenModels([offline])).check_options(options)
    both = Assistant(store, OpenModels([offline, real]))
    with pytest.raises(ValidationError):
        both.check_options(options)
    await both.aclose()
