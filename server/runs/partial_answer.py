"""What an answer left unfinished, as it is kept: an assistant's message with the text it has so far."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from chatkit.types import (
    AssistantMessageItem,
    SDKHiddenContextItem,
    ThreadItem,
)
from chatkit_grpc.v1.item_pb2 import ThreadItem as ThreadItemMessage
from pydantic import ValidationError as PydanticError

from server.records import item_of_message
from server.runs.batches import parts_after
from server.runs.pending_items import PendingItems
from server.runs.store import Piece

INTERRUPTED = "The answer was interrupted. What was said until then is kept."
"""What the user is told whose answer ended with its server."""


def pending_items(pieces: Iterable[Piece]) -> list[ThreadItemMessage]:
    """The items that a run has begun and not finished, by all that it said. Pieces may overlap."""
    pending = PendingItems()
    sequence = 0
    for piece in pieces:
        for part in parts_after(piece, sequence):
            pending.apply_batch(part.events)
        sequence = max(sequence, piece.last)
    return pending.items()


def kept_item(message: ThreadItemMessage) -> ThreadItem | None:
    """The item if it is one that is kept though it is unfinished: the SDK keeps what an assistant has said."""
    try:
        item = item_of_message(message)
    except PydanticError:
        return None
    is_said = isinstance(item, AssistantMessageItem) and any(part.text.strip() for part in item.content)
    return item if is_said else None


def interruption_marker(thread_id: str, run_id: str) -> SDKHiddenContextItem:
    """What the model is told on the next turn, as the SDK does after a cancel. A run has one, stored however often."""
    return SDKHiddenContextItem(
        id=f"shcx_{run_id.removeprefix('run_')}",
        thread_id=thread_id,
        created_at=datetime.now(),  # noqa: DTZ005 # as the SDK means it: naive and local
        content="The answer was interrupted before it was complete. Don't go on with it unless you are asked to.",
    )
