"""The rules of a request, applied to a message that came by gRPC and not through JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from chatkit_grpc import free_json
from chatkit_grpc.free_json import Invalid
from chatkit_grpc.schema import (
    enum_names,
    is_map,
    is_required,
    json_type,
    minimum,
    raw_json,
    tagged_oneof,
    unknown_case,
    value_field,
)
from chatkit_grpc.v1 import json_pb2 as options

Check = Callable[[Message], None]
"""Applies a request's rules to a message. Raises Invalid."""


@cache
def checker(descriptor: Descriptor) -> Check:
    """The rules of a message type and of all that it holds."""
    oneof = tagged_oneof(descriptor)
    rules = [rule for field in descriptor.fields for rule in _field_rules(field)]

    def check_message(message: Any) -> None:
        if oneof is not None:
            case = message.WhichOneof(oneof.name)
            if case is None or case == unknown_case(oneof):
                raise Invalid(f"missing, expected one of {', '.join(filter(None, map(json_type, oneof.fields)))}")
        for rule in rules:
            rule(message)

    return check_message


def _field_rules(field: FieldDescriptor) -> Iterator[Check]:
    if is_required(field) and not field.is_repeated:
        yield _presence_rule(field)
    if field.message_type is not None or field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        yield _content_rule(field)
    if (lowest := minimum(field)) is not None:
        yield _minimum_rule(field, lowest)


def _presence_rule(field: FieldDescriptor) -> Check:
    name = field.name
    known = enum_names(field.enum_type) if field.enum_type is not None else None
    # Whether a text or a number was given, the message doesn't say: empty, it is as good as an empty one in JSON.
    may_be_empty = known is None and not raw_json(field)

    def check_presence(message: Message) -> None:
        is_there = message.HasField(name) if field.has_presence else getattr(message, name) or may_be_empty
        if not is_there or (known is not None and getattr(message, name) not in known):
            raise Invalid("missing").at(name)

    return check_presence


def _minimum_rule(field: FieldDescriptor, lowest: int) -> Check:
    def check_minimum(message: Message) -> None:
        if getattr(message, field.name) < lowest:
            raise Invalid(f"expected {lowest} or more, got {getattr(message, field.name)}").at(field.name)

    return check_minimum


def _content_rule(field: FieldDescriptor) -> Check:
    """Checks what a field holds, element by element where there are several."""
    name, holds_map = field.name, is_map(field)
    check_value = _value_check(value_field(field) if holds_map else field)

    def check_content(message: Message) -> None:
        if not field.is_repeated and field.has_presence and not message.HasField(name):
            return
        value = getattr(message, name)
        entries = value.items() if holds_map else enumerate(value) if field.is_repeated else [(None, value)]
        for key, element in entries:
            try:
                if isinstance(key, str):
                    free_json.check_text(key)
                check_value(element)
            except Invalid as error:
                raise (error if key is None else error.at(key)).at(name) from None

    return check_content


def _value_check(field: FieldDescriptor) -> Callable[[Any], None]:
    if field.message_type is not None:
        return checker(field.message_type)
    if raw := raw_json(field):
        return lambda text: free_json.check_json(text, must_be_object=raw == options.RAW_JSON_OBJECT) if text else None
    return free_json.check_text if field.type == FieldDescriptor.TYPE_STRING else lambda _: None
