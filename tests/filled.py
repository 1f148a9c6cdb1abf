"""Requests in which every field is filled, made from the schema: each variant takes other cases of its oneofs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from chatkit_grpc.schema import enum_names, is_map, json_type, raw_json, value_field
from chatkit_grpc.services import SERVICES
from chatkit_grpc.v1 import json_pb2
from chatkit_grpc.v1.chatkit_request_pb2 import ChatKitRequest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

METHODS = [method for service in SERVICES.values() for method in service.methods]
OPERATIONS = [field for field in ChatKitRequest.DESCRIPTOR.oneofs[0].fields if json_type(field)]
VARIANTS = 12
"""As many as the largest oneof has cases."""
_DEEPEST = 8


def filled(message_type: type[Message], text: str, ids: Mapping[str, str], variant: int) -> Message:
    """A message with a text in each field that holds what somebody says, and ids and words in the others."""
    message = message_type()
    _fill(message, text, ids, variant, 0)
    return message


def _fill(message: Any, text: str, ids: Mapping[str, str], variant: int, depth: int) -> None:
    for field in _chosen(message.DESCRIPTOR, variant):
        if depth == _DEEPEST and field.message_type is not None:
            continue
        if is_map(field):
            _fill_map(message, field, text, ids, variant, depth)
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner = inner.add() if field.is_repeated else inner
            inner.SetInParent()
            _fill(inner, text, ids, variant, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).append(_value(field, text, ids, variant))
        else:
            setattr(message, field.name, _value(field, text, ids, variant))


def _fill_map(
    message: Any, field: FieldDescriptor, text: str, ids: Mapping[str, str], variant: int, depth: int
) -> None:
    values = getattr(message, field.name)
    if value_field(field).message_type is not None:
        _fill(values[text], text, ids, variant, depth + 1)
    else:
        values[text] = text


def _chosen(descriptor: Descriptor, variant: int) -> Iterator[FieldDescriptor]:
    for oneof in descriptor.oneofs:
        yield oneof.fields[variant % len(oneof.fields)]
    yield from (field for field in descriptor.fields if field.containing_oneof is None)


def _value(field: FieldDescriptor, text: str, ids: Mapping[str, str], variant: int) -> Any:
    if field.enum_type is not None:
        known = sorted(enum_names(field.enum_type))
        return known[variant % len(known)]
    if field.GetOptions().Extensions[json_pb2.json_unknown]:
        return json.dumps({"type": "of_a_later_version", text: text})
    if raw := raw_json(field):
        return json.dumps({text: [text]} if raw == json_pb2.RAW_JSON_OBJECT or variant % 2 else text)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return text.encode()
    if field.type == FieldDescriptor.TYPE_STRING:
        return text if field.GetOptions().debug_redact else ids.get(field.name, f"{field.name}_1")
    return field.type == FieldDescriptor.TYPE_BOOL or variant + 1


def message_of(descriptor: Descriptor) -> type[Message]:
    """The class of a message."""
    return GetMessageClass(descriptor)
