"""What is kept of an answer that isn't finished: what the SDK would keep, and what it forgets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any
from unittest.mock import AsyncMock

import pytest
from chatkit import types as sdk_types
from chatkit.store import Store
from chatkit.types import ThreadMetadata
from chatkit.types import ThreadStreamEvent as SDKEvent
from chatkit_grpc import codec
from chatkit_grpc.text_delta import write_text_delta
from chatkit_grpc.v1.event_pb2 import ThreadItemAddedEvent, ThreadItemUpdate, ThreadItemUpdatedEvent, ThreadStreamEvent
from chatkit_grpc.v1.item_pb2 import ThreadItem
from chatkit_grpc.v1.run_pb2 import EventBatch
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from server.ids import new_id
from server.runs.pending_items import LARGEST_GAP, PendingItems, item_id
from server.sdk import to_message
from tests.scripted import ScriptedServer

THREAD = ThreadMetadata(id="t", created_at=datetime(2026, 1, 31, tzinfo=UTC))
BASE = {"thread_id": "t", "created_at": "2026-01-31T12:00:00Z"}
MESSAGE = {"type": "assistant_message", "id": "m", "content": [], **BASE}
WORKFLOW = {"type": "workflow", "id": "w", "workflow": {"type": "custom", "tasks": [], "expanded": False}, **BASE}
IMAGE = {"type": "generated_image", "id": "g", **BASE}
HOLOGRAM = {"type": "hologram", "id": "h", "beams": [1.0, 2**70], **BASE}
TEXT = {"type": "Text", "id": "txt", "value": "a"}
CARD: dict[str, Any] = {
    "type": "Card",
    "children": [TEXT, {"type": "Row", "id": "row", "children": [{**TEXT, "id": "deep"}]}],
}


def part(text: str, *annotations: Any) -> dict[str, Any]:
    return {"type": "output_text", "annotations": list(annotations), "text": text}


def cited(title: str) -> dict[str, Any]:
    return {"type": "annotation", "source": {"type": "file", "title": title, "filename": "f"}}


def thought(text: str) -> dict[str, Any]:
    return {"type": "thought", "content": text}


def widget(root: Any) -> dict[str, Any]:
    return {"type": "widget", "id": "c", "widget": root, **BASE}


def event(kind: str, **members: Any) -> ThreadStreamEvent:
    """An event of ChatKit's JSON."""
    made = codec.decode(ThreadStreamEvent, {"type": kind, **members})
    assert made.WhichOneof("event") != "unknown", "the test says something that isn't ChatKit's"
    return made


def added(item: Any) -> ThreadStreamEvent:
    return event("thread.item.added", item=item)


def done(item: Any) -> ThreadStreamEvent:
    return event("thread.item.done", item=item)


def updated(identity: str, kind: str, **members: Any) -> ThreadStreamEvent:
    return event("thread.item.updated", item_id=identity, update={"type": kind, **members})


def token(delta: str, index: int = 0, identity: str = "m") -> ThreadStreamEvent:
    return updated(identity, "assistant_message.content_part.text_delta", content_index=index, delta=delta)


def part_added(content: Any, index: int = 0) -> ThreadStreamEvent:
    return updated("m", "assistant_message.content_part.added", content_index=index, content=content)


def part_done(content: Any, index: int = 0) -> ThreadStreamEvent:
    return updated("m", "assistant_message.content_part.done", content_index=index, content=content)


def annotated(annotation_index: int, index: int = 0, title: str = "f") -> ThreadStreamEvent:
    kind = "assistant_message.content_part.annotation_added"
    annotation = cited(title)
    return updated("m", kind, content_index=index, annotation_index=annotation_index, annotation=annotation)


def typed(delta: str, component_id: str = "txt") -> ThreadStreamEvent:
    return updated("c", "widget.streaming_text.value_delta", component_id=component_id, delta=delta, done=False)


def exchanged(component_id: str, component: Any) -> ThreadStreamEvent:
    return updated("c", "widget.component.updated", component_id=component_id, component=component)


def fold(*events: ThreadStreamEvent) -> PendingItems:
    pending = PendingItems()
    for one in events:
        pending.apply(one)
    return pending


def shown(*events: ThreadStreamEvent) -> list[Any]:
    """The items after some events, as ChatKit's JSON."""
    return [json.loads(codec.encode(item)) for item in fold(*events).items()]


def parts(*events: ThreadStreamEvent) -> Any:
    (message,) = shown(added(MESSAGE), *events)
    return message["content"]


def tasks(*events: ThreadStreamEvent) -> Any:
    (workflow,) = shown(added(WORKFLOW), *events)
    return [task["content"] for task in workflow["workflow"]["tasks"]]


def widget_text(*events: ThreadStreamEvent) -> str:
    (item,) = fold(*events).items()
    return item.widget.widget


KINDS = [MESSAGE, WORKFLOW, IMAGE, HOLOGRAM, widget(CARD)]
each_kind = pytest.mark.parametrize("item", KINDS, ids=lambda item: item["type"])


# Beginning and ending ------------------------------------------------------------------------------------------------


def test_items_are_kept_in_the_order_they_were_begun() -> None:
    assert shown(added(WORKFLOW), added(MESSAGE), added(HOLOGRAM)) == [WORKFLOW, MESSAGE, HOLOGRAM]


@each_kind
def test_an_item_that_is_done_replaced_or_removed_is_no_longer_pending(item: dict[str, Any]) -> None:
    for end in (
        done(item),
        event("thread.item.replaced", item=item),
        event("thread.item.removed", item_id=item["id"]),
    ):
        assert shown(added(item), end) == []
        assert shown(added(item), end, token("late", identity=item["id"])) == []


def test_an_item_begun_again_is_the_new_one_in_the_place_of_the_old() -> None:
    again = {**MESSAGE, "content": [part("new ")]}
    events = added(MESSAGE), added(IMAGE), token("old"), added(again), token("text")
    assert shown(*events) == [{**MESSAGE, "content": [part("new text")]}, IMAGE]


def test_an_item_that_ended_and_is_begun_again_comes_last() -> None:
    assert shown(added(MESSAGE), added(IMAGE), done(MESSAGE), added(MESSAGE)) == [IMAGE, MESSAGE]


def test_what_is_handed_out_and_what_was_handed_in_are_copies() -> None:
    begun = added(MESSAGE)
    pending = fold(begun, token("a"))
    begun.thread_item_added.item.assistant_message.id = "changed"
    pending.items()[0].assistant_message.content[0].output_text.text = "changed"
    before = pending.items()
    pending.apply(token("b"))
    assert [item.assistant_message.content[0].output_text.text for item in (*before, *pending.items())] == ["a", "ab"]


def test_an_id_is_found_in_an_item_of_any_kind() -> None:
    for case in ThreadItem.DESCRIPTOR.fields:
        item = ThreadItem()
        if case.type == FieldDescriptor.TYPE_STRING:
            item.unknown = '{"type": "hologram", "id": "x"}'
        else:
            getattr(item, case.name).id = "x"
        assert item_id(item) == "x"


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "{}", '{"id": 5}', "[" * 100_000])
def test_an_unknown_item_without_an_id_has_the_empty_one_and_is_not_kept(text: str) -> None:
    item = ThreadItem(unknown=text)
    assert item_id(item) == item_id(ThreadItem()) == ""
    assert fold(ThreadStreamEvent(thread_item_added=ThreadItemAddedEvent(item=item))).items() == []


# An assistant's message ----------------------------------------------------------------------------------------------


def test_tokens_are_appended_to_their_part() -> None:
    events = part_added(part("")), token("a"), token("x", 1), token("b"), token("y", 1)
    assert parts(*events) == [part("ab"), part("xy")]


def test_tokens_go_on_after_the_items_were_looked_at() -> None:
    pending = fold(added(MESSAGE), token("a"))
    pending.items()
    pending.apply(token("b"))
    assert [item.assistant_message.content[0].output_text.text for item in pending.items()] == ["ab"]


def test_parts_that_were_never_begun_are_empty() -> None:
    assert parts(token("c", 2)) == [part(""), part(""), part("c")]
    assert parts(part_done(part("b"), 1)) == [part(""), part("b")]
    assert parts(annotated(0, index=1)) == [part(""), part("", cited("f"))]


def test_a_part_that_is_begun_or_done_takes_the_place_of_what_was_said() -> None:
    assert parts(token("a"), part_added(part("b")), token("c")) == [part("bc")]
    assert parts(token("a"), part_done(part("b")), token("c")) == [part("bc")]
    assert parts(token("a"), token("x", 1), part_done(part("b"))) == [part("b"), part("x")]


def test_an_annotation_is_put_where_it_belongs_or_at_the_end() -> None:
    told = [annotated(0, title="second"), annotated(0, title="first"), annotated(9, title="last")]
    assert parts(token("a"), *told, token("b")) == [part("ab", cited("first"), cited("second"), cited("last"))]


def test_a_part_of_an_unknown_kind_stays_as_it_is() -> None:
    dance = {"type": "dance", "steps": [1.0]}
    assert parts(part_added(dance), token("a"), annotated(0)) == [dance]
    assert parts(part_added(dance), token("a"), part_done(part("b")), token("c")) == [part("bc")]


def test_an_index_that_is_no_place_in_the_message_is_passed_over() -> None:
    for index in (-1, -(2**31), LARGEST_GAP + 2, 2**31 - 1):
        assert parts(token("a"), token("b", index), part_done(part("c"), index), annotated(0, index)) == [part("a")]
    assert parts(token("a"), annotated(-1)) == [part("a")]
    assert len(parts(token("a", LARGEST_GAP), token("b", 2 * LARGEST_GAP))) == 2 * LARGEST_GAP + 1


# Workflows and pictures ----------------------------------------------------------------------------------------------


def step(kind: str, index: int, text: str) -> ThreadStreamEvent:
    return updated("w", f"workflow.task.{kind}", task_index=index, task=thought(text))


def test_a_step_is_appended_whatever_its_index() -> None:
    assert tasks(step("added", 0, "a"), step("added", 5, "b"), step("added", 0, "c")) == ["a", "b", "c"]


def test_a_step_that_changes_is_exchanged_and_one_that_is_not_there_is_passed_over() -> None:
    changes = [step("updated", index, f"new {index}") for index in (1, -1, 2, 2**31 - 1)]
    nothing = step("updated", 0, "x")
    nothing.thread_item_updated.update.workflow_task_updated.task.Clear()
    assert tasks(step("added", 0, "a"), step("added", 1, "b"), *changes, nothing) == ["a", "new 1"]


def test_a_picture_is_the_last_that_came() -> None:
    sharper = [
        updated("g", "generated_image.updated", image={"id": "i", "url": f"data:{number}"}, progress=number / 2)
        for number in range(3)
    ]
    assert shown(added(IMAGE), *sharper) == [{**IMAGE, "image": {"id": "i", "url": "data:2"}}]


# Widgets -------------------------------------------------------------------------------------------------------------


def test_a_widget_that_does_not_change_is_the_very_text_that_came() -> None:
    text = '{"type": "Card",  "z": 1E5, "a": [1.0, -0]}'
    begun = added(widget({}))
    begun.thread_item_added.item.widget.widget = text
    root = updated("c", "widget.root.updated", widget={})
    root.thread_item_updated.update.widget_root_updated.widget = text
    assert widget_text(begun, typed("b"), exchanged("nobody", TEXT)) == text
    assert widget_text(added(widget(CARD)), typed("b"), root) == text


def test_text_is_typed_into_the_component_that_has_the_id() -> None:
    changed = json.dumps(CARD).replace('"value": "a"', '"value": "abc"', 1)
    assert shown(added(widget(CARD)), typed("b"), typed("c")) == [widget(json.loads(changed))]
    (deep,) = shown(added(widget(CARD)), typed("b", "deep"))
    assert deep["widget"]["children"] == [
        TEXT,
        {**CARD["children"][1], "children": [{**TEXT, "id": "deep", "value": "ab"}]},
    ]


def test_typing_goes_on_after_the_items_were_looked_at() -> None:
    pending = fold(added(widget(TEXT)), typed("b"))
    pending.items()
    pending.apply(typed("c"))
    assert [json.loads(item.widget.widget)["value"] for item in pending.items()] == ["abc"]


def test_a_component_is_exchanged_wherever_it_is_and_typed_into_from_then_on() -> None:
    new = {"type": "Box", "children": [{**TEXT, "id": "inner"}]}
    (item,) = shown(added(widget(CARD)), typed("b"), typed("c", "deep"), exchanged("row", new), typed("d", "inner"))
    assert item["widget"]["children"] == [
        {**TEXT, "value": "ab"},
        {**new, "children": [{**TEXT, "id": "inner", "value": "ad"}]},
    ]


def test_what_was_typed_into_a_component_goes_with_it() -> None:
    (item,) = shown(added(widget(CARD)), typed("b"), exchanged("txt", {**TEXT, "value": "x"}), typed("y"))
    assert item["widget"]["children"][0] == {**TEXT, "value": "xy"}


def test_the_root_is_a_component_too() -> None:
    assert shown(added(widget(TEXT)), exchanged("txt", CARD), typed("b")) == shown(added(widget(CARD)), typed("b"))


def test_what_was_typed_is_gone_with_the_widget_that_it_was_typed_into() -> None:
    root = updated("c", "widget.root.updated", widget=CARD)
    assert shown(added(widget(TEXT)), typed("old"), root, typed("b")) == shown(added(widget(CARD)), typed("b"))


def test_a_widget_keeps_the_order_of_its_members_and_its_numbers() -> None:
    text = '{"type":"Card","z":[1.0,1,1180591620717411303424,1e-07,-0.0],"a":null,"id":"txt","value":"","é":"\\u0000"}'
    assert widget_text(added(widget(json.loads(text))), typed("b")) == text.replace('"value":""', '"value":"b"')


def test_a_large_widget_may_hold_nul() -> None:
    root = {"type": "Card", "children": [{"type": "Text", "value": "\0"}] * 200 + [TEXT]}
    (item,) = shown(added(widget(root)), typed("\0"))
    assert item["widget"]["children"][-1]["value"] == "a\0"


def test_an_id_counts_only_on_a_component() -> None:
    button = {"type": "Button", "onClickAction": {"type": "buy", "payload": {**TEXT, "value": "mine"}}}
    chart = {"type": "Chart", "data": [{"id": "txt", "value": "a bar"}]}
    (item,) = shown(added(widget({"type": "Card", "children": [button, chart, TEXT]})), typed("b"))
    assert item["widget"]["children"] == [button, chart, {**TEXT, "value": "ab"}]


def test_of_two_components_with_an_id_the_first_is_meant() -> None:
    (item,) = shown(
        added(widget({"type": "Card", "children": [{"type": "Row", "children": [TEXT]}, TEXT]})), typed("b")
    )
    assert item["widget"]["children"] == [{"type": "Row", "children": [{**TEXT, "value": "ab"}]}, TEXT]


def test_text_for_a_component_that_has_none_is_passed_over() -> None:
    for root in (CARD, {**TEXT, "value": 5}, {**TEXT, "value": None}, {"type": "Text", "id": "txt"}):
        assert shown(added(widget(root)), typed("b", "row"), typed("b", "nobody"), typed("b", "")) == [widget(root)]


def test_a_component_that_would_make_the_widget_too_deep_is_passed_over() -> None:
    deep: dict[str, Any] = {"type": "Box"}
    for _ in range(49):
        deep = {"type": "Box", "children": [deep]}
    assert shown(added(widget(CARD)), typed("b"), exchanged("row", deep), typed("c")) == shown(
        added(widget(CARD)), typed("bc")
    )


def test_a_widget_that_is_far_too_deep_does_no_harm() -> None:
    begun, new = added(widget({})), exchanged("txt", {})
    deep = '{"type":"Box","children":' + "[" * 600 + json.dumps(TEXT) + "]" * 600 + "}"
    begun.thread_item_added.item.widget.widget = deep
    new.thread_item_updated.update.widget_component_updated.component = deep
    assert widget_text(begun, typed("b"), new, typed("c")) == deep


# What makes no sense -------------------------------------------------------------------------------------------------


def _updates() -> list[ThreadItemUpdate]:
    """Every kind of change, with nothing in it."""
    updates = [ThreadItemUpdate(), ThreadItemUpdate(unknown="{")]
    for case in ThreadItemUpdate.DESCRIPTOR.fields:
        if case.name != "unknown":
            update = ThreadItemUpdate()
            getattr(update, case.name).SetInParent()
            updates.append(update)
    return updates


@each_kind
def test_a_change_with_nothing_in_it_changes_nothing_but_may_begin_a_part(item: dict[str, Any]) -> None:
    events = [
        ThreadStreamEvent(thread_item_updated=ThreadItemUpdatedEvent(item_id=item["id"], update=update))
        for update in _updates()
    ]
    expected = {**item, "content": [part("")]} if item is MESSAGE else item
    assert shown(added(item), *events) == [expected]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a":', "[" * 100_000, "9" * 5000])
def test_a_widget_that_is_no_object_is_passed_over(text: str) -> None:
    root, component, begun = updated("c", "widget.root.updated", widget={}), exchanged("txt", {}), added(widget(CARD))
    root.thread_item_updated.update.widget_root_updated.widget = text
    component.thread_item_updated.update.widget_component_updated.component = text
    assert shown(begun, typed("b"), root, component, typed("c")) == shown(begun, typed("bc"))
    begun.thread_item_added.item.widget.widget = text
    assert widget_text(begun, typed("b"), exchanged("txt", TEXT)) == text
    assert shown(begun, updated("c", "widget.root.updated", widget=CARD), typed("b"))[0]["widget"]["type"] == "Card"


CHANGES = {
    "m": [token("a"), part_added(part("b")), part_done(part("b")), annotated(0)],
    "w": [step("added", 0, "a"), step("updated", 0, "b")],
    "g": [updated("g", "generated_image.updated", image={"id": "i", "url": "u"})],
    "c": [typed("a"), exchanged("txt", CARD), updated("c", "widget.root.updated", widget=TEXT)],
}


def test_changes_of_an_item_that_nobody_began_and_other_events_are_passed_over() -> None:
    others = [event("progress_update", text="a"), ThreadStreamEvent(), ThreadStreamEvent(unknown="{")]
    assert shown(*others, *(change for changes in CHANGES.values() for change in changes)) == []


@each_kind
def test_changes_of_another_kind_of_item_are_passed_over(item: dict[str, Any]) -> None:
    pending = fold(added(item))
    for identity, changes in CHANGES.items():
        for change in changes if identity != item["id"] else ():
            update = ThreadItemUpdatedEvent(item_id=item["id"], update=change.thread_item_updated.update)
            pending.apply(ThreadStreamEvent(thread_item_updated=update))
    assert pending.items() == fold(added(item)).items()


STORY = [
    *map(added, KINDS),
    *(part_added(part("")), token("a"), annotated(0), token("b", 1), part_done(part("c"), 1)),
    *(step("added", 0, "a"), step("updated", 0, "b"), typed("b"), exchanged("row", TEXT), typed("c")),
]


def batch(*events: ThreadStreamEvent) -> bytes:
    return EventBatch(run_id="run_1", first_sequence=7, events=events).SerializeToString()


def test_a_batch_is_the_same_as_its_events() -> None:
    whole, bare, halves = PendingItems(), PendingItems(), PendingItems()
    whole.apply_batch(batch(*STORY))
    bare.apply_batch(EventBatch(events=STORY).SerializeToString())
    halves.apply_batch(batch(*STORY[:5]) + batch(*STORY[5:]))
    assert whole.items() == bare.items() == halves.items() == fold(*STORY).items()
    whole.apply_batch(b"")
    assert whole.items() == bare.items()


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(at=st.integers(0, len(batch(*STORY)) - 1), replacement=st.binary(max_size=3))
def test_a_damaged_batch_does_no_harm(at: int, replacement: bytes) -> None:
    intact = batch(*STORY)
    pending = PendingItems()
    pending.apply_batch(intact[:at] + replacement + intact[at + 1 :])
    pending.apply_batch(intact)
    assert [item for item in pending.items() if item_id(item) == "m"] == fold(*STORY).items()[:1]


# What the SDK would keep ---------------------------------------------------------------------------------------------


class Cancelled(ScriptedServer):
    """Remembers what the core would store of an answer that was cancelled."""

    def __init__(self) -> None:
        store = AsyncMock(spec=Store)
        store.generate_item_id = lambda kind, *_: new_id(kind)
        super().__init__(store)
        self.kept: list[sdk_types.ThreadItem] = []

    async def handle_stream_cancelled(
        self, thread: ThreadMetadata, pending_items: list[sdk_types.ThreadItem], context: Any
    ) -> None:
        self.kept = pending_items

    async def cancel_after(self, events: Sequence[SDKEvent]) -> list[ThreadItem]:
        """What the core has when a cancel comes after these events."""

        async def say() -> AsyncIterator[SDKEvent]:
            for one in events:
                yield one.model_copy(deep=True)  # the core changes a part that was added as it changes its own
            raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            async for _ in self._process_events(THREAD, None, say):
                pass
        return [to_message(item, ThreadItem) for item in self.kept]


def known_to_the_sdk(items: Sequence[ThreadItem]) -> list[ThreadItem]:
    """The items without those that the core keeps as they were begun, whatever changes them."""
    return [item for item in items if item.WhichOneof("item") not in ("widget", "generated_image")]


@pytest.mark.parametrize("script", ["everything", "tokens", "hidden", "tool", "form", "wait", "deep"])
async def test_after_each_event_there_is_what_the_sdk_would_keep(script: str) -> None:
    server = Cancelled()
    server.may_go_on.set()
    events = [one async for one in getattr(server, f"say_{script}")(THREAD.model_copy(), None)]
    if script == "deep":
        events = events[1:]  # no message can hold the first
    pending = PendingItems()
    assert events
    for count, one in enumerate(events, start=1):
        pending.apply(to_message(one, ThreadStreamEvent))
        kept = await server.cancel_after(events[:count])
        assert known_to_the_sdk(pending.items()) == known_to_the_sdk(kept)
    assert pending.items() == []


def sdk_updates() -> st.SearchStrategy[sdk_types.ThreadItemUpdate]:
    """Changes of an assistant's message."""
    index, text = st.integers(0, 3), st.text(st.characters(codec="utf-8"), max_size=3)
    source = st.builds(sdk_types.FileSource, title=text, filename=text)
    annotation = st.builds(sdk_types.Annotation, source=source)
    content = st.builds(sdk_types.AssistantMessageContent, text=text, annotations=st.lists(annotation, max_size=2))
    return st.one_of(
        st.builds(sdk_types.AssistantMessageContentPartTextDelta, content_index=index, delta=text),
        st.builds(sdk_types.AssistantMessageContentPartAdded, content_index=index, content=content),
        st.builds(sdk_types.AssistantMessageContentPartDone, content_index=index, content=content),
        st.builds(
            sdk_types.AssistantMessageContentPartAnnotationAdded,
            content_index=index,
            annotation_index=index,
            annotation=annotation,
        ),
    )


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(updates=st.lists(sdk_updates(), max_size=12))
def test_any_message_is_what_the_sdk_would_keep(updates: list[Any]) -> None:
    item = sdk_types.AssistantMessageItem(
        id="m", thread_id="t", created_at=datetime(2026, 1, 31, tzinfo=UTC), content=[]
    )
    events: list[SDKEvent] = [sdk_types.ThreadItemAddedEvent(item=item)]
    events += [sdk_types.ThreadItemUpdatedEvent(item_id="m", update=update) for update in updates]
    pending = fold(*(to_message(one, ThreadStreamEvent) for one in events))
    assert pending.items() == asyncio.run(Cancelled().cancel_after(events))


# Speed ---------------------------------------------------------------------------------------------------------------


def many(events: int) -> bytes:
    """A message of many tokens, and a widget with as many."""
    said = EventBatch(events=[added(MESSAGE), added(widget(CARD))])
    for _ in range(events // 2):
        write_text_delta(said.events.add(), "m", 0, "token ")
        said.events.append(typed("token "))
    return said.SerializeToString()


def test_a_hundred_thousand_tokens_are_folded_in_a_moment() -> None:
    events, pending = many(100_000), PendingItems()
    started = time.process_time()
    pending.apply_batch(events)
    message, card = pending.items()
    assert time.process_time() - started < 1, "a fraction of that, on a machine that does nothing else"
    assert message.assistant_message.content[0].output_text.text == "token " * 50_000
    assert json.loads(card.widget.widget)["children"][0]["value"] == "a" + "token " * 50_000
