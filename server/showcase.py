"""Tools that show what a ChatKit page can do, one each, for people who try this out and for tests of pages.

With the offline model, a message such as "/form" calls the tool `show_form`; "/help" lists them all. What happens where
somebody clicks in a widget stands in showcase_actions.py.
"""

from __future__ import annotations

import asyncio
import base64
from datetime import datetime
from typing import Any

from agents import FunctionTool, RunContextWrapper, function_tool
from chatkit.agents import AgentContext, ClientToolCall
from chatkit.types import (
    Annotation,
    AssistantMessageContent,
    AssistantMessageItem,
    ClientEffectEvent,
    ClosedStatus,
    CustomSummary,
    CustomTask,
    EntitySource,
    FileSource,
    FileTask,
    GeneratedImage,
    GeneratedImageItem,
    GeneratedImageUpdated,
    ImageTask,
    LockedStatus,
    NoticeEvent,
    ProgressUpdateEvent,
    SearchTask,
    Source,
    StructuredInputFreeform,
    StructuredInputItem,
    StructuredInputMultipleChoice,
    StructuredInputMultipleChoiceOption,
    ThoughtTask,
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemUpdatedEvent,
    URLSource,
    Workflow,
)

from server.context import RequestContext
from server.model_failures import ModelFailureError
from server.showcase_widgets import chart, counter, form, gallery, unlock

Run = RunContextWrapper[AgentContext[RequestContext]]

_PACE_SECONDS = 0.05
"""Between two things that a person should see one after the other."""


@function_tool
async def show_widget(run: Run) -> str:
    """Shows a card with buttons that do something."""
    await run.context.stream_widget(counter(0))
    return "Here is a card. Its first button streams an answer, its second one changes the card alone."


@function_tool
async def show_widget_form(run: Run) -> str:
    """Shows a card with a form of every kind of input."""
    await run.context.stream_widget(form())
    return "Fill in the form and send it."


@function_tool
async def show_gallery(run: Run) -> str:
    """Shows a list with many kinds of components."""
    await run.context.stream_widget(gallery(), copy_text="Components: text, badges, icons, images")
    return "These are the components of widgets."


@function_tool
async def show_chart(run: Run) -> str:
    """Shows a chart."""
    await run.context.stream_widget(chart())
    return "This chart shows numbers that mean nothing."


@function_tool
async def show_form(run: Run) -> str:
    """Asks structured questions."""
    options = [StructuredInputMultipleChoiceOption(value=value) for value in ("Red", "Green", "Blue")]
    item = StructuredInputItem(
        **_base(run),
        inputs=[
            StructuredInputMultipleChoice(
                id="colour", question="Which colours do you like?", options=options, multiple=True
            ),
            StructuredInputFreeform(id="why", question="Why?", description="A word or two will do."),
        ],
    )
    await run.context.stream(ThreadItemDoneEvent(item=item))
    return "The questions were asked."


@function_tool
def show_client_tool(run: Run) -> str:
    """Calls a tool in the page."""
    run.context.client_tool_call = ClientToolCall(name="get_page_title", arguments={"why": "to show that it works"})
    return "The page was asked."


@function_tool
async def show_effect(run: Run) -> str:
    """Makes the page do something."""
    await run.context.stream(ClientEffectEvent(name="confetti", data={"seconds": 2}))
    return "The page was told to throw confetti; whether it does is its own affair."


@function_tool
async def show_progress(run: Run) -> str:
    """Tells how far a long job is."""
    for step in range(1, 4):
        await run.context.stream(ProgressUpdateEvent(icon="bolt", text=f"Step {step} of 3 …"))
        await asyncio.sleep(_PACE_SECONDS)
    return "The job is done."


@function_tool
async def show_notice(run: Run) -> str:
    """Shows a notice of each kind."""
    for level in ("info", "warning", "danger"):
        await run.context.stream(
            NoticeEvent(level=level, title=level.title(), message=f"This is what **{level}** looks like.")
        )
    return "Those were three notices."


@function_tool
async def show_sources(run: Run) -> str:
    """Says something with sources."""
    text = "PostgreSQL grew out of a project at Berkeley; its manual tells the story."
    sources: list[Source] = [
        URLSource(title="A brief history of PostgreSQL", url="https://www.postgresql.org/docs/current/history.html"),
        FileSource(title="Notes", filename="notes.txt"),
        EntitySource(title="Berkeley", id="berkeley", icon="map-pin", data={"country": "US"}),
    ]
    annotations = [Annotation(source=source, index=at) for source, at in zip(sources, (46, len(text), 46), strict=True)]
    content = AssistantMessageContent(text=text, annotations=annotations)
    await run.context.stream(ThreadItemDoneEvent(item=AssistantMessageItem(**_base(run), content=[content])))
    return "The message above has three sources: a page, a file and a place."


@function_tool
async def show_image(run: Run) -> str:
    """Generates a picture, which gets sharper."""
    item = GeneratedImageItem(**_base(run))
    await run.context.stream(ThreadItemAddedEvent(item=item))
    for step in range(1, 4):
        item.image = GeneratedImage(id=f"{item.id}_image", url=_picture(step))
        update = GeneratedImageUpdated(image=item.image, progress=step / 3)
        await run.context.stream(ThreadItemUpdatedEvent(item_id=item.id, update=update))
        await asyncio.sleep(_PACE_SECONDS)
    await run.context.stream(ThreadItemDoneEvent(item=item))
    return "That was drawn without any intelligence."


@function_tool
async def show_workflow(run: Run) -> str:
    """Shows the steps of a job, a kind each."""
    page = URLSource(title="PostgreSQL", url="https://www.postgresql.org/")
    context = run.context
    await context.start_workflow(Workflow(type="custom", tasks=[]))
    for task in (
        ThoughtTask(title="Thinking", content="Somebody wants to see a workflow."),
        SearchTask(title="Searching", title_query="workflows", queries=["workflows"], sources=[page]),
        FileTask(title="Reading", sources=[FileSource(title="Notes", filename="notes.txt")]),
        ImageTask(title="Looking at a picture"),
        CustomTask(title="Writing", icon="write", content="A sentence."),
    ):
        await context.add_workflow_task(task.model_copy(update={"status_indicator": "loading"}))
        await asyncio.sleep(_PACE_SECONDS)
        at = len(context.workflow_item.workflow.tasks) - 1 if context.workflow_item else 0
        await context.update_workflow_task(task.model_copy(update={"status_indicator": "complete"}), at)
    await context.end_workflow(CustomSummary(title="Did five things", icon="check"), expanded=True)
    return "Those were the five kinds of steps."


@function_tool
async def show_lock(run: Run) -> str:
    """Locks the thread until somebody unlocks it."""
    await run.context.stream_widget(unlock())
    run.context.thread.status = LockedStatus(reason="You asked for it: press Unlock to go on.")
    return "The thread is locked now."


@function_tool
def show_close(run: Run) -> str:
    """Closes the thread for good."""
    run.context.thread.status = ClosedStatus(reason="This conversation is over.")
    return "The thread is closed now."


@function_tool(failure_error_function=None)
def show_error() -> str:
    """Fails, with a Retry button."""
    raise ModelFailureError("This is what a failure looks like. Nothing is wrong.")


@function_tool
def show_markdown() -> str:
    """Says something in all of Markdown."""
    return (
        "# A heading\n\nSome **bold** and *italic* words, `code`, and a [link](https://www.postgresql.org/).\n\n"
        "1. one\n2. two\n   - a\n   - b\n\n> A quotation\n\n```python\nprint('code')\n```\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n"
    )


@function_tool
def show_help() -> str:
    """Lists what can be shown."""
    lines = [f"* `/{tool.name.removeprefix('show_')}`: {tool.description}" for tool in SHOWCASE_TOOLS]
    return "\n".join(["This chat can show:", *lines])


SHOWCASE_TOOLS: list[FunctionTool] = [
    show_help,
    show_widget,
    show_widget_form,
    show_gallery,
    show_chart,
    show_form,
    show_client_tool,
    show_effect,
    show_progress,
    show_notice,
    show_sources,
    show_image,
    show_workflow,
    show_lock,
    show_close,
    show_error,
    show_markdown,
]
STOPPING_TOOLS = ["show_form", "show_client_tool"]
"""Those after which the user, or the page, has the next word."""


def _base(run: Run) -> dict[str, Any]:
    """What every item has."""
    context = run.context
    # As the SDK means it: naive and local.
    return {"id": context.generate_id("message"), "thread_id": context.thread.id, "created_at": datetime.now()}  # noqa: DTZ005


def _picture(step: int) -> str:
    circles = "".join(
        f'<circle cx="{32 + 12 * at}" cy="{48 - 8 * at}" r="{14 - 3 * at}" fill="hsl({40 * at},70%,60%)"/>'
        for at in range(step)
    )
    paper = '<rect width="96" height="96" fill="#eef"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="96" height="96">{paper}{circles}</svg>'
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
