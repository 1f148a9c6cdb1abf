"""What a model is told of attachments: pictures, PDFs and text as such, a sentence for whatever it can't take.

Of a thread's attachments the newest come first, until ATTACHMENT_BYTES_FOR_MODEL are reached. What is kept elsewhere is
told by its name.
"""

from __future__ import annotations

import base64
import codecs
from collections.abc import Mapping
from contextlib import aclosing
from typing import Literal

from chatkit.types import Attachment, NoticeEvent, UserMessageItem
from chatkit_grpc.errors import ConflictError, NotFoundError, UnavailableError
from openai.types.responses import ResponseInputContentParam, ResponseInputTextParam

from server.attachments import refusals
from server.attachments.attachments import Attachments
from server.attachments.file_types import PICTURES, is_text
from server.attachments.settings import AttachmentSettings
from server.context import RequestContext

Kind = Literal["image", "pdf", "text"]

TAKEN_BY: Mapping[str, frozenset[str]] = {
    "responses": frozenset({"image", "pdf", "text"}),
    # Files are OpenAI's own extension of it: others refuse the whole request.
    "chat_completions": frozenset({"image", "text"}),
    "offline": frozenset({"text"}),
}
"""What a model takes, by the interface that it is spoken to, where ATTACHMENTS_FOR_MODEL doesn't say."""

TEXT_ONLY = frozenset({"mimo-v2-flash"})
"""Models that we know to refuse a request with a picture in it, by their names."""

_MOST_CHARACTERS = 60_000
"""Of all texts together: some 15,000 tokens, which leaves most models room for what is said."""


class AttachmentContents:
    """The attachments of one conversation as parts of its messages, each read once, in the order they are asked for.

    attachments: what keeps their bytes; None where they are kept elsewhere. takes: what the model takes.
    """

    def __init__(
        self, attachments: Attachments | None, takes: frozenset[str], most_bytes: int, context: RequestContext
    ) -> None:
        self._attachments = attachments
        self._takes = takes
        self._left = most_bytes
        self._characters_left = _MOST_CHARACTERS
        self._context = context
        self._parts: dict[str, ResponseInputContentParam] = {}
        self._refused: dict[str, str] = {}

    async def part_of(self, attachment: Attachment) -> ResponseInputContentParam:
        """An attachment as the model is told of it."""
        if attachment.id not in self._parts:
            self._parts[attachment.id] = await self._part(attachment)
        return self._parts[attachment.id]

    def notices(self, message: UserMessageItem | None) -> list[NoticeEvent]:
        """What its user is told of the attachments of a message that the model can't see."""
        attachments = message.attachments if message else []
        return [
            NoticeEvent(level="warning", message=f"{attachment.name}: {self._refused[attachment.id]}")
            for attachment in attachments
            if attachment.id in self._refused
        ]

    async def _part(self, attachment: Attachment) -> ResponseInputContentParam:
        if self._attachments is None:
            return _text(_named(attachment))
        kind = _kind_of(attachment.mime_type)
        if kind is None or kind not in self._takes:
            return self._refuse(attachment, f"The model can't read files of the type {attachment.mime_type}.")
        try:
            content = await self._read(attachment.id)
        except (NotFoundError, ConflictError):
            return self._refuse(attachment, "The file is not there any more.")
        except UnavailableError:
            return self._refuse(attachment, "The file can't be read now.")
        if content is None:
            return self._refuse(attachment, "The file is too large for the model, which was told its name only.")
        if kind == "text":
            return self._text_of(attachment, _decoded(content))
        return _content_part(attachment, kind, content)

    def _text_of(self, attachment: Attachment, text: str) -> ResponseInputTextParam:
        """A text, or the beginning of it that there is room for."""
        shown = text[: self._characters_left]
        self._characters_left -= len(shown)
        if len(shown) == len(text):
            return _text(f"{_named(attachment)}. Its text:\n\n{text}")
        cut = f"Of its {len(text):,} characters the model sees the first {len(shown):,}."
        self._refused[attachment.id] = cut
        return _text(f"{_named(attachment)}. {cut} Its text:\n\n{shown}")

    def _refuse(self, attachment: Attachment, why: str) -> ResponseInputTextParam:
        self._refused[attachment.id] = why
        return _text(f"{_named(attachment)}. You can't see what is in it: {why} Tell the user so if it matters.")

    async def _read(self, attachment_id: str) -> bytes | None:
        """The bytes. None where they are more than is left."""
        assert self._attachments is not None  # noqa: S101 # asked by the only caller
        download = await self._attachments.download(attachment_id, self._context)
        async with aclosing(download.pieces) as pieces:
            if download.size > self._left:
                return None
            content = b"".join([piece async for piece in pieces])
        if len(content) != download.size:
            raise refusals.not_uploaded(attachment_id)  # deleted meanwhile, or exchanged
        self._left -= download.size
        return content


def contents_for(
    attachment_store: object, kind: str, model: str, settings: AttachmentSettings, context: RequestContext
) -> AttachmentContents:
    """The contents for a model.

    kind: the interface that it is spoken to: "responses", "chat_completions" or "offline". model: its name.
    """
    attachments = attachment_store if isinstance(attachment_store, Attachments) else None
    takes = frozenset({"text"}) if model in TEXT_ONLY else TAKEN_BY.get(kind, frozenset({"text"}))
    takes = frozenset(settings.attachments_for_model) or takes
    return AttachmentContents(attachments, takes, settings.attachment_bytes_for_model, context)


def _kind_of(mime_type: str) -> Kind | None:
    if mime_type in PICTURES:
        return "image"
    if mime_type == "application/pdf":
        return "pdf"
    return "text" if is_text(mime_type) else None


def _content_part(attachment: Attachment, kind: Kind, content: bytes) -> ResponseInputContentParam:
    data = f"data:{attachment.mime_type};base64,{base64.b64encode(content).decode()}"
    if kind == "image":
        return {"type": "input_image", "image_url": data, "detail": "auto"}
    return {"type": "input_file", "filename": attachment.name, "file_data": data}


def _decoded(content: bytes) -> str:
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf_16 else "utf-8-sig", errors="replace")


def _named(attachment: Attachment) -> str:
    return f"Attached file: {attachment.name} ({attachment.mime_type})"


def _text(text: str) -> ResponseInputTextParam:
    return ResponseInputTextParam(type="input_text", text=text)
