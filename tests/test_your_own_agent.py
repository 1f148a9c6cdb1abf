"""The agent of docs/your-own-agent.md, as it stands there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server.app import load_factory
from tests.fake_openai import Call, FakeOpenAI, Say
from tests.page import SSE, events_of, post, say
from tests.system import IMPATIENT, System, open_system

DOCS = (Path(__file__).parent.parent / "docs/your-own-agent.md").read_text()


def example() -> str:
    found = re.search(r"<!-- example: weather.py -->\n```python\n(.*?)```", DOCS, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
async def talk(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[System, FakeOpenAI]]:
    (tmp_path / "weather.py").write_text(example())
    monkeypatch.syspath_prepend(tmp_path)
    async with FakeOpenAI([Call("weather", {"city": "Oslo"}), Say(text="Take a coat")]) as fake:
        monkeypatch.setenv("MODEL_BASE_URL", fake.base_url)
        monkeypatch.setenv("MODEL_NAME", "fake")
        monkeypatch.setenv("ENVIRONMENT", "development")
        async with open_system(database_url, load_factory("weather:create"), server=IMPATIENT) as system:
            yield system, fake


def test_the_example_is_short() -> None:
    assert len(example().splitlines()) < 60


async def test_its_tool_shows_a_widget_and_tells_the_model(talk: tuple[System, FakeOpenAI]) -> None:
    system, fake = talk
    events = events_of(await post(system, say("How is Oslo?"), **SSE))
    done: list[Any] = [event["item"] for event in events if event["type"] == "thread.item.done"]
    (widget,) = [item for item in done if item["type"] == "widget"]
    assert [line["value"] for line in widget["widget"]["children"]] == ["Oslo", "snow, -3 °C"]
    assert done[-1]["content"][0]["text"].strip() == "Take a coat"
    assert fake.requests[1]["messages"][-1]["content"] == "Oslo: snow, -3 °C. The user sees it on a card."
    assert events[-1]["thread"]["title"]


async def test_its_guard_trips_in_words(talk: tuple[System, FakeOpenAI]) -> None:
    system, fake = talk
    events = events_of(await post(system, say("Who wins the election?"), **SSE))
    assert events[-1] == {
        "type": "error",
        "code": "custom",
        "message": "I talk of the weather only.",
        "allow_retry": False,
    }
    assert fake.requests == []


async def test_its_agent_may_be_chosen_and_no_other(talk: tuple[System, FakeOpenAI]) -> None:
    system, _ = talk
    body = say("How is Oslo?")
    body["params"]["input"]["inference_options"] = {"tool_choice": {"id": "editor"}}
    (event,) = events_of(await post(system, body, **SSE))
    assert "expected one of: weather, weather" in event["message"]
