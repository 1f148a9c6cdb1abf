"""The offline model, run by the real Runner."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agents import Agent, RunConfig, Runner, TResponseInputItem
from agents.items import TResponseStreamEvent
from openai.types.responses import ResponseTextDeltaEvent

from server.offline_model import OfflineModel
from server.team import add_numbers, current_time

TRACELESS = RunConfig(tracing_disabled=True)


def agent(*, tools: bool = True) -> Agent[Any]:
    return Agent(name="A", model=OfflineModel(0), tools=[current_time, add_numbers] if tools else [])


async def ask(question: str | list[TResponseInputItem], *, tools: bool = True) -> str:
    result = await Runner.run(agent(tools=tools), question, run_config=TRACELESS)
    return str(result.final_output)


async def stream(question: str) -> list[TResponseStreamEvent]:
    result = Runner.run_streamed(agent(), question, run_config=TRACELESS)
    return [event.data async for event in result.stream_events() if event.type == "raw_response_event"]


async def test_it_says_what_it_is_what_it_was_told_and_how_to_get_a_real_model() -> None:
    answer = await ask("Hello there")
    assert "offline stand-in" in answer
    assert "Hello there" in answer
    assert all(name in answer for name in ("OPENAI_API_KEY", "XIAOMI_API_KEY", "MODEL_BASE_URL"))


async def test_it_counts_only_what_the_user_said() -> None:
    answer = await ask(
        [
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "Yes"},
            {"role": "user", "content": [{"type": "input_text", "text": "Hidden context for the agent (…)"}]},
            {"role": "user", "content": [{"type": "input_text", "text": "Two"}]},
        ]
    )
    assert "“Two”" in answer
    assert "message number 2" in answer


@pytest.mark.parametrize(
    ("question", "total"),
    [
        ("What is 2 + 40?", "42"),
        ("2+40", "42"),
        ("add 1.5 and 2", "3.5"),
        ("The sum of 0.1 and 0.2", "0.3"),
        ("5 + -2", "3"),
    ],
)
async def test_it_calls_the_tool_for_a_sum(question: str, total: str) -> None:
    assert await ask(question) == f"The sum is {total}."


@pytest.mark.parametrize(
    "question", ["What time is it?", "what's the time", "What\N{RIGHT SINGLE QUOTATION MARK}s the current time?"]
)
async def test_it_calls_the_tool_for_the_time(question: str) -> None:
    answer = await ask(question)
    assert answer.startswith("It is ")
    assert answer.endswith("UTC.")


async def test_it_passes_on_a_time_zone() -> None:
    assert (await ask("What time is it in Asia/Tokyo?")).endswith("Asia/Tokyo.")


async def test_an_unknown_time_zone_is_said_to_be_unknown() -> None:
    assert "no time zone" in await ask("What time is it in Europe/Nowhere?")


async def test_it_calls_no_tool_that_the_agent_lacks() -> None:
    assert "offline stand-in" in await ask("What is 2 + 40?", tools=False)


async def test_it_streams_the_events_of_the_responses_api_in_their_order() -> None:
    events = await stream("Hello")
    kinds = [event.type for event in events]
    assert list(dict.fromkeys(kinds)) == [
        "response.created",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_the_deltas_add_up_to_the_text() -> None:
    events = await stream("Hello\n  there")
    deltas = [event.delta for event in events if isinstance(event, ResponseTextDeltaEvent)]
    texts = [event.text for event in events if event.type == "response.output_text.done"]
    assert len(deltas) > 20
    assert ["".join(deltas)] == texts


async def test_every_answer_has_its_own_ids() -> None:
    items = [
        event.item.id
        for _ in range(3)
        for event in await stream("add 1 and 2")
        if event.type == "response.output_item.done"
    ]
    assert len(set(items)) == len(items) == 6


async def test_it_talks_at_the_pace_it_is_given() -> None:
    slow = Agent(name="A", model=OfflineModel(0.005))
    started = asyncio.get_running_loop().time()
    await Runner.run(slow, "Hello", run_config=TRACELESS)
    assert asyncio.get_running_loop().time() - started > 0.2
