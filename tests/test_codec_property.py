"""The codec on what the SDK's models can hold: instances drawn from their annotations, compared with the SDK's JSON."""

from __future__ import annotations

import base64
import json
import types
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import pytest
from chatkit import types as sdk
from chatkit.icons import IconName
from chatkit.widgets import DynamicWidgetComponent, DynamicWidgetRoot, WidgetComponent, WidgetRoot
from chatkit_grpc import codec
from chatkit_grpc.v1.attachment_service_pb2 import CreateAttachmentResponse
from chatkit_grpc.v1.chatkit_request_pb2 import ChatKitRequest
from chatkit_grpc.v1.event_pb2 import ThreadItemUpdate, ThreadStreamEvent
from chatkit_grpc.v1.item_pb2 import ThreadItem
from chatkit_grpc.v1.thread_service_pb2 import GetThreadResponse, ListItemsResponse, ListThreadsResponse
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel
from pydantic.fields import FieldInfo

from tests.make_golden import NASTY_TEXT, printed, real_components, real_widgets
from tests.test_codec_golden import exact, exact_in_order, free_form_texts, unknown_parts

# The same examples every time: a failure is a failure of the change, not of the day.
bounded = settings(
    max_examples=30, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The models of a union."""
    if get_origin(annotation) is Annotated:
        return models_of(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_of(part)]


EVENTS, ITEMS, UPDATES, REQUESTS = map(
    models_of, (sdk.ThreadStreamEvent, sdk.ThreadItem, sdk.ThreadItemUpdate, sdk.ChatKitReq)
)
ANSWERS: list[tuple[type[BaseModel], type[Message]]] = [
    (sdk.Thread, GetThreadResponse),
    (sdk.Page[sdk.Thread], ListThreadsResponse),
    (sdk.Page[sdk.ThreadItem], ListItemsResponse),
    (sdk.FileAttachment, CreateAttachmentResponse),
    (sdk.ImageAttachment, CreateAttachmentResponse),
]


@st.composite
def _instances(draw: st.DrawFn, drawer: Drawer, model: type[BaseModel]) -> BaseModel:
    members: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        has_default = not field.is_required() and not isinstance(field.default, TypeVar)  # as the type of an Action has
        if not has_default or (name != "type" and draw(st.booleans())):
            members[name] = draw(drawer.member(name, field))
    return model.model_validate(members)


class Drawer:
    """Draws instances of the SDK's models.

    in_request: draw what a request may hold, in which a NUL and a negative number are refused.
    """

    def __init__(self, *, in_request: bool) -> None:
        excluded = "\0" if in_request else ""
        characters = st.characters(codec="utf-8", exclude_characters=excluded)
        self.texts = st.text(characters, max_size=12) | st.just(NASTY_TEXT)
        self.whole_numbers = st.integers(0 if in_request else -(2**31), 2**31 - 1)
        self.floats = st.floats(allow_nan=False, allow_infinity=False)
        numbers = st.integers(-(2**80), 2**80) | self.floats | st.sampled_from([1e5, 1.0, -0.0, 2**53 + 1, 2**70])
        self.free_form = st.recursive(
            st.none() | st.booleans() | numbers | self.texts,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(self.texts, inner, max_size=3),
            max_leaves=8,
        )
        self.instances: dict[type[BaseModel], st.SearchStrategy[Any]] = {}
        self.objects = st.dictionaries(self.texts, self.free_form, max_size=3)

    def instance(self, model: type[BaseModel]) -> st.SearchStrategy[Any]:
        """An instance of a model; members that have a default are given or not."""
        if model not in self.instances:
            model.model_rebuild()  # else some annotations are still text
            self.instances[model] = _instances(self, model)
        return self.instances[model]

    def member(self, name: str, field: FieldInfo) -> st.SearchStrategy[Any]:
        """A value of a member."""
        return self.base64_text() if name == "audio_base64" else self.value(field.annotation)

    def base64_text(self) -> st.SearchStrategy[str]:
        """Speech."""
        return st.binary(max_size=20).map(lambda data: base64.b64encode(data).decode())

    def value(self, annotation: Any) -> st.SearchStrategy[Any]:
        """A value of any type that the SDK's models use."""
        if annotation in (WidgetRoot, WidgetComponent):
            return self.widget(annotation)
        origin, arguments = get_origin(annotation), get_args(annotation)
        if annotation in get_args(IconName) and arguments[0] is str:
            return st.sampled_from(["vendor:acme", "lucide:cat"])
        if origin is Annotated:
            return self.value(arguments[0])
        if origin in (Union, types.UnionType):
            return st.one_of([self.value(argument) for argument in arguments])
        if origin is Literal:
            return st.sampled_from(arguments)
        if origin is list:
            return st.lists(self.value(arguments[0]), max_size=3)
        if origin is dict:
            return st.dictionaries(self.texts, self.value(arguments[1]), max_size=3)
        return self.plain(annotation)

    def plain(self, annotation: Any) -> st.SearchStrategy[Any]:
        """A value of a type that has no arguments."""
        if annotation is Any:
            return self.free_form
        moments = st.datetimes(min_value=datetime(1, 1, 2), timezones=st.just(UTC))  # noqa: DTZ001 # as it is asked for
        known: dict[Any, st.SearchStrategy[Any]] = {
            str: self.texts,
            int: self.whole_numbers,
            float: self.floats,
            bool: st.booleans(),
            datetime: moments,
            AnyUrl: st.sampled_from(["https://example.com", "https://example.com/a%20b?c=d&e=%F0%9F%98%80#f"]),
            type(None): st.none(),
        }
        if annotation in known:
            return known[annotation]
        if issubclass(annotation, BaseModel):
            return self.instance(annotation)
        assert issubclass(annotation, Enum), f"say how to draw a {annotation}"
        return st.sampled_from(list(annotation))

    def widget(self, annotation: Any) -> st.SearchStrategy[Any]:
        """A real widget, or one of members that nobody has heard of."""
        real, dynamic, tags = (
            (real_widgets(), DynamicWidgetRoot, ["Card", "ListView", "Basic"])
            if annotation == WidgetRoot
            else (real_components(), DynamicWidgetComponent, ["Text", "NotYetKnown"])
        )
        own = {"type", "children", "key", "id", "serialize"}
        members = self.objects.map(lambda extra: {name: extra[name] for name in extra if name not in own})
        made_up = st.builds(
            lambda tag, extra: dynamic.model_validate({**extra, "type": tag}), st.sampled_from(tags), members
        )
        return st.sampled_from(real) | made_up


FREELY, AS_REQUESTED = Drawer(in_request=False), Drawer(in_request=True)


def assert_same(instance: BaseModel, message: Message) -> None:
    """What the codec writes is what the SDK prints, with its free-form parts in the SDK's order, all of it typed."""
    text = printed(instance)
    assert exact(codec.encode(message)) == exact(text)
    parts = set(map(repr, _parts(exact_in_order(text))))
    assert [part for part in free_form_texts(message) if repr(exact_in_order(part)) not in parts] == []
    assert unknown_parts(message) == []
    assert type(message).FromString(message.SerializeToString()) == message


def _parts(value: Any) -> list[Any]:
    """A value of `exact_in_order` and all that it holds."""
    held = value if isinstance(value, list) else [v for _, v in value[1:]] if _is_object(value) else []
    return [value, *(part for element in held for part in _parts(element))]


def _is_object(value: Any) -> bool:
    return isinstance(value, tuple) and value[0] == "object"


def as_sent(instance: BaseModel, message_type: type[Message]) -> Message:
    """The message that the server makes of an instance."""
    return codec.decode(message_type, json.loads(printed(instance)))


@pytest.mark.parametrize("model", EVENTS)
@bounded
@given(data=st.data())
def test_any_event_is_written_as_the_sdk_prints_it(model: type[BaseModel], data: st.DataObject) -> None:
    event = data.draw(FREELY.instance(model))
    assert_same(event, as_sent(event, ThreadStreamEvent))


@pytest.mark.parametrize("model", ITEMS)
@bounded
@given(data=st.data())
def test_any_item_is_written_as_the_sdk_prints_it(model: type[BaseModel], data: st.DataObject) -> None:
    item = data.draw(FREELY.instance(model))
    assert_same(item, as_sent(item, ThreadItem))


@pytest.mark.parametrize("model", UPDATES)
@bounded
@given(data=st.data())
def test_any_update_is_written_as_the_sdk_prints_it(model: type[BaseModel], data: st.DataObject) -> None:
    update = data.draw(FREELY.instance(model))
    assert_same(update, as_sent(update, ThreadItemUpdate))


@pytest.mark.parametrize("model", REQUESTS)
@bounded
@given(data=st.data())
def test_any_request_is_read_as_the_sdk_prints_it(model: type[BaseModel], data: st.DataObject) -> None:
    request = data.draw(AS_REQUESTED.instance(model))
    text = printed(request)
    if '"result"' not in text and model is sdk.ThreadsAddClientToolOutputReq:
        text = text.replace('"params":{', '"params":{"result":null,')  # a page sends null; exclude_none is the server's
        assert exact(codec.encode(codec.decode_request(ChatKitRequest, text))) == exact(text)
    else:
        assert_same(request, codec.decode_request(ChatKitRequest, text.encode()))


@pytest.mark.parametrize(("model", "message_type"), ANSWERS)
@bounded
@given(data=st.data())
def test_any_answer_is_written_as_the_sdk_prints_it(
    model: type[BaseModel], message_type: type[Message], data: st.DataObject
) -> None:
    answer = data.draw(FREELY.instance(model))
    assert_same(answer, as_sent(answer, message_type))


def test_every_kind_is_drawn() -> None:
    assert [len(kinds) for kinds in (EVENTS, ITEMS, UPDATES, REQUESTS)] == [12, 11, 10, 16]
