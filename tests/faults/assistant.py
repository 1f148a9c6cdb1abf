"""The assistant of the fault suite: it numbers its tokens, says which process speaks, and counts what that one holds.

"count 200 0.005" answers "t0 t1 … t199 " with 5 ms before each; "count 200 0.005 1000" makes each token 1,000
characters longer. "model" hands over to the default assistant and its model. "census" tells what is in memory.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from chatkit.server import ChatKitServer
from chatkit.types import (
    AssistantMessageContent,
    AssistantMessageContentPartTextDelta,
    AssistantMessageItem,
    NoticeEvent,
    ProgressUpdateEvent,
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemUpdatedEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    UserMessageItem,
    UserMessageTextContent,
)

from server.assistant import Assistant, create_assistant
from server.context import RequestContext
from server.runs.run import Run
from server.store import PostgresStore
from tests.faults.holders import holders_of


class FaultAssistant(ChatKitServer[RequestContext]):
    """Does what the first word of the user's message says."""

    def __init__(self, store: PostgresStore) -> None:
        super().__init__(store)
        self._with_model: Assistant = create_assistant(store)

    async def aclose(self) -> None:
        await self._with_model.aclose()

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: RequestContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        assert input_user_message is not None
        yield ProgressUpdateEvent(text=f"pid {os.getpid()}")
        command, *arguments = text_of(input_user_message).split()
        if command == "model":
            answer = self._with_model.respond(thread, input_user_message, context)
        elif command == "census":
            answer = _census()
        else:
            answer = self._count(thread, context, *arguments)
        async for event in answer:
            yield event

    async def _count(
        self, thread: ThreadMetadata, context: RequestContext, tokens: str, delay: str = "0", padding: str = "0"
    ) -> AsyncIterator[ThreadStreamEvent]:
        item_id = self.store.generate_item_id("message", thread, context)
        yield ThreadItemAddedEvent(item=_message(item_id, thread, ""))
        said: list[str] = []
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(int(tokens)):
            # By the clock, so that a busy machine doesn't stretch the answer.
            if (wait := began + (number + 1) * float(delay) - loop.time()) > 0:
                await asyncio.sleep(wait)
            said.append(f"t{number}{'x' * int(padding)} ")
            update = AssistantMessageContentPartTextDelta(content_index=0, delta=said[-1])
            yield ThreadItemUpdatedEvent(item_id=item_id, update=update)
        yield ThreadItemDoneEvent(item=_message(item_id, thread, "".join(said)))


def create(store: PostgresStore) -> FaultAssistant:
    """What CHATKIT_SERVER names."""
    return FaultAssistant(store)


def text_of(message: UserMessageItem) -> str:
    return "".join(part.text for part in message.content if isinstance(part, UserMessageTextContent))


async def _census() -> AsyncIterator[ThreadStreamEvent]:
    gc.collect()
    tasks = Counter(_name_of(task) for task in asyncio.all_tasks())
    objects = Counter(
        f"{type(thing).__module__}.{type(thing).__qualname__}"
        for thing in gc.get_objects()
        if type(thing).__module__.startswith("server.")
    )
    # Of a run whose lease is lost nothing is left after a moment; where something is, this says why.
    held = list(holders_of([thing for thing in gc.get_objects() if isinstance(thing, Run) and thing.is_lost]))
    yield NoticeEvent(level="info", message=json.dumps({"tasks": tasks, "objects": objects, "held": held}))


def _name_of(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", "?")


def _message(item_id: str, thread: ThreadMetadata, text: str) -> AssistantMessageItem:
    content = [AssistantMessageContent(text=text)] if text else []
    return AssistantMessageItem(id=item_id, thread_id=thread.id, created_at=datetime.now(), content=content)
