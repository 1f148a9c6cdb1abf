"""What happens where somebody clicks in a widget of the showcase."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from chatkit.actions import Action
from chatkit.errors import CustomStreamError
from chatkit.store import Store
from chatkit.types import (
    ActiveStatus,
    AssistantMessageContent,
    AssistantMessageItem,
    HiddenContextItem,
    LockedStatus,
    SyncCustomActionResponse,
    ThreadItemDoneEvent,
    ThreadItemReplacedEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    WidgetItem,
)
from chatkit_grpc.errors import ValidationError

from server.context import RequestContext
from server.showcase_widgets import COUNT, COUNT_QUIETLY, GREET, UNLOCK, counter

_HIGHEST = 1_000_000


async def answer_action(
    store: Store[RequestContext],
    thread: ThreadMetadata,
    action: Action[str, Any],
    sender: WidgetItem | None,
    context: RequestContext,
) -> AsyncIterator[ThreadStreamEvent]:
    """The events that answer a click. Raises CustomStreamError for an action that no widget here sends."""
    payload = action.payload if isinstance(action.payload, dict) else {}

    def base(kind: Any = "message") -> dict[str, Any]:
        item_id = store.generate_item_id(kind, thread, context)
        # As the SDK means it: naive and local.
        return {"id": item_id, "thread_id": thread.id, "created_at": datetime.now()}  # noqa: DTZ005

    if action.type == COUNT and sender is not None:
        count = _count(payload)
        yield ThreadItemReplacedEvent(item=sender.model_copy(update={"widget": counter(count)}))
        # So that the model knows what a person has seen and done.
        note = f"The user pressed the button of the counter; it shows {count} now."
        yield ThreadItemDoneEvent(item=HiddenContextItem(**base(), content=note))
    elif action.type == GREET:
        name, drink = str(payload.get("name", ""))[:100], str(payload.get("drink", ""))[:100]
        words = f"Hello {name or 'you'}!" + (f" One {drink}, coming up." if drink else "")
        content = [AssistantMessageContent(text=words)]
        yield ThreadItemDoneEvent(item=AssistantMessageItem(**base(), content=content))
    elif action.type == UNLOCK and sender is not None and isinstance(thread.status, LockedStatus):
        thread.status = ActiveStatus()
        content = [AssistantMessageContent(text="The thread is open again.")]
        yield ThreadItemDoneEvent(item=AssistantMessageItem(**base(), content=content))
    else:
        raise CustomStreamError("Nothing here knows what to do with that. Please reload the page.")


async def answer_sync_action(
    store: Store[RequestContext], action: Action[str, Any], sender: WidgetItem | None, context: RequestContext
) -> SyncCustomActionResponse:
    """The changed widget that answers a click. Raises ValidationError for an action that no widget here sends."""
    if action.type != COUNT_QUIETLY or sender is None:
        raise ValidationError.at("$.params.action.type", f"expected {COUNT_QUIETLY}, from its widget")
    payload = action.payload if isinstance(action.payload, dict) else {}
    changed = sender.model_copy(update={"widget": counter(_count(payload))})
    await store.save_item(sender.thread_id, changed, context)
    return SyncCustomActionResponse(updated_item=changed)


def _count(payload: dict[str, Any]) -> int:
    """How far a counter is, by what its button says; anybody may send anything."""
    count = payload.get("count")
    return count if type(count) is int and 0 <= count <= _HIGHEST else 0
