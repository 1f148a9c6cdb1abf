"""What was said in a thread, as a model of any provider can be told."""

from __future__ import annotations

import json

from agents import TResponseInputItem
from chatkit.agents import ThreadItemConverter
from chatkit.store import Store
from chatkit.types import (
    AssistantMessageItem,
    Attachment,
    HiddenContextItem,
    ThreadItem,
    UserMessageTagContent,
)
from openai.types.responses import EasyInputMessageParam, ResponseInputContentParam, ResponseInputTextParam

from server.attachments.for_the_model import AttachmentContents
from server.context import RequestContext

MAX_ITEMS = 100
"""How far back a model is told: a bound on what a long thread costs."""

_PAGE = 50


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
            return self._contents.part_of(attachment)
        return _text_part(f"Attached file: {attachment.name} ({attachment.mime_type})")

    async def hidden_context_to_input(
        self, item: HiddenContextItem
    ) -> TResponseInputItem | list[TResponseInputItem] | None:
        """As the SDK words it, with JSON in place of content that isn't text."""
        if not isinstance(item.content, str):
            item = item.model_copy(update={"content": _json(item.content)})
        return await super().hidden_context_to_input(item)


async def load_history(
    store: Store[RequestContext], thread_id: str, context: RequestContext, *, max_items: int = MAX_ITEMS
) -> list[ThreadItem]:
    """The last items of a thread, oldest first."""
    newest_first: list[ThreadItem] = []
    after: str | None = None
    while len(newest_first) < max_items:
        limit = min(_PAGE, max_items - len(newest_first))
        page = await store.load_thread_items(thread_id, after, limit, "desc", context)
        newest_first += page.data
        after = page.after
        if not page.has_more or after is None:
            break
    return newest_first[::-1]


def _text_part(text: str) -> ResponseInputTextParam:
    return ResponseInputTextParam(type="input_text", text=text)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
