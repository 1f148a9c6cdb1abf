"""Tools as the page shows them while they run: tasks of a workflow, "loading" until they are done.

The SDK's own helpers take what is already on its way for what has been told: a task is changed in the very object that
an earlier event still carries, two tasks that look alike are taken for one, and a workflow may be ended before its last
change is out. So each step here waits until the one before has been told.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agents import (
    Agent,
    InputGuardrailTripwireTriggered,
    ModelResponse,
    OutputGuardrailTripwireTriggered,
    RunContextWrapper,
    StreamEvent,
    Tool,
)
from agents.tool_context import ToolContext
from chatkit.agents import AgentContext
from chatkit.types import (
    CustomTask,
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemReplacedEvent,
    ThreadItemUpdatedEvent,
    ThreadStreamEvent,
    Workflow,
    WorkflowItem,
    WorkflowTaskAdded,
    WorkflowTaskUpdated,
)

from server.hand_over import HandOvers
from server.mcp_servers.results import Failure

FAILED = "This did not work."
STOPPED = "This was stopped."

_ICON = "bolt"
_PATIENCE_SECONDS = 1.0
"""How long a tool waits to be shown: one that isn't shown works all the same."""
_MCP_NAME = re.compile(r"mcp_(?P<server>.+?)__(?P<tool>.+)")

_TRIPWIRES = (InputGuardrailTripwireTriggered, OutputGuardrailTripwireTriggered)


@dataclass(slots=True)
class _Shown:
    """Where a running tool is shown."""

    item: WorkflowItem
    index: int
    title: str


class ToolTasks(HandOvers):
    """Shows the tools of one answer, and hand-overs: hooks for its run, and a filter for the events that come of it."""

    def __init__(self, context: AgentContext[Any]) -> None:
        self._context = context
        self._running: dict[str, _Shown] = {}
        self._one_at_a_time = asyncio.Lock()
        self._on_its_way: tuple[ThreadStreamEvent, asyncio.Event] | None = None
        self._turns_ended = self._turns_told = 0
        self._turn_is_told = asyncio.Event()

    def take_run_event(self, event: StreamEvent) -> None:
        """Look at an event of the run as it is taken from it: at the end of a turn all that it said has been told."""
        if event.type == "raw_response_event" and event.data.type == "response.completed":
            self._turns_told += 1
            if self._turns_told >= self._turns_ended:
                self._turn_is_told.set()

    async def show(self, events: AsyncGenerator[ThreadStreamEvent, None]) -> AsyncGenerator[ThreadStreamEvent, None]:
        """The events of the answer. Where it is stopped or fails, the tools that were running are shown as ended."""
        try:
            async with aclosing(events):
                async for event in events:
                    yield event
                    if self._on_its_way is not None and self._on_its_way[0] is event:
                        self._on_its_way[1].set()
        except _TRIPWIRES:
            raise  # the SDK has taken back all that was shown
        except (asyncio.CancelledError, Exception) as error:
            for ended in self._ended(STOPPED if isinstance(error, asyncio.CancelledError) else FAILED):
                yield ended
            raise

    async def on_llm_end(
        self,
        context: RunContextWrapper[AgentContext[Any]],
        agent: Agent[AgentContext[Any]],
        response: ModelResponse,
    ) -> None:
        """A turn of the model has ended; of what it said some may still be on its way."""
        self._turns_ended += 1
        if self._turns_told < self._turns_ended:
            self._turn_is_told.clear()

    async def on_tool_start(
        self, context: RunContextWrapper[AgentContext[Any]], agent: Agent[AgentContext[Any]], tool: Tool
    ) -> None:
        """Show that a tool begins."""
        if not isinstance(context, ToolContext):
            return
        with suppress(TimeoutError):
            # What the model said before it is told before.
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._turn_is_told.wait()
        async with self._one_at_a_time:
            task = CustomTask(title=title_of(tool.name), icon=_ICON, status_indicator="loading")
            item = self._context.workflow_item or self._new_workflow()
            item.workflow.tasks.append(task)
            index = len(item.workflow.tasks) - 1
            self._running[context.tool_call_id] = _Shown(item, index, task.title or "")
            if self._context.workflow_item is None:
                self._context.workflow_item = item
                await self._tell(ThreadItemAddedEvent(item=item))
            else:
                update = WorkflowTaskAdded(task=task, task_index=index)
                await self._tell(ThreadItemUpdatedEvent(item_id=item.id, update=update))

    async def on_tool_end(
        self, context: RunContextWrapper[AgentContext[Any]], agent: Agent[AgentContext[Any]], tool: Tool, result: object
    ) -> None:
        """Show that a tool has ended, and whether it failed."""
        shown = self._running.pop(context.tool_call_id, None) if isinstance(context, ToolContext) else None
        if shown is None:
            return
        async with self._one_at_a_time:
            task = _ended_task(shown, FAILED if isinstance(result, Failure) else None)
            shown.item.workflow.tasks[shown.index] = task
            if self._context.workflow_item is not None and self._context.workflow_item.id == shown.item.id:
                update = WorkflowTaskUpdated(task=task, task_index=shown.index)
                await self._tell(ThreadItemUpdatedEvent(item_id=shown.item.id, update=update))
            else:  # something else was shown meanwhile, which ended the workflow
                await self._tell(ThreadItemReplacedEvent(item=shown.item))

    def _new_workflow(self) -> WorkflowItem:
        return WorkflowItem(
            id=self._context.generate_id("workflow"),
            created_at=datetime.now(),  # noqa: DTZ005 # as the SDK means it: naive and local
            workflow=Workflow(type="custom", tasks=[]),
            thread_id=self._context.thread.id,
        )

    async def _tell(self, event: ThreadStreamEvent) -> None:
        """Send an event, and wait until it has been taken."""
        told = asyncio.Event()
        self._on_its_way = event, told
        await self._context.stream(event)
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await told.wait()
        self._on_its_way = None

    def _ended(self, why: str) -> list[ThreadStreamEvent]:
        """The workflows that are shown, with all that was running as ended."""
        items: dict[str, WorkflowItem] = {}
        for shown in self._running.values():
            shown.item.workflow.tasks[shown.index] = _ended_task(shown, why)
            items[shown.item.id] = shown.item
        self._running.clear()
        item, self._context.workflow_item = self._context.workflow_item, None
        events: list[ThreadStreamEvent] = [
            # Something else was shown meanwhile, which ended it.
            ThreadItemReplacedEvent(item=ended)
            for ended in items.values()
            if item is None or ended.id != item.id
        ]
        if item is not None and any(isinstance(task, CustomTask) for task in item.workflow.tasks):
            events.append(ThreadItemDoneEvent(item=item))
        return events


def _ended_task(shown: _Shown, content: str | None) -> CustomTask:
    return CustomTask(title=shown.title, icon=_ICON, content=content, status_indicator="complete")


def title_of(tool: str) -> str:
    """A tool's name for people. Samples: "add_numbers": "Add numbers"; "mcp_files__read_file": "files: read file"."""
    if (found := _MCP_NAME.fullmatch(tool)) is not None:
        return f"{found['server']}: {found['tool'].replace('_', ' ')}"
    words = tool.replace("_", " ").strip()
    return words[:1].upper() + words[1:]
