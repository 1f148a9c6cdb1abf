"""What waits for the user or the page on a thread, closed when the user says something else instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from chatkit.types import (
    ClientToolCallItem,
    StructuredInputAnswer,
    StructuredInputItem,
    ThreadItem,
    ThreadItemReplacedEvent,
)

_NO_OUTPUT = {"error": "The page gave no answer, and the user went on."}


def close_left_behind(items: Iterable[ThreadItem]) -> Iterator[ThreadItemReplacedEvent]:
    """The events that close the client tool calls and the structured inputs among some items that still wait.

    A page that was reloaded doesn't call its tool again, and nobody answers questions that were talked past.
    """
    for item in items:
        match item:
            case ClientToolCallItem(status="pending"):
                closed = item.model_copy(update={"status": "completed", "output": _NO_OUTPUT})
                yield ThreadItemReplacedEvent(item=closed)
            case StructuredInputItem(status="pending"):
                skipped = StructuredInputAnswer(skipped=True)
                inputs = [question.model_copy(update={"answer": skipped}) for question in item.inputs]
                yield ThreadItemReplacedEvent(item=item.model_copy(update={"status": "skipped", "inputs": inputs}))
