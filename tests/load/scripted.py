"""The assistant of the benchmark: says as much as the user's message asks for, as fast, and when it said it.

The same class runs in both systems, so that what differs between them is only what carries its events.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

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
    UserMessageTextContent,
)


class ScriptedServer(ChatKitServer[Any]):
    """Answers {"deltas": 1000, "per_second": 0, "delay": 0} with 1,000 text deltas at once; 0 means without a pause.

    A delta is its number and time.monotonic_ns() at its making, 24 characters in all. Paced, delta i is due at
    start + delay + i / per_second, however late the one before it was.
    """

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: Any
    ) -> AsyncIterator[ThreadStreamEvent]:
        assert input_user_message is not None
        asked = _asked(input_user_message)
        item_id = self.store.generate_item_id("message", thread, context)
        yield ThreadItemAddedEvent(item=_message(item_id, thread, ""))
        said: list[str] = []
        start, per_second = time.monotonic() + asked["delay"], asked["per_second"]
        for number in range(asked["deltas"]):
            if per_second and (wait := start + number / per_second - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            said.append(f"{number:05d} {time.monotonic_ns():017d} ")
            update = AssistantMessageContentPartTextDelta(content_index=0, delta=said[-1])
            yield ThreadItemUpdatedEvent(item_id=item_id, update=update)
        yield ThreadItemDoneEvent(item=_message(item_id, thread, "".join(said)))


def create_server(store: Store[Any]) -> ScriptedServer:
    """What CHATKIT_SERVER names."""
    return ScriptedServer(store)


def _asked(message: UserMessageItem) -> dict[str, Any]:
    text = "".join(part.text for part in message.content if isinstance(part, UserMessageTextContent))
    asked: dict[str, Any] = json.loads(text)
    return asked


def _message(item_id: str, thread: ThreadMetadata, text: str) -> AssistantMessageItem:
    return AssistantMessageItem(
        id=item_id,
        thread_id=thread.id,
        created_at=datetime.now(),
        content=[AssistantMessageContent(text=text)] if text else [],
    )
