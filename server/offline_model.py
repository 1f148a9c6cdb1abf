"""A stand-in for a language model: no key, no network, no intelligence, but the same stream of events."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from itertools import count
from typing import Any

from agents import (
    AgentOutputSchemaBase,
    Handoff,
    Model,
    ModelResponse,
    ModelSettings,
    ModelTracing,
    Tool,
    TResponseInputItem,
    Usage,
)
from agents.items import TResponseStreamEvent
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseFunctionToolCall,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
)

from server.model_choice import HOW_TO_PLUG_IN_A_MODEL

TIME_TOOL = "current_time"
SUM_TOOL = "add_numbers"
SEARCH_TOOL = "mcp_threads__search_threads"
"""The tools that the offline model knows how to use, where the agent has them."""


_Answer = ResponseOutputMessage | ResponseFunctionToolCall

_HUMAN_PACE = 0.025
_TOKEN = re.compile(r"\S+\s*|\s+")
_TIME_QUESTION = re.compile(r"\bwhat(?:.s| is)? (?:the )?(?:current )?time\b", re.IGNORECASE)
_ZONE = re.compile(r"\bin ([A-Za-z]+(?:/[A-Za-z_+\-0-9]+)+|UTC)\b")
_SUM_QUESTION = re.compile(r"\badd\b|\bsum of\b|\d\s*(?:\+|plus)\s*-?\d", re.IGNORECASE)
_COMMAND = re.compile(r"\s*/(?P<name>[A-Za-z][\w-]*)(?P<rest>.*)", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")
_FORM = "A structured input request was displayed"
_NOT_SAID_BY_THE_USER = (
    # How chatkit.agents and server/history.py begin what is sent in the user's name beside the user's own words.
    "For the assistant, not said by the user: ",
    "A message was displayed to the user",
    _FORM,
    "Hidden context for the agent",
    "The user is referring to this in particular",
    "# User-provided context for @-mentions",
)


class OfflineModel(Model):
    """Says what it is, what it was told, and how to get a real model; calls tools for the time and for sums.

    seconds_per_token: the pace at which it talks; 0 for as fast as it can.
    """

    def __init__(self, seconds_per_token: float = _HUMAN_PACE) -> None:
        self._seconds_per_token = seconds_per_token

    async def get_response(self, *call: Any, **more: Any) -> ModelResponse:
        """The whole answer at once."""
        async for event in self.stream_response(*call, **more):
            if isinstance(event, ResponseCompletedEvent):
                return ModelResponse(event.response.output, Usage(requests=1), event.response.id)
        raise AssertionError("stream_response ended without a response")

    async def stream_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],  # noqa: A002 - the interface calls it so
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff[Any, Any]],
        tracing: ModelTracing,
        **more: Any,
    ) -> AsyncIterator[TResponseStreamEvent]:
        """The answer token by token."""
        can = {tool.name for tool in tools} | {handoff.tool_name for handoff in handoffs}
        chosen = model_settings.tool_choice
        for event in _events(_answer(_Conversation(input), can, chosen if isinstance(chosen, str) else None)):
            if isinstance(event, ResponseTextDeltaEvent):
                await asyncio.sleep(self._seconds_per_token)
            yield event


class _Conversation:
    """What the input of a model call says about the conversation so far."""

    def __init__(self, items: str | list[TResponseInputItem]) -> None:
        listed: list[Any] = [{"role": "user", "content": items}] if isinstance(items, str) else list(items)
        self._items: list[Mapping[str, Any]] = listed
        texts = [_text(item) for item in self._items if item.get("role") == "user"]
        self._said = [text for text in texts if not text.startswith(_NOT_SAID_BY_THE_USER)]

    @property
    def last_message(self) -> str:
        """The user's latest words."""
        return self._said[-1] if self._said else ""

    @property
    def number_of_messages(self) -> int:
        """How often the user has said something."""
        return len(self._said)

    @property
    def tool_output(self) -> str | None:
        """What a tool has just answered, if that is what the model is called for."""
        last = self._items[-1] if self._items else {}
        if last.get("type") != "function_call_output":
            return None
        output = last["output"]
        if isinstance(output, str):
            return output
        # MCP's come in parts.
        return "\n".join(str(part.get("text") or f"[{part['type']}]") for part in output)

    @property
    def form(self) -> str | None:
        """What the user has just filled in, if that is what the model is called for."""
        text = _text(self._items[-1]) if self._items else ""
        return text if text.startswith(_FORM) else None

    @property
    def tool_called(self) -> str:
        """The tool that was called last."""
        names = [str(item["name"]) for item in self._items if item.get("type") == "function_call"]
        return names[-1] if names else ""


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content", "")
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _answer(conversation: _Conversation, tools: set[str], chosen: str | None) -> _Answer:
    """A tool call where the question, or the page, asks for one, else a message.

    chosen: the tool that must be called; the SDK asks for it once.
    """
    if conversation.tool_output is not None:
        return _message(_words_for(conversation.tool_called, conversation.tool_output))
    if conversation.form is not None:
        answers = "\n".join(line for line in conversation.form.splitlines() if line.startswith("- "))
        return _message(f"Thank you. You answered:\n\n{answers}")
    question = conversation.last_message
    numbers = [float(number) for number in _NUMBER.findall(_spaced(question))]
    if TIME_TOOL in tools and (chosen == TIME_TOOL or _TIME_QUESTION.search(question)):
        zone = _ZONE.search(question)
        return _tool_call(TIME_TOOL, {"timezone": zone[1] if zone else "UTC"})
    if SUM_TOOL in tools and (chosen == SUM_TOOL or (len(numbers) > 1 and _SUM_QUESTION.search(question))):
        return _tool_call(SUM_TOOL, {"numbers": numbers})
    if chosen in tools:
        return _tool_call(str(chosen), {})
    return _command(question, tools) or _message(_self_description(conversation))


def _command(question: str, tools: set[str]) -> _Answer | None:
    """What a message such as "/form" or "/handoff editor" asks for. None for any other message."""
    found = _COMMAND.fullmatch(question)
    if found is None:
        return None
    name, rest = found["name"].replace("-", "_").lower(), found["rest"].strip()
    if name == "search" and SEARCH_TOOL in tools and rest:
        return _tool_call(SEARCH_TOOL, {"words": rest})
    if name == "tool" and (called := _any_tool(rest, tools)):
        return called
    tool = f"transfer_to_{rest.lower()}" if name == "handoff" else f"show_{name}"
    if tool in tools:
        return _tool_call(tool, {})
    return _message(f"I know nothing of /{name} here. Try /help, or /handoff assistant if somebody else is answering.")


def _any_tool(asked: str, tools: set[str]) -> ResponseFunctionToolCall | None:
    """The call that "/tool NAME {JSON}" asks for. None where there is no such tool."""
    name, _, arguments = asked.partition(" ")
    if name not in tools:
        return None
    try:
        return _tool_call(name, json.loads(arguments or "{}"))
    except ValueError:
        return None


def _spaced(question: str) -> str:
    """The question with room around each plus, so that "2+40" is two numbers."""
    return question.replace("+", " + ")


def _words_for(tool: str, output: str) -> str:
    if tool == TIME_TOOL:
        return f"It is {output}."
    if tool == SUM_TOOL:
        return f"The sum is {output}."
    if tool.startswith("transfer_to_"):
        return f"This is the {tool.removeprefix('transfer_to_').title()}. What can I do for you?"
    return output if tool.startswith("show_") else f"The tool {tool} answered: {output}"


def _self_description(conversation: _Conversation) -> str:
    return (
        "I am an offline stand-in for a language model: I have no intelligence, I only show that this server works. "
        f"You wrote: “{conversation.last_message}”. "
        f"In this conversation that is your message number {conversation.number_of_messages}. "
        "I can tell the time and add numbers: ask “What time is it?” or “What is 2 + 40?”. "
        "Say “/help” to see what else this chat can show, or “/search words” to look into your other threads. "
        f"{HOW_TO_PLUG_IN_A_MODEL}"
    )


def _message(text: str) -> ResponseOutputMessage:
    part = ResponseOutputText(type="output_text", text=text, annotations=[])
    return ResponseOutputMessage(
        id=_id("msg"), type="message", role="assistant", status="completed", content=[part] if text else []
    )


def _tool_call(name: str, arguments: Mapping[str, Any]) -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(
        id=_id("fc"),
        type="function_call",
        call_id=_id("call"),
        name=name,
        arguments=json.dumps(arguments),
        status="completed",
    )


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def _events(item: _Answer) -> Iterator[TResponseStreamEvent]:
    """The events in which the Responses API streams an answer of one item."""
    response = _response(item)
    number = count()
    yield ResponseCreatedEvent(
        type="response.created",
        response=response.model_copy(update={"output": [], "status": "in_progress"}),
        sequence_number=next(number),
    )
    if isinstance(item, ResponseFunctionToolCall):
        yield from _tool_call_events(item, number)
    else:
        yield from _message_events(item, number)
    yield ResponseOutputItemDoneEvent(
        type="response.output_item.done", item=item, output_index=0, sequence_number=next(number)
    )
    yield ResponseCompletedEvent(type="response.completed", response=response, sequence_number=next(number))


def _response(item: _Answer) -> Response:
    return Response(
        id=_id("resp"),
        created_at=time.time(),
        model="offline",
        object="response",
        output=[item],
        parallel_tool_calls=False,
        status="completed",
        tool_choice="auto",
        tools=[],
    )


def _tool_call_events(call: ResponseFunctionToolCall, number: Iterator[int]) -> Iterator[TResponseStreamEvent]:
    item_id = call.id or ""
    yield ResponseOutputItemAddedEvent(
        type="response.output_item.added",
        item=call.model_copy(update={"arguments": "", "status": "in_progress"}),
        output_index=0,
        sequence_number=next(number),
    )
    yield ResponseFunctionCallArgumentsDeltaEvent(
        type="response.function_call_arguments.delta",
        item_id=item_id,
        delta=call.arguments,
        output_index=0,
        sequence_number=next(number),
    )
    yield ResponseFunctionCallArgumentsDoneEvent(
        type="response.function_call_arguments.done",
        item_id=item_id,
        arguments=call.arguments,
        output_index=0,
        sequence_number=next(number),
    )


def _message_events(message: ResponseOutputMessage, number: Iterator[int]) -> Iterator[TResponseStreamEvent]:
    yield ResponseOutputItemAddedEvent(
        type="response.output_item.added",
        item=message.model_copy(update={"content": [], "status": "in_progress"}),
        output_index=0,
        sequence_number=next(number),
    )
    for index, part in enumerate(message.content):
        if isinstance(part, ResponseOutputText):
            yield from _text_events(part, message.id, index, number)


def _text_events(
    part: ResponseOutputText, item_id: str, index: int, number: Iterator[int]
) -> Iterator[TResponseStreamEvent]:
    yield ResponseContentPartAddedEvent(
        type="response.content_part.added",
        item_id=item_id,
        part=part.model_copy(update={"text": ""}),
        content_index=index,
        output_index=0,
        sequence_number=next(number),
    )
    for token in _TOKEN.findall(part.text):
        yield ResponseTextDeltaEvent(
            type="response.output_text.delta",
            item_id=item_id,
            delta=token,
            logprobs=[],
            content_index=index,
            output_index=0,
            sequence_number=next(number),
        )
    yield ResponseTextDoneEvent(
        type="response.output_text.done",
        item_id=item_id,
        text=part.text,
        logprobs=[],
        content_index=index,
        output_index=0,
        sequence_number=next(number),
    )
    yield ResponseContentPartDoneEvent(
        type="response.content_part.done",
        item_id=item_id,
        part=part,
        content_index=index,
        output_index=0,
        sequence_number=next(number),
    )
