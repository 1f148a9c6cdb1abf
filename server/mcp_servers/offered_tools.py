"""Which of the tools that a server lists are offered to a model, and in which form.

One tool that a model's provider refuses would make it refuse every request, of all users: what can't be right is left
out here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from mcp.types import Tool

from server.mcp_servers.settings import ServerSettings

_MOST_LOOKED_AT = 1000
_MAX_NAME = 128
_MAX_DESCRIPTION = 1024
_MAX_SCHEMA = 32 * 1024
_MAX_DEPTH = 32
_COMPOSED = frozenset({"oneOf", "anyOf", "allOf", "not", "enum", "const"})
"""What providers take below the top of a schema only."""


async def offered(listed: Sequence[Tool], settings: ServerSettings) -> list[Tool]:
    """The tools that are offered, in the order of the list, `settings.max_tools` at most."""
    chosen: dict[str, Tool] = {}
    for tool in [tool for tool in listed if _is_wanted(tool.name, settings)][:_MOST_LOOKED_AT]:
        if len(chosen) == settings.max_tools:
            break
        if tool.name not in chosen and _is_usable(tool):
            chosen[tool.name] = _reduced(tool)
        # To check a schema takes milliseconds: others get their turn.
        await asyncio.sleep(0)
    return list(chosen.values())


def _is_wanted(name: str, settings: ServerSettings) -> bool:
    allowed = settings.allowed_tools
    return (allowed is None or name in allowed) and name not in settings.blocked_tools


def _is_usable(tool: Tool) -> bool:
    schema = tool.input_schema
    if not 0 < len(tool.name) <= _MAX_NAME or schema.get("type", "object") != "object" or _COMPOSED & schema.keys():
        return False
    try:
        if len(json.dumps(schema)) > _MAX_SCHEMA or _depth(schema) > _MAX_DEPTH:
            return False
        Draft202012Validator.check_schema(schema)
    except (SchemaError, RecursionError, ValueError):
        return False
    return True


def _depth(value: object) -> int:
    members: Iterable[object] = ()
    if isinstance(value, dict):
        members = value.values()
    elif isinstance(value, list):
        members = value
    return 1 + max(map(_depth, members), default=0)


def _reduced(tool: Tool) -> Tool:
    """What a model needs of it. Its own metadata would be sent back with each call, and could replace ours."""
    return Tool(
        name=tool.name,
        title=tool.title[:_MAX_NAME] if tool.title else None,
        description=tool.description[:_MAX_DESCRIPTION] if tool.description else None,
        input_schema=_with_items({"type": "object", **tool.input_schema}),
    )


def _with_items(schema: Any) -> Any:
    """A schema each of whose arrays says what it is of, be that anything: some providers refuse one that doesn't."""
    if isinstance(schema, list):
        return [_with_items(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {name: _with_items(part) for name, part in schema.items()}
    return changed | {"items": {}} if schema.get("type") == "array" and "items" not in schema else changed
