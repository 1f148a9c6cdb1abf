"""What was said in a thread, as a model of any provider can be told, and as much of it as the model has room for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Protocol, runtime_checkable

from agents import TResponseInputItem
from chatkit.agents import ThreadItemConverter
from chatkit.store import Store
from chatkit.types import (
    AssistantMessageItem,
    Attachment,
    ClientToolCallItem,
    GeneratedImageItem,
    HiddenContextItem,
    Page,
    SDKHiddenContextItem,
    TaskItem,
    ThreadItem,
    UserMessageItem,
    UserMessageTagContent,
    WidgetItem,
    WorkflowItem,
)
from openai.types.responses import EasyInputMessageParam, ResponseInputContentParam, ResponseInputTextParam
from openai.types.responses.response_input_item_param import Message

from server.agent_record import KnownCalls, Remembered
from server.attachments.for_the_model import AttachmentContents
from server.context import RequestContext
from server.token_estimate import tokens_in
from server.widget_text import widget_text

MAX_ITEMS = 1_000
"""How far back a model is told at most, however little was said."""

_PAGE = 40
_RECENT = 20


@runtime_checkable
class KeepsAgentRecord(Protocol):
    """A store that has a place for what an agent did beside the items; the SDK's Store has none."""

    async def load_history(
        self, thread_id: str, after: str | None, limit: int, context: RequestContext
    ) -> Page[Remembered]:
        """A page of a thread's items, newest first, each with what the agent did before it."""


class HistoryConverter(ThreadItemConverter):
    """The SDK's converter with its gaps filled, and assistant messages that Chat Completions accept too.

    contents: what is in attachments; without them the model is told their names.
    """

    def __init__(self, contents: AttachmentContents | None = None) -> None:
        self._contents = contents

    async def assistant_message_to_input(
        self, item: AssistantMessageItem
    ) -> TResponseInputItem | list[TResponseInputItem] | None:
        """A plain string: the SDK's own list of `output_text` parts is refused by Chat Completions models."""
        text = "\n\n".join(part.text for part in item.content if part.text.strip())
        if not text:
            return None
        return EasyInputMessageParam(type="message", role="assistant", content=text)

    async def tag_to_message_content(self, tag: UserMessageTagContent) -> ResponseInputTextParam:
        """The tag's data, beside the name under which the user's text mentions it."""
        return _text_part(f"Tag @{tag.text} (id {tag.id}): {_json(tag.data)}")

    async def attachment_to_message_content(self, attachment: Attachment) -> ResponseInputContentParam:
        """What is in the file, or its name and type."""
        if self._contents is not None:
            return await self._contents.part_of(attachment)
        return _text_part(f"Attached file: {attachment.name} ({attachment.mime_type})")

    async def widget_to_input(self, item: WidgetItem) -> TResponseInputItem | list[TResponseInputItem] | None:
        """What a person reads on it: the whole tree of a widget costs more than it tells."""
        words = item.copy_text or widget_text(item.widget.model_dump(mode="json", exclude_none=True))
        return _told(f"A widget was shown to the user (id {item.id}): {words}")

    async def generated_image_to_input(
        self, item: GeneratedImageItem
    ) -> TResponseInputItem | list[TResponseInputItem] | None:
        """That there is one; a picture that the model made itself isn't sent to it again."""
        return _told("A generated image was shown to the user.") if item.image else None

    async def hidden_context_to_input(
        self, item: HiddenContextItem
    ) -> TResponseInputItem | list[TResponseInputItem] | None:
        """As the SDK words it, with JSON in place of content that isn't text."""
        if not isinstance(item.content, str):
            item = item.model_copy(update={"content": _json(item.content)})
        return await super().hidden_context_to_input(item)

    async def sdk_hidden_context_to_input(
        self, item: SDKHiddenContextItem
    ) -> TResponseInputItem | list[TResponseInputItem] | None:
        """As the SDK words it. One without words only carries what the agent did."""
        return await super().sdk_hidden_context_to_input(item) if item.content else None


async def load_model_input(
    store: Store[RequestContext],
    thread_id: str,
    context: RequestContext,
    converter: ThreadItemConverter,
    max_tokens: int,
) -> tuple[list[ThreadItem], list[TResponseInputItem]]:
    """What a model is told of a thread: the newest items that fit into so many tokens, oldest first.

    An item and the calls that led to it are told together or not at all. The newest item is always told. Returns the
    last few items as well, also those that don't fit.
    """
    recent: list[ThreadItem] = []
    told: list[list[TResponseInputItem]] = []
    room = max_tokens
    known = KnownCalls()
    async for remembered in _newest_first(store, thread_id, context):
        if room >= 0:
            inputs = await _inputs_of(remembered, converter, known, is_newest=not recent)
            room -= tokens_in(inputs)
            if room >= 0 or not recent:
                told.append(inputs)
        if room < 0 and len(recent) >= _RECENT:
            break
        recent.append(remembered.item)
    return recent[:_RECENT][::-1], [item for inputs in reversed(told) for item in inputs]


async def last_message(store: Store[RequestContext], thread_id: str, context: RequestContext) -> UserMessageItem | None:
    """The user's last message on a thread."""
    async for remembered in _newest_first(store, thread_id, context):
        if isinstance(remembered.item, UserMessageItem):
            return remembered.item
    return None


async def _inputs_of(
    remembered: Remembered, converter: ThreadItemConverter, known: KnownCalls, *, is_newest: bool
) -> list[TResponseInputItem]:
    item = remembered.item
    if isinstance(item, ClientToolCallItem):
        known.add_client_tool(item.call_id)
    inputs = list(known.inputs(remembered.record))
    if inputs and isinstance(item, (WorkflowItem, TaskItem)):
        return inputs  # it shows the same calls to a person
    shown = await converter._thread_item_to_input_item(item, is_last_message=is_newest)  # noqa: SLF001 # its only public way takes a list whose last is the newest
    return [*inputs, *shown]


async def _newest_first(
    store: Store[RequestContext], thread_id: str, context: RequestContext
) -> AsyncIterator[Remembered]:
    """The items of a thread, page by page, as far as anybody asks."""
    after: str | None = None
    left = MAX_ITEMS
    while left > 0:
        page = await _load_page(store, thread_id, after, min(_PAGE, left), context)
        for remembered in page.data:
            yield remembered
        left -= len(page.data)
        after = page.after
        if not page.has_more or after is None:
            break


async def _load_page(
    store: Store[RequestContext], thread_id: str, after: str | None, limit: int, context: RequestContext
) -> Page[Remembered]:
    if isinstance(store, KeepsAgentRecord):
        return await store.load_history(thread_id, after, limit, context)
    page = await store.load_thread_items(thread_id, after, limit, "desc", context)
    return Page(data=[Remembered(item, []) for item in page.data], has_more=page.has_more, after=page.after)


def _told(text: str) -> TResponseInputItem:
    return Message(type="message", role="user", content=[_text_part(f"{_ASIDE}{text}")])


_ASIDE = "For the assistant, not said by the user: "


def _text_part(text: str) -> ResponseInputTextParam:
    return ResponseInputTextParam(type="input_text", text=text)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
