"""What is said in an item, and by whom: the columns that people search and count by.

kind                                      sender     text
user_message                              user       what was typed, a tag as "@text"
assistant_message                         assistant  its parts, one below the other
client_tool_call                          tool       the tool's name
widget                                    assistant  what it offers for copying
structured_input                          assistant  its questions
task, workflow                            assistant  titles, and thoughts
generated_image, end_of_turn              assistant  nothing
hidden_context_item, sdk_hidden_context   tool       nothing: a search shall not find what its user can't see
"""

from __future__ import annotations

from collections.abc import Iterable

from chatkit.types import (
    AssistantMessageItem,
    ClientToolCallItem,
    CustomSummary,
    HiddenContextItem,
    SDKHiddenContextItem,
    StructuredInputItem,
    Task,
    TaskItem,
    ThoughtTask,
    ThreadItem,
    UserMessageItem,
    UserMessageTagContent,
    WidgetItem,
    Workflow,
    WorkflowItem,
)


def sender_of(item: ThreadItem) -> str:
    """Who the item is from: "user", "assistant" or "tool"."""
    match item:
        case UserMessageItem():
            return "user"
        case ClientToolCallItem() | HiddenContextItem() | SDKHiddenContextItem():
            return "tool"
        case _:
            return "assistant"


def text_of(item: ThreadItem) -> str:
    """The item as plain text."""
    match item:
        case UserMessageItem():
            return "".join(
                f"@{part.text}" if isinstance(part, UserMessageTagContent) else part.text for part in item.content
            )
        case AssistantMessageItem():
            return _lines(part.text for part in item.content)
        case ClientToolCallItem():
            return item.name
        case WidgetItem():
            return item.copy_text or ""
        case StructuredInputItem():
            return _lines(question.question for question in item.inputs)
        case TaskItem():
            return _text_of_task(item.task)
        case WorkflowItem():
            return _text_of_workflow(item.workflow)
        case _:
            return ""


def _text_of_workflow(workflow: Workflow) -> str:
    summary = workflow.summary.title if isinstance(workflow.summary, CustomSummary) else None
    return _lines([summary, *map(_text_of_task, workflow.tasks)])


def _text_of_task(task: Task) -> str:
    return _lines([task.title, task.content if isinstance(task, ThoughtTask) else None])


def _lines(texts: Iterable[str | None]) -> str:
    return "\n".join(text for text in texts if text)
