"""An agent's run as ChatKit's events, with what the SDK's own streaming gets wrong put right.

Two things: items get ids of their own with every model, and an answer that is left unfinished stops the model and
leaves no task behind. Only public names of the two SDKs are used.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any, cast

from agents import RunResultStreaming, StreamEvent
from agents.models.fake_id import FAKE_RESPONSES_ID
from chatkit.agents import AgentContext, ResponseStreamConverter, stream_agent_response
from chatkit.store import StoreItemType
from chatkit.types import (
    AssistantMessageContentPartTextDelta,
    ProgressUpdateEvent,
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemRemovedEvent,
    ThreadItemUpdatedEvent,
    ThreadStreamEvent,
)

from server.attachments.for_the_model import text_length
from server.context import RequestContext

logger = logging.getLogger(__name__)

_PLACEHOLDERS = frozenset({FAKE_RESPONSES_ID, ""})
"""What stands in for an id where the model's interface knows none."""

_CHARACTERS_OF_A_TOKEN = 4
_PATIENCE_SECONDS = 2.0
"""How long a cancelled run may take to stop: beyond that it is a tool that won't be cancelled."""


async def stream_answer(
    agent_context: AgentContext[Any],
    result: RunResultStreaming,
    converter: ResponseStreamConverter | None = None,
) -> AsyncGenerator[ThreadStreamEvent, None]:
    """Stream a run, as chatkit.agents.stream_agent_response does.

    However it ends, the run has ended with it: when the consumer's task is cancelled, when the generator is closed,
    and when the run fails.
    """
    ids = _ItemIds(agent_context)
    run = _OwnedRun(result)
    # A run that is no RunResultStreaming, but all that the function uses of one.
    sdk_events = cast(
        "AsyncGenerator[ThreadStreamEvent, None]",
        stream_agent_response(
            agent_context, cast("RunResultStreaming", run), converter=converter or ResponseStreamConverter()
        ),
    )
    finished = False
    streamed = 0
    try:
        async for event in sdk_events:
            streamed += _length_of(event)
            for repaired in ids.repair(event):
                yield repaired
        finished = True
    finally:
        if not finished:
            await _abandon(run, sdk_events, agent_context)
        _count_tokens(result, agent_context, streamed, finished=finished)


def _count_tokens(
    result: RunResultStreaming, agent_context: AgentContext[Any], streamed: int, *, finished: bool
) -> None:
    """Tell the request's context how many tokens the run took.

    A model says so at the end of its answer. Where it was stopped before, or doesn't say, they are estimated, so that
    whoever stops each answer doesn't get them for nothing.

    streamed: how many characters it said.
    """
    request_context = agent_context.request_context
    if not isinstance(request_context, RequestContext):
        return
    known = result.context_wrapper.usage.total_tokens
    estimated = 0 if finished and known else (text_length(result.input) + streamed) // _CHARACTERS_OF_A_TOKEN
    request_context.tokens_used += known + estimated


async def _abandon(
    run: _OwnedRun, sdk_events: AsyncGenerator[ThreadStreamEvent, None], agent_context: AgentContext[Any]
) -> None:
    """End everything that the SDK has started for the answer."""
    run.cancel()
    # The SDK leaves a task waiting for the next event of the context. It gets one: that ends it, and a task whose
    # result nobody fetches ends without a word, unlike one that ends with an exception.
    await agent_context.stream(ProgressUpdateEvent(text=""))
    await run.wait_closed()
    await sdk_events.aclose()


class _OwnedRun:
    """Stands in for a run in the SDK's hands, so that the tasks which wait for the run's events are made here.

    The SDK makes one task for each event and forgets the last one when the answer is cancelled, closed or fails.
    """

    def __init__(self, result: RunResultStreaming) -> None:
        self._result = result
        self._events = cast("AsyncGenerator[StreamEvent, None]", result.stream_events())
        self._waiting: asyncio.Task[StreamEvent] | None = None

    def stream_events(self) -> _OwnedRun:
        return self

    def __aiter__(self) -> _OwnedRun:
        return self

    def __anext__(self) -> asyncio.Task[StreamEvent]:
        # A task already: asyncio.ensure_future(), which the SDK calls on it, then makes none of its own.
        self._waiting = asyncio.create_task(self._next())
        self._waiting.add_done_callback(_fetch_exception)
        return self._waiting

    async def _next(self) -> StreamEvent:
        return await anext(self._events)

    def cancel(self) -> None:
        """Stop the model and the tools, which also ends the wait for their next event. Returns at once."""
        self._result.cancel()

    async def wait_closed(self) -> None:
        """Wait until a cancelled run has stopped."""
        tasks = {task for task in (self._waiting, self._result.run_loop_task) if task is not None}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_PATIENCE_SECONDS)
            if late:
                logger.warning("A cancelled answer is still running after %s s", _PATIENCE_SECONDS)
                return
        await self._events.aclose()


def _length_of(event: ThreadStreamEvent) -> int:
    update = event.update if isinstance(event, ThreadItemUpdatedEvent) else None
    return len(update.delta) if isinstance(update, AssistantMessageContentPartTextDelta) else 0


def _fetch_exception(task: asyncio.Task[StreamEvent]) -> None:
    """Look at how the task ended, since the SDK may not: asyncio reports a failure that nobody has looked at."""
    if not task.cancelled():
        task.exception()


class _ItemIds:
    """Gives ids of the store to items whose model gives them none.

    Chat Completions knows no items, so the Agents SDK calls each of them "__fake_id__"; stored under that name, an
    answer would replace the one before.
    """

    def __init__(self, agent_context: AgentContext[Any]) -> None:
        self._context = agent_context
        self._open: dict[str, str] = {}
        self._given: list[str] = []

    def repair(self, event: ThreadStreamEvent) -> list[ThreadStreamEvent]:
        """The events to send in place of an event."""
        match event:
            case ThreadItemAddedEvent(item=item) if item.id in _PLACEHOLDERS:
                self._open[item.type] = item_id = self._new_id(item.type)
                return [event.model_copy(update={"item": item.model_copy(update={"id": item_id})})]
            case ThreadItemUpdatedEvent(item_id=item_id) if item_id in _PLACEHOLDERS:
                # Only messages are updated under a model's id. Without an open one, there is nothing to update.
                open_id = self._open.get("assistant_message")
                return [event.model_copy(update={"item_id": open_id})] if open_id else []
            case ThreadItemDoneEvent(item=item) if item.id in _PLACEHOLDERS:
                item_id = self._open.pop(item.type, "") or self._new_id(item.type)
                return [event.model_copy(update={"item": item.model_copy(update={"id": item_id})})]
            case ThreadItemRemovedEvent(item_id=item_id) if item_id in _PLACEHOLDERS:
                # The SDK removes all that the run has produced, and takes what has the same id for the same item.
                return [ThreadItemRemovedEvent(item_id=given) for given in self._given]
            case _:
                return [event]

    def _new_id(self, item_type: str) -> str:
        kind: StoreItemType = "tool_call" if item_type == "client_tool_call" else "message"
        self._given.append(self._context.generate_id(kind))
        return self._given[-1]
