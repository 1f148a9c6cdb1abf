"""A widget in words, for a model: what a person reads on it, and not how it is laid out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_READ = ("title", "label", "value", "placeholder", "alt", "name")
"""The members of components that hold words, in the order in which they are read."""
_LONGEST = 600


def widget_text(widget: Mapping[str, Any]) -> str:
    """What is to be read on a widget, from top to bottom, with commas between.

    widget: its JSON. Sample of what is returned: "Flight to Oslo, Departs 9:40, Book".
    """
    words = dict.fromkeys(text for text in _words(widget) if text)
    text = ", ".join(words)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for member in _READ:
            if isinstance(text := value.get(member), str):
                yield " ".join(text.split())
        for member, inner in value.items():
            if isinstance(inner, (Mapping, list)) and member != "payload":
                yield from _words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _words(inner)
