"""A stream as bytes on the wire: its head, its frames, their ids, and the comments that keep it open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from chatkit.errors import CustomStreamError
from chatkit.server import ChatKitServer
from chatkit.store import Store
from chatkit.types import (
    AssistantMessageContent,
    AssistantMessageContentPartTextDelta,
    AssistantMessageItem,
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemUpdatedEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    UserMessageItem,
)
from chatkit_grpc.v1.run_pb2 import RUN_STATE_COMPLETED, EventBatch

from bridge import sse
from bridge.settings import Settings as BridgeSettings
from server.context import RequestContext
from tests.database import fresh_database
from tests.system import System, open_system

SILENCE = 0.5
HEARTBEAT = 0.1
NASTY = (
    "Grüße 😀 ",
    "👩‍👩‍👧‍👦 e\u0301\r\n",
    "\r",
    "\n\n",
    'data: {"type": "error", "message": "I am text"}\n\n',
    ": a comment\n\nid: 7\nevent: x\nretry: 1\n\n",
    "[DONE] \u2028 \u2029 \u0085 \ufeff \u007f \\ \\n \" ' </script> ",
    "",
    "x" * 1_000_000,
)
SCRIPTS: dict[str, tuple[str | float | Exception, ...]] = {
    "plain": ("Hello ", "there."),
    "nasty": NASTY,
    "silent": (SILENCE, "At last."),
    "failing": ("So far", CustomStreamError("The model is out of tea.", allow_retry=True)),
    "endless": ("Well, ", 3600.0),
}
"""What the assistant does when told so: says a text, is silent for some seconds, fails."""


class Scripted(ChatKitServer[RequestContext]):
    """Does what the script of the user's message says.

    said: the events it has sent. has_spoken: set when its first text is out.
    """

    def __init__(self, store: Store[RequestContext]) -> None:
        super().__init__(store)
        self.said: list[ThreadStreamEvent] = []
        self.has_spoken = asyncio.Event()

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: RequestContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        assert input_user_message is not None
        async for event in self._perform(SCRIPTS[input_user_message.content[0].text], thread, context):
            self.said.append(event)
            yield event
            if isinstance(event, ThreadItemUpdatedEvent):
                self.has_spoken.set()

    async def _perform(
        self, script: tuple[str | float | Exception, ...], thread: ThreadMetadata, context: RequestContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        item_id = self.store.generate_item_id("message", thread, context)
        item = AssistantMessageItem(id=item_id, thread_id=thread.id, created_at=datetime.now(UTC), content=[])
        yield ThreadItemAddedEvent(item=item)
        text = ""
        for step in script:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float):
                await asyncio.sleep(step)
                continue
            text += step
            delta = AssistantMessageContentPartTextDelta(content_index=0, delta=step)
            yield ThreadItemUpdatedEvent(item_id=item_id, update=delta)
        yield ThreadItemDoneEvent(item=item.model_copy(update={"content": [AssistantMessageContent(text=text)]}))


def create_thread(text: str) -> dict[str, Any]:
    """The request of a page on which somebody sends a first message."""
    content = [{"type": "input_text", "text": text}]
    return {
        "type": "threads.create",
        "params": {"input": {"content": content, "attachments": [], "quoted_text": "", "inference_options": {}}},
    }


def text_of(events: list[Any]) -> str:
    return "".join(e["update"]["delta"] for e in events if e["type"] == "thread.item.updated")


@dataclass(slots=True)
class Frame:
    """What stands between two blank lines."""

    id: str = ""
    data: str = ""
    comments: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, raw: bytes) -> Frame:
        """By the rules of the page's parser, but for what a server of ours has no reason to send."""
        frame = cls()
        assert b"\r" not in raw
        # Not splitlines(), which knows line ends that Server-Sent Events don't.
        for line in raw.decode().split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not name:
                frame.comments.append(value)
            elif name == "data":
                assert not frame.data, "one line of data for each event"
                frame.data = value
            else:
                assert name == "id", f"nothing but ids, data and comments: {line!r}"
                frame.id = value
        return frame

    @property
    def event(self) -> Any:
        return json.loads(self.data)


@dataclass(frozen=True, slots=True)
class Stream:
    """A whole answer."""

    headers: dict[str, str]
    frames: list[Frame]

    @property
    def events(self) -> list[Frame]:
        """The frames that are no comments."""
        return [frame for frame in self.frames if frame.data]


async def read(system: System, body: dict[str, Any], headers: dict[str, str] | None = None) -> Stream:
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "gzip, br", **(headers or {})}
    async with system.http.stream("POST", "/api/chatkit", json=body, headers=headers) as response:
        assert response.status_code == 200
        raw = b"".join([chunk async for chunk in response.aiter_raw()])
    # A last event without its blank line is lost on a page.
    assert raw.endswith(b"\n\n")
    frames = [Frame.parse(frame) for frame in raw.removesuffix(b"\n\n").split(b"\n\n")]
    assert all(frame.data or frame.comments for frame in frames)
    return Stream(dict(response.headers), frames)


@pytest.fixture(scope="module")
async def system(postgres_url: str, migrated_template: str) -> AsyncIterator[System]:
    bridge = BridgeSettings(heartbeat_seconds=HEARTBEAT, shutdown_grace_seconds=0)
    # One for all tests here: each has threads of its own.
    async with (
        fresh_database(postgres_url, migrated_template) as database_url,
        open_system(database_url, Scripted, bridge=bridge) as running,
    ):
        yield running


def assert_head_keeps_proxies_from_collecting(stream: Stream) -> None:
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["cache-control"] == "no-cache, no-transform"
    assert stream.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in stream.headers


async def test_the_head_keeps_proxies_from_collecting(system: System) -> None:
    assert_head_keeps_proxies_from_collecting(await read(system, create_thread("plain")))
    assert_head_keeps_proxies_from_collecting(await read(system, {"type": "threads.resume", "params": {}}))


@pytest.mark.parametrize("script", ["plain", "failing"])
async def test_ids_are_the_run_and_a_number_without_gaps(system: System, script: str) -> None:
    events = (await read(system, create_thread(script))).events
    run_id, _, first = events[0].id.partition(":")
    assert run_id.startswith("run_")
    assert first == "1"
    assert [frame.id for frame in events] == [f"{run_id}:{number}" for number in range(1, len(events) + 1)]


def test_a_batch_without_events_is_nothing_on_the_wire() -> None:
    assert sse.frames(EventBatch(run_id="run_1", first_sequence=7, state=RUN_STATE_COMPLETED)) == b""


async def test_each_run_has_an_id_of_its_own(system: System) -> None:
    first, second = [(await read(system, create_thread("plain"))).events for _ in range(2)]
    assert first[0].id != second[0].id


async def test_one_event_is_one_line_whatever_its_text_looks_like(system: System) -> None:
    events = [frame.event for frame in (await read(system, create_thread("nasty"))).events]
    types = [event["type"] for event in events]
    assert types[:4] == ["thread.created", "thread.item.done", "stream_options", "thread.item.added"]
    assert types[4:] == ["thread.item.updated"] * len(NASTY) + ["thread.item.done"]
    assert text_of(events) == "".join(NASTY)


async def test_heartbeats_fill_the_silence_before_the_first_token(system: System) -> None:
    frames = (await read(system, create_thread("silent"))).frames
    first_token = next(number for number, frame in enumerate(frames) if '"thread.item.updated"' in frame.data)
    heartbeats = [frame for frame in frames[:first_token] if frame.comments]
    assert len(heartbeats) >= SILENCE / HEARTBEAT / 2
    assert all(frame == Frame(comments=["heartbeat"]) for frame in heartbeats)


async def test_an_event_leaves_when_it_happens(system: System) -> None:
    headers = {"Accept": "text/event-stream"}
    async with system.http.stream("POST", "/api/chatkit", json=create_thread("endless"), headers=headers) as response:
        received = b""
        async for chunk in response.aiter_raw():
            received += chunk
            if b"Well, " in received:
                break
    assert received.endswith(b"\n\n")


@pytest.mark.parametrize(
    "body",
    [
        {"type": "threads.add_user_message", "params": {**create_thread("plain")["params"], "thread_id": "thr_no"}},
        {"type": "threads.create", "params": {"input": {"content": "no list"}}},
        {"type": "threads.resume", "params": {}},
        {},
    ],
    ids=["unknown thread", "bad params", "unknown operation", "nothing"],
)
async def test_a_refusal_is_one_whole_frame_without_an_id(system: System, body: dict[str, Any]) -> None:
    (frame,) = (await read(system, body)).frames
    assert frame.id == ""
    assert frame.event["type"] == "error"
    assert frame.event["message"]
    assert not frame.event["allow_retry"]


async def test_a_failing_assistant_ends_its_stream_with_the_error_and_what_it_said_is_kept(system: System) -> None:
    first, *_, last = (await read(system, create_thread("failing"))).events
    assert last.event == {
        "type": "error",
        "code": "custom",
        "message": "The model is out of tea.",
        "allow_retry": True,
    }
    get = {"type": "threads.get_by_id", "params": {"thread_id": first.event["thread"]["id"]}}
    thread = (await system.http.post("/api/chatkit", json=get)).json()
    assert thread["items"]["data"][-1]["content"][0]["text"] == "So far"
