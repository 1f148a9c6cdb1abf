"""What a model is told again without its files, where its provider refuses them: a damaged PDF would end a thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import openai

_INSTEAD = "(Here was {what}, which you can't be shown: your server refused it. Tell the user so if it matters.)"
_FILES = frozenset({"input_image", "input_file"})
_STATUSES = frozenset({400, 413, 415, 422})


def refuses_input(error: BaseException | None) -> bool:
    """Whether a provider's error may be about what it was sent."""
    return isinstance(error, openai.APIStatusError) and error.status_code in _STATUSES


def without_files(told: Any) -> Any:
    """The input of a model with a sentence in the place of each picture and file. The very same where there is none."""
    if not isinstance(told, list):
        return told
    changed = [_without_files(item) for item in told]
    return changed if any(new is not old for new, old in zip(changed, told, strict=True)) else told


def _without_files(item: Any) -> Any:
    content = item.get("content") if isinstance(item, Mapping) else None
    if not isinstance(content, list) or not any(part.get("type") in _FILES for part in content):
        return item
    return {**item, "content": [_told(part) for part in content]}


def _told(part: Mapping[str, Any]) -> Mapping[str, Any]:
    if part.get("type") not in _FILES:
        return part
    what = "a picture" if part["type"] == "input_image" else f"the file {part.get('filename', '')}"
    return {"type": "input_text", "text": _INSTEAD.format(what=what)}
