"""Where a page ended, as an opaque text: for lists whose order is by more than one element's id."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from chatkit_grpc.errors import ValidationError
from chatkit_grpc.v1 import error_reason_pb2 as reasons

_LONGEST = 20_000
_QUOTED = 200
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Value = bool | str | datetime


def to_cursor(*values: Value) -> str:
    """Values as a text for a caller to send back. It is no secret, and grants nothing."""
    text = json.dumps([_to_plain(value) for value in values], separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def from_cursor(cursor: str, *types: type[Value]) -> tuple[Value, ...]:
    """The values of a cursor, which must be of these types. Raises ValidationError (UNKNOWN_CURSOR)."""
    with suppress(ValueError, OverflowError, RecursionError, TypeError):
        values = json.loads(_decoded(cursor))
        return tuple(_from_plain(value, wanted) for value, wanted in zip(values, types, strict=True))
    raise ValidationError(
        "The page can't go on from there: no page has given such a cursor.",
        reason=reasons.ERROR_REASON_UNKNOWN_CURSOR,
        metadata={"after": cursor[:_QUOTED]},
    )


def _decoded(cursor: str) -> bytes:
    padding = "=" * (-len(cursor) % 4)
    return base64.b64decode(cursor[:_LONGEST] + padding, altchars=b"-_", validate=True)


def _to_plain(value: Value) -> int | str:
    return (value - _EPOCH) // timedelta(microseconds=1) if isinstance(value, datetime) else value


def _from_plain(value: object, wanted: type[Value]) -> Value:
    if wanted is datetime and type(value) is int:
        return _EPOCH + timedelta(microseconds=value)
    if wanted is not datetime and type(value) is wanted and isinstance(value, bool | str):
        return value
    raise TypeError("not what a cursor holds")
