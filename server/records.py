"""Rows of the database as objects of the SDK, and back. What is stored is UTC and exact; the SDK's times are local."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import asyncpg
from chatkit.types import Attachment, ThreadItem, ThreadMetadata, WidgetItem
from chatkit.widgets import DynamicWidgetRoot
from chatkit_grpc import codec
from chatkit_grpc.errors import DatabaseError
from chatkit_grpc.v1.item_pb2 import ThreadItem as ThreadItemMessage
from pydantic import BaseModel, TypeAdapter
from pydantic import ValidationError as PydanticValidationError
from pydantic_core import PydanticSerializationError, to_json

from server.text_repair import whole
from server.times import to_local, to_utc

T = TypeVar("T")

Columns: TypeAlias = Mapping[str, Any]
"""What a thread says, by the names of the columns."""

_ITEM: TypeAdapter[ThreadItem] = TypeAdapter(ThreadItem)
_ATTACHMENT: TypeAdapter[Attachment] = TypeAdapter(Attachment)
_ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def columns_of(thread: ThreadMetadata) -> Columns:
    """What a thread says, as its row has it."""
    return {
        "title": thread.title,
        "status": thread.status.type,
        "status_reason": getattr(thread.status, "reason", None),
        "allowed_image_domains": None if thread.allowed_image_domains is None else list(thread.allowed_image_domains),
        "metadata": jsonb_of(thread.metadata),
    }


def thread_of(row: asyncpg.Record) -> ThreadMetadata:
    """A thread without its items."""
    status = {"type": row["status"]} | ({"reason": row["status_reason"]} if row["status"] != "active" else {})
    return ThreadMetadata.model_validate(
        {
            "id": row["session_id"],
            "title": row["title"],
            "status": status,
            "allowed_image_domains": row["allowed_image_domains"],
            "metadata": json.loads(row["metadata"]),
            "created_at": to_local(row["created_at"]),
        }
    )


def jsonb_of(value: object) -> str:
    """JSON that jsonb accepts: it has no NUL, and no numbers that aren't any."""
    try:
        text = to_json(value, inf_nan_mode="null").decode()
    except PydanticSerializationError:
        text = _json_of_whole(value)
    return _ESCAPED_NUL.sub(r"\1\\ufffd", text)


def json_of_item(item: ThreadItem) -> str:
    """The whole item as it is stored."""
    in_utc = item.model_copy(update={"created_at": to_utc(item.created_at)})
    return json_of(in_utc)


def json_of(model: BaseModel) -> str:
    """An object of the SDK as JSON, with nothing left out."""
    # Members that are None are written too, since some items need them. A warning would quote what is said.
    try:
        return model.model_dump_json(by_alias=True, warnings=False)
    except PydanticSerializationError:
        return _json_of_whole(model.model_dump(by_alias=True, warnings=False))


def _json_of_whole(value: Any) -> str:
    """JSON of what can't be written as it is: a model may split an emoji, and each half is no character."""
    return to_json(whole(value), inf_nan_mode="null").decode()


def item_of(row: asyncpg.Record) -> ThreadItem:
    """An item. Raises DatabaseError."""
    return item_of_json(row["message_id"], row["item"])


def item_of_json(item_id: str, text: str) -> ThreadItem:
    """An item from its column. Raises DatabaseError."""
    item: ThreadItem = _parsed(_ITEM, text, {"item_id": item_id})
    item.created_at = to_local(item.created_at)
    if isinstance(item, WidgetItem):
        _restore_widget(item, json.loads(text)["widget"])
    return item


def item_of_message(message: ThreadItemMessage) -> ThreadItem:
    """An item of the contract as the SDK has it. Raises pydantic's ValidationError for what the SDK doesn't know."""
    item: ThreadItem = _ITEM.validate_json(codec.encode(message))
    item.created_at = to_local(item.created_at)
    return item


def attachment_of(row: asyncpg.Record, attachment_id: str) -> Attachment:
    """An attachment. Raises DatabaseError."""
    attachment: Attachment = _parsed(_ATTACHMENT, row["attachment"], {"attachment_id": attachment_id})
    return attachment


def _restore_widget(item: WidgetItem, stored: dict[str, Any]) -> None:
    """Read a widget made from a template as such.

    The SDK's types take it for one of the strict classes where it looks like one, and drop the members that these
    don't know. Then what is read isn't what was stored.
    """
    if item.widget.model_dump(mode="json") != stored:
        item.widget = DynamicWidgetRoot.model_validate(stored)


def _parsed(adapter: TypeAdapter[T], text: str, metadata: Mapping[str, str]) -> T:
    try:
        return adapter.validate_json(text)
    except PydanticValidationError:
        # A newer server may have stored a kind that this one doesn't know.
        failure = DatabaseError("What is stored can't be read by this version of the server.", metadata=metadata)
    # Not inside the except block: pydantic's error quotes what is said.
    raise failure
