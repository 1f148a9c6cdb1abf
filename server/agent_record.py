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
_STOPPED = "(It was stopped before it ended; whether it did anything is not known.)"
"""The output of a call that has none: models refuse a call without."""

Call = dict[str, Any]
"""A call as it is kept: `call_id`, `name`, `arguments` (JSON) and `output` (text)."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """An item, and what the agent did before it."""

    item: ThreadItem
    record: list[Call]


class AgentRecord:
    """The calls of one answer that are still to be stored, in their order."""

    def __init__(self) -> None:
        self._calls: list[Call] = []

    @classmethod
    def begin(cls, context: RequestContext) -> AgentRecord:
        """A record that is written with the next items of a request."""
        context[_KEY] = record = cls()
        return record

    def note(self, item: RunItem) -> None:
        """Take down what the agent did."""
        match item.to_input_item():
            case {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}:
                self._calls.append({"call_id": call_id, "name": name, "arguments": arguments})
            case {"type": "function_call_output", "call_id": call_id, "output": output}:
                self._answer(str(call_id), _text_of(output))

    def done(self) -> list[Call]:
        """The calls that have their outputs."""
        return [call for call in self._calls if "output" in call]

    def end(self) -> None:
        """The answer has ended: no output comes any more."""
        for call in self._calls:
            call.setdefault("output", _STOPPED)

    def were_stored(self, calls: list[Call]) -> None:
        """These are in the database."""
        self._calls = [call for call in self._calls if not any(call is stored for stored in calls)]

    def _answer(self, call_id: str, output: str) -> None:
        # Some servers number their calls anew for each answer: the first that waits is the one that is meant.
        for call in self._calls:
            if call["call_id"] == call_id and "output" not in call:
                call["output"] = output
                return


class KnownCalls:
    """The calls that a model is told, each once and under an id of its own."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._client_tools: set[str] = set()

    def add_client_tool(self, call_id: str) -> None:
        """A call that is an item of the thread itself, with what the page answered."""
        self._client_tools.add(call_id)

    def inputs(self, record: Iterable[Call]) -> Iterator[TResponseInputItem]:
        """The input items of a record: each call, then its output."""
        before: Call | None = None
        for call in record:
            # A statement whose answer got lost may have been made twice.
            if call["call_id"] not in self._client_tools and call != before:
                call_id = self._unused(call["call_id"])
                yield {
                    "type": "function_call",
                    "call_id": call_id,
                    "name": call["name"],
                    "arguments": call["arguments"],
                }
                yield {"type": "function_call_output", "call_id": call_id, "output": call["output"]}
            before = call

    def _unused(self, call_id: str) -> str:
        unused = call_id if call_id not in self._ids else f"{call_id}-{len(self._ids)}"
        self._ids.add(unused)
        return unused


def record_of(context: RequestContext) -> AgentRecord | None:
    """The record of the answer that a context belongs to."""
    record: AgentRecord | None = context.get(_KEY)
    return record


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
