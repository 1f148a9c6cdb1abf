"""How large the parts of a request may be. The whole of it is limited by MAX_REQUEST_BYTES, at both doors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from chatkit_grpc import free_json
from chatkit_grpc.errors import ValidationError
from chatkit_grpc.free_json import Invalid
from chatkit_grpc.schema import is_map, json_name, raw_json, tagged_oneof, value_field
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from server.limits.settings import LimitSettings

_ATTACHMENTS = "attachments"


def check_sizes(request: Message, limits: LimitSettings) -> None:
    """Raise ValidationError for a text that is too long, too many of something, or JSON that is nested too deeply.

    Sample: "$.params.input.content[0].text: expected at most 100,000 characters, got 250,000".
    """
    try:
        _check_message(request, limits)
    except Invalid as error:
        raise ValidationError.at(f"$.params{error.path.removeprefix('$')}", error.description) from None


def _check_message(message: Any, limits: LimitSettings) -> None:
    tagged = tagged_oneof(message.DESCRIPTOR)
    for field, value in message.ListFields():
        try:
            _check_field(field, value, limits)
        except Invalid as error:
            # The case of a tagged oneof is no step of its own in JSON.
            is_step = tagged is None or field.containing_oneof is not tagged
            raise (error.at(json_name(field)) if is_step else error) from None


def _check_field(field: FieldDescriptor, value: Any, limits: LimitSettings) -> None:
    if field.is_repeated:
        most = limits.max_message_attachments if field.name == _ATTACHMENTS else limits.max_list_length
        if len(value) > most:
            raise Invalid(f"expected at most {most:,}, got {len(value):,}")
    for key, element in _elements(field, value):
        try:
            _check_value(field, element, limits)
        except Invalid as error:
            raise (error if key is None else error.at(key)) from None


def _elements(field: FieldDescriptor, value: Any) -> Iterable[tuple[str | int | None, Any]]:
    if is_map(field):
        return [(key, value[key]) for key in value]
    return enumerate(value) if field.is_repeated else [(None, value)]


def _check_value(field: FieldDescriptor, value: Any, limits: LimitSettings) -> None:
    field = value_field(field) if is_map(field) else field
    if isinstance(value, Message):
        _check_message(value, limits)
    elif raw_json(field):
        if free_json.is_deeper(value, limits.max_json_depth):
            raise Invalid(f"nested more than {limits.max_json_depth} levels deep")
    elif isinstance(value, str) and len(value) > limits.max_text_length:
        raise Invalid(f"expected at most {limits.max_text_length:,} characters, got {len(value):,}")
