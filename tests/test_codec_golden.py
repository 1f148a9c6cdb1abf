"""The codec on golden values: what the SDK itself printed, and what the SDK doesn't know, come back as they were."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chatkit_grpc import codec, schema
from chatkit_grpc.v1 import (
    attachment_service_pb2,
    chat_service_pb2,
    event_pb2,
    item_pb2,
    run_service_pb2,
    thread_service_pb2,
)
from chatkit_grpc.v1 import json_pb2 as options
from chatkit_grpc.v1.chatkit_request_pb2 import ChatKitRequest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tests import make_golden

ANSWER_TYPES: dict[str, type[Message]] = {
    name: getattr(module, name)
    for module in (attachment_service_pb2, chat_service_pb2, run_service_pb2, thread_service_pb2)
    for name in module.DESCRIPTOR.message_types_by_name
    if name.endswith("Response")
}
OURS = "ours.json"
"""What the SDK doesn't know, written by hand: there is nobody else to print it."""
UNIONS: tuple[type[Any], ...] = (
    ChatKitRequest,
    event_pb2.ThreadStreamEvent,
    event_pb2.ThreadItemUpdate,
    item_pb2.ThreadItem,
    thread_service_pb2.WatchThreadResponse,
)
NEVER_JSON = {"DownloadAttachmentResponse", "GetAttachmentResponse", "GetPreviewResponse"}
"""The bridge sends their bytes, or doesn't call them."""
UNARY_ANSWERS = {
    name for name, answer in ANSWER_TYPES.items() if "batch" not in answer.DESCRIPTOR.fields_by_name
} - NEVER_JSON


def exact(text: str) -> Any:
    """JSON for comparison: 1 is not 1.0, -0.0 is not 0.0, true is not 1; the order of members doesn't matter."""
    return json.loads(text, parse_float=_number, parse_int=_number)


def exact_in_order(text: str) -> Any:
    """JSON for comparison, the order of members included."""
    return json.loads(text, parse_float=_number, parse_int=_number, object_pairs_hook=lambda pairs: ("object", *pairs))


def _number(text: str) -> tuple[str, str]:
    return ("int", text) if text.lstrip("-").isdigit() else ("float", repr(float(text)))


def messages_in(message: Message) -> Iterator[Message]:
    """A message and all that it holds."""
    yield message
    for field, value in message.ListFields():
        held: Any = value
        if schema.is_map(field):
            held = list(held.values())
        elif not field.is_repeated:
            held = [held]
        for element in held:
            if isinstance(element, Message):
                yield from messages_in(element)


def unknown_parts(message: Message) -> list[str]:
    """What the schema didn't know."""
    return [
        f"{field.full_name}: {value}"
        for part in messages_in(message)
        for field, value in part.ListFields()
        if field.GetOptions().Extensions[options.json_unknown]
    ]


def free_form_texts(message: Message) -> list[str]:
    """The JSON that a message carries as text."""
    return [
        value for part in messages_in(message) for field, value in part.ListFields() if schema.raw_json(field) and value
    ]


def _reader(message_type: type[Message]) -> Callable[[str], Message]:
    # A WatchThreadResponse is only ever written here; the lossless reader takes its cursor for a member of its case.
    if message_type in (ChatKitRequest, thread_service_pb2.WatchThreadResponse):
        return lambda text: codec.decode_request(message_type, text.encode())
    return lambda text: codec.decode(message_type, json.loads(text))


def _message_type(file: str, name: str) -> type[Message]:
    if file in ("answers.json", OURS):
        return {**ANSWER_TYPES, "ChatKitRequest": ChatKitRequest}[name.partition(",")[0]]
    types: dict[str, type[Message]] = {
        "events.json": event_pb2.ThreadStreamEvent,
        "items.json": item_pb2.ThreadItem,
        "requests.json": ChatKitRequest,
        "updates.json": event_pb2.ThreadItemUpdate,
    }
    return types[file]


def _values(*files: str) -> list[Any]:
    return [
        pytest.param(_message_type(file, name), text, id=f"{file.removesuffix('.json')}: {name}")
        for file in files
        for name, text in make_golden.read(file).items()
    ]


each_value = pytest.mark.parametrize(("message_type", "text"), _values(*make_golden.FILES, OURS))
each_value_of_the_sdk = pytest.mark.parametrize(("message_type", "text"), _values(*make_golden.FILES))


@pytest.mark.parametrize("file", make_golden.FILES)
def test_the_golden_file_is_what_the_sdk_prints_today(file: str) -> None:
    written = (make_golden.FOLDER / file).read_text(encoding="utf-8")
    assert written == make_golden.rendered(make_golden.FILES[file]()), "look at it, then: python -m tests.make_golden"
    assert list(json.loads(written)) == list(make_golden.read(file)), "a line per value"


def test_the_golden_file_of_what_is_ours_has_a_line_per_value_with_nothing_that_is_unknown() -> None:
    text = (make_golden.FOLDER / OURS).read_text(encoding="utf-8")
    assert list(json.loads(text)) == list(make_golden.read(OURS))
    messages = [_reader(_message_type(OURS, name))(value) for name, value in make_golden.read(OURS).items()]
    assert [part for message in messages for part in unknown_parts(message)] == []


@each_value
def test_json_comes_back_as_it_was(message_type: type[Message], text: str) -> None:
    message = _reader(message_type)(text)
    assert exact(codec.encode(message)) == exact(text)


@each_value_of_the_sdk
def test_free_form_json_travels_as_the_very_text_that_the_sdk_printed(message_type: type[Message], text: str) -> None:
    written = codec.encode(_reader(message_type)(text))
    for free_form in free_form_texts(_reader(message_type)(text)):
        assert free_form in text
        assert free_form in written


@each_value
def test_a_message_comes_back_from_its_binary_form(message_type: type[Message], text: str) -> None:
    message = _reader(message_type)(text)
    again = message_type.FromString(message.SerializeToString())
    assert again == message
    assert exact(codec.encode(again)) == exact(codec.encode(message))  # a map of protobuf has no order


@each_value_of_the_sdk
def test_what_the_sdk_prints_is_known_to_the_schema(message_type: type[Message], text: str) -> None:
    assert unknown_parts(_reader(message_type)(text)) == []


def test_every_operation_event_item_and_update_has_a_golden_value() -> None:
    seen = {field.full_name for message in _all_messages() for field, _ in message.ListFields()}
    for message_type in UNIONS:
        cases = {field.full_name for field in message_type.DESCRIPTOR.fields if schema.json_type(field)}
        assert cases - seen == set()


def test_every_answer_that_is_no_stream_has_a_golden_value() -> None:
    names = {name.partition(",")[0] for file in ("answers.json", OURS) for name in make_golden.read(file)}
    assert names - {"ChatKitRequest", "WatchThreadResponse"} == UNARY_ANSWERS


def test_every_member_of_the_schema_is_given_in_some_golden_value() -> None:
    roots: list[type[Any]] = [
        ChatKitRequest,
        event_pb2.ThreadStreamEvent,
        thread_service_pb2.WatchThreadResponse,
        *(ANSWER_TYPES[name] for name in UNARY_ANSWERS),
    ]
    wanted = {field.full_name for root in roots for field in _fields_of(root.DESCRIPTOR, set())}
    given = {field.full_name for message in _all_messages() for field, _ in message.ListFields()}
    assert wanted - given == set()


def test_every_value_of_the_enums_is_given_in_some_golden_value() -> None:
    given: dict[str, set[int]] = {}
    enums = {}
    for message in _all_messages():
        for field, value in message.ListFields():
            if field.enum_type is not None:
                enums[field.enum_type.full_name] = field.enum_type
                given.setdefault(field.enum_type.full_name, set()).add(value)
    lacking = {
        name
        for enum in enums.values()
        for number, name in schema.enum_names(enum).items()
        if number not in given[enum.full_name]
    }
    assert lacking == set()


def _all_messages() -> Iterator[Message]:
    for file in (*make_golden.FILES, OURS):
        for name, text in make_golden.read(file).items():
            yield from messages_in(_reader(_message_type(file, name))(text))


def _fields_of(descriptor: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    """The fields of a message and of all that it can hold, but those for what the schema doesn't know."""
    if descriptor.full_name in seen or descriptor.full_name.startswith("google."):
        return
    seen.add(descriptor.full_name)
    for field in descriptor.fields:
        if field.GetOptions().Extensions[options.json_unknown] or field.GetOptions().Extensions[options.grpc_only]:
            continue
        if not descriptor.GetOptions().map_entry:
            yield field
        if field.message_type is not None:
            yield from _fields_of(field.message_type, seen)
