"""Items that a run has begun and not finished, folded from its events: the answer in progress, as far as it is."""

from __future__ import annotations

import json
import logging
from typing import Any, Final

from chatkit_grpc import free_json
from chatkit_grpc.v1.event_pb2 import (
    AssistantMessageContentPartAnnotationAdded,
    AssistantMessageContentPartTextDelta,
    ThreadItemUpdate,
    ThreadStreamEvent,
    WidgetComponentUpdated,
    WidgetStreamingTextValueDelta,
    WorkflowTaskUpdated,
)
from chatkit_grpc.v1.item_pb2 import AssistantMessageContent, Task, ThreadItem
from chatkit_grpc.v1.run_pb2 import EventBatch
from google.protobuf.message import DecodeError

LARGEST_GAP: Final = 1_000
"""How many parts of a message may be missing before one that is spoken of; with more, its index is a mistake."""

log = logging.getLogger(__name__)


class PendingItems:
    """The items that a run has begun and not finished, as far as they are.

    Nothing here raises: an event that makes no sense is passed over, so that what the others say is kept.
    """

    def __init__(self) -> None:
        self._items: dict[str, _PendingItem] = {}

    def apply(self, event: ThreadStreamEvent) -> None:
        """Take in the next event."""
        # Nearly all are updates, and to look for one is cheaper than to ask what the event is. No item has an empty id.
        updated = event.thread_item_updated
        pending = self._items.get(updated.item_id)
        if pending is not None:
            pending.apply(updated.update)
        else:
            self._begin_or_end(event)

    def apply_batch(self, events: bytes) -> None:
        """Take in the events of a serialised EventBatch, of which no other field counts."""
        try:
            batch = EventBatch.FromString(events)
        except DecodeError:
            log.warning("a batch of %d bytes can't be read; what it says is lost", len(events))
            return
        for event in batch.events:
            self.apply(event)

    def items(self) -> list[ThreadItem]:
        """Copies of the items as they are now, in the order they were begun."""
        return [pending.copy() for pending in self._items.values()]

    def _begin_or_end(self, event: ThreadStreamEvent) -> None:
        match event.WhichOneof("event"):
            case "thread_item_added":
                self._begin(event.thread_item_added.item)
            case "thread_item_done":
                self._end(item_id(event.thread_item_done.item))
            case "thread_item_replaced":
                self._end(item_id(event.thread_item_replaced.item))
            case "thread_item_removed":
                self._end(event.thread_item_removed.item_id)

    def _begin(self, item: ThreadItem) -> None:
        if identity := item_id(item):
            self._items[identity] = _KINDS.get(str(item.WhichOneof("item")), _PendingItem)(item)

    def _end(self, identity: str) -> None:
        self._items.pop(identity, None)


def item_id(item: ThreadItem) -> str:
    """An item's id, whatever its kind; empty where it has none."""
    kind = item.WhichOneof("item")
    if kind is None:
        return ""
    if kind == "unknown":
        identity = (_object_of(item.unknown) or {}).get("id")
        return identity if isinstance(identity, str) else ""
    return str(getattr(item, kind).id)


class _PendingItem:
    """An item of a kind that no update changes."""

    def __init__(self, item: ThreadItem) -> None:
        self._item = ThreadItem()
        self._item.CopyFrom(item)

    def apply(self, update: ThreadItemUpdate) -> None:
        """Take in a change."""

    def copy(self) -> ThreadItem:
        """The item as it is now."""
        self._settle()
        item = ThreadItem()
        item.CopyFrom(self._item)
        return item

    def _settle(self) -> None:
        """Put into the item what was only collected."""


class _PendingMessage(_PendingItem):
    """A message of the assistant. Its tokens are collected: to append each to a text costs the length of the text."""

    def __init__(self, item: ThreadItem) -> None:
        super().__init__(item)
        self._content = self._item.assistant_message.content
        self._deltas: dict[int, list[str]] = {}

    def apply(self, update: ThreadItemUpdate) -> None:
        match update.WhichOneof("update"):
            case "assistant_message_content_part_text_delta":
                self._append(update.assistant_message_content_part_text_delta)
            case "assistant_message_content_part_added":
                added = update.assistant_message_content_part_added
                self._set_part(added.content_index, added.content)
            case "assistant_message_content_part_done":
                done = update.assistant_message_content_part_done
                self._set_part(done.content_index, done.content)
            case "assistant_message_content_part_annotation_added":
                self._annotate(update.assistant_message_content_part_annotation_added)

    def _append(self, update: AssistantMessageContentPartTextDelta) -> None:
        deltas = self._deltas.get(update.content_index)
        if deltas is None:
            if not self._ensure_text(update.content_index):
                return
            deltas = self._deltas[update.content_index] = []
        deltas.append(update.delta)

    def _set_part(self, index: int, part: AssistantMessageContent) -> None:
        if part.WhichOneof("content") is not None and self._ensure_part(index):
            self._deltas.pop(index, None)
            self._content[index].CopyFrom(part)

    def _annotate(self, update: AssistantMessageContentPartAnnotationAdded) -> None:
        makes_sense = update.annotation.WhichOneof("annotation") is not None and update.annotation_index >= 0
        if makes_sense and self._ensure_text(update.content_index):
            # Beyond the end is at the end, as the SDK has it.
            self._content[update.content_index].output_text.annotations.insert(
                update.annotation_index, update.annotation
            )

    def _ensure_text(self, index: int) -> bool:
        return self._ensure_part(index) and self._content[index].WhichOneof("content") != "unknown"

    def _ensure_part(self, index: int) -> bool:
        """Whether there is such a part, which is made where it is missing, as the SDK does."""
        if not 0 <= index <= len(self._content) + LARGEST_GAP:
            return False
        while len(self._content) <= index:
            self._content.add().output_text.SetInParent()
        return True

    def _settle(self) -> None:
        for index, deltas in self._deltas.items():
            self._content[index].output_text.text += "".join(deltas)
        self._deltas.clear()


class _PendingWorkflow(_PendingItem):
    """Steps of work."""

    def apply(self, update: ThreadItemUpdate) -> None:
        match update.WhichOneof("update"):
            case "workflow_task_added":
                self._add(update.workflow_task_added.task)
            case "workflow_task_updated":
                self._change(update.workflow_task_updated)

    def _add(self, task: Task) -> None:
        if task.WhichOneof("task") is not None:
            self._item.workflow.workflow.tasks.append(task)

    def _change(self, update: WorkflowTaskUpdated) -> None:
        tasks = self._item.workflow.workflow.tasks
        if update.task.WhichOneof("task") is not None and 0 <= update.task_index < len(tasks):
            tasks[update.task_index].CopyFrom(update.task)


class _PendingImage(_PendingItem):
    """A picture."""

    def apply(self, update: ThreadItemUpdate) -> None:
        if update.generated_image_updated.HasField("image"):
            self._item.generated_image.image.CopyFrom(update.generated_image_updated.image)


class _PendingWidget(_PendingItem):
    """A widget. Its JSON is read once something in it changes, and stays the very text that came until then."""

    def __init__(self, item: ThreadItem) -> None:
        super().__init__(item)
        self._root: dict[str, Any] = {}
        self._components: dict[str, dict[str, Any]] | None = None
        self._deltas: dict[str, list[str]] = {}

    def apply(self, update: ThreadItemUpdate) -> None:
        match update.WhichOneof("update"):
            case "widget_streaming_text_value_delta":
                self._append(update.widget_streaming_text_value_delta)
            case "widget_component_updated":
                self._replace_component(update.widget_component_updated)
            case "widget_root_updated":
                self._replace_root(update.widget_root_updated.widget)

    def _append(self, update: WidgetStreamingTextValueDelta) -> None:
        deltas = self._deltas.get(update.component_id)
        if deltas is None:
            component = self._component(update.component_id)
            if component is None or not isinstance(component.get("value"), str):
                return
            deltas = self._deltas[update.component_id] = []
        deltas.append(update.delta)

    def _replace_component(self, update: WidgetComponentUpdated) -> None:
        component, new = self._component(update.component_id), _object_of(update.component)
        if component is None or new is None:
            return
        self._settle()
        component.clear()
        component.update(new)
        self._write()
        # Read again: the new component may hold others, and what couldn't be written is undone.
        self._components = None

    def _replace_root(self, text: str) -> None:
        if _object_of(text) is not None:
            self._item.widget.widget = text
            self._components = None
            self._deltas.clear()

    def _component(self, component_id: str) -> dict[str, Any] | None:
        if self._components is None:
            self._root = _object_of(self._item.widget.widget) or {}
            self._components = _components_of(self._root)
        return self._components.get(component_id)

    def _settle(self) -> None:
        if not self._deltas:
            return
        for component_id, deltas in self._deltas.items():
            component = self._component(component_id)
            if component is not None:
                component["value"] += "".join(deltas)
        self._deltas.clear()
        self._write()

    def _write(self) -> None:
        try:
            self._item.widget.widget = free_json.to_text(self._root, may_hold_nul=True)
        except (free_json.Invalid, RecursionError):
            log.warning("a change of a widget makes JSON of it that can't be kept")


_KINDS: Final[dict[str, type[_PendingItem]]] = {
    "assistant_message": _PendingMessage,
    "generated_image": _PendingImage,
    "widget": _PendingWidget,
    "workflow": _PendingWorkflow,
}
"""The kinds of item that updates change."""


def _components_of(root: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The components of a widget that have an id; of two with the same, the first."""
    components: dict[str, dict[str, Any]] = {}
    values: list[Any] = [root]
    while values:
        value = values.pop()
        if isinstance(value, list):
            values.extend(reversed(value))
        elif isinstance(value, dict):
            if isinstance(value.get("id"), str) and isinstance(value.get("type"), str):
                components.setdefault(value["id"], value)
            # What an action carries is the assistant's own, and may have ids of whatever it likes.
            values.extend(reversed([member for name, member in value.items() if name != "payload"]))
    return components


def _object_of(text: str) -> dict[str, Any] | None:
    """A JSON object from its text, where it is one."""
    # Not free_json.loads, which is for requests: it may refuse the NUL that an assistant's widget may hold.
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
