"""What keeps a thing in memory that should be gone: who refers to it, who refers to that, and so on."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import FrameType, ModuleType
from typing import Any

_DEPTH = 10
_BREADTH = 8
_LENGTH = 160


def holders_of(things: list[Any]) -> Iterator[str]:
    """A line for each referrer, indented by how far it is. Sample: "  Worker._work_for_ever:41 -> Run"."""
    seen = {id(things), *map(id, things)}
    level = things
    for depth in range(_DEPTH):
        found: list[Any] = []
        seen |= {id(found), id(level)}
        for thing in level:
            for referrer in gc.get_referrers(thing):
                if id(referrer) in seen or isinstance(referrer, ModuleType) or _is_ours(referrer):
                    continue
                seen.add(id(referrer))
                found.append(referrer)
                yield f"{'  ' * depth}{_name_of(referrer)} -> {type(thing).__qualname__}"
        level = found[:_BREADTH]


def _is_ours(referrer: object) -> bool:
    return isinstance(referrer, FrameType) and referrer.f_code.co_filename == __file__


def _name_of(thing: Any) -> str:
    if isinstance(thing, FrameType):
        return f"{thing.f_code.co_qualname}:{thing.f_lineno}"
    if isinstance(thing, dict | list | tuple | set):
        parts = sorted({type(part).__qualname__ for part in thing})
        return f"{type(thing).__qualname__} of {len(thing)}: {parts}"[:_LENGTH]
    return repr(thing)[:_LENGTH]
