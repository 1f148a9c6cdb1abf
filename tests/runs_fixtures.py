"""Two servers on one database, and readers that collect what these stream: what the tests of runs share."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
from chatkit_grpc.errors import ChatKitError, DatabaseError, from_rpc_error
from chatkit_grpc.v1 import (
    chat_service_pb2,
    chat_service_pb2_grpc,
    run_service_pb2,
    run_service_pb2_grpc,
    thread_service_pb2,
    thread_service_pb2_grpc,
)
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.event_pb2 import ThreadStreamEvent
from chatkit_grpc.v1.item_pb2 import STRUCTURED_INPUT_STATUS_SKIPPED
from chatkit_grpc.v1.run_pb2 import EventBatch, RunState

from server.app import RunningServer, open_server
from server.database import Database
from server.runs.store import RunStore
from server.settings import Settings as ServerSettings
from tests.scripted import ScriptedServer
from tests.system import ANY_PORT
from tests.unlimited import NO_LIMITS

PATIENT = ServerSettings(
    environment="development", limits=NO_LIMITS, run_grace_seconds=60, lease_seconds=2, shutdown_grace_seconds=0
)
"""Lets runs go on that nobody watches, where a test isn't about how they stop."""

everywhere = pytest.mark.parametrize("where", ["here", "elsewhere"])
"""On the server that makes the run, and on the other one."""

Metadata = Sequence[tuple[str, str]]


def left_of(before: set[asyncio.Task[Any]]) -> list[str]:
    """The tasks that have been begun since, and have not ended."""
    return [repr(task) for task in asyncio.all_tasks() - before - {asyncio.current_task()}]


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def until_true(condition: Callable[[], Awaitable[object]], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


class Reader:
    """Reads a stream in the background, and keeps all of it."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.responses: list[Any] = []
        self.error: ChatKitError | None = None
        self.code: grpc.StatusCode | None = None
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for response in self.call:
                self.responses.append(response)
            self.code = await self.call.code()
        except grpc.aio.AioRpcError as error:
            self.code, self.error = error.code(), from_rpc_error(error)
        except asyncio.CancelledError:
            self.code = grpc.StatusCode.CANCELLED
            if not self.call.cancelled():
                raise

    async def end(self, seconds: float = 10) -> grpc.StatusCode:
        """The status with which the stream ends."""
        async with asyncio.timeout(seconds):
            await asyncio.shield(self._task)
        assert self.code is not None
        return self.code

    async def leave(self) -> None:
        self.call.cancel()
        await self._task

    @property
    def has_ended(self) -> bool:
        return self._task.done()

    @property
    def batches(self) -> list[EventBatch]:
        """Of runs only: what else is changed on a thread has no numbers."""
        batches = [response.batch for response in self.responses if response.HasField("batch")]
        return [batch for batch in batches if batch.run_id]

    @property
    def run_id(self) -> str:
        return self.batches[0].run_id

    async def run(self) -> str:
        """The run's id, once something has been said."""
        await until(lambda: self.batches)
        return self.run_id

    @property
    def numbered(self) -> list[tuple[int, ThreadStreamEvent]]:
        return [
            (number, event) for batch in self.batches for number, event in enumerate(batch.events, batch.first_sequence)
        ]

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.numbered]

    @property
    def events(self) -> list[ThreadStreamEvent]:
        return [event for _, event in self.numbered]

    @property
    def kinds(self) -> list[str]:
        return [str(event.WhichOneof("event")) for event in self.events]

    @property
    def effects(self) -> list[str]:
        return [event.client_effect.name for event in self.events if event.HasField("client_effect")]

    @property
    def text(self) -> str:
        return "".join(text_of(event) for event in self.events)

    @property
    def state(self) -> RunState.ValueType:
        return self.batches[-1].state if self.batches else RunState.RUN_STATE_UNSPECIFIED

    @property
    def thread_id(self) -> str:
        """Of a run that makes its thread."""
        return next(event.thread_created.thread.id for event in self.events if event.HasField("thread_created"))

    @property
    def what(self) -> list[str]:
        """The kinds of what a watcher of a thread is told, each once in a row."""
        kinds = [str(response.WhichOneof("what")) for response in self.responses]
        return [kind for at, kind in enumerate(kinds) if at == 0 or kinds[at - 1] != kind]

    @property
    def changes(self) -> list[ThreadStreamEvent]:
        """What a watcher of a thread is told of what was changed outside of runs."""
        batches = [response.batch for response in self.responses if response.HasField("batch")]
        return [event for batch in batches if not batch.run_id for event in batch.events]

    @property
    def cursor(self) -> str:
        return str(self.responses[-1].cursor)


@dataclass
class Side:
    """One server, as its callers see it."""

    server: RunningServer
    assistant: ScriptedServer
    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.chat: Any = chat_service_pb2_grpc.ChatServiceStub(self.channel)
        self.threads: Any = thread_service_pb2_grpc.ThreadServiceStub(self.channel)
        self.runs: Any = run_service_pb2_grpc.RunServiceStub(self.channel)

    @property
    def database(self) -> Database:
        return self.server.database

    def create(self, text: str, *, user: str = "alice", metadata: Metadata = (), **members: Any) -> Reader:
        request = chat_service_pb2.CreateThreadRequest(**members)
        request.input.content.add().input_text.text = text
        return Reader(self.chat.CreateThread(request, metadata=_as(user, metadata)))

    def create_with_attachment(self, attachment_id: str, *, user: str = "alice", **members: Any) -> Reader:
        request = chat_service_pb2.CreateThreadRequest(**members)
        request.input.content.add().input_text.text = "tokens 1"
        request.input.attachments.append(attachment_id)
        return Reader(self.chat.CreateThread(request, metadata=_as(user)))

    def say(self, thread_id: str, text: str, *, user: str = "alice", metadata: Metadata = (), **members: Any) -> Reader:
        request = chat_service_pb2.AddUserMessageRequest(thread_id=thread_id, **members)
        request.input.content.add().input_text.text = text
        return Reader(self.chat.AddUserMessage(request, metadata=_as(user, metadata)))

    def retry(self, thread_id: str, item_id: str, *, user: str = "alice", **members: Any) -> Reader:
        request = chat_service_pb2.RetryAfterItemRequest(thread_id=thread_id, item_id=item_id, **members)
        return Reader(self.chat.RetryAfterItem(request, metadata=_as(user)))

    def hand_in(self, thread_id: str, result: str = "{}", *, user: str = "alice", **members: Any) -> Reader:
        request = chat_service_pb2.AddClientToolOutputRequest(thread_id=thread_id, result=result, **members)
        return Reader(self.chat.AddClientToolOutput(request, metadata=_as(user)))

    def fill_in(self, thread_id: str, item_id: str, *, user: str = "alice", **members: Any) -> Reader:
        request = chat_service_pb2.AddStructuredInputRequest(thread_id=thread_id, item_id=item_id, **members)
        request.input.status = STRUCTURED_INPUT_STATUS_SKIPPED
        return Reader(self.chat.AddStructuredInput(request, metadata=_as(user)))

    def act(self, thread_id: str, *, user: str = "alice", **members: Any) -> Reader:
        request = chat_service_pb2.RunActionRequest(thread_id=thread_id, **members)
        request.action.type = "press"
        return Reader(self.chat.RunAction(request, metadata=_as(user)))

    def resume(self, run_id: str = "", after: int = 0, *, user: str = "alice", thread_id: str = "") -> Reader:
        request = run_service_pb2.ResumeRunRequest(
            run_id=run_id or None, thread_id=thread_id or None, after_sequence=after
        )
        return Reader(self.runs.ResumeRun(request, metadata=_as(user)))

    async def cancel(self, run_id: str = "", *, user: str = "alice", thread_id: str = "") -> Any:
        request = run_service_pb2.CancelRunRequest(run_id=run_id or None, thread_id=thread_id or None)
        return await self.runs.CancelRun(request, metadata=_as(user))

    async def acknowledge(self, run_id: str, *, user: str = "alice") -> None:
        await self.runs.AcknowledgeRun(run_service_pb2.AcknowledgeRunRequest(run_id=run_id), metadata=_as(user))

    def watch(self, thread_id: str, after: str | None = None, *, user: str = "alice") -> Reader:
        request = thread_service_pb2.WatchThreadRequest(thread_id=thread_id, after=after)
        return Reader(self.threads.WatchThread(request, metadata=_as(user)))

    async def append(self, thread_id: str, item: Any, *, user: str = "alice", **members: Any) -> Any:
        request = thread_service_pb2.AppendItemRequest(thread_id=thread_id, item=item, **members)
        return await self.threads.AppendItem(request, metadata=_as(user))

    async def get(self, thread_id: str, *, user: str = "alice") -> Any:
        request = thread_service_pb2.GetThreadRequest(thread_id=thread_id)
        return (await self.threads.GetThread(request, metadata=_as(user))).thread

    async def list(self, thread_id: str, *, user: str = "alice", **members: Any) -> Any:
        request = thread_service_pb2.ListItemsRequest(thread_id=thread_id, **members)
        return await self.threads.ListItems(request, metadata=_as(user))

    async def rename(self, thread_id: str, title: str, *, user: str = "alice") -> None:
        request = thread_service_pb2.UpdateThreadRequest(thread_id=thread_id, title=title)
        await self.threads.UpdateThread(request, metadata=_as(user))

    async def delete(self, thread_id: str, *, user: str = "alice") -> None:
        request = thread_service_pb2.DeleteThreadRequest(thread_id=thread_id)
        await self.threads.DeleteThread(request, metadata=_as(user))


@dataclass
class Pair:
    """Two servers on one database. Those who are there and those who are elsewhere mean the first one."""

    here: Side
    elsewhere: Side
    database_url: str

    def at(self, where: str) -> Side:
        return self.here if where == "here" else self.elsewhere

    async def fetch(self, query: str, *values: object) -> list[Any]:
        return list(await self.here.database.fetch(query, *values))

    async def items(self, thread_id: str) -> list[dict[str, Any]]:
        """All that is on a thread, hidden items included."""
        rows = await self.fetch("select item from chat_messages where session_id = $1 order by position", thread_id)
        return [json.loads(row["item"]) for row in rows]

    async def types(self, thread_id: str) -> list[str]:
        return [item["type"] for item in await self.items(thread_id)]

    async def said(self, thread_id: str) -> list[str]:
        """What the assistant's messages on a thread say."""
        return ["".join(p["text"] for p in i["content"]) for i in await self.items(thread_id) if _is_answer(i)]

    async def asked(self, thread_id: str) -> list[str]:
        """What the user's messages on a thread say."""
        items = [item for item in await self.items(thread_id) if item["type"] == "user_message"]
        return ["".join(part["text"] for part in item["content"]) for item in items]

    async def state(self, run_id: str) -> str:
        rows = await self.fetch("select state from runs where run_id = $1", run_id)
        return str(rows[0]["state"])

    async def logged(self, run_id: str, sequence: int) -> bool:
        """Whether a run's log goes as far as an event."""
        rows = await self.fetch("select max(last_sequence) as last from run_events where run_id = $1", run_id)
        return int(rows[0]["last"] or 0) >= sequence

    async def make_thread(self, text: str = "tokens 1", *, user: str = "alice") -> str:
        """A thread with one finished answer."""
        reader = self.here.create(text, user=user)
        assert await reader.end() is grpc.StatusCode.OK
        return reader.thread_id


@asynccontextmanager
async def open_side(database_url: str, settings: ServerSettings = PATIENT) -> AsyncIterator[Side]:
    made: list[ScriptedServer] = []

    def factory(store: Any) -> ScriptedServer:
        made.append(ScriptedServer(store))
        return made[-1]

    settings = replace(settings, database_url=database_url, grpc_listen=ANY_PORT)
    # The channel is there to the server's last word. Nothing here needs HTTP, so there is no bridge.
    async with AsyncExitStack() as stack, open_server(settings, factory) as server:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        yield Side(server, made[0], await stack.enter_async_context(channel))


@asynccontextmanager
async def open_pair(database_url: str, settings: ServerSettings = PATIENT, **changes: Any) -> AsyncIterator[Pair]:
    """Two servers; once they have ended, nothing of them is left."""
    settings = replace(settings, **changes)
    before = set(asyncio.all_tasks())
    async with open_side(database_url, settings) as here, open_side(database_url, settings) as elsewhere:
        yield Pair(here, elsewhere, database_url)
        for side in (here, elsewhere):
            side.assistant.may_go_on.set()
    gc.collect()
    with suppress(TimeoutError):
        await until(lambda: not left_of(before), 5)
    assert not left_of(before)


@pytest.fixture
async def pair(database_url: str) -> AsyncIterator[Pair]:
    async with open_pair(database_url) as pair:
        yield pair


class Log:
    """A log that can be made to fail, or to take its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.works = asyncio.Event()
        self.works.set()
        self.hangs = False
        append = RunStore.append

        async def tried(*arguments: Any) -> set[str]:
            if not self.works.is_set():
                if not self.hangs:
                    raise DatabaseError("away", reason=reasons.ERROR_REASON_DATABASE_UNAVAILABLE)
                await self.works.wait()
            return await append(*arguments)

        monkeypatch.setattr(RunStore, "append", tried)


async def failure(call: Awaitable[object]) -> ChatKitError:
    """What a call fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def text_of(event: ThreadStreamEvent) -> str:
    return event.thread_item_updated.update.assistant_message_content_part_text_delta.delta


def tokens(count: int) -> str:
    return "".join(f"t{number} " for number in range(count))


def _is_answer(item: dict[str, Any]) -> bool:
    return bool(item["type"] == "assistant_message")


def _as(user: str, metadata: Metadata = ()) -> Metadata:
    return [("x-user-id", user), *metadata]
