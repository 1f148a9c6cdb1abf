"""ChatKit's JSON -> message: a reader for each message type, put together once from the schema.

There are two kinds of reader. A strict one is for requests: it refuses what is wrong, and ignores members it doesn't
know, as the SDK does. A lossless one is for what the assistant made: what the schema doesn't know is kept as JSON.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from chatkit_grpc import free_json
from chatkit_grpc.free_json import Invalid, shown
from chatkit_grpc.schema import (
    content_member,
    enum_names,
    is_map,
    is_required,
    is_unwrapped,
    json_name,
    json_type,
    message_of,
    minimum,
    no_rule_for,
    plain_fields,
    raw_json,
    tagged_oneof,
    unknown_case,
    value_field,
)
from chatkit_grpc.v1 import json_pb2 as options

Decode = Callable[[Any, Message], None]
"""Reads parsed JSON into a message. Raises Invalid."""

_INT_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
}


@cache
def decoder(descriptor: Descriptor, *, lossless: bool, in_union: bool = False) -> Decode:
    """The reader of a message type. A lossless one gives up on members it doesn't know where a union can carry them."""
    if descriptor.full_name == Timestamp.DESCRIPTOR.full_name:
        return _decode_timestamp
    if is_unwrapped(descriptor):
        return _field_decoder(descriptor.fields[0], lossless=lossless, in_union=in_union)
    oneof, fields = tagged_oneof(descriptor), plain_fields(descriptor)
    if oneof is None:
        return _object_decoder(fields, lossless=lossless, in_union=in_union)
    return _union_decoder(oneof, fields, lossless=lossless)


def _union_decoder(oneof: OneofDescriptor, fields: list[FieldDescriptor], *, lossless: bool) -> Decode:
    content, unknown = content_member(oneof), unknown_case(oneof)
    cases = {
        json_type(field): (field.name, _case_decoder(field, content, lossless=lossless))
        for field in oneof.fields
        if field.name != unknown
    }
    read_fields = (
        _object_decoder(fields, lossless=lossless, in_union=True, others=("type", content)) if fields else None
    )

    def decode_union(value: Any, message: Any) -> None:
        tag = _tag_of(value)
        if tag not in cases:
            raise Invalid(f"unknown value {shown(tag)}{_expected(cases)}").at("type")
        name, read_case = cases[tag]
        case = getattr(message, name)
        case.SetInParent()
        read_case(value, case)
        if read_fields is not None:
            read_fields(value, message)

    if not lossless or unknown is None:
        return decode_union

    def decode_lossless(value: Any, message: Any) -> None:
        try:
            decode_union(value, message)
        except Invalid:
            _set(message, unknown, free_json.to_text(value, may_hold_nul=True))

    return decode_lossless


def _case_decoder(field: FieldDescriptor, content: str, *, lossless: bool) -> Decode:
    """Reads the fields of a case, which stand beside "type" or in the member `content`."""
    if not content:
        return _object_decoder(plain_fields(message_of(field)), lossless=lossless, in_union=True, others=("type",))
    read = decoder(message_of(field), lossless=lossless, in_union=True)

    def decode_content(value: Any, message: Message) -> None:
        if content not in value:
            raise Invalid("missing, expected an object").at(content)
        try:
            read(value[content], message)
        except Invalid as error:
            raise error.at(content) from None

    return decode_content


def _tag_of(value: Any) -> str:
    if type(value) is not dict:
        raise Invalid(f"expected an object, got {free_json.kind_of(value)}")
    if "type" not in value:
        raise Invalid("missing, expected a string").at("type")
    tag = value["type"]
    if type(tag) is not str:
        raise Invalid(f"expected a string, got {free_json.kind_of(tag)}").at("type")
    return tag


def _expected(names: Collection[str]) -> str:
    """What would have been right, where that is few enough to read."""
    return f", expected {' or '.join(names)}" if len(names) <= 8 else ""


def _object_decoder(
    fields: list[FieldDescriptor], *, lossless: bool, in_union: bool, others: tuple[str, ...] = ()
) -> Decode:
    """Reads the members of an object; `others` are members that somebody else reads."""
    readers = {json_name(field): _field_decoder(field, lossless=lossless, in_union=in_union) for field in fields}
    required = [json_name(field) for field in fields if is_required(field)]
    # null means "absent", but where any JSON may stand, or where something must.
    keeps_null = {json_name(field) for field in fields if raw_json(field) == options.RAW_JSON_VALUE}.union(required)

    def decode_object(value: Any, message: Any) -> None:
        if type(value) is not dict:
            raise Invalid(f"expected an object, got {free_json.kind_of(value)}")
        for name in required:
            if name not in value:
                raise Invalid("missing").at(name)
        for name, member in value.items():
            read = readers.get(name)
            if read is None:
                if lossless and in_union and name not in others:
                    raise Invalid("unknown member").at(name)
            elif member is not None or name in keeps_null:
                try:
                    read(member, message)
                except Invalid as error:
                    raise error.at(name) from None

    return decode_object


def _field_decoder(field: FieldDescriptor, *, lossless: bool, in_union: bool) -> Decode:
    """Reads a value into one field of a message."""
    if is_map(field):
        return _map_decoder(field, lossless=lossless, in_union=in_union)
    if field.is_repeated:
        return _list_decoder(field, lossless=lossless, in_union=in_union)
    name = field.name
    if field.message_type is None:
        scalar = _scalar_decoder(field, lossless=lossless)
        return lambda value, message: _set(message, name, scalar(value))
    read = decoder(field.message_type, lossless=lossless, in_union=in_union)

    def decode_message(value: Any, message: Message) -> None:
        part = getattr(message, name)
        part.SetInParent()
        read(value, part)

    return decode_message


def _list_decoder(field: FieldDescriptor, *, lossless: bool, in_union: bool) -> Decode:
    name = field.name
    if field.message_type is None:
        scalar = _scalar_decoder(field, lossless=lossless)
        return lambda value, message: _each(_list(value), lambda _, element: _append(message, name, scalar(element)))
    read = decoder(field.message_type, lossless=lossless, in_union=in_union)
    return lambda value, message: _each(_list(value), lambda _, element: read(element, getattr(message, name).add()))


def _map_decoder(field: FieldDescriptor, *, lossless: bool, in_union: bool) -> Decode:
    name, values = field.name, value_field(field)
    if values.message_type is None:
        scalar = _scalar_decoder(values, lossless=lossless)
        return lambda value, message: _each(
            _entries(value), lambda key, entry: getattr(message, name).update({key: scalar(entry)})
        )
    read = decoder(values.message_type, lossless=lossless, in_union=in_union)
    return lambda value, message: _each(_entries(value), lambda key, entry: read(entry, getattr(message, name)[key]))


def _each(steps: Iterable[tuple[Any, Any]], read: Callable[[Any, Any], None]) -> None:
    """Read every element of a list or an object, and say which one was wrong."""
    for step, element in steps:
        try:
            read(step, element)
        except Invalid as error:
            raise error.at(step) from None


def _list(value: Any) -> Iterable[tuple[int, Any]]:
    if type(value) is not list:
        raise Invalid(f"expected a list, got {free_json.kind_of(value)}")
    return enumerate(value)


def _entries(value: Any) -> Iterable[tuple[str, Any]]:
    if type(value) is not dict:
        raise Invalid(f"expected an object, got {free_json.kind_of(value)}")
    for key in value:
        try:
            free_json.check_text(key)
        except Invalid as error:
            raise error.at(key) from None
    return value.items()


def _set(message: Message, name: str, value: Any) -> None:
    try:
        setattr(message, name, value)
    except UnicodeEncodeError:
        raise Invalid(free_json.LONE_SURROGATE) from None


def _append(message: Message, name: str, value: Any) -> None:
    try:
        getattr(message, name).append(value)
    except UnicodeEncodeError:
        raise Invalid(free_json.LONE_SURROGATE) from None


def _scalar_decoder(field: FieldDescriptor, *, lossless: bool) -> Callable[[Any], Any]:
    if field.enum_type is not None:
        return _enum_decoder(field.enum_type)
    if raw := raw_json(field):
        must_be_object = raw == options.RAW_JSON_OBJECT
        return lambda value: free_json.to_text(value, must_be_object=must_be_object, may_hold_nul=lossless)
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return _decode_any_string if lossless else _decode_string
        case FieldDescriptor.TYPE_BYTES:
            return _decode_bytes
        case FieldDescriptor.TYPE_BOOL:
            return _decode_bool
        case FieldDescriptor.TYPE_INT32 | FieldDescriptor.TYPE_INT64:
            return _int_decoder(field)
        case FieldDescriptor.TYPE_DOUBLE:
            return _decode_float
    raise no_rule_for(field)


def _enum_decoder(enum: EnumDescriptor) -> Callable[[Any], int]:
    numbers = {name: number for number, name in enum_names(enum).items()}

    def decode_enum(value: Any) -> int:
        number = numbers.get(_decode_string(value))
        if number is None:
            raise Invalid(f"unknown value {shown(value)}{_expected(numbers)}")
        return number

    return decode_enum


def _int_decoder(field: FieldDescriptor) -> Callable[[Any], int]:
    lowest, highest = _INT_RANGES[field.type]
    if (floor := minimum(field)) is not None:
        lowest = floor

    def decode_int(value: Any) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise Invalid(f"expected a whole number, got {free_json.kind_of(value)}")
        if not lowest <= value <= highest:
            raise Invalid(f"expected a whole number from {lowest} to {highest}, got {_shortened(value)}")
        return value

    return decode_int


def _shortened(number: int) -> str:
    return str(number) if -(10**30) < number < 10**30 else "one with more than 30 digits"


def _decode_any_string(value: Any) -> str:
    if type(value) is not str:
        raise Invalid(f"expected a string, got {free_json.kind_of(value)}")
    return value


def _decode_string(value: Any) -> str:
    if "\0" in _decode_any_string(value):
        raise Invalid(free_json.NUL)
    return str(value)


def _decode_bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(_decode_string(value), validate=True)
    except (binascii.Error, ValueError):
        raise Invalid("expected base64") from None


def _decode_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise Invalid(f"expected true or false, got {free_json.kind_of(value)}")
    return value


def _decode_float(value: Any) -> float:
    if type(value) not in {float, int}:
        raise Invalid(f"expected a number, got {free_json.kind_of(value)}")
    return float(value)


def _decode_timestamp(value: Any, timestamp: Any) -> None:
    """Read RFC 3339.

    A time without an offset is local, as the SDK writes it; items that are stored go by server/times.py.
    """
    try:
        moment = datetime.fromisoformat(_decode_string(value)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Invalid(f"expected a time such as 2026-01-31T12:00:00Z, got {shown(value)}") from None
    timestamp.seconds = int(moment.replace(microsecond=0).timestamp())
    timestamp.nanos = moment.microsecond * 1000
