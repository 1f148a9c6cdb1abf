"""Message -> ChatKit's JSON: a writer for each message type, put together once from the schema."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from json.encoder import encode_basestring as quote
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.timestamp_pb2 import Timestamp

from chatkit_grpc import free_json
from chatkit_grpc.schema import (
    content_member,
    enum_names,
    is_map,
    is_optional,
    is_union,
    is_unwrapped,
    json_name,
    json_type,
    message_of,
    no_rule_for,
    plain_fields,
    raw_json,
    tagged_oneof,
    unknown_case,
    value_field,
)
from chatkit_grpc.v1 import json_pb2 as options

Encode = Callable[[Any], str]
"""Writes a value as JSON."""


@cache
def encoder(descriptor: Descriptor) -> Encode:
    """The writer of a message type."""
    if descriptor.full_name == Timestamp.DESCRIPTOR.full_name:
        return _encode_timestamp
    if is_unwrapped(descriptor):
        field = descriptor.fields[0]
        name, encode_value = field.name, _value_encoder(field)
        return lambda message: encode_value(getattr(message, name))
    oneof, fields = tagged_oneof(descriptor), plain_fields(descriptor)
    if oneof is not None:
        return _union_encoder(oneof, fields)
    members = _members_encoder(fields)
    return lambda message: f"{{{members(message)}}}"


def _union_encoder(oneof: OneofDescriptor, fields: list[FieldDescriptor]) -> Encode:
    content, unknown, which = content_member(oneof), unknown_case(oneof), oneof.name
    members = _members_encoder(fields) if fields else None
    cases: dict[str, tuple[str, Encode]] = {}
    for field in oneof.fields:
        tag = f'"type":{quote(json_type(field))}'
        if field.name == unknown:
            continue
        if content:
            cases[field.name] = (f'{tag},"{content}":', encoder(message_of(field)))
        else:
            cases[field.name] = (tag, _members_encoder(plain_fields(message_of(field))))

    def encode_union(message: Any) -> str:
        case = message.WhichOneof(which)
        if case is None:
            return "null"
        if case == unknown:
            text: str = getattr(message, case)
            return text
        head, encode_case = cases[case]
        body = encode_case(getattr(message, case))
        if not content and body:
            head += ","
        tail = "" if members is None else members(message)
        return f"{{{head}{body},{tail}}}" if tail else f"{{{head}{body}}}"

    return encode_union


def _members_encoder(fields: list[FieldDescriptor]) -> Encode:
    """Writes the members of a message without the braces."""
    always = [_member_encoder(field) for field in fields if not _may_be_left_out(field)]
    if len(always) == len(fields):
        return lambda message: ",".join([write(message) for write in always])
    writers = [_member_encoder(field) for field in fields]
    return lambda message: ",".join([member for write in writers if (member := write(message))])


def _may_be_left_out(field: FieldDescriptor) -> bool:
    return is_optional(field) or is_union(field) or (field.enum_type is not None and not field.is_repeated)


def _member_encoder(field: FieldDescriptor) -> Encode:
    """Writes one member with its name, or nothing where it is left out."""
    name, head, encode_value = field.name, f"{quote(json_name(field))}:", _value_encoder(field)
    if is_optional(field):
        return lambda message: head + encode_value(getattr(message, name)) if message.HasField(name) else ""
    if field.enum_type is not None and not field.is_repeated:
        names = enum_names(field.enum_type)
        return lambda message: head + quote(names[number]) if (number := getattr(message, name)) in names else ""
    if is_union(field):
        return lambda message: "" if (text := encode_value(getattr(message, name))) == "null" else head + text
    return lambda message: head + encode_value(getattr(message, name))


def _value_encoder(field: FieldDescriptor) -> Encode:
    if is_map(field):
        encode_entry = _value_encoder(value_field(field))
        return lambda entries: (
            "{" + ",".join([f"{quote(key)}:{encode_entry(value)}" for key, value in entries.items()]) + "}"
        )
    if field.is_repeated:
        encode_element = _element_encoder(field)
        return lambda elements: "[" + ",".join([encode_element(element) for element in elements]) + "]"
    return _element_encoder(field)


def _element_encoder(field: FieldDescriptor) -> Encode:
    if field.message_type is not None:
        return encoder(field.message_type)
    if field.enum_type is not None:
        names = enum_names(field.enum_type)
        return lambda number: quote(names[number]) if number in names else "null"
    if raw := raw_json(field):
        empty = "{}" if raw == options.RAW_JSON_OBJECT else "null"
        return lambda text: text or empty
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return quote
        case FieldDescriptor.TYPE_BYTES:
            return lambda data: f'"{base64.b64encode(data).decode()}"'
        case FieldDescriptor.TYPE_BOOL:
            return lambda value: "true" if value else "false"
        case FieldDescriptor.TYPE_INT32 | FieldDescriptor.TYPE_INT64:
            return str
        case FieldDescriptor.TYPE_DOUBLE:
            return free_json.dumps
    raise no_rule_for(field)


def _encode_timestamp(timestamp: Timestamp) -> str:
    moment = datetime.fromtimestamp(timestamp.seconds, UTC).replace(microsecond=timestamp.nanos // 1000)
    return f'"{moment.isoformat().removesuffix("+00:00")}Z"'
