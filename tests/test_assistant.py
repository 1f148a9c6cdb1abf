"""The default assistant, through ChatKitServer.process, against a model server over a real socket."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from agents import Agent, RunConfig, RunContextWrapper, Runner, function_tool
from chatkit.agents import AgentContext, ClientToolCall
from chatkit.server import StreamingResult
from chatkit.store import NotFoundError, Store
from chatkit.types import (
    Attachment,
    FileAttachment,
    HiddenContextItem,
    Page,
    ProgressUpdateEvent,
    ThreadItem,
    ThreadMetadata,
    UserMessageItem,
    UserMessageTagContent,
    UserMessageTextContent,
)
from pydantic import TypeAdapter

from server.agent_stream import stream_answer
from server.assistant import Assistant, Options, create_assistant
from server.context import Auth, RequestContext
from server.history import MAX_ITEMS, HistoryConverter, load_model_input
from server.model_calls import Patience
from server.model_choice import choose_model
from server.models import OpenModel, OpenModels, open_model
from server.offline_model import OfflineModel
from server.settings import Settings
from tests.fake_openai import PROMPT_TOKENS, Call, Fail, FakeOpenAI, Misbehave, Say, Step

CONTEXT = RequestContext.of(Auth(user_id="anna", method="test"))
KINDS = ("responses", "chat_completions")
IMPATIENT = Patience(retries=0)
ENDLESS = Say(tokens=2000, delay=0.005)
SUM = Call("add_numbers", {"numbers": [2, 40]}, saying="Let me see. ")

_ITEM: TypeAdapter[ThreadItem] = TypeAdapter(ThreadItem)


@pytest.fixture(autouse=True, scope="module")
def fast_collections() -> Iterator[None]:
    # What the imports made is alive anyway: looking through it in each gc.collect() takes 0.2 s.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class MemoryStore(Store[RequestContext]):
    """Threads in memory, but each call awaits, as a database does.

    For what the assistant does with its tasks and its model; over the whole path and on Postgres it is tested in
    test_whole_path.py.
    """

    def __init__(self) -> None:
        self.threads: dict[str, ThreadMetadata] = {}
        self.items: dict[str, dict[str, str]] = {}
        self.feedback: list[tuple[str, list[str], str, RequestContext]] = []

    def of(self, thread_id: str) -> list[ThreadItem]:
        return [_ITEM.validate_json(item) for item in self.items.get(thread_id, {}).values()]

    async def _asked(self, context: RequestContext) -> None:
        assert context is CONTEXT
        await asyncio.sleep(0.001)

    async def load_thread(self, thread_id: str, context: RequestContext) -> ThreadMetadata:
        await self._asked(context)
        if thread_id not in self.threads:
            raise NotFoundError(thread_id)
        return self.threads[thread_id]

    async def save_thread(self, thread: ThreadMetadata, context: RequestContext) -> None:
        await self._asked(context)
        self.threads[thread.id] = thread

    async def load_thread_items(
        self, thread_id: str, after: str | None, limit: int, order: str, context: RequestContext
    ) -> Page[ThreadItem]:
        await self._asked(context)
        items = self.of(thread_id)[:: -1 if order == "desc" else 1]
        start = [item.id for item in items].index(after) + 1 if after else 0
        page = items[start : start + limit]
        more = start + limit < len(items)
        return Page(data=page, has_more=more, after=page[-1].id if more else None)

    async def add_thread_item(self, thread_id: str, item: ThreadItem, context: RequestContext) -> None:
        await self._asked(context)
        self.items.setdefault(thread_id, {})[item.id] = item.model_dump_json()

    async def save_item(self, thread_id: str, item: ThreadItem, context: RequestContext) -> None:
        await self.add_thread_item(thread_id, item, context)

    async def load_item(self, thread_id: str, item_id: str, context: RequestContext) -> ThreadItem:
        await self._asked(context)
        return _ITEM.validate_json(self.items[thread_id][item_id])

    async def delete_thread_item(self, thread_id: str, item_id: str, context: RequestContext) -> None:
        await self._asked(context)
        self.items[thread_id].pop(item_id, None)

    async def save_feedback(self, thread_id: str, item_ids: list[str], kind: str, context: RequestContext) -> None:
        self.feedback.append((thread_id, item_ids, kind, context))

    async def load_threads(
        self, limit: int, after: str | None, order: str, context: RequestContext
    ) -> Page[ThreadMetadata]:
        raise NotImplementedError("the assistant never asks for this")

    async def delete_thread(self, thread_id: str, context: RequestContext) -> None:
        raise NotImplementedError("the assistant never asks for this")

    async def save_attachment(self, attachment: Attachment, context: RequestContext) -> None:
        raise NotImplementedError("the assistant never asks for this")

    async def load_attachment(self, attachment_id: str, context: RequestContext) -> Attachment:
        raise NotImplementedError("the assistant never asks for this")

    async def delete_attachment(self, attachment_id: str, context: RequestContext) -> None:
        raise NotImplementedError("the assistant never asks for this")


class Chat:
    """An assistant, its store and its model server."""

    def __init__(self, kind: str, fake: FakeOpenAI, *, asks_for_usage: bool = False) -> None:
        self.fake = fake
        self.store = MemoryStore()
        if kind == "responses":
            choice = replace(choose_model(Settings(openai_api_key="sk-test")), base_url=fake.base_url)
        else:
            choice = choose_model(Settings(model_base_url=fake.base_url, model_name="fake"))
        assert choice.kind == kind
        chosen = open_model(choice, IMPATIENT)
        self.assistant = Assistant(self.store, OpenModels([chosen]), Options(asks_for_usage=asks_for_usage))

    async def stream(self, text: str, thread_id: str | None = None) -> AsyncIterator[dict[str, Any]]:
        message = {"content": [{"type": "input_text", "text": text}], "attachments": [], "inference_options": {}}
        operation = "threads.add_user_message" if thread_id else "threads.create"
        params = {"input": message} | ({"thread_id": thread_id} if thread_id else {})
        result = await self.assistant.process(json.dumps({"type": operation, "params": params}), CONTEXT)
        assert isinstance(result, StreamingResult)
        async for data in result:
            yield json.loads(data.removeprefix(b"data: "))

    async def say(self, text: str, thread_id: str | None = None) -> list[dict[str, Any]]:
        return [event async for event in self.stream(text, thread_id)]

    @property
    def thread_id(self) -> str:
        return next(iter(self.store.threads))

    def kept(self, item_type: str) -> list[Any]:
        return [item for item in self.store.of(self.thread_id) if item.type == item_type]


@asynccontextmanager
async def chat(kind: str, *script: Step, asks_for_usage: bool = False) -> AsyncIterator[Chat]:
    async with FakeOpenAI(script or (Say(),)) as fake:
        opened = Chat(kind, fake, asks_for_usage=asks_for_usage)
        try:
            yield opened
        finally:
            await opened.assistant.aclose()


@asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """No task that was not there before, and no complaint of asyncio's."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    before = asyncio.all_tasks()
    loop.set_exception_handler(lambda _loop, complaint: complaints.append(complaint))
    try:
        yield
        await until(lambda: asyncio.all_tasks() <= before)
        gc.collect()
        # What is collected may end in a task of its own, and that may complain.
        await asyncio.sleep(0.005)
        await until(lambda: asyncio.all_tasks() <= before)
    finally:
        loop.set_exception_handler(None)
    assert complaints == []


def agent_context(store: MemoryStore) -> AgentContext[Any]:
    thread = ThreadMetadata(id="thr_1", created_at=datetime(2026, 1, 1))  # noqa: DTZ001 - as the SDK makes them
    return AgentContext(thread=thread, store=store, request_context=CONTEXT)


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


def items(events: list[dict[str, Any]], kind: str = "thread.item.done") -> list[dict[str, Any]]:
    return [event["item"] for event in events if event["type"] == kind]


def updated(events: list[dict[str, Any]]) -> set[str]:
    return {event["item_id"] for event in events if event["type"] == "thread.item.updated"}


def text_of(item: Any) -> str:
    return "".join(part.text for part in item.content)


# -- turns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_three_turns_each_know_the_ones_before(kind: str) -> None:
    async with nothing_left_behind(), chat(kind, Say(text="Alpha"), Say(text="Beta"), Say(text="Gamma")) as talk:
        await talk.say("One")
        await talk.say("Two", talk.thread_id)
        await talk.say("Three", talk.thread_id)

        sent = json.dumps(talk.fake.requests[2])
        positions = [sent.index(word) for word in ("One", "Alpha", "Two", "Beta", "Three")]
        assert positions == sorted(positions)
        assert [text_of(item).strip() for item in talk.kept("assistant_message")] == ["Alpha", "Beta", "Gamma"]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_model_is_asked_at_the_interface_that_was_chosen(kind: str) -> None:
    async with chat(kind) as talk:
        await talk.say("One")
        path = "/v1/responses" if kind == "responses" else "/v1/chat/completions"
        assert talk.fake.paths == [path]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_tokens_of_an_answer_are_counted_also_where_a_tool_was_called(kind: str) -> None:
    async with chat(kind, Call("add_numbers", {"numbers": [1, 2]}), Say(), asks_for_usage=True) as talk:
        CONTEXT.tokens_used = 0
        await talk.say("One")
        assert CONTEXT.tokens_used == 2 * (PROMPT_TOKENS + 1)
        await talk.say("Two", talk.thread_id)
        assert CONTEXT.tokens_used == 3 * (PROMPT_TOKENS + 1)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_that_is_stopped_is_not_free(kind: str) -> None:
    async with chat(kind, Say(tokens=1000, delay=0.01), asks_for_usage=True) as talk:
        CONTEXT.tokens_used = 0
        stream = talk.stream("word " * 400)
        async for event in stream:
            if event["type"] == "thread.item.updated":
                break
        await stream.aclose()  # type: ignore[attr-defined] # it is a generator
        # 2,000 characters were asked.
        await until(lambda: 500 < CONTEXT.tokens_used < 1000)


async def test_a_model_that_doesnt_say_what_it_took_is_not_free() -> None:
    """As Chat Completions don't, unless they are asked."""
    async with chat("chat_completions", Say(text="word " * 400)) as talk:
        CONTEXT.tokens_used = 0
        await talk.say("One")
        assert 500 < CONTEXT.tokens_used < 1000


@pytest.mark.parametrize("kind", KINDS)
async def test_ids_are_unique_across_turns_and_threads(kind: str) -> None:
    async with chat(kind) as talk:
        first = await talk.say("One")
        events = [*first, *await talk.say("Two", talk.thread_id), *await talk.say("Elsewhere")]
        ids = [item["id"] for item in items(events)]
        assert len(ids) == len(set(ids)) == 6
        assert "__fake_id__" not in json.dumps(events)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_message_keeps_its_id_from_its_first_event_to_the_store(kind: str) -> None:
    async with chat(kind) as talk:
        events = await talk.say("One")
        (added,) = items(events, "thread.item.added")
        answer = items(events)[-1]
        assert {added["id"]} == updated(events) == {answer["id"]} == {talk.kept("assistant_message")[0].id}


async def test_the_ids_of_the_responses_api_are_kept() -> None:
    async with chat("responses") as talk:
        await talk.say("One")
        # The store's own ids end with 8 hexadecimal digits.
        assert re.fullmatch(r"msg_\d{1,6}", talk.kept("assistant_message")[0].id)


@pytest.mark.parametrize("kind", KINDS)
async def test_two_messages_in_a_tool_turn_are_two_items(kind: str) -> None:
    async with nothing_left_behind(), chat(kind, SUM, Say(text="It is 42")) as talk:
        events = await talk.say("What is 2 + 40?")
        first, second = talk.kept("assistant_message")
        assert first.id != second.id
        assert [text_of(first).strip(), text_of(second).strip()] == ["Let me see.", "It is 42"]
        (tools,) = talk.kept("workflow")
        assert updated(events) == {first.id, second.id, tools.id}
        assert "__fake_id__" not in json.dumps(events)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_model_gets_what_the_tool_said(kind: str) -> None:
    async with chat(kind, SUM, Say(text="It is 42")) as talk:
        await talk.say("What is 2 + 40?")
        request = talk.fake.requests[1]
        said = request.get("input") or request["messages"]
        assert said[-1].get("output", said[-1].get("content")) == "42"


async def test_thoughts_are_kept_apart_from_the_answer() -> None:
    async with nothing_left_behind(), chat("chat_completions", Say(text="Yes", thinking="Hm, well")) as talk:
        events = await talk.say("One")
        await talk.say("Two", talk.thread_id)
        (workflow, _), answers = talk.kept("workflow"), talk.kept("assistant_message")
        assert workflow.workflow.tasks[0].content == "Hm, well"
        assert [text_of(answer).strip() for answer in answers] == ["Yes", "Yes"]
        assert "__fake_id__" not in json.dumps(events)


async def test_the_offline_model_converses() -> None:
    assistant = Assistant(MemoryStore(), OpenModels([OpenModel(OfflineModel(0), choose_model(Settings()))]))
    async with nothing_left_behind(), chat("responses") as talk:
        assistant.store = talk.store
        talk.assistant = assistant
        await talk.say("Hello")
        await talk.say("What is 2 + 40?", talk.thread_id)
        events = await talk.say("Again", talk.thread_id)
        first, second, third = (text_of(answer) for answer in talk.kept("assistant_message"))
        assert "message number 1" in first
        assert second == "The sum is 42."
        assert "message number 3" in third
        deltas = [event["update"].get("delta", "") for event in events if event["type"] == "thread.item.updated"]
        assert "".join(deltas) == third


# -- leaving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelling_stops_the_model_and_keeps_what_was_said(kind: str) -> None:
    async with chat(kind, ENDLESS) as talk, nothing_left_behind():
        events: list[dict[str, Any]] = []

        async def read() -> None:
            async for event in talk.stream("Count"):
                events.append(event)  # noqa: PERF401 - looked at while it grows

        reading = asyncio.create_task(read())
        await until(lambda: len(events) > 20)
        sent = talk.fake.tokens_sent
        reading.cancel()
        # 250 ms are what is wanted; a busy machine gets more.
        await until(lambda: talk.fake.open_streams == 0, seconds=1)
        assert talk.fake.tokens_sent - sent <= 5
        with pytest.raises(asyncio.CancelledError):
            await reading

        (added,) = items(events, "thread.item.added")
        (partial,) = talk.kept("assistant_message")
        assert partial.id == added["id"] != "__fake_id__"
        assert text_of(partial).startswith("t0 t1 t2 ")
        assert len(talk.kept("sdk_hidden_context")) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_the_turn_after_a_cancelled_one_works(kind: str) -> None:
    async with chat(kind, ENDLESS, Say(text="Fine")) as talk:
        reading = asyncio.create_task(talk.say("Count"))
        await until(lambda: talk.fake.tokens_sent > 5)
        reading.cancel()
        await asyncio.wait([reading])
        await talk.say("And now?", talk.thread_id)
        assert [text_of(item).strip() for item in talk.kept("assistant_message")][-1] == "Fine"
        assert "t0 t1" in json.dumps(talk.fake.requests[-1])


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelling_twice_leaves_nothing_behind(kind: str) -> None:
    async with chat(kind, ENDLESS) as talk, nothing_left_behind():
        reading = asyncio.create_task(talk.say("Count"))
        await until(lambda: talk.fake.tokens_sent > 5)
        reading.cancel()
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        await until(lambda: talk.fake.open_streams == 0)
        assert reading.cancelled()


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelling_while_the_model_is_silent_stops_it(kind: str) -> None:
    async with chat(kind, Misbehave("hang")) as talk, nothing_left_behind():
        reading = asyncio.create_task(talk.say("Count"))
        await until(lambda: talk.fake.open_streams == 1)
        reading.cancel()
        await until(lambda: talk.fake.open_streams == 0)
        await asyncio.wait([reading])
        assert reading.cancelled()


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelling_at_any_moment_leaves_nothing_behind(kind: str) -> None:
    async with chat(kind, Say(tokens=3, delay=0.001)) as talk, nothing_left_behind():
        for moment in range(40):
            reading = asyncio.create_task(talk.say("Count"))
            await asyncio.sleep(moment * 0.0005)
            reading.cancel()
            await asyncio.wait([reading])
        await until(lambda: talk.fake.open_streams == 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_closing_the_generator_stops_the_model(kind: str) -> None:
    async with chat(kind, ENDLESS) as talk, nothing_left_behind():
        answer: Any = talk.assistant.respond(agent_context(talk.store).thread, None, CONTEXT)
        for _ in range(5):
            await anext(answer)
        sent = talk.fake.tokens_sent
        await answer.aclose()
        await until(lambda: talk.fake.open_streams == 0)
        assert talk.fake.tokens_sent - sent <= 5


@pytest.mark.parametrize("kind", KINDS)
async def test_dropping_the_stream_stops_the_model(kind: str) -> None:
    async with chat(kind, ENDLESS) as talk, nothing_left_behind():
        stream: Any = talk.stream("Count")
        for _ in range(8):
            await anext(stream)
        await stream.aclose()
        del stream
        await until(lambda: talk.fake.open_streams == 0)


@pytest.mark.parametrize("how", ["cancel", "aclose"])
async def test_when_an_answer_has_ended_its_tools_have(how: str) -> None:
    ended: list[str] = []

    @function_tool
    async def wait_for_ever(wrapper: RunContextWrapper[Any]) -> str:
        """Wait."""
        try:
            await wrapper.context.stream(ProgressUpdateEvent(text="Waiting"))
            await asyncio.Event().wait()
        finally:
            ended.append("tool")
        return ""

    async with chat("chat_completions", Call("wait_for_ever", {})) as talk, nothing_left_behind():
        context = agent_context(talk.store)
        agent = Agent[Any](name="A", model=talk.assistant.models.default.model, tools=[wait_for_ever])
        run = Runner.run_streamed(agent, "Hi", context=context, run_config=RunConfig(tracing_disabled=True))
        events = stream_answer(context, run)
        assert await anext(events) == ProgressUpdateEvent(text="Waiting")
        if how == "aclose":
            await events.aclose()
        else:
            waiting = asyncio.create_task(events.asend(None))
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.wait([waiting])
        assert ended == ["tool"]
        assert run.run_loop_task is not None
        assert run.run_loop_task.done()


class BrokenRun:
    """A run that fails at the moment at which a tool streams something."""

    run_loop_task: asyncio.Task[None] | None = None
    context_wrapper = RunContextWrapper(None)
    input = "What?"

    def __init__(self, context: AgentContext[Any], events: int = 0) -> None:
        self.closed = False
        self._context = context
        self._events = events

    def cancel(self) -> None: ...

    async def stream_events(self) -> AsyncIterator[Any]:
        try:
            for _ in range(self._events):
                yield SimpleNamespace(type="ignored")
                await self._context.stream(ProgressUpdateEvent(text="Now"))
            await self._context.stream(ProgressUpdateEvent(text="Now"))
            raise RuntimeError("broken")
        finally:
            self.closed = True


async def test_a_failure_that_nobody_waits_for_any_more_is_no_complaint() -> None:
    # Which of the two comes first is up to a set's order: some of the twenty see the event first.
    async with nothing_left_behind():
        for _ in range(20):
            context = agent_context(MemoryStore())
            events = stream_answer(context, cast("Any", BrokenRun(context)))
            with suppress(RuntimeError):
                await anext(events)
            await events.aclose()


async def test_closing_closes_the_run_at_once() -> None:
    async with nothing_left_behind():
        context = agent_context(MemoryStore())
        run = BrokenRun(context, events=1000)
        events = stream_answer(context, cast("Any", run))
        await anext(events)
        await events.aclose()
        assert run.closed


async def test_closing_the_response_ends_its_tasks_at_once() -> None:
    store = MemoryStore()
    assistant = Assistant(store, OpenModels([OpenModel(OfflineModel(0.001), choose_model(Settings()))]))
    before = asyncio.all_tasks()
    answer: Any = assistant.respond(agent_context(store).thread, None, CONTEXT)
    for _ in range(5):
        await anext(answer)
    assert not asyncio.all_tasks() <= before
    await answer.aclose()
    assert asyncio.all_tasks() <= before


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Fail(400), "did not accept the request (status 400)"),
        (Fail(401), "credentials"),
        (Fail(404), "not found"),
        (Fail(429), "busy"),
        (Fail(500), "server failed"),
        (Say(tokens=9, break_after=3), "connection to the model failed"),
        (Misbehave("empty"), "answer"),
        (Call("no_such_tool", {}), "did not give a proper answer"),
        (SUM, "used its tools too often"),
    ],
)
async def test_a_failing_model_is_told_of_in_words(
    kind: str, step: Step, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with chat(kind, step) as talk, nothing_left_behind():
        with caplog.at_level(logging.WARNING, "server"):
            events = await talk.say("Hello secret")
        assert events[-1]["type"] == "error"
        assert events[-1]["code"] == "custom"
        assert events[-1]["allow_retry"] is True
        assert words in events[-1]["message"]
        assert "secret" not in events[-1]["message"]
        ours = [record.getMessage() for record in caplog.records if record.name.startswith("server.")]
        assert len(ours) == 1
        assert "secret" not in ours[0]


async def test_an_unreachable_model_is_told_of_in_words() -> None:
    async with chat("chat_completions") as talk:
        talk.fake._server.close()
        assert talk.assistant.models.default._client is not None
        talk.assistant.models.default._client.max_retries = 0
        events = await talk.say("Hello")
        assert "connection to the model failed" in events[-1]["message"]


# -- the SDK's queue, and client tools -----------------------------------------------------------


async def test_what_a_tool_streams_is_passed_on_and_a_client_tool_call_gets_an_id() -> None:
    async with chat("chat_completions", Call("ask_client", {})) as talk, nothing_left_behind():

        @function_tool
        async def ask_client(wrapper: RunContextWrapper[Any]) -> str:
            """Ask."""
            await wrapper.context.stream(ProgressUpdateEvent(text="Asking"))
            wrapper.context.client_tool_call = ClientToolCall(name="ask", arguments={})
            return "asked"

        model = talk.assistant.models.default.model
        agent = Agent[Any](name="A", model=model, tools=[ask_client], tool_use_behavior="stop_on_first_tool")
        context = agent_context(talk.store)
        run = Runner.run_streamed(agent, "Hi", context=context, run_config=RunConfig(tracing_disabled=True))
        events = [event async for event in stream_answer(context, run)]
        progress, done = events
        assert progress == ProgressUpdateEvent(text="Asking")
        assert done.type == "thread.item.done"
        assert done.item.type == "client_tool_call"
        assert done.item.id.startswith("tc_")


# -- history -------------------------------------------------------------------------------------


def user_message(**members: Any) -> UserMessageItem:
    defaults = {
        "id": "msg_u",
        "thread_id": "thr_1",
        "created_at": "2026-01-01T00:00:00",
        "content": [UserMessageTextContent(text="Look")],
        "attachments": [],
        "inference_options": {},
    }
    return UserMessageItem.model_validate(defaults | members)


async def test_tags_and_attachments_reach_the_model_as_text() -> None:
    item = user_message(
        content=[UserMessageTagContent(id="c1", text="Zoë", data={"age": 7})],
        attachments=[FileAttachment(id="atc_1", name="plan.pdf", mime_type="application/pdf")],
    )
    sent = json.dumps(await HistoryConverter().to_agent_input([item]), ensure_ascii=False)
    assert "@Zoë" in sent
    assert '{\\"age\\": 7}' in sent
    assert "plan.pdf (application/pdf)" in sent


async def test_hidden_context_of_any_shape_reaches_the_model() -> None:
    item = HiddenContextItem.model_validate(
        {"id": "h", "thread_id": "t", "created_at": "2026-01-01T00:00:00", "content": {"cart": [1]}}
    )
    assert '{\\"cart\\": [1]}' in json.dumps(await HistoryConverter().to_agent_input([item]))


async def test_empty_assistant_messages_are_left_out() -> None:
    item = _ITEM.validate_python(
        {
            "type": "assistant_message",
            "id": "m",
            "thread_id": "t",
            "created_at": "2026-01-01T00:00:00",
            "content": [{"type": "output_text", "text": "  ", "annotations": []}],
        }
    )
    assert await HistoryConverter().to_agent_input([item]) == []


async def test_history_is_the_newest_items_oldest_first() -> None:
    store = MemoryStore()
    for number in range(130):
        item = user_message(id=f"msg_{number}", content=[UserMessageTextContent(text=f"number {number}")])
        await store.add_thread_item("thr_1", item, CONTEXT)
    recent, told = await load_model_input(store, "thr_1", CONTEXT, HistoryConverter(), 400)
    said = [message["content"][0]["text"] for message in cast("list[Any]", told)]
    assert 30 < len(said) < 100
    assert said == [f"number {number}" for number in range(130 - len(said), 130)]
    assert [item.id for item in recent] == [f"msg_{number}" for number in range(110, 130)]


async def test_the_newest_item_is_told_however_long_it_is() -> None:
    store = MemoryStore()
    for text in ("short", "long " * 10_000):
        message = user_message(id=f"msg_{len(text)}", content=[UserMessageTextContent(text=text)])
        await store.add_thread_item("thr_1", message, CONTEXT)
    _, told = await load_model_input(store, "thr_1", CONTEXT, HistoryConverter(), 1000)
    assert [len(message["content"][0]["text"]) for message in cast("list[Any]", told)] == [50_000]


async def test_a_model_is_not_told_more_than_a_thousand_items() -> None:
    store = MemoryStore()
    store.items["thr_1"] = {f"msg_{n}": user_message(id=f"msg_{n}").model_dump_json() for n in range(MAX_ITEMS + 50)}
    _, told = await load_model_input(store, "thr_1", CONTEXT, HistoryConverter(), 10**9)
    assert len(told) == MAX_ITEMS


# -- the rest ------------------------------------------------------------------------------------


async def test_feedback_goes_to_the_store() -> None:
    async with chat("responses") as talk:
        params = {"thread_id": "thr_1", "item_ids": ["msg_1"], "kind": "positive"}
        await talk.assistant.process(json.dumps({"type": "items.feedback", "params": params}), CONTEXT)
        assert talk.store.feedback == [("thr_1", ["msg_1"], "positive", CONTEXT)]


async def test_the_assistant_reads_the_environment_unless_it_is_given_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XIAOMI_API_KEY", "x")
    monkeypatch.setenv("ENVIRONMENT", "development")
    from_environment, given = create_assistant(MemoryStore()), create_assistant(MemoryStore(), Settings())
    assert from_environment.models.default.choice.label.startswith("mimo-v2-flash")
    assert given.models.default.choice.kind == "offline"
    await from_environment.aclose()


async def test_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    traces: list[object] = []
    monkeypatch.setattr(
        "agents.tracing.processors.BatchTraceProcessor.on_trace_start", lambda _processor, trace: traces.append(trace)
    )
    async with chat("responses") as talk:
        await talk.say("Hello")
    assert traces == []
