"""What a call gave, as a model may be told: bounded, and a failure as an error that is worded for it."""

from __future__ import annotations

import json
from typing import Any

from agents import UserError
from mcp.types import AudioContent, CallToolResult, ContentBlock, EmbeddedResource, ImageContent, TextContent

MAX_IMAGE_CHARACTERS = 2 * 2**20
"""How large all images of a result may be together, in base64: they aren't read as text, but they are sent."""
_MAX_BLOCKS = 100


class ToolFailedError(UserError):
    """A call that gave nothing. Its message is for the model; the Agents SDK hands that on as it is."""


class Failure(str):
    """What a model is told in place of a result: a text that says of itself that the tool has failed."""

    __slots__ = ()


def as_failure(_context: Any, error: Exception) -> str:
    """A tool's error as the model is told: the error function of tools whose errors are worded for it."""
    return Failure(str(error) if isinstance(error, UserError) else "The tool failed.")


def kind_of(error: BaseException) -> str:
    """What kind of error it is, without its words: of a group the kinds of those in it."""
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(sorted({kind_of(inner) for inner in error.exceptions}))
    return type(error).__name__


def bounded(result: CallToolResult, most: int) -> CallToolResult:
    """A result of at most so many characters of text, and of images that can be sent.

    Raises ToolFailedError for one that says of itself that it is an error.
    """
    blocks = _bounded(result, most)
    if result.is_error:
        said = "\n".join(block.text for block in blocks if isinstance(block, TextContent))
        raise ToolFailedError(said or "The tool failed, and doesn't say why.")
    return CallToolResult(content=blocks)


def _bounded(result: CallToolResult, most: int) -> list[ContentBlock]:
    blocks: list[ContentBlock] = []
    left, left_for_images = most, MAX_IMAGE_CHARACTERS
    for block in result.content[:_MAX_BLOCKS]:
        if isinstance(block, ImageContent) and len(block.data) <= left_for_images:
            left_for_images -= len(block.data)
            blocks.append(ImageContent(type="image", data=block.data, mime_type=block.mime_type))
            continue
        text = _text_of(block)
        blocks.append(TextContent(type="text", text=_cut(text, left)))
        left = max(left - len(text), 0)
    if len(result.content) > _MAX_BLOCKS:
        blocks.append(TextContent(type="text", text=f"[{len(result.content) - _MAX_BLOCKS} more parts are left out]"))
    if not blocks and result.structured_content is not None:
        blocks.append(TextContent(type="text", text=_cut(json.dumps(result.structured_content), most)))
    return blocks or [TextContent(type="text", text="(no output)")]


def _text_of(block: ContentBlock) -> str:
    match block:
        case TextContent():
            return block.text
        case ImageContent() | AudioContent():
            # What no model is sent is at least named.
            return f"[{block.type} of type {block.mime_type[:100]}, left out]"
        case EmbeddedResource(resource=resource) if hasattr(resource, "blob"):
            return f"[file {str(resource.uri)[:500]}, left out]"
        case _:
            return block.model_dump_json(exclude_none=True)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}\n[cut: {len(text) - most} more characters are left out]"
