"""About how many tokens a model takes for something, where nobody who knows can be asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_BYTES_OF_A_TOKEN = 4
"""Of UTF-8. Models take a word of English for one token and a third, and most Chinese characters for one each."""
_TOKENS_OF_A_PICTURE = 1_000
_TOKENS_OF_A_FILE = 3_000
_TOKENS_OF_AN_ITEM = 4
"""What says who speaks."""


def tokens_in_bytes(number: int) -> int:
    """About how many tokens so many bytes of UTF-8 are."""
    return number // _BYTES_OF_A_TOKEN


def tokens_in(items: Iterable[Any]) -> int:
    """About how many tokens some input items of the Agents SDK are; of pictures and files, whatever their size."""
    return sum(_TOKENS_OF_AN_ITEM + _tokens_of(item) for item in items)


def _tokens_of(value: Any) -> int:
    match value:
        case str():
            return tokens_in_bytes(len(value.encode(errors="replace")))
        case {"type": "input_image"}:
            return _TOKENS_OF_A_PICTURE
        case {"type": "input_file"}:
            return _TOKENS_OF_A_FILE
        case Mapping():
            return sum(_tokens_of(member) for name, member in value.items() if name not in {"type", "role", "id"})
        case list() | tuple():
            return sum(map(_tokens_of, value))
        case _:
            return 0
