"""Text that can't be written as UTF-8, made whole: emoji that a stream cut in two, and halves that are alone."""

from __future__ import annotations

from typing import Any


def whole(value: Any) -> Any:
    """Parsed JSON without lone surrogates: two that belong together become their character, others U+FFFD."""
    match value:
        case str():
            return _whole_text(value)
        case list() | tuple():
            return [whole(element) for element in value]
        case dict():
            return {whole(key): whole(element) for key, element in value.items()}
        case _:
            return value


def _whole_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        # UTF-16 writes such an emoji as two surrogates, too: read back, they are one character.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
