"""What an agent did that no item of its thread says: calls of tools and what they gave, kept for the next turn.

ChatKit's items are what people see. A model that is told only those calls the same tools again, and contradicts what it
has read. So its calls are written beside the items, each group in the statement that writes the item they led to, and
come back with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from agents import RunItem, TResponseInputItem
from chatkit.types import ThreadItem

from server.context import RequestContext

_KEY = "_chatkit_grpc.agent_record"
_LONGEST_OUTPUT = 32_000
"""Characters of a tool's output that are kept: the model has drawn its conclusions from the rest."""

Call = dict[str, Any]
"""An input item of the Agents SDK: a `function_call`, or a `function_call_output`."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """An item, and what the agent did before it."""

    item: ThreadItem
    record: list[Call]


class AgentRecord:
    """The calls of one answer that are still to be stored.

    last_item: the id of the item that was stored last.
    """

    def __init__(self) -> None:
        self.last_item: str | None = None
        self._calls: list[Call] = []

    @classmethod
    def begin(cls, context: RequestContext) -> AgentRecord:
        """A record that is written with the next items of a request."""
        context[_KEY] = record = cls()
        return record

    def note(self, item: RunItem) -> None:
        """Take down what the agent did."""
        call = _portable(item.to_input_item())
        if call is not None:
            self._calls.append(call)

    def done(self) -> list[Call]:
        """All up to the last call, where each has its output: one without is refused by every model."""
        called = {call["call_id"] for call in self._calls if call["type"] == "function_call"}
        answered = {call["call_id"] for call in self._calls if call["type"] == "function_call_output"}
        return list(self._calls) if called == answered else []

    def was_stored(self, count: int, item_id: str) -> None:
        """So many calls are in the database, and so is an item."""
        del self._calls[:count]
        self.last_item = item_id


def record_of(context: RequestContext) -> AgentRecord | None:
    """The record of the answer that a context belongs to."""
    record: AgentRecord | None = context.get(_KEY)
    return record


def pairs_of(calls: Iterable[Call], known: set[str]) -> Iterator[Call]:
    """Calls with their outputs, without those that are known already; what is given is known from then on.

    A statement whose answer got lost may have been made twice.
    """
    listed = list(calls)
    outputs = {call["call_id"]: call for call in listed if call["type"] == "function_call_output"}
    for call in listed:
        call_id = call["call_id"]
        if call["type"] == "function_call" and call_id in outputs and call_id not in known:
            known.add(call_id)
            yield call
            yield outputs[call_id]


def _portable(item: TResponseInputItem) -> Call | None:
    """A call, or its output, as any model takes it, also another one than made it. None for anything else."""
    match item:
        case {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}:
            return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
        case {"type": "function_call_output", "call_id": call_id, "output": output}:
            return {"type": "function_call_output", "call_id": call_id, "output": _text_of(output)}
        case _:
            return None


def _text_of(output: Any) -> str:
    """A tool's output as text: pictures and files are too large to be told of again."""
    if not isinstance(output, str):
        parts = output if isinstance(output, list) else [output]
        output = "\n".join(_text_of_part(part) for part in parts)
    return output if len(output) <= _LONGEST_OUTPUT else f"{output[:_LONGEST_OUTPUT]}… (cut)"


def _text_of_part(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") in {"input_text", "output_text", "text"}:
        return str(part.get("text", ""))
    kind = part.get("type", "part") if isinstance(part, dict) else type(part).__name__
    return f"({kind})"
