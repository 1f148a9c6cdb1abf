"""Messages as logs may show them: ids and kinds, and of what people say its length only.

Which fields that are the schema says, by protobuf's own option `debug_redact`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from chatkit_grpc.schema import is_map, value_field

_SHOWN = 100
"""How much of a value that is no secret is shown."""


def describe(message: Message) -> str:
    """A message on one line. Sample: 'AddUserMessageRequest(thread_id="thr_1", input=UserMessageInput(…))'."""
    return f"{message.DESCRIPTOR.name}({', '.join(_fields(message))})"


class RedactingFormatter(logging.Formatter):
    """A formatter under which no record shows more of a message than `describe` does."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        if isinstance(record.args, tuple) and any(isinstance(arg, Message) for arg in record.args):
            record.args = tuple(describe(arg) if isinstance(arg, Message) else arg for arg in record.args)
        return super().format(record)


def _fields(message: Any) -> Iterator[str]:
    for field, value in message.ListFields():
        if field.GetOptions().debug_redact:
            yield f"{field.name}=<{len(value):,}>"
        elif is_map(field):
            yield f"{field.name}={{{', '.join(f'<{len(key)}>: {_shown(field, value[key])}' for key in value)}}}"
        elif field.is_repeated:
            yield f"{field.name}=[{', '.join(_shown(field, element) for element in value)}]"
        else:
            yield f"{field.name}={_shown(field, value)}"


def _shown(field: FieldDescriptor, value: Any) -> str:
    field = value_field(field) if is_map(field) else field
    if isinstance(value, Message):
        return describe(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return str(value) if known is None else known.name
    return repr(value) if len(str(value)) <= _SHOWN else f"{str(value)[:_SHOWN]!r}…"
